"""Episodes of any data set, foreign or a store of ours, as what a person looks at: rows at a rate, and some frames."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from data_pipelines.datasets import Dataset
from data_pipelines.embodiments import embodiment_of_store
from data_pipelines.sources.source import BadEpisode, Source
from data_pipelines.store import ClipStore
from wam.embodiment import NONE_EMBODIMENT, EmbodimentSpec

_TIME_COLUMNS = ("timestamp", "time")


@dataclasses.dataclass(frozen=True)
class Rows:
    """One episode without its pixels. N control steps, F stored frames."""

    name: str
    instruction: str
    hz: float
    """control steps a second"""
    state: np.ndarray | None
    """f32 [N, S] or, with what was seen after the last action, [N + 1, S]"""
    action: np.ndarray | None
    """f32 [N, A]"""
    frame_step: np.ndarray
    """int [F]: control step of every frame"""
    cameras: tuple[str, ...]
    seconds: np.ndarray | None = None
    """[N]: the data set's own timestamps, where it has some"""

    @property
    def steps(self) -> int:
        if self.action is not None:
            return len(self.action)
        return len(self.frame_step) if self.state is None else len(self.state)

    @property
    def digest(self) -> str | None:
        """SHA-256 of actions and states, bit by bit; None if there is nothing that varies.

        A state after the last action does not count, so that an episode has one digest in its own format and in ours.
        """
        arrays = [array[: self.steps] for array in (self.action, self.state) if array is not None and array.size]
        if not any((array != array[0]).any() for array in arrays):
            return None
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())
        return digest.hexdigest()


class Episodes(Protocol):
    """Random access to the episodes of a data set; methods raise BadEpisode for what is wrong with one of them."""

    name: str
    embodiment: EmbodimentSpec | None
    """None: nobody declared what the dimensions are"""

    @property
    def problems(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def rows(self, i: int) -> Rows: ...

    def frames(self, i: int, camera: str, which: Sequence[int]) -> np.ndarray:
        """uint8 [n, h, w, 3]; numbers count the frames of the episode."""
        ...


class ForeignEpisodes:
    """The episodes of a `Source`, with the names of its entry in `datasets.py`."""

    def __init__(self, dataset: Dataset, source: Source, *, label: str = ""):
        self._source, self._cameras = source, dict(dataset.cameras)
        self.name = label or source.name
        self.embodiment = None if dataset.robot == NONE_EMBODIMENT else dataset.robot

    @property
    def problems(self) -> list[str]:
        return self._source.problems

    def __len__(self) -> int:
        return len(self._source)

    def rows(self, i: int) -> Rows:
        about, low_dim = self._source.about(i), self._source.lowdim(i)
        seconds = next((low_dim.extra[name] for name in _TIME_COLUMNS if name in low_dim.extra), None)
        named = tuple(ours for ours, theirs in self._cameras.items() if theirs in about.cameras)
        return Rows(
            about.episode,
            about.instruction,
            about.fps,
            low_dim.state,
            low_dim.action,
            np.arange(about.frames),
            named if self._cameras else tuple(about.cameras),
            None if seconds is None else np.asarray(seconds, np.float64).reshape(-1),
        )

    def frames(self, i: int, camera: str, which: Sequence[int]) -> np.ndarray:
        return self._source.frames(i, self._cameras.get(camera, camera), which)


class StoreEpisodes:
    """The episodes of a store, put together from their clips."""

    def __init__(self, store: ClipStore):
        self._store, robot = store, embodiment_of_store(store.manifest)
        self.name = store.directory.name
        self.embodiment = None if robot == NONE_EMBODIMENT else robot
        clips: dict[str, list[int]] = {}
        for i, meta in enumerate(store.index.meta):
            clips.setdefault(meta["episode"], []).append(i)
        self._clips = [sorted(own, key=lambda i: store.index.start[i]) for own in clips.values()]

    @property
    def problems(self) -> list[str]:
        return []

    def __len__(self) -> int:
        return len(self._clips)

    def _owned(self, i: int) -> list[tuple[int, int, int]]:
        """(clip, frame of the clip, control step of the episode) of every frame."""
        index = self._store.index
        return [
            (clip, frame, int(index.start[clip] + index.frame_step[clip][frame]))
            for clip in self._clips[i]
            for frame in range(*index.anchors[clip])
        ]

    def rows(self, i: int) -> Rows:
        index, clips = self._store.index, self._clips[i]
        meta, N = index.meta[clips[0]], int(index.episode_steps[clips[0]])

        def joined(parts: list[np.ndarray | None], length: int) -> np.ndarray | None:
            whole: np.ndarray | None = None
            for clip in clips:
                part, start = parts[clip], int(index.start[clip])
                if part is None:
                    return None
                if whole is None:
                    whole = np.full((length, part.shape[1]), np.nan, np.float32)
                whole[start : start + len(part)] = part
            return whole

        return Rows(
            meta["episode"],
            meta["instruction"],
            float(meta["control_hz"]),
            joined(index.state, N + 1),
            joined(index.action, N),
            np.array([step for _, _, step in self._owned(i)]),
            tuple(self._store.manifest["cameras"]),
        )

    def frames(self, i: int, camera: str, which: Sequence[int]) -> np.ndarray:
        owned = self._owned(i)
        frames: dict[int, np.ndarray] = {}
        try:
            for clip in self._clips[i]:  # one read a clip
                wanted = {n: owned[n][1] for n in {int(n) for n in which} if owned[n][0] == clip}
                if wanted:
                    images = self._store.frames(clip, [camera], list(wanted.values()))[0]
                    frames |= dict(zip(wanted, images, strict=True))
        except ValueError as error:
            raise BadEpisode(str(error)) from None
        return np.stack([frames[int(n)] for n in which])
