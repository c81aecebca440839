"""Windows: what one training sample sees of a store, in raw units.

A window starts at an anchor, a stored frame that has a future. All anchors are numbered without a list of windows:
cumulative counts per clip and a binary search. Everything is resampled by seconds: frames at the times the config
asks for, actions at its rate, whatever the rates of the store are.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from data_pipelines.embodiments import check_embodiment, embodiment_of_store
from data_pipelines.latents import LatentStore
from data_pipelines.outcomes import success_seconds
from data_pipelines.store import ClipStore
from wam.embodiment import EmbodimentSpec

_EPS = 1e-3  # of a control step: absorbs the rounding of seconds x rate


@dataclasses.dataclass(frozen=True)
class WindowConfig:
    """Times and views of a window. T frames, M chunks of K actions, V views."""

    frame_seconds: tuple[float, ...]
    """T times relative to the anchor, from 0 upwards; T = 1 + M x (frames per chunk)"""
    action_horizon: int
    """K"""
    action_hz: float
    views: tuple[str, ...]
    """camera of each of the V slots; a store that lacks one of them fills the slots, from the first, with its own"""
    cameras: tuple[str, ...]
    """all cameras of the run, over all sources; the batch field `camera` indexes it"""
    chunks: int = 1
    """M; chunk i starts at its observation, the last frame of chunk i - 1 (of the first frame alone for i = 0)"""

    def __post_init__(self):
        times = self.frame_seconds
        if not times or times[0] != 0 or any(b <= a for a, b in itertools.pairwise(times)):
            raise ValueError(f"frame_seconds must start at 0 and increase, got {times}")
        if self.chunks < 1 or (len(times) - 1) % self.chunks:
            raise ValueError(
                f"{len(times)} frames do not make one first frame and {self.chunks} chunks of equal length: "
                "frames must be 1 + chunks * n"
            )
        if self.chunks > 1 and len(times) == 1:
            raise ValueError(f"{self.chunks} chunks need frames of their own, frame_seconds has only the first frame")
        if self.action_horizon < 1 or self.action_hz <= 0:
            raise ValueError(f"action_horizon and action_hz must be positive: {self.action_horizon}, {self.action_hz}")
        if not self.views:
            raise ValueError("a window needs one view at least")
        if unknown := [view for view in self.views if view not in self.cameras]:
            raise ValueError(f"views {unknown} are not in the run's camera table {self.cameras}")

    @property
    def timing(self) -> tuple[tuple[float, ...], float]:
        """(frame_seconds, action_hz)"""
        return self.frame_seconds, self.action_hz

    @property
    def observation_frames(self) -> np.ndarray:
        """int [M]: index of the frame at which each chunk starts."""
        return np.arange(self.chunks) * ((len(self.frame_seconds) - 1) // self.chunks)

    @property
    def observation_seconds(self) -> np.ndarray:
        """f64 [M]: time at which each chunk starts."""
        return np.asarray(self.frame_seconds)[self.observation_frames]

    @property
    def tolerance(self) -> float:
        """Seconds by which a frame may be older than its nominal time: half the smallest spacing."""
        return float(np.diff(self.frame_seconds).min()) / 2 if len(self.frame_seconds) > 1 else 0.0


class Windows:
    """Random access to all windows of a store; picklable, thread-safe.

    `self[i]` is a dict in the robot's units, not normalised (A and S are the dims the model sees of this robot, see
    `EmbodimentSpec.encode_action`; 0 for action-free video):

        frames         uint8 [V, T, h, w, 3]   zeros in masked views; the last real frame repeats past the end
        frame_mask     bool [T]                is there a frame for this time before the episode ends?
        view_mask      bool [V]
        camera         int32 [V]               index into `config.cameras`
        video_time     f32 [T]                 nominal seconds relative to the anchor
        action_time    f32 [M, K]
        state          f32 [M, S]              at the start of each chunk; the last one repeats past the end
        state_mask     bool [M]
        action         f32 [M, K, A]           past the end: zero for deltas, else the latest value, always masked
        action_mask    bool [M, K]
        imitate        bool [M]                there are real steps and all of them may be copied
        instruction    str
        kind           str                     of the episode
        success        f32 [M]                 seconds from each chunk's start to success, see `outcomes`
        window         int                     i

    Those of `with_latents` are the windows that have some, numbered anew; nothing is decoded, and in place of `frames`
    stands

        latents        f32 [V, F, P, C]        those of black frames in masked views

    A store faster than `action_hz` is grouped, in raw numbers: deltas add up, other kinds take the group's last value.
    Only then are states and actions encoded as the embodiment says, with the state at the chunk's start.

    Raises:
        ValueError: the store's rates, dims, cameras or clip overlap cannot serve the config; the sentence says which.
    """

    def __init__(self, store: ClipStore, config: WindowConfig, embodiment: EmbodimentSpec | None = None):
        self.store, self.config = store, config
        self.latents: LatentStore | None = None
        manifest, name = store.manifest, store.directory
        self.embodiment = embodiment or embodiment_of_store(manifest)
        check_embodiment(name, manifest, self.embodiment)
        self.control_hz = hz = float(manifest["control_hz"])
        self._has_action = manifest["action_dim"] > 0
        ratio = hz / config.action_hz
        self._group = max(1, round(ratio))  # control steps per action of a window
        if self._has_action and abs(ratio - self._group) > 1e-6:
            raise ValueError(f"{name} is controlled at {hz} Hz, which is no multiple of action_hz {config.action_hz}")
        self._tolerance = config.tolerance * hz + _EPS  # control steps
        self._period = hz / manifest["fps"]  # control steps between stored frames
        self._frame_offset = np.asarray(config.frame_seconds) * hz  # control steps, fractional
        self._chunk_offset = np.floor(config.observation_seconds * hz + _EPS).astype(np.int64)
        filmed = self._frame_offset[-1] - self._chunk_offset[-1]
        self._span = math.ceil(max(filmed, config.action_horizon * self._group) - _EPS)  # control steps of a chunk
        self._is_delta = np.array([kind == "delta" for kind in self.embodiment.action_kinds], np.bool_)
        self._cameras, self._camera, self._view_mask = self._assign_views(manifest["cameras"])
        self._times = {
            "video_time": np.asarray(config.frame_seconds, np.float32),
            "action_time": np.asarray(
                config.observation_seconds[:, None] + np.arange(config.action_horizon) / config.action_hz, np.float32
            ),
        }
        self._chosen: dict[int, np.ndarray] = {}  # clip -> its frames that are anchors, where not simply the first ones
        self._ends = np.cumsum(self._count_anchors())
        self._numbers = self._records = np.zeros(0, np.int64)  # see `with_latents`

    def with_latents(self, latents: LatentStore) -> Windows:
        """These windows read as latents; those without are left out. ValueError if `latents` are of other windows."""
        plan = latents.manifest["plan"]
        if plan["store"] != self.store.hash or plan["window"] != self.pixel_facts:
            raise ValueError(f"the latents in {latents.directory} were made of other windows than those asked for")
        own = self.starts(np.arange(len(self)))
        # (clip, frame) as one number, increasing on both sides.
        here, there = (pairs[:, 0].astype(np.int64) << 32 | pairs[:, 1] for pairs in (own, latents.anchors))
        windows = copy.copy(self)
        windows.latents = latents
        _, windows._numbers, windows._records = np.intersect1d(here, there, assume_unique=True, return_indices=True)
        return windows

    @property
    def views(self) -> tuple[str, ...]:
        """The store's cameras that fill the view slots, in order; fewer than there are slots if it has no more."""
        return tuple(self._cameras)

    def _assign_views(self, own: list[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
        config = self.config
        chosen = list(config.views) if set(config.views) <= set(own) else own[: len(config.views)]
        if unknown := [camera for camera in chosen if camera not in config.cameras]:
            raise ValueError(f"{self.store.directory}: add its cameras {unknown} to the run's cameras {config.cameras}")
        mask = np.arange(len(config.views)) < len(chosen)
        camera = np.zeros(len(config.views), np.int32)
        camera[mask] = [config.cameras.index(name) for name in chosen]
        return chosen, camera, mask

    def _count_anchors(self) -> np.ndarray:
        """int64 [C]: how many anchors each clip has, its first frames or those of `_chosen`. Checks rates and reach."""
        index, config, name = self.store.index, self.config, self.store.directory
        reach = self._frame_offset[-1]
        if self._has_action:
            reach = max(reach, self._chunk_offset[-1] + config.action_horizon * self._group)
        counts = np.zeros(len(index.start), np.int64)
        for i, is_last in enumerate(index.is_last):
            steps = index.frame_step[i].astype(np.int64)
            anchors = steps[: index.anchors[i, 1]]
            if not is_last and anchors[-1] + reach > index.steps[i] + _EPS:
                raise ValueError(
                    f"{name}: a window reaches {reach / self.control_hz:.3g} s past its anchor, but clips overlap by "
                    f"{self.store.manifest['overlap_steps'] / self.control_hz:.3g} s only: write it with more overlap"
                )
            target = anchors[:, None] + self._frame_offset  # [anchors, T]
            _, age, real = self._frames_at(i, target)
            if (unserved := (age > self._tolerance) & (target < steps[-1])).any():
                offset = config.frame_seconds[int(unserved.any(0).argmax())]
                raise ValueError(
                    f"{name} stores {self.store.manifest['fps']:.3g} frames a second, too few for a frame at "
                    f"{offset} s within {config.tolerance:.3g} s"
                )
            if self._has_action:
                usable = anchors + self._group <= index.steps[i]
            else:
                usable = real[:, 1:].any(axis=1)
            if (may_start := index.may_start[i]) is not None:
                usable &= may_start[: len(usable)]
                self._chosen[i] = np.flatnonzero(usable)
            counts[i] = usable.sum()
        return counts

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.latents is None else len(self._numbers)

    def starts(self, windows: np.ndarray) -> np.ndarray:
        """int64 [n, 2]: (clip, stored frame of the clip) at which each of the given windows [n] starts."""
        windows = windows if self.latents is None else self._numbers[windows]
        clip = np.searchsorted(self._ends, windows, side="right")
        frame = windows - np.append(0, self._ends)[clip]
        for i in set(clip.tolist()) & self._chosen.keys():
            frame[clip == i] = self._chosen[i][frame[clip == i]]
        return np.stack([clip, frame], -1)

    def locate(self, i: int) -> tuple[int, int]:
        """(clip, control step within the clip) of window i."""
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} of {len(self)}")
        clip, frame = self.starts(np.array([i]))[0]
        return int(clip), int(self.store.index.frame_step[clip][frame])

    def meta(self, i: int) -> dict:
        """The episode's meta plus `start_step`, the anchor's control step in the episode; decodes nothing."""
        clip, step = self.locate(i)
        return self.store.index.meta[clip] | {"start_step": int(self.store.index.start[clip]) + step}

    def _frames_at(self, clip: int, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For times `target` in (fractional) control steps of the clip, any shape, each of that shape:

        the stored frame at or before it, its age at that time in steps, and whether it can stand for that time: past
        the end of the episode, and where the next frame would have been due, no frame can.
        """
        steps = self.store.index.frame_step[clip]
        frames = np.searchsorted(steps, target + _EPS, side="right") - 1
        age = target - steps[frames]
        end = min(steps[-1] + self._period - 2 * _EPS, self.store.index.steps[clip])
        return frames, age, (target <= end + _EPS) & (age <= self._tolerance)

    def low_dim(self, i: int) -> dict[str, np.ndarray]:
        """State, action, their masks and imitate of window i; decodes no image."""
        clip, anchor = self.locate(i)
        return {key: array[0] for key, array in self.low_dim_of(clip, np.array([anchor])).items()}

    def low_dim_of(self, clip: int, anchors: np.ndarray) -> dict[str, np.ndarray]:
        """`low_dim` of n windows of a clip at once, given their control steps int [n]: arrays with a leading n."""
        n, M, K, group = len(anchors), self.config.chunks, self.config.action_horizon, self._group
        start = anchors[:, None] + self._chunk_offset  # [n, M]
        if not self._has_action:
            return {
                "state": np.zeros((n, M, 0), np.float32),
                "state_mask": np.zeros((n, M), np.bool_),
                "action": np.zeros((n, M, K, 0), np.float32),
                "action_mask": np.zeros((n, M, K), np.bool_),
                "imitate": np.zeros((n, M), np.bool_),
            }
        state, action, imitate = self.store.low_dim(clip)
        assert state is not None  # as the manifest's action_dim says
        assert action is not None
        N = len(action)
        first = start[..., None] + np.arange(K) * group  # [n, M, K] first control step of each group
        steps = first[..., None] + np.arange(group)  # [n, M, K, group]
        mask = steps[..., -1] < N
        inside = np.minimum(steps, N - 1)
        grouped = action[inside]  # [n, M, K, group, A]
        observed = state[np.minimum(start, N)]
        targets = np.where(self._is_delta, grouped.sum(-2) * mask[..., None], grouped[..., -1, :])
        return {
            "state": self.embodiment.encode_state(observed),
            "state_mask": start <= N,
            "action": self.embodiment.encode_action(targets, observed),
            "action_mask": mask,
            "imitate": mask[..., 0] & (imitate[inside].all(-1) | ~mask).all(-1),
        }

    def anchors(self, clip: int, stride: int = 1) -> np.ndarray:
        """int64: control steps, within the clip, of those of its windows whose number is a multiple of `stride`."""
        before = int(self._ends[clip - 1]) if clip else 0
        frames = np.arange(-before % stride, int(self._ends[clip]) - before, stride)
        if clip in self._chosen:
            frames = self._chosen[clip][frames]
        return self.store.index.frame_step[clip][frames].astype(np.int64)

    def frame_state(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(state at each frame's nominal time [T, S], is that time inside the episode [T]); decodes no image."""
        clip, anchor = self.locate(i)
        state, inside = self.frame_state_of(clip, np.array([anchor]))
        return state[0], inside[0]

    def frame_state_of(self, clip: int, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`frame_state` of n windows of a clip at once: [n, T, S] and [n, T]."""
        state = self.store.low_dim(clip)[0]
        assert state is not None, "video without actions has no states"
        step = anchors[:, None] + np.floor(self._frame_offset + _EPS).astype(np.int64)
        return self.embodiment.encode_state(state[np.minimum(step, len(state) - 1)]), step < len(state)

    @property
    def pixel_facts(self) -> dict:
        """JSON-able: what decides the pixels of a window's real views, given the store and the window's anchor."""
        return {
            "frame_seconds": list(self.config.frame_seconds),
            "cameras": list(self._cameras),
            "image_size": list(self.store.manifest["image_size"]),
        }

    def pixels(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 [V', T, h, w, 3], camera int32 [V']) of the V' real views of window i."""
        clip, anchor = self.locate(i)
        frames, _, _ = self._frames_at(clip, anchor + self._frame_offset)
        return self.store.frames(clip, self._cameras, frames), self._camera[self._view_mask]

    def _video(self, i: int) -> dict[str, np.ndarray]:
        if self.latents is None:
            name, real, masked = "frames", self.pixels(i)[0], np.zeros((), np.uint8)
        else:
            name, real, masked = "latents", self.latents[int(self._records[i])], self.latents.black
        views = np.empty((len(self.config.views), *real.shape[1:]), real.dtype)
        views[self._view_mask], views[~self._view_mask] = real, masked
        return {name: views}

    def __getitem__(self, i: int) -> dict:
        clip, anchor = self.locate(i)
        return {
            **self._video(i),
            "frame_mask": self._frames_at(clip, anchor + self._frame_offset)[2],
            "view_mask": self._view_mask,
            "camera": self._camera,
            **self._times,
            **self.low_dim(i),
            **self._outcome(clip, anchor),
            "instruction": self.store.index.meta[clip]["instruction"],
            "window": int(i),
        }

    def _outcome(self, clip: int, anchor: int) -> dict[str, Any]:
        index = self.store.index
        start = int(index.start[clip]) + anchor + self._chunk_offset
        success = success_seconds(index.meta[clip], self.control_hz, start, self._span, int(index.episode_steps[clip]))
        return {"kind": index.meta[clip]["kind"], "success": success}

    @property
    def facts(self) -> dict:
        """JSON-able: all that decides the content of the windows."""
        return {
            "store": self.store.hash,
            "config": dataclasses.asdict(self.config),
            "windows": len(self),
            "latents": None if self.latents is None else self.latents.hash,
            "embodiment": self.embodiment.to_json(),
        }
