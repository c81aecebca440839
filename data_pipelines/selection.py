"""What of an episode is kept: fewer frames a second, and where windows may start."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.episode import Episode

_EPS = 1e-6  # of a slot: absorbs the rounding of seconds x rate

Ranges = tuple[tuple[int, int], ...]


def slots(seconds: np.ndarray, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """Which frames to keep at `fps`, and the slot, from 0, of each: the first frame in every 1 / fps seconds.

    Nothing is invented: where the frames are further apart than that, slots stay empty.
    """
    slot = np.floor(np.asarray(seconds, np.float64) * fps + _EPS).astype(np.int64)
    keep = np.flatnonzero(np.diff(slot, prepend=-1) > 0)
    return keep, slot[keep]


def resample(episode: Episode, seconds: np.ndarray, fps: float) -> Episode:
    """The episode with at most `fps` frames a second; f64 `seconds` [Nf] say when each frame was seen.

    Low-dimensional arrays keep their control rate. Video without actions has none: `fps` becomes its control rate, so
    that video of any rate goes into one store.
    """
    keep, slot = slots(seconds, fps)
    chosen = {
        "frames": {camera: _take(frames, keep) for camera, frames in episode.frames.items()},
        "frame_step": episode.frame_step[keep],
        "may_start": None if episode.may_start is None else episode.may_start[keep],
    }
    if episode.action is not None:
        return dataclasses.replace(episode, **chosen)
    N = int(slot[-1]) + 1
    success = N if episode.meta["success_step"] >= 0 else -1
    meta = episode.meta | {"control_hz": fps, "success_step": success}
    return dataclasses.replace(
        episode, **chosen | {"frame_step": slot.astype(np.int32)}, imitate=np.zeros(N, np.bool_), meta=meta
    )


def _take(frames: Any, keep: np.ndarray) -> Any:
    return frames.take(keep) if hasattr(frames, "shape") and not isinstance(frames, np.ndarray) else frames[keep]


def within(ranges: Ranges, steps: np.ndarray) -> np.ndarray:
    """bool [n]: does a half-open range hold the step?"""
    inside = np.zeros(len(steps), np.bool_)
    for start, stop in ranges:
        inside |= (steps >= start) & (steps < stop)
    return inside


def idle_steps(episode: Episode, tolerance: float, seconds: float) -> np.ndarray:
    """bool [N]: steps of a stretch of at least `seconds` in which nothing happens.

    Nothing happens in step t if no dimension of the state changes by more than `tolerance` (in the dataset's own units)
    from before to after it, and no dimension of the action differs by more from that of the step before. This holds for
    targets and for deltas: a constant delta that moves the robot shows in its state.
    """
    assert episode.action is not None
    assert episode.state is not None
    N = episode.steps
    still = np.abs(np.diff(episode.action, axis=0, prepend=episode.action[:1])).max(1, initial=0) <= tolerance
    still &= np.abs(np.diff(episode.state, axis=0)).max(1, initial=0) <= tolerance
    if N > 1:
        # Where nobody saw the state after the last action, the last one stands in and tells nothing.
        still[-1] = still[-2]
    edges = np.flatnonzero(np.diff(still, prepend=False, append=False)).reshape(-1, 2)
    idle = np.zeros(N, np.bool_)
    for first, stop in edges:
        idle[first:stop] = stop - first >= seconds * episode.meta["control_hz"]
    return idle


def read_ranges(path) -> tuple[dict[str, Ranges], str]:
    """({episode key: kept [start, end) ranges of steps}, sha256 of the file) of a JSON file as used for DROID.

    Raises:
        ValueError: the file is not that.
    """
    data = pathlib.Path(path).read_bytes()
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must be a JSON object of episode: [[start, end], ...]")
    return {key: _ranges(path, key, value) for key, value in found.items()}, hashlib.sha256(data).hexdigest()


def _ranges(path, key: str, value: Any) -> Ranges:
    good = isinstance(value, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(edge, int) and not isinstance(edge, bool) for edge in pair)
        and 0 <= pair[0] < pair[1]
        for pair in value
    )
    if not good:
        raise ValueError(f"{path}, {key!r}: must be a list of [start, end) with 0 <= start < end, got {value}")
    return tuple((start, end) for start, end in value)


def find_ranges(ranges: Mapping[str, Ranges], episode: str, extra: Mapping[str, Any]) -> Ranges | None:
    """Of an episode by its name, or by the key of DROID's published file: recording folder, "--", file path."""
    keys: Sequence[str] = (episode, f"{extra.get('recording_folderpath')}--{extra.get('file_path')}")
    return next((ranges[key] for key in keys if key in ranges), None)
