"""The face of every dataset in a foreign format: its episodes by number, decoded only where asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from data_pipelines.episode import Episode
from wam.embodiment import NONE_EMBODIMENT


class BadEpisode(ValueError):  # noqa: N818 (it is the episode that is bad)
    """What is wrong with one episode, in one sentence; the others are not touched by it."""


@dataclasses.dataclass(frozen=True)
class About:
    """What is known of an episode before a frame is decoded."""

    episode: str
    """unique in the dataset"""
    frames: int
    """N, at least 1"""
    fps: float
    cameras: dict[str, tuple[int, int]]
    """name -> (h, w) in pixels"""
    instruction: str
    task: str
    success: bool | None = None
    """None: the dataset does not say"""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    """JSON-able: anything else worth keeping"""


@dataclasses.dataclass(frozen=True)
class LowDim:
    """The low-dimensional arrays of an episode of N frames, in raw units."""

    state: np.ndarray | None
    """f32 [N, S]: row t is what was measured at frame t"""
    action: np.ndarray | None
    """f32 [N, A]: row t is what was commanded at frame t; None for video without actions"""
    extra: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """further arrays [N, ...], a row per frame"""


class Source(Protocol):
    """Episodes of a dataset in its own format, by number: random access, nothing is copied.

    Picklable and thread-safe; files are opened lazily. The constructor raises FileNotFoundError or ValueError for what
    is wrong with the dataset, the methods raise BadEpisode for what is wrong with one episode.
    """

    @property
    def name(self) -> str: ...

    @property
    def problems(self) -> list[str]:
        """What the metadata said that the files do not, counted; the files are trusted. Grows as episodes are read."""
        ...

    def __len__(self) -> int:
        """Number of episodes."""
        ...

    def about(self, i: int) -> About:
        """Of episode i; no frame is decoded."""
        ...

    def lowdim(self, i: int) -> LowDim:
        """Of episode i; no frame is decoded."""
        ...

    def frames(self, i: int, camera: str, which: Sequence[int]) -> np.ndarray:
        """uint8 [n, h, w, 3]: the n frames of episode i with these numbers, in this order."""
        ...


def check_lowdim(episode: str, frames: int, lowdim: LowDim) -> LowDim:
    """Returns `lowdim`, or raises BadEpisode if an array has not one row per frame, or holds NaN or infinity."""
    arrays = {"state": lowdim.state, "action": lowdim.action} | lowdim.extra
    for name, array in arrays.items():
        if array is None:
            continue
        if len(array) != frames:
            raise BadEpisode(f"episode {episode!r}: {name} has {len(array)} rows for {frames} frames")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise BadEpisode(f"episode {episode!r}: {name} is not finite at frame {row}")
    return lowdim


def read_episode(
    source: Source,
    i: int,
    cameras: Iterable[str] | None = None,
    *,
    embodiment: str = NONE_EMBODIMENT.name,
    imitate: np.ndarray | None = None,
) -> Episode:
    """Decodes a whole episode, one control step a frame, in raw units.

    Args:
        source: the dataset.
        i: number of the episode.
        cameras: names to decode; all if None.
        embodiment: name of the robot; "none" reads the video alone, whatever else the episode has.
        imitate: bool [N], the steps that may be copied; None: every step that has an action.

    Raises:
        BadEpisode: the episode is damaged, or lacks a camera or the actions of the embodiment.
    """
    about, free = source.about(i), embodiment == NONE_EMBODIMENT.name
    N, names = about.frames, list(about.cameras if cameras is None else cameras)
    missing = [camera for camera in names if camera not in about.cameras]
    if missing:
        raise BadEpisode(f"episode {about.episode!r} has no camera {missing}, only {sorted(about.cameras)}")
    if imitate is None:
        imitate = np.full(N, not free)
    elif imitate.dtype != np.bool_ or imitate.shape != (N,):
        got = f"{imitate.dtype}{list(imitate.shape)}"
        raise ValueError(f"imitate must be bool [{N}] for episode {about.episode!r}, got {got}")
    state = action = None
    if not free:
        lowdim = source.lowdim(i)
        if lowdim.action is None:
            raise BadEpisode(f"episode {about.episode!r} has no actions: read it with the embodiment 'none'")
        action = lowdim.action
        # Nobody saw the state after the last action: the last one stands in.
        state = np.empty((N, 0), np.float32) if lowdim.state is None else lowdim.state
        state = np.concatenate([state, state[-1:]])
    return Episode(
        frames={camera: source.frames(i, camera, range(N)) for camera in names},
        frame_step=np.arange(N, dtype=np.int32),
        state=state,
        action=action,
        imitate=imitate,
        meta={
            "episode": about.episode,
            "task": about.task,
            "instruction": about.instruction,
            "embodiment": embodiment,
            "kind": "video" if free else "robot",
            "layout": None,
            "control_hz": about.fps,
            "success_step": N if about.success else -1,
            "success": about.success,
            "source": source.name,
            "extra": about.extra,
        },
    )
