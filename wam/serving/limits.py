"""The last thing an action passes: nothing leaves that is out of bounds, changes too fast or is no number."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of every action dimension in the robot's units, [A] each; infinite where there is none.

    Raises ValueError for bounds of different lengths, NaN, low above high, or a change that is not positive.
    """

    low: np.ndarray
    high: np.ndarray
    max_change: np.ndarray
    """From one control step to the next."""

    def __post_init__(self):
        for name in ("low", "high", "max_change"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float32))
        shapes = {self.low.shape, self.high.shape, self.max_change.shape}
        if len(shapes) > 1 or self.low.ndim != 1:
            raise ValueError(f"limits: low, high and max_change must be vectors of one length, got {sorted(shapes)}")
        if not (self.low <= self.high).all():
            raise ValueError(f"limits: low must not be above high, got {self.low.tolist()} and {self.high.tolist()}")
        if not (self.max_change > 0).all():
            raise ValueError(f"limits: max_change must be positive, got {self.max_change.tolist()}")

    @classmethod
    def of(cls, dims: int, low: float | Sequence[float] = -np.inf, high: float | Sequence[float] = np.inf,
           max_change: float | Sequence[float] = np.inf) -> Limits:  # fmt: skip
        """Of `dims` dimensions; a single number counts for all of them."""
        return cls(*(np.broadcast_to(np.asarray(x, np.float32), (dims,)) for x in (low, high, max_change)))

    def apply(self, action: np.ndarray, last: np.ndarray) -> np.ndarray:
        """`action` [A] within the bounds, and as near to it as a step from `last` [A] (within the bounds) may go."""
        bounded = np.clip(action, self.low, self.high)
        return np.clip(bounded, last - self.max_change, last + self.max_change).astype(np.float32)


class Gate:
    """Sends actions through the limits and counts what they change; stops, and stays stopped, when told to.

    Attributes:
      last: f32 [A], the action sent last.
      stopped: why nothing but `still()` is sent, or None.
      clipped, slowed: int [A], actions changed by the bounds and by the largest change, per dimension.
    """

    def __init__(self, limits: Limits, rest: Sequence[float] | np.ndarray, delta: Sequence[bool] | np.ndarray):
        """`rest` [A] stands for the last action before there is one; `delta` [A] tells dimensions that are increments.

        Raises ValueError where their shapes differ from the limits', or `rest` is outside them.
        """
        self.limits, self.delta = limits, np.asarray(delta, bool)
        self.last = np.asarray(rest, np.float32)
        for name, value in (("rest", self.last), ("delta", self.delta)):
            if value.shape != limits.low.shape:
                raise ValueError(f"{name}: expected {len(limits.low)} values, one an action dimension, got {value}")
        if not ((self.last >= limits.low) & (self.last <= limits.high)).all():
            raise ValueError(f"rest: expected an action within the limits, got {self.last.tolist()}")
        self.stopped: str | None = None
        self.clipped, self.slowed = np.zeros((2, len(self.last)), int)

    def still(self) -> np.ndarray:
        """f32 [A]: the action that moves nothing: no increments, and the last of everything else."""
        return np.where(self.delta, 0, self.last).astype(np.float32)

    def send(self, action: np.ndarray) -> np.ndarray:
        """The action [A] that may leave; after a stop, or for one that is not finite (which is a stop): `still()`."""
        action = np.asarray(action, np.float32)
        if self.stopped is None and not np.isfinite(action).all():
            self.stop(f"an action is not finite: {action.tolist()}")
        if self.stopped is not None:
            # At once: the largest change does not delay a stop.
            self.last = self.still()
            return self.last.copy()
        bounded = np.clip(action, self.limits.low, self.limits.high)
        sent = self.limits.apply(action, self.last)
        self.clipped += bounded != action
        self.slowed += sent != bounded
        self.last = sent
        return sent.copy()

    def stop(self, reason: str) -> None:
        """From now on nothing but `still()` is sent. The first reason stays."""
        self.stopped = self.stopped or reason

    def clear(self) -> None:
        self.stopped = None
