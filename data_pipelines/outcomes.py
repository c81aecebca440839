"""How episodes end, as value targets: discounted success, counted in seconds, where the outcome is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


def success_seconds(meta: Mapping[str, Any], control_hz: float, start: np.ndarray, span: int, steps: int) -> np.ndarray:
    """f32 [M]: seconds from each chunk's start until the episode succeeds; inf if it never does.

    nan where there is nothing to learn: an ingested episode whose dataset does not say (`success` None); a chunk that
    starts once all is done; and a chunk that reaches past the end of the episode. Episodes mostly end because they
    succeed, so that missing frames and actions would give the outcome away, and whoever plans with a value that learned
    this finds chunks that look like the end of something.

    Args:
        meta: of the episode (`success_step`, -1 for never).
        control_hz: its control steps a second.
        start: int [M], control step of the episode at which each chunk starts.
        span: control steps that a chunk covers, frames and actions.
        steps: control steps of the whole episode.
    """
    if meta.get("success", True) is None:
        return np.full(len(start), np.nan, np.float32)
    solved = meta["success_step"]
    seconds = (solved - start) / control_hz if solved >= 0 else np.full(len(start), np.inf)
    return np.where((start + span <= steps) & (seconds > 0), seconds, np.nan).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Which episodes teach the value, and how far off success is worth how much."""

    gamma: float = 0.5
    """Discount a second, so that robots of any rate share one value. Cosmos Policy's 0.99 a step at 80 Hz would be
    0.45; choose it such that an episode's length leaves a value well above one bin."""
    kinds: tuple[str, ...] = ("expert", "rollout")
    """Episodes of these kinds have a meant outcome; play has none."""

    def __post_init__(self):
        if not 0 < self.gamma < 1:
            raise ValueError(f"data.value.gamma is a discount a second within (0, 1), got {self.gamma}")
        if not self.kinds or isinstance(self.kinds, str):
            raise ValueError(f"data.value.kinds must name kinds of episodes, got {self.kinds!r}")

    def targets(self, kind: str, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(value f32 [M], mask bool [M]) of `success_seconds` [M] in an episode of this kind."""
        known = ~np.isnan(seconds) & (kind in self.kinds)
        value = np.power(self.gamma, np.where(known, seconds, np.inf))
        return value.astype(np.float32), known
