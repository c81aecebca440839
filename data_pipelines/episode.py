"""An episode in memory, what makes it valid, and how it is cut into clips."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

_REQUIRED_META = ("episode", "task", "instruction", "embodiment", "kind", "layout", "control_hz", "success_step")


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode in raw units. N control steps, Nf stored frames, h x w pixels, A action and S state dims."""

    frames: dict[str, np.ndarray]
    """camera -> uint8 [Nf, h, w, 3]"""
    frame_step: np.ndarray
    """int32 [Nf]: control step at which each frame was seen; starts at 0, increases, at most N"""
    state: np.ndarray | None
    """f32 [N+1, S]: state[s] is seen before action[s]; None without actions"""
    action: np.ndarray | None
    """f32 [N, A]; None for action-free video"""
    imitate: np.ndarray
    """bool [N]: may this control step be copied?"""
    meta: dict[str, Any]
    """JSON-able: episode (unique str), task, instruction, embodiment ("none" if action-free), kind, layout,
    control_hz, success_step (-1: never), and anything else worth keeping"""
    may_start: np.ndarray | None = None
    """bool [Nf]: may a window begin at this frame? It may then run on past frames where none begins. None: anywhere"""

    @property
    def steps(self) -> int:
        return len(self.imitate)


@dataclasses.dataclass(frozen=True)
class Clip(Episode):
    """A stretch of an episode; all arrays and steps count from the clip's first step."""

    start: int = 0
    """control step of the episode at which the clip begins; a stored frame is there"""
    episode_steps: int = 0
    """N of the whole episode"""
    anchors: tuple[int, int] = (0, 0)
    """[first, last) of this clip's frames that it owns: over all clips, every frame of the episode once"""

    @property
    def is_last(self) -> bool:
        return self.start + self.steps == self.episode_steps


def check_episode(episode: Episode) -> None:
    """Raises ValueError naming the first thing wrong with the episode."""
    name, N, step = episode.meta.get("episode", "?"), episode.steps, np.asarray(episode.frame_step)

    def require(condition: bool, problem: str) -> None:
        if not condition:
            raise ValueError(f"episode {name!r}: {problem}")

    missing = [key for key in _REQUIRED_META if key not in episode.meta]
    require(not missing, f"meta lacks {missing}")
    require(isinstance(name, str), "meta 'episode' must be a string that is unique in the store")
    try:
        json.dumps(episode.meta)
    except TypeError as error:
        require(False, f"meta must hold plain JSON values: {error}")
    require(N > 0 and episode.imitate.dtype == np.bool_, "imitate must be bool [N] with at least one step")
    require(bool(episode.frames), "has no camera")
    require(
        len(step) > 1 and step[0] == 0 and bool((np.diff(step) > 0).all()),
        "needs two frames at least, and frame_step must increase from 0",
    )
    require(step[-1] <= N, f"its last frame is at step {step[-1]}, after its last step {N}")
    shapes = {frames.shape for frames in episode.frames.values()}
    require(len(shapes) == 1, f"cameras differ in shape: {sorted(shapes)}")
    for camera, frames in episode.frames.items():
        good = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3 and len(frames) == len(step)
        require(good, f"camera {camera!r} must be uint8 [{len(step)}, h, w, 3], got {frames.dtype}{list(frames.shape)}")
    if episode.may_start is not None:
        good = episode.may_start.dtype == np.bool_ and episode.may_start.shape == (len(step),)
        require(good, f"may_start must be bool [{len(step)}], got {list(episode.may_start.shape)}")
    require((episode.state is None) == (episode.action is None), "state and action must both be there or both be None")
    for what, array, length in (("state", episode.state, N + 1), ("action", episode.action, N)):
        if array is not None:
            good = array.ndim == 2 and len(array) == length and bool(np.isfinite(array).all())
            require(good, f"{what} must be finite [{length}, dim], got {list(array.shape)}")
    if episode.action is None:
        require(episode.meta["embodiment"] == "none", "video without actions must have the embodiment 'none'")
        require(not episode.imitate.any(), "video without actions cannot be imitated")


def split(episode: Episode, clip_steps: int, overlap_steps: int) -> list[Clip]:
    """Cuts an episode into clips; each begins at a frame, the last one reaches the end of the episode."""
    check_episode(episode)
    N, step = episode.steps, np.asarray(episode.frame_step, np.int32)
    clips, first = [], 0
    while True:
        start = int(step[first])
        # The next clip begins at the first frame past this clip's own steps; no frame there: this clip takes the rest.
        following = int(np.searchsorted(step, start + clip_steps - overlap_steps))
        is_last = start + clip_steps >= N or following == len(step) or step[following] >= N
        stop = N if is_last else max(start + clip_steps, int(step[following]))
        end = int(np.searchsorted(step, stop, side="right"))
        clips.append(
            Clip(
                frames={camera: frames[first:end] for camera, frames in episode.frames.items()},
                frame_step=step[first:end] - start,
                state=None if episode.state is None else np.asarray(episode.state[start : stop + 1], np.float32),
                action=None if episode.action is None else np.asarray(episode.action[start:stop], np.float32),
                imitate=episode.imitate[start:stop],
                meta=episode.meta,
                may_start=None if episode.may_start is None else episode.may_start[first:end],
                start=start,
                episode_steps=N,
                anchors=(0, (end if is_last else following) - first),
            )
        )
        if is_last:
            return clips
        first = following
