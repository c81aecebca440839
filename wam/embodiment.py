"""Embodiments: from a robot's own numbers to what the model sees, and back. numpy only.

A dataset keeps its own units, rotations and gripper convention; so do stores, observations and answers. What lies
between them and the model is one pair of maps, `EmbodimentSpec.encode_*` and `decode_*`, and then a `Normalizer`:

    raw [A] -> relative to the chunk's start -> rotations as rot6d, grippers from -1 (open) to 1 (closed) -> normalised

`decode_*` is the exact inverse, up to the rounding of float32; a rotation comes back as the same rotation in its
representation's canonical form. Names without `model_` are raw.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam import rotations

# How an action dimension moves the robot. "delta": increments, they add up; "absolute" and "relative" (stored as
# targets, seen relative to the chunk's start): the latest value holds; "gripper": the latest value holds and it is
# never a translation.
ACTION_KINDS = ("delta", "absolute", "relative", "gripper")
_ADDITIVE = ("rotation_vector", "euler")


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Dimensions that are one rotation, in the order of its representation."""

    name: str
    """a relative action is relative to the state's rotation of the same name"""
    dims: tuple[str, ...]
    representation: str
    """one of `wam.rotations.SIZES`"""


@dataclasses.dataclass(frozen=True)
class Gripper:
    """A dimension and its raw values with the gripper open and closed, which the model sees as -1 and 1."""

    name: str
    open: float
    closed: float


@dataclasses.dataclass(frozen=True)
class EmbodimentSpec:
    """A robot. Embodiment 0 is reserved for "none" (video without actions).

    Raises:
        ValueError: the first thing that does not fit together, in one sentence.
    """

    name: str
    action_kinds: tuple[str, ...]
    """One of `ACTION_KINDS` per raw action dimension."""
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    control_hz: float
    state_rotations: tuple[Rotation, ...] = ()
    action_rotations: tuple[Rotation, ...] = ()
    """Those of kind "delta" are small increments: they add up as they are and stay what they are."""
    state_grippers: tuple[Gripper, ...] = ()
    action_grippers: tuple[Gripper, ...] = ()
    unnormalized: tuple[str, ...] = ()
    """Further dimensions of state or action that are fit for a model as they are."""

    def __post_init__(self):
        self._require(not (bad := sorted(set(self.action_kinds) - set(ACTION_KINDS))),
                      f"unknown action kinds {bad}; choose from {ACTION_KINDS}")  # fmt: skip
        self._require(len(self.action_names) == len(self.action_kinds),
                      f"{len(self.action_names)} action names for {len(self.action_kinds)} kinds")  # fmt: skip
        self._require(self.control_hz > 0, f"control_hz must be positive, is {self.control_hz}")
        for what in ("state", "action"):
            self._check_dims(what, getattr(self, f"{what}_names"))
        kinds = dict(zip(self.action_names, self.action_kinds, strict=True))
        for gripper in self.action_grippers:
            self._require(kinds[gripper.name] == "gripper",
                          f"the action {gripper.name!r} has a gripper's range but is "
                          f"{kinds[gripper.name]!r}")  # fmt: skip
        turned = {dim: rotation for rotation in self.action_rotations for dim in rotation.dims}
        for rotation in self.action_rotations:
            own = sorted({kinds[dim] for dim in rotation.dims})
            self._require(len(own) == 1 and own != ["gripper"],
                          f"the action rotation {rotation.name!r} must be of one kind, is {own}")  # fmt: skip
            self._require(own != ["delta"] or rotation.representation.startswith(_ADDITIVE),
                          f"the action rotation {rotation.name!r} is a delta: increments add up only as a rotation "
                          f"vector or as Euler angles, not as {rotation.representation}")  # fmt: skip
            self._require(own != ["relative"] or rotation.name in {r.name for r in self.state_rotations},
                          f"the relative action rotation {rotation.name!r} needs a state rotation of the same "
                          "name")  # fmt: skip
        plain = set(self.state_names) - {dim for r in self.state_rotations for dim in r.dims}
        plain -= {gripper.name for gripper in self.state_grippers}
        alone = sorted(dim for dim, kind in kinds.items() if kind == "relative" and dim not in {*turned, *plain})
        self._require(not alone, f"relative actions {alone} need state dims of the same name (and no part of a "
                      "rotation or gripper)")  # fmt: skip
        unknown = sorted(set(self.unnormalized) - {*self.state_names, *self.action_names})
        self._require(not unknown, f"unnormalized names {unknown}, which are dims of neither state nor action")

    def _check_dims(self, what: str, names: Sequence[str]) -> None:
        self._require(len(set(names)) == len(names), f"a name occurs twice among the {what} dims {tuple(names)}")
        taken: dict[str, str] = {}
        groups = [(f"rotation {r.name!r}", r.dims) for r in getattr(self, f"{what}_rotations")]
        groups += [(f"gripper {g.name!r}", (g.name,)) for g in getattr(self, f"{what}_grippers")]
        for group, dims in groups:
            for dim in dims:
                self._require(dim in names, f"the {what} {group} has the dim {dim!r}, which the {what} lacks")
                self._require(dim not in taken, f"the {what} dim {dim!r} is in {taken.get(dim)} and in {group}")
                taken[dim] = group
        for rotation in getattr(self, f"{what}_rotations"):
            size = rotations.SIZES.get(rotation.representation)
            self._require(size is not None, f"the {what} rotation {rotation.name!r} is in the unknown representation "
                          f"{rotation.representation!r}; choose from {', '.join(rotations.SIZES)}")  # fmt: skip
            self._require(size == len(rotation.dims), f"the {what} rotation {rotation.name!r} has "
                          f"{len(rotation.dims)} dims, {rotation.representation} has {size}")  # fmt: skip
        for gripper in getattr(self, f"{what}_grippers"):
            self._require(bool(np.isfinite([gripper.open, gripper.closed]).all()) and gripper.open != gripper.closed,
                          f"the {what} gripper {gripper.name!r} is {gripper.open} open and {gripper.closed} closed: "
                          "they must be finite and differ")  # fmt: skip

    def _require(self, condition: bool, problem: str) -> None:
        if not condition:
            raise ValueError(f"embodiment {self.name!r}: {problem}")

    # ------------------------------------------------------------ dimensions

    @property
    def action_dim(self) -> int:
        """Of the raw action."""
        return len(self.action_kinds)

    @property
    def state_dim(self) -> int:
        """Of the raw state."""
        return len(self.state_names)

    @property
    def model_action_dim(self) -> int:
        return len(self.model_action_names)

    @property
    def model_state_dim(self) -> int:
        return len(self.model_state_names)

    @property
    def model_action_names(self) -> tuple[str, ...]:
        """As the action's, a rotation's six dims in the place of its first one."""
        return self._action.names

    @property
    def model_state_names(self) -> tuple[str, ...]:
        return self._state.names

    @property
    def model_action_kinds(self) -> tuple[str, ...]:
        return tuple(self.action_kinds[i] for i in self._action.origin)

    @property
    def fixed_action(self) -> np.ndarray:
        """bool [model_action_dim]: dims that are not normalised by statistics.

        Those of a rotation are within [-1, 1] as they are, and a scale for each would shear it; those of a gripper with
        a known range are, too, and then mean the same for every robot, even where a dataset never closes it.
        """
        return self._action.fixed

    @property
    def fixed_state(self) -> np.ndarray:
        return self._state.fixed

    @functools.cached_property
    def _action(self) -> _Layout:
        kinds = dict(zip(self.action_names, self.action_kinds, strict=True))
        converted = [rotation for rotation in self.action_rotations if kinds[rotation.dims[0]] != "delta"]
        return _Layout(self.action_names, converted, self.action_grippers, self.unnormalized)

    @functools.cached_property
    def _state(self) -> _Layout:
        return _Layout(self.state_names, self.state_rotations, self.state_grippers, self.unnormalized)

    @functools.cached_property
    def _reference(self) -> tuple[list[int], list[int]]:
        """(model action dims, raw state dims) of the relative actions that are no rotation."""
        dims = [m for m, raw in self._action.plain if self.action_kinds[raw] == "relative"]
        return dims, [self.state_names.index(self._action.names[m]) for m in dims]

    # ------------------------------------------------------------ there and back

    def encode_state(self, state: np.ndarray) -> np.ndarray:
        """[..., state_dim] -> f32 [..., model_state_dim], not normalised."""
        return self._state.encode(state, {})

    def decode_state(self, state: np.ndarray) -> np.ndarray:
        """Inverse of `encode_state`."""
        return self._state.decode(state, {})

    def encode_action(self, action: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Raw [..., K, action_dim], raw state at the chunk's start [..., state_dim] -> f32 [..., K, model_action_dim].

        A relative translation is the difference along the axes in which the dataset gives it; a relative rotation is
        R_state^T R_action.
        """
        encoded = self._action.encode(action, self._turned(state))
        dims, reference = self._reference
        encoded[..., dims] -= np.asarray(state, np.float32)[..., None, reference]
        return encoded

    def decode_action(self, action: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Inverse of `encode_action`."""
        action = np.array(action, np.float32)
        dims, reference = self._reference
        action[..., dims] += np.asarray(state, np.float32)[..., None, reference]
        return self._action.decode(action, self._turned(state))

    def _turned(self, state: np.ndarray) -> dict[str, np.ndarray]:
        """[..., 1, 3, 3]: what each relative rotation of the action is relative to."""
        kinds = dict(zip(self.action_names, self.action_kinds, strict=True))
        names = {rotation.name for rotation in self.action_rotations if kinds[rotation.dims[0]] == "relative"}
        return {
            rotation.name: rotations.to_matrix(np.asarray(state)[..., raw], rotation.representation)[..., None, :, :]
            for rotation, raw, _ in self._state.rotations
            if rotation.name in names
        }

    # ------------------------------------------------------------ on disk

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EmbodimentSpec:
        """ValueError if it is not what `to_json` gives."""
        kinds = {"rotations": Rotation, "grippers": Gripper}
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            for key, value in fields.items():
                kind: Any = kinds.get(key.partition("_")[2])
                if kind is not None:
                    fields[key] = tuple(
                        kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}) for entry in value
                    )
            return cls(**fields)
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"this is not the JSON of an embodiment: {error}") from None


class _Layout:
    """Where the dims of a raw vector lie in the model's."""

    def __init__(self, names: Sequence[str], turned: Sequence[Rotation], grippers: Sequence[Gripper],
                 unnormalized: Sequence[str]):  # fmt: skip
        self.raw_dim = len(names)
        rotation_of = {dim: rotation for rotation in turned for dim in rotation.dims}
        model_names: list[str] = []
        self.origin: list[int] = []
        """raw dim that each model dim comes from; of a rotation its first one"""
        self.plain: list[tuple[int, int]] = []
        """(model dim, raw dim) of those that are no rotation"""
        self.rotations: list[tuple[Rotation, list[int], slice]] = []
        """(rotation, its raw dims, its model dims)"""
        seen = set()
        for raw, name in enumerate(names):
            rotation = rotation_of.get(name)
            if rotation is None:
                self.plain.append((len(model_names), raw))
                model_names.append(name)
                self.origin.append(raw)
            elif rotation.name not in seen:
                seen.add(rotation.name)
                place = slice(len(model_names), len(model_names) + 6)
                self.rotations.append((rotation, [names.index(dim) for dim in rotation.dims], place))
                model_names += [f"{rotation.name}_rot6d_{k}" for k in range(6)]
                self.origin += [raw] * 6
        self.names = tuple(model_names)
        self._model_dims = [model for model, _ in self.plain]
        self._raw_dims = [raw for _, raw in self.plain]
        self._grippers = [(model_names.index(gripper.name), gripper) for gripper in grippers]
        self.fixed = np.array([name in unnormalized for name in model_names], np.bool_)
        self.fixed[[dim for dim, _ in self._grippers]] = True
        for _, _, place in self.rotations:
            self.fixed[place] = True

    def encode(self, raw: np.ndarray, references: Mapping[str, np.ndarray]) -> np.ndarray:
        """`references`: of rotations by name, what they become relative to, [..., 3, 3]."""
        raw = np.asarray(raw, np.float32)
        out = np.empty((*raw.shape[:-1], len(self.names)), np.float32)
        out[..., self._model_dims] = raw[..., self._raw_dims]
        for dim, gripper in self._grippers:
            out[..., dim] = 2 * (out[..., dim] - gripper.open) / (gripper.closed - gripper.open) - 1
        for rotation, dims, place in self.rotations:
            matrix = rotations.to_matrix(raw[..., dims], rotation.representation)
            if rotation.name in references:
                matrix = rotations.relative(references[rotation.name], matrix)
            out[..., place] = rotations.from_matrix(matrix, "rot6d")
        return out

    def decode(self, seen: np.ndarray, references: Mapping[str, np.ndarray]) -> np.ndarray:
        seen = np.asarray(seen, np.float32)
        out = np.empty((*seen.shape[:-1], self.raw_dim), np.float32)
        out[..., self._raw_dims] = seen[..., self._model_dims]
        for dim, gripper in self._grippers:
            opened = (seen[..., dim] + 1) / 2 * (gripper.closed - gripper.open) + gripper.open
            out[..., self.origin[dim]] = opened
        for rotation, dims, place in self.rotations:
            matrix = rotations.to_matrix(seen[..., place], "rot6d")
            if rotation.name in references:
                matrix = references[rotation.name] @ matrix
            out[..., dims] = rotations.from_matrix(matrix, rotation.representation)
        return out


NONE_EMBODIMENT = EmbodimentSpec("none", (), (), (), control_hz=1.0)


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """Affine map per dimension, x -> 2 (x - low) / (high - low) - 1, with its exact inverse and no clipping.

    `low` and `high` [dim] come from the training data: the 1 % and 99 % quantiles, minimum and maximum, or mean minus
    and plus standard deviation. A near-constant dimension (high - low < 1e-4, or within the rounding of float32) keeps
    unit scale around its value, so that noise in it is not blown up; bounds of -1 and 1 change nothing. Exact means:
    back to within a few roundings of float32 of max(|x|, |low|, |high|).
    """

    low: np.ndarray
    high: np.ndarray

    def __post_init__(self):
        object.__setattr__(self, "low", np.asarray(self.low, np.float32))
        object.__setattr__(self, "high", np.asarray(self.high, np.float32))
        if self.low.shape != self.high.shape or self.low.ndim != 1:
            raise ValueError(
                f"normaliser bounds must be two vectors of one length, got {self.low.shape}, {self.high.shape}"
            )
        if not (np.isfinite(self.low).all() and np.isfinite(self.high).all()):
            raise ValueError("normaliser bounds must be finite")

    @property
    def constant(self) -> np.ndarray:
        """bool [dim]: the near-constant dimensions."""
        rounding = 1e-6 * np.maximum(np.abs(self.low), np.abs(self.high))
        return self.high - self.low < np.maximum(1e-4, rounding)

    @property
    def center(self) -> np.ndarray:
        return (self.low + self.high) / 2

    @property
    def scale(self) -> np.ndarray:
        return np.where(self.constant, 1.0, (self.high - self.low) / 2).astype(np.float32)

    def normalize(self, x: np.ndarray) -> np.ndarray:
        return ((np.asarray(x, np.float32) - self.center) / self.scale).astype(np.float32)

    def denormalize(self, x: np.ndarray) -> np.ndarray:
        return (np.asarray(x, np.float32) * self.scale + self.center).astype(np.float32)

    def to_json(self) -> dict:
        return {"low": self.low.tolist(), "high": self.high.tolist()}

    @classmethod
    def from_json(cls, data: dict) -> Normalizer:
        return cls(np.asarray(data["low"], np.float32), np.asarray(data["high"], np.float32))
