"""A foreign dataset as an entry: how it is opened, whose robot it is, and whether the files are what the entry says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_pipelines.episode import Episode
from data_pipelines.sources.source import About, BadEpisode, LowDim, Source, read_episode
from wam.embodiment import NONE_EMBODIMENT, EmbodimentSpec, Gripper, Rotation

_CHECKED = 16  # episodes that `check` reads
_UNIT = 0.02  # how far a stored rotation's lengths may be from 1
_RATE = 0.01  # relative
_OUTSIDE = 0.1  # of a gripper's range


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One entry a dataset."""

    name: str
    open: Callable[..., Source]
    """path, and options of its format such as `split` -> its source"""
    robot: EmbodimentSpec = NONE_EMBODIMENT
    cameras: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """our name -> the source's, in order; empty: all, under their own names"""
    wrist: tuple[str, ...] = ()
    """those of our names that move with a hand"""
    spoken: bool = True
    """does every episode have an instruction?"""

    def __post_init__(self):
        if unknown := sorted(set(self.wrist) - set(self.cameras)):
            raise ValueError(f"dataset {self.name!r}: the wrist camera {unknown[0]!r} is none of {list(self.cameras)}")

    @property
    def embodiment(self) -> str:
        """Name of the robot; "none" for video without actions."""
        return self.robot.name

    def read(self, source: Source, i: int) -> Episode:
        """Episode i with our camera names; BadEpisode as `read_episode`."""
        names = dict(self.cameras) or {name: name for name in source.about(i).cameras}
        episode = read_episode(source, i, names.values(), embodiment=self.embodiment)
        return dataclasses.replace(episode, frames={ours: episode.frames[theirs] for ours, theirs in names.items()})

    def check(self, source: Source, episodes: int = _CHECKED) -> list[str]:
        """What of this entry the files contradict, a sentence each; decodes no frame.

        Of episodes evenly spaced over the source; those that are damaged are left to whoever reads them, but one at
        least must be whole.
        """
        found: dict[str, str] = {}  # what is wrong -> in the first episode that has it
        read: list[LowDim] = []
        damage: list[str] = []
        for i in np.unique(np.linspace(0, len(source) - 1, min(len(source), episodes)).astype(int)).tolist():
            try:
                about = source.about(i)
                lowdim = LowDim(None, None) if self.robot == NONE_EMBODIMENT else source.lowdim(i)
            except BadEpisode as error:
                damage.append(str(error))
                continue
            read.append(lowdim)
            wrong = self._about(about) + (self._dims(lowdim) or self._rotations(lowdim))
            found = {what: f"{source.name}, episode {about.episode!r}: {what}" for what in wrong} | found
        if not read:
            return [f"{source.name}: none of {len(damage)} episodes can be read, the first one: {damage[0]}"]
        if not found:
            return [f"{source.name}: {sentence}" for sentence in self._grippers(read)]
        return list(found.values())

    def _about(self, about: About) -> list[str]:
        wrong = [
            f"has no camera {theirs!r}, which the entry {self.name!r} calls {ours!r}; it has {sorted(about.cameras)}"
            for ours, theirs in self.cameras.items()
            if theirs not in about.cameras
        ]
        if self.robot != NONE_EMBODIMENT and abs(about.fps / self.robot.control_hz - 1) > _RATE:
            wrong.append(
                f"has {about.fps:.4g} steps a second, {self.embodiment!r} declares {self.robot.control_hz:.4g}"
            )
        if self.spoken and not about.instruction.strip():
            wrong.append(f"has no instruction, which the entry {self.name!r} declares")
        return wrong

    def _dims(self, lowdim: LowDim) -> list[str]:
        wrong = []
        for what, array, dim in (
            ("state", lowdim.state, self.robot.state_dim),
            ("action", lowdim.action, self.robot.action_dim),
        ):
            got = 0 if array is None else array.shape[1]
            if got != dim:
                wrong.append(f"{what} has {got} dims, {self.embodiment!r} declares {dim}")
        return wrong

    def _rotations(self, lowdim: LowDim) -> list[str]:
        robot = self.robot
        groups: list[tuple[str, np.ndarray | None, Sequence[str], Sequence[Rotation]]] = [
            ("state", lowdim.state, robot.state_names, robot.state_rotations),
            ("action", lowdim.action, robot.action_names, robot.action_rotations),
        ]
        return [
            f"{what} {rotation.name!r} is no {rotation.representation} (dims {', '.join(rotation.dims)})"
            for what, array, names, rotations in groups
            for rotation in rotations
            if array is not None and not _is_rotation(array[:, [names.index(dim) for dim in rotation.dims]], rotation)
        ]

    def _grippers(self, values: Sequence[LowDim]) -> list[str]:
        robot = self.robot
        groups: list[tuple[str, list[np.ndarray | None], Sequence[str], Sequence[Gripper]]] = [
            ("state", [low.state for low in values], robot.state_names, robot.state_grippers),
            ("action", [low.action for low in values], robot.action_names, robot.action_grippers),
        ]
        wrong = []
        for what, arrays, names, grippers in groups:
            for gripper in grippers:
                seen = np.concatenate([array[:, names.index(gripper.name)] for array in arrays if array is not None])
                low, high = sorted((gripper.open, gripper.closed))
                room = _OUTSIDE * (high - low)
                if seen.min() < low - room or seen.max() > high + room:
                    wrong.append(
                        f"{what} {gripper.name!r} goes from {seen.min():.4g} to {seen.max():.4g}, {self.embodiment!r} "
                        f"declares {gripper.open:.4g} for open and {gripper.closed:.4g} for closed"
                    )
        return wrong


def _is_rotation(x: np.ndarray, rotation: Rotation) -> bool:
    """Could these rows [N, n] be in this representation? Angles and vectors must stay within two turns."""
    kind = rotation.representation
    if kind.startswith("quaternion"):
        return bool((np.abs(np.linalg.norm(x, axis=1) - 1) < _UNIT).all())
    if kind.startswith(("rot6d", "matrix")):
        given = x.reshape(len(x), 3, 3) if kind == "matrix" else x.reshape(len(x), 2, 3)
        products = given @ given.swapaxes(1, 2)
        right_handed = kind != "matrix" or bool((np.linalg.det(given) > 0).all())
        return right_handed and bool((np.abs(products - np.eye(given.shape[1])) < _UNIT).all())
    return bool((np.abs(x) <= 4 * np.pi).all())
