"""`load_policy(directory)`: the public inference API. One checkpoint, every mode, chosen at call time.

policy = load_policy("runs/demo")
chunk, memory = policy.infer(observation)                       # act, without imagining
chunk, memory = policy.infer(observation, memory, mode="joint") # act and imagine together
chunk, _ = policy.infer(observation, mode="forward", actions=a) # what would these actions do?
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from wam.batch import Batch
from wam.checkpoint import Inference, read_inference
from wam.config import FinetuneConfig, ModelConfig, TextConfig, build
from wam.diffusion import losses, sampler
from wam.embodiment import EmbodimentSpec, Normalizer
from wam.models.dynamics_paths import Constant
from wam.models.joint_dit import create
from wam.models.streams import Noisy, observe
from wam.pretrained.instructions import text_encoder
from wam.tokenizers.video import VideoTokenizer, from_state
from wam.training.finetune import complete
from wam.training.state import Apply
from wam.training.step import latents_of

DEFAULT_STEPS = {"policy": 2, "joint": 2, "forward": 1, "video": 1}
"""Sampler steps of each mode `infer` offers; one step gives the conditional mean of the frames."""


class Chunk(NamedTuple):
    """What `infer` returns; the part that the mode does not generate is None."""

    actions: np.ndarray | None
    """[K, raw action dim] in the robot's units"""
    video: dict[str, np.ndarray] | None
    """camera -> [T - 1, h, w, 3] uint8, the future of every camera in `Policy.imagined`"""
    action_seconds: np.ndarray
    video_seconds: np.ndarray


class Memory(NamedTuple):
    """What a session carries from call to call; owned by the caller."""

    chunk: int
    """chunks answered so far: part of the noise key"""


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


class Policy:
    """A trained checkpoint, ready to sample in any mode. Made by `load_policy`."""

    def __init__(self, saved: Inference, *, unroll: bool = True, text_path: str | Path | None = None):
        assets = saved.assets
        self.assets, self.step = assets, saved.step
        self.config = build(ModelConfig, {**assets["model"], "scan_layers": not unroll})
        self.tokenizer: VideoTokenizer = jax.device_put(from_state(assets["tokenizer"], saved.tokenizer))
        text = build(TextConfig, assets["text"] | ({} if text_path is None else {"path": str(text_path)}))
        self.encode_text, self.text_config = text_encoder(text)
        self.camera_table = tuple(assets["cameras"])
        self._embodiments = [_embodiment(entry) for entry in assets["embodiments"]]
        graph, *_ = nnx.split(nnx.eval_shape(lambda: create(self.config)), nnx.Param, Constant)
        self._apply = Apply(graph, saved.constants)
        self.params = complete(saved.params, build(FinetuneConfig, assets.get("finetune", {})))

    # ------------------------------------------------------------ what callers ask about

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras that an observation of the first embodiment must have."""
        return self.embodiment(self.embodiments[0]).views

    @property
    def imagined(self) -> tuple[str, ...]:
        """Those whose future the model denoises."""
        return self._imagined(self.cameras)

    def _imagined(self, views: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(views[i] for i in self.config.target_views if i < len(views))

    @property
    def embodiments(self) -> tuple[str, ...]:
        return tuple(e.spec.name for e in self._embodiments if e.spec.name != "none")

    def embodiment(self, name: str) -> Embodiment:
        """ValueError for an embodiment the checkpoint does not know."""
        for entry in self._embodiments:
            if entry.spec.name == name and name != "none":
                return entry
        raise ValueError(f"unknown embodiment {name!r}; the checkpoint knows {', '.join(self.embodiments)}")

    @property
    def action_names(self) -> tuple[str, ...]:
        return self.embodiment(self.embodiments[0]).spec.action_names

    def frame_seconds(self, embodiment: str) -> np.ndarray:
        """f32 [T]: times of the frames that the model sees and predicts for a robot."""
        return np.asarray(self.embodiment(embodiment).frame_seconds, np.float32)

    def action_seconds(self, embodiment: str) -> np.ndarray:
        """f32 [K]: times of a chunk's actions."""
        return np.arange(self.config.action_horizon, dtype=np.float32) / np.float32(
            self.embodiment(embodiment).action_hz
        )

    def example_observation(self) -> dict[str, Any]:
        """A valid observation without content (mean images, zero state): for trying out the interface."""
        h, w = self.tokenizer.image_size
        name = self.embodiments[0]
        return {
            "images": {camera: np.full((h, w, 3), 128, np.uint8) for camera in self.cameras},
            "state": np.zeros(self.embodiment(name).spec.state_dim, np.float32),
            "instruction": "",
            "embodiment": name,
            "time": 0.0,
        }

    # ------------------------------------------------------------ inference

    def infer(self, observation: Mapping[str, Any], memory: Memory | None = None, mode: str = "policy",
              program: sampler.Program | None = None, key: Array | None = None,
              actions: np.ndarray | None = None) -> tuple[Chunk, Memory]:  # fmt: skip
        """One chunk for one observation.

        Args:
          observation: {"images": {camera: uint8 [h, w, 3]}, "state": f32 [raw], "instruction": str,
            "embodiment": str, "time": seconds}.
          memory: what the last call of this session returned; None at its start.
          mode: policy, joint, forward (needs `actions`) or video.
          program: a sampler program of the same mode; by default `DEFAULT_STEPS` even steps.
          key: noise key; by default fixed, so that equal calls give equal answers.
          actions: [K, raw action dim], given in `forward`.

        Raises ValueError naming the field that is wrong.
        """
        memory = memory or Memory(0)
        key = jax.random.key(0) if key is None else key
        ids = np.array([*np.asarray(jax.random.key_data(key)).ravel()[-2:], memory.chunk], np.uint32)
        given = None if actions is None else [actions]
        (chunk,) = self.infer_many([observation], ids[None], mode=mode, program=program, actions=given)
        return chunk, Memory(memory.chunk + 1)

    def infer_many(self, observations: Sequence[Mapping[str, Any]], ids: np.ndarray, *, mode: str = "policy",
                   program: sampler.Program | None = None, actions: Sequence[np.ndarray] | None = None,
                   batch_size: int | None = None) -> list[Chunk]:  # fmt: skip
        """Like `infer` for several sessions at once, padded to `batch_size` (one compilation).

        `ids` [n, 3] uint32 keys the noise of each row, so that an answer does not depend on its neighbours.
        """
        if mode not in DEFAULT_STEPS:
            raise ValueError(f"unknown mode {mode!r} for infer; choose from {', '.join(DEFAULT_STEPS)}")
        if (mode == "forward") != (actions is not None):
            raise ValueError(
                "mode 'forward' needs `actions`" if actions is None else f"mode {mode!r} takes no `actions`"
            )
        program = program or sampler.program(mode, DEFAULT_STEPS[mode])
        rows = [self._row(o, None if actions is None else actions[i]) for i, o in enumerate(observations)]
        size = batch_size or len(rows)
        rows, ids = _padded(rows, size), np.concatenate([ids, np.repeat(ids[-1:], size - len(ids), 0)])
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        out = self.generate(batch, ids, program)
        video = None if out.video is None or program.video != "generated" else np.asarray(self.pixels(out, batch))
        action = None if out.action is None or program.action != "generated" else np.asarray(out.action[:, 0])
        chunks = []
        for i, observation in enumerate(observations):
            raw = None if action is None else self.raw_actions(action[i], observation)
            robot = observation["embodiment"]
            shown = self._imagined(self.embodiment(robot).views)
            frames = None if video is None else dict(zip(shown, video[i], strict=len(shown) == video.shape[1]))
            chunks.append(Chunk(raw, frames, self.action_seconds(robot), self.frame_seconds(robot)[1:]))
        return chunks

    def generate(self, batch: Batch, ids: np.ndarray, program: sampler.Program) -> sampler.Sampled:
        """Samples a whole batch in latents and normalised actions; the given stream is read from the batch."""
        return self._generate(program)(self.params, self.tokenizer, dict(batch), jnp.asarray(ids, jnp.uint32))

    @functools.cache  # noqa: B019 (one compiled function a program, as long as the policy lives)
    def _generate(self, program: sampler.Program):
        cfg = self.config

        def generate(params: Any, tokenizer: VideoTokenizer, batch: Batch, ids: Array) -> sampler.Sampled:
            model = self._apply.model(params)
            latents = latents_of(batch, tokenizer)
            context = model.context(observe(batch, latents, cfg.chunks, cfg.frames_per_chunk))
            keys = jax.vmap(_fold)(ids)
            video_shape = (cfg.chunks, cfg.frames_per_chunk, len(cfg.target_views), cfg.patches, cfg.latent_channels)
            action_shape = (cfg.chunks, cfg.action_horizon, cfg.action_dim)
            video = action = None
            if program.video == "given":
                video = losses.future_latents(latents, cfg)
            elif program.video == "generated":
                video = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), video_shape))(keys)
            if program.action == "given":
                action = batch["action"]
            elif program.action == "generated":
                action = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 1), action_shape))(keys)
            B = ids.shape[0]
            rows = sampler.schedule([program] * B)

            def predict(x: sampler.Sample, sigma_video: Array, sigma_action: Array) -> sampler.Sample:
                out = model.denoise(
                    context,
                    Noisy(
                        video=x.video,
                        sigma_video=jnp.broadcast_to(sigma_video[:, None, None], (B, cfg.chunks, cfg.frames_per_chunk)),
                        frame_mask=losses.frame_masks(batch, cfg),
                        action=x.action,
                        action_mask=batch["action_mask"],
                        sigma_action=jnp.broadcast_to(sigma_action[:, None], (B, cfg.chunks)),
                        action_sees_video=rows.action_sees_video,
                        video_sees_action=rows.video_sees_action,
                    ),
                )
                return sampler.Sample(out.video, out.action)

            return sampler.sample(predict, sampler.Sample(video, action), rows, sampler.Held(), solver=program.solver,
                                  video_prediction=cfg.video_prediction, reuse=program.reuse)  # fmt: skip

        return jax.jit(generate)

    @functools.cached_property
    def _decode(self):
        cfg = self.config

        def decode(tokenizer: VideoTokenizer, video: Array, shown: Batch) -> Array:
            B, camera = video.shape[0], shown["camera"]
            latents = jnp.moveaxis(video, 3, 1).reshape(B, len(cfg.target_views), -1, cfg.patches, cfg.latent_channels)
            pixels = tokenizer.decode(latents, camera, history=latents_of(shown, tokenizer))
            return jnp.round(pixels * 255).astype(jnp.uint8)

        return jax.jit(decode)

    def pixels(self, sample: sampler.Sample | sampler.Sampled, batch: Batch) -> Array:
        """Future latents [B, M, f, v, P, C] and the batch they continue -> [B, v, T - 1, h, w, 3] uint8."""
        targets = np.array(self.config.target_views)
        shown = {name: batch[name][:, targets, :1] for name in ("video", "latents") if name in batch}
        return self._decode(self.tokenizer, sample.video, shown | {"camera": batch["camera"][:, targets]})

    # ------------------------------------------------------------ observations to batches and back

    def raw_actions(self, normalised: np.ndarray, observation: Mapping[str, Any]) -> np.ndarray:
        """[K, A] normalised and padded -> [K, raw] in the robot's units; relative dimensions become absolute."""
        return self.embodiment(observation["embodiment"]).decode_action(normalised, observation["state"])

    def _row(self, observation: Mapping[str, Any], actions: np.ndarray | None) -> Batch:
        """One batch row; ValueError names the field of the observation that is wrong."""
        if missing := sorted({"images", "state", "instruction", "embodiment"} - set(observation)):
            raise ValueError(f"the observation lacks {missing[0]!r}")
        robot = self.embodiment(observation["embodiment"])
        spec, cfg = robot.spec, self.config
        h, w = self.tokenizer.image_size
        video = np.zeros((cfg.views, 1, h, w, 3), np.uint8)  # a robot may have fewer cameras than the model views
        table, is_view = np.zeros(cfg.views, np.int32), np.arange(cfg.views) < len(robot.views)
        for view, camera in enumerate(robot.views):
            if camera not in observation["images"]:
                raise ValueError(f"observation.images lacks the camera {camera!r}; it needs {', '.join(robot.views)}")
            image = np.asarray(observation["images"][camera])
            if image.shape != (h, w, 3) or image.dtype != np.uint8:
                raise ValueError(
                    f"observation.images[{camera!r}]: expected uint8 [{h}, {w}, 3], "
                    f"got {image.dtype} {list(image.shape)}"
                )
            video[view, 0], table[view] = image, self.camera_table.index(camera)
        state = np.asarray(observation["state"], np.float32)
        if state.shape != (spec.state_dim,) or not np.isfinite(state).all():
            raise ValueError(
                f"observation.state: expected {spec.state_dim} finite numbers ({', '.join(spec.state_names)}), "
                f"got {state}"
            )
        text, text_mask = self.encode_text(str(observation["instruction"]))
        row = {
            "video": video,
            "frame_mask": np.ones(cfg.video_frames, bool),
            "view_mask": is_view,
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
            "embodiment": np.int32(self._embodiments.index(robot)),
        }
        if actions is not None:
            actions = np.asarray(actions, np.float32)
            if actions.shape != (cfg.action_horizon, spec.action_dim) or not np.isfinite(actions).all():
                raise ValueError(
                    f"actions: expected finite [{cfg.action_horizon}, {spec.action_dim}], got {list(actions.shape)}"
                )
            row["action"] = _pad(robot.encode_action(actions, state), cfg.action_dim)[None]
        return row


def _fold(ids: Array) -> Array:
    key = jax.random.key(0)
    for i in range(ids.shape[0]):
        key = jax.random.fold_in(key, ids[i])
    return key


def _pad(x: np.ndarray, size: int) -> np.ndarray:
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])


def _padded(rows: list, size: int) -> list:
    if size < len(rows):
        raise ValueError(f"batch_size {size} is smaller than the {len(rows)} observations")
    return rows + rows[-1:] * (size - len(rows))


def _embodiment(entry: dict[str, Any]) -> Embodiment:
    spec = EmbodimentSpec.from_json(entry["spec"])
    if "action" not in entry:
        return Embodiment(spec)
    return Embodiment(
        spec,
        Normalizer.from_json(entry["state"]),
        Normalizer.from_json(entry["action"]),
        tuple(entry["frame_seconds"]),
        float(entry["action_hz"]),
        tuple(entry["views"]),
    )


def load_policy(directory: str | Path, *, step: int | None = None, unroll: bool = True,
                text_path: str | Path | None = None) -> Policy:  # fmt: skip
    """The newest (or the given) checkpoint of a run directory.

    Args:
      directory: what `--workdir` named in training.
      step: a particular checkpoint.
      unroll: unstack the layers: faster answers, slower first call.
      text_path: where a pretrained text encoder lies, if no longer where training read it.

    Raises:
      FileNotFoundError: no checkpoint there, or no text encoder. ValueError: one of them is damaged, or of another
        format or encoder.
    """
    return Policy(read_inference(directory, step), unroll=unroll, text_path=text_path)
