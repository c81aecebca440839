"""From a raw window to one sample of the batch: normalise, pad, encode text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_pipelines.outcomes import Outcomes
from data_pipelines.windows import Windows
from wam.batch import BatchSpec
from wam.embodiment import Normalizer

TextEncoder = Callable[[str], tuple[np.ndarray, np.ndarray]]
"""instruction -> f32 [Lt, Dt], bool [Lt]; its attribute `name`, where it has one, joins the pipeline hash"""


def pad_last(array: np.ndarray, size: int) -> np.ndarray:
    """Zero-pads the last axis to `size`."""
    padded = np.zeros((*array.shape[:-1], size), array.dtype)
    padded[..., : array.shape[-1]] = array
    return padded


class ToSample:
    """Windows of several sources to samples that obey `spec`; picklable if `encode_text` is.

    Actions arrive relative where their kind says so, so normalising is the last thing that touches them. Padding, in
    time or in dimensions, is zero after normalising and always masked.

    Args:
        spec: the batch's static sizes.
        sources: name -> windows; the position is the batch's `source`.
        normalizers: embodiment -> (state, action) normaliser, see `Statistics.normalizers`.
        embodiments: the run's embodiment table; the position is the batch's `embodiment`, the first one is "none".
        encode_text: called once per distinct instruction.
        outcomes: what the value learns from; None: nothing, every `value_mask` is False.

    Raises:
        ValueError: a source that does not fit the spec, or lacks a normaliser or a place in the table.
    """

    def __init__(
        self,
        spec: BatchSpec,
        sources: Mapping[str, Windows],
        normalizers: Mapping[str, tuple[Normalizer, Normalizer]],
        embodiments: Sequence[str],
        encode_text: TextEncoder,
        outcomes: Outcomes | None = None,
    ):
        self.outcomes = outcomes
        self.spec, self.normalizers, self.embodiments = spec, dict(normalizers), tuple(embodiments)
        self._encode_text, self._text = encode_text, {}
        self._embodiment = []
        if self.embodiments[:1] != ("none",):
            raise ValueError(f"the embodiment table must start with 'none', got {self.embodiments}")
        for name, windows in sources.items():
            config, robot, size = windows.config, windows.embodiment, windows.store.manifest["image_size"]
            wanted = (spec.views, spec.frames, spec.chunks, spec.action_horizon, [spec.height, spec.width])
            got = (len(config.views), len(config.frame_seconds), config.chunks, config.action_horizon, size)
            if wanted != got:
                raise ValueError(
                    f"source {name!r} has (views, frames, chunks, horizon, size) {got}, the batch {wanted}"
                )
            actions, states = robot.model_action_dim, robot.model_state_dim
            if actions > spec.action_dim or states > spec.state_dim:
                raise ValueError(
                    f"source {name!r}: {robot.name!r} has {actions} action and {states} state dims, the batch"
                    f" has room for {spec.action_dim} and {spec.state_dim}"
                )
            if robot.name not in self.embodiments:
                raise ValueError(f"source {name!r}: {robot.name!r} is not in the embodiment table {self.embodiments}")
            if robot.action_dim and robot.name not in self.normalizers:
                raise ValueError(f"source {name!r}: no normalisers for its embodiment {robot.name!r}")
            self._embodiment.append(robot.name)

    def __call__(self, window: dict, source: int) -> dict[str, np.ndarray]:
        spec, name = self.spec, self._embodiment[source]
        state, action = window["state"], window["action"]
        if name in self.normalizers:
            state_normalizer, action_normalizer = self.normalizers[name]
            state, action = state_normalizer.normalize(state), action_normalizer.normalize(action)
        state_mask, action_mask = window["state_mask"][:, None], window["action_mask"][:, :, None]
        text, text_mask = self._encoded(window["instruction"])
        value, value_mask = np.zeros(spec.chunks, np.float32), np.zeros(spec.chunks, np.bool_)
        if self.outcomes is not None:
            value, value_mask = self.outcomes.targets(window["kind"], window["success"])
        seen = {"latents": window["latents"]} if spec.latent else {"video": window["frames"]}
        return {
            **seen,
            **{
                key: window[key]
                for key in ("frame_mask", "view_mask", "camera", "video_time", "action_time", "imitate")
            },
            "state": pad_last(state * state_mask, spec.state_dim),
            "state_mask": pad_last(np.broadcast_to(state_mask, state.shape), spec.state_dim),
            "action": pad_last(action * action_mask, spec.action_dim),
            "action_mask": pad_last(np.broadcast_to(action_mask, action.shape), spec.action_dim),
            "text": text,
            "text_mask": text_mask,
            "embodiment": np.int32(self.embodiments.index(name)),
            "value": value,
            "value_mask": value_mask,
            "source": np.int32(source),
            "sample_id": np.array([source, window["window"]], np.uint32),
        }

    @property
    def facts(self) -> dict:
        """JSON-able: all that decides the content of the samples, given the windows."""
        return {
            "spec": dataclasses.asdict(self.spec),
            "normalizers": {name: [n.to_json() for n in pair] for name, pair in sorted(self.normalizers.items())},
            "embodiments": self.embodiments,
            "text": getattr(self._encode_text, "name", ""),
            **({"value": dataclasses.asdict(self.outcomes)} if self.outcomes else {}),
        }

    def _encoded(self, instruction: str) -> tuple[np.ndarray, np.ndarray]:
        if instruction not in self._text:
            text, mask = self._encode_text(instruction)
            self._text[instruction] = np.asarray(text, np.float32), np.asarray(mask, np.bool_)
        return self._text[instruction]
