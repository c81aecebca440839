"""From what a robot reports to a row of a batch, and from normalised actions back to the robot's units."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam.batch import Batch
from wam.config import ModelConfig
from wam.embodiment import EmbodimentSpec, Normalizer
from wam.tokenizers.text import TextEncoder

TEXTS = 1024
"""Encoded instructions that are kept."""


@dataclasses.dataclass(frozen=True)
class Embodiment:
    """A robot of the checkpoint: from its own numbers to the model's, normalised, and back."""

    spec: EmbodimentSpec
    state: Normalizer | None = None
    action: Normalizer | None = None
    frame_seconds: tuple[float, ...] = ()
    """T times of the frames"""
    action_hz: float = 0.0
    views: tuple[str, ...] = ()
    """cameras of the views, in order"""

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Embodiment:
        """From its entry in a checkpoint's assets; the embodiment `none` has no normalisers."""
        spec = EmbodimentSpec.from_json(entry["spec"])
        if "action" not in entry:
            return cls(spec)
        return cls(
            spec,
            Normalizer.from_json(entry["state"]),
            Normalizer.from_json(entry["action"]),
            tuple(entry["frame_seconds"]),
            float(entry["action_hz"]),
            tuple(entry["views"]),
        )

    @property
    def normalizers(self) -> tuple[Normalizer, Normalizer]:
        """Those of state and action; ValueError for "none", which has neither."""
        if self.state is None or self.action is None:
            raise ValueError(f"embodiment {self.spec.name!r} has no state and actions to normalise")
        return self.state, self.action

    def encode_state(self, state: np.ndarray) -> np.ndarray:
        return self.normalizers[0].normalize(self.spec.encode_state(state))

    def decode_state(self, state: np.ndarray) -> np.ndarray:
        """Of dims padded or not."""
        return self.spec.decode_state(self.normalizers[0].denormalize(state[..., : self.spec.model_state_dim]))

    def encode_action(self, action: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Raw action [..., K, dim] with the raw state [..., dim] at its start."""
        return self.normalizers[1].normalize(self.spec.encode_action(action, state))

    def decode_action(self, action: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Of dims padded or not, with the raw state at its start, to raw [..., K, dim]."""
        action = self.normalizers[1].denormalize(action[..., : self.spec.model_action_dim])
        return self.spec.decode_action(action, state)


class Observations:
    """Rows of batches from observations, checked. `model` is the shape of one chunk; all frames are uint8.

    An observation is {"images": {camera: [h, w, 3], or the frames [n, h, w, 3] since the last one of the session,
    oldest first}, "state": f32 [raw], "instruction": str or None, "embodiment": str, "time": seconds}.
    """

    def __init__(self, assets: Mapping[str, Any], model: ModelConfig, image_size: tuple[int, int],
                 encode_text: TextEncoder):  # fmt: skip
        self.model, self.image_size, self.encode_text = model, image_size, encode_text
        self.cameras = tuple(assets["cameras"])
        self.longest_prefix = assets["config"]["objective"].get("prefix_tokens", 0)
        self._texts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.table = [Embodiment.from_json(entry) for entry in assets["embodiments"]]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(e.spec.name for e in self.table if e.spec.name != "none")

    def embodiment(self, name: str) -> Embodiment:
        """ValueError for an embodiment the checkpoint does not know."""
        for entry in self.table:
            if entry.spec.name == name and name != "none":
                return entry
        raise ValueError(f"unknown embodiment {name!r}; the checkpoint knows {', '.join(self.names)}")

    def frame_seconds(self, embodiment: str) -> np.ndarray:
        """f32 [1 + n]: times of the observation and of the frames of one chunk after it."""
        return np.asarray(self.embodiment(embodiment).frame_seconds[: self.model.video_frames], np.float32)

    def action_seconds(self, embodiment: str) -> np.ndarray:
        """f32 [K]: times of a chunk's actions."""
        hz = self.embodiment(embodiment).action_hz
        return np.arange(self.model.action_horizon, dtype=np.float32) / np.float32(hz)

    def row(self, observation: Mapping[str, Any], *, before: np.ndarray | None = None, frames: int = 1) -> Batch:
        """One row without its leading axis; ValueError names the field of the observation that is wrong.

        Args:
          observation: see the class; the newest of its frames is the current one.
          before: [V, h, w, 3] uint8: the frame before those of the observation, which goes on a session.
          frames: how many frames the observation then has.
        """
        if missing := sorted({"images", "state", "instruction", "embodiment"} - set(observation)):
            raise ValueError(f"the observation lacks {missing[0]!r}")
        robot = self.embodiment(observation["embodiment"])
        spec, cfg = robot.spec, self.model
        views = len(robot.views)
        seen = self._frames(observation["images"], robot.views, frames if before is not None else 1)
        video = np.zeros((cfg.views, *seen.shape[1:]), np.uint8)  # a robot may have fewer cameras than the model views
        video[:views] = seen
        if before is not None:
            video = np.concatenate([before[:, None], video], axis=1)
        table = np.zeros(cfg.views, np.int32)
        table[:views] = [self.cameras.index(camera) for camera in robot.views]
        state = self._state(observation["state"], spec)
        text, text_mask = self._text(observation["instruction"])
        return {
            "video": video,
            "frame_mask": np.ones(cfg.video_frames, bool),
            "view_mask": np.arange(cfg.views) < views,
            "camera": table,
            "video_time": self.frame_seconds(spec.name),
            "action_time": self.action_seconds(spec.name)[None],
            "state": _pad(robot.encode_state(state), cfg.state_dim)[None],
            "state_mask": (np.arange(cfg.state_dim) < spec.model_state_dim)[None],
            "action": np.zeros((1, cfg.action_horizon, cfg.action_dim), np.float32),
            "action_mask": np.broadcast_to(
                np.arange(cfg.action_dim) < spec.model_action_dim, (1, cfg.action_horizon, cfg.action_dim)
            ),
            "text": text,
            "text_mask": text_mask,
            "embodiment": np.int32(self.table.index(robot)),
        }

    def fill(self, row: Batch, actions: np.ndarray, observation: Mapping[str, Any]) -> None:
        """Writes raw actions [up to K, raw dim], checked, into a row; the steps after them stay zero."""
        robot = self.embodiment(observation["embodiment"])
        encoded = robot.encode_action(actions, np.asarray(observation["state"], np.float32))
        row["action"][0, : len(actions)] = _pad(encoded, self.model.action_dim)

    def give(self, row: Batch, observation: Mapping[str, Any], mode: str, actions: Any, video: Any, prefix: Any
             ) -> None:  # fmt: skip
        """Puts what is given in a mode (or None) into a row; ValueError if the mode wants something else.

        See `Policy.infer`; `inference.sampled` says what becomes of the fields `prefix` and `future`.
        """
        robot, K, k = observation["embodiment"], self.model.action_horizon, self.model.steps_per_token
        for name, needs, given in (("actions", "forward", actions), ("video", "inverse", video)):
            if (mode == needs) != (given is not None):
                raise ValueError(
                    f"mode {needs!r} needs `{name}`" if given is None else f"mode {mode!r} takes no `{name}`"
                )
        if prefix is not None and mode == "forward":
            raise ValueError("mode 'forward' takes no `prefix`: all its actions are given")
        if actions is not None:
            self.fill(row, self.actions(actions, robot, exactly=K), observation)
        elif prefix is not None:
            decided = self.actions(prefix, robot, "prefix")
            tokens = len(decided) // k
            if len(decided) % k or len(decided) >= K:
                raise ValueError(
                    f"prefix: expected a multiple of {k} actions (an action token's), fewer than the {K} of a chunk, "
                    f"got {len(decided)}"
                )
            if tokens > self.longest_prefix:
                raise ValueError(
                    f"prefix: {tokens} action tokens, this checkpoint was trained for at most {self.longest_prefix}: "
                    "set objective.prefix_tokens and train"
                )
            row["prefix"] = np.array([tokens], np.int32)
            self.fill(row, decided, observation)
        if video is not None:
            row["future"] = self.pictures(video, robot, self.model.video_frames - 1, "video")

    def actions(self, actions: Any, embodiment: str, name: str = "actions", exactly: int | None = None) -> np.ndarray:
        """f32 [n, raw dim], checked; `exactly`: what n has to be. ValueError names the argument."""
        spec = self.embodiment(embodiment).spec
        array, steps = np.asarray(actions, np.float32), "n" if exactly is None else exactly
        if array.ndim != 2 or array.shape[1] != spec.action_dim or array.shape[0] != (exactly or len(array)):
            raise ValueError(f"{name}: expected finite [{steps}, {spec.action_dim}], got {list(array.shape)}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite [{steps}, {spec.action_dim}], got NaN or infinity")
        return array

    def pictures(self, images: Any, embodiment: str, frames: int, name: str) -> np.ndarray:
        """uint8 [V, frames, h, w, 3] of {camera: uint8 [frames, h, w, 3]} of a robot; ValueError names the camera."""
        robot = self.embodiment(embodiment)
        video = np.zeros((self.model.views, frames, *self.image_size, 3), np.uint8)
        video[: len(robot.views)] = self._frames(images, robot.views, frames, name)
        return video

    def _frames(self, images: Any, views: Sequence[str], count: int, name: str = "observation.images") -> np.ndarray:
        """[views, count, h, w, 3] uint8; of more frames than asked for a single one takes the newest."""
        if not isinstance(images, Mapping):
            raise ValueError(f"{name}: expected a mapping from camera to image, got {type(images).__name__}")
        h, w = self.image_size
        out = []
        for camera in views:
            if camera not in images:
                raise ValueError(f"{name} lacks the camera {camera!r}; it needs {', '.join(views)}")
            image = np.asarray(images[camera])
            clip = image[None] if image.ndim == 3 else image
            if clip.ndim != 4 or clip.shape[1:] != (h, w, 3) or clip.dtype != np.uint8 or not len(clip):
                raise ValueError(
                    f"{name}[{camera!r}]: expected uint8 [{h}, {w}, 3], got {image.dtype} {list(image.shape)}"
                )
            clip = clip[-1:] if count == 1 else clip
            if len(clip) != count:
                raise ValueError(
                    f"{name}[{camera!r}]: expected the {count} frames since the last observation, uint8 [{count}, {h}, "
                    f"{w}, 3], got {list(image.shape)}"
                )
            out.append(clip)
        return np.stack(out)

    def _text(self, instruction: Any) -> tuple[np.ndarray, np.ndarray]:
        if instruction is None:
            text, mask = self._text("nothing")
            return np.zeros_like(text), np.zeros_like(mask)
        if not isinstance(instruction, str) or not instruction.strip():
            raise ValueError(
                f"observation.instruction: expected what to do in words, got {instruction!r}; None goes without"
            )
        if instruction not in self._texts:
            if len(self._texts) >= TEXTS:
                self._texts.clear()  # instructions come from outside, without end
            self._texts[instruction] = self.encode_text(instruction)
        return self._texts[instruction]

    @staticmethod
    def _state(state: Any, spec: EmbodimentSpec) -> np.ndarray:
        try:
            array = np.asarray(state, np.float32)
        except (TypeError, ValueError):
            array = np.zeros(0, np.float32)
        if array.shape != (spec.state_dim,) or not np.isfinite(array).all():
            raise ValueError(
                f"observation.state: expected {spec.state_dim} finite numbers ({', '.join(spec.state_names)}), "
                f"got {state}"
            )
        return array


def _pad(x: np.ndarray, size: int) -> np.ndarray:
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])
