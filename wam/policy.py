"""`load_policy(directory)`: the public inference API. One checkpoint, every mode, chosen at call time.

policy = load_policy("runs/demo")
chunk, memory = policy.infer(observation)                       # act, without imagining
chunk, memory = policy.infer(observation, memory, mode="joint") # act and imagine together
chunk, _ = policy.infer(observation, mode="forward", actions=a) # what would these actions do?
chunk, _ = policy.infer(observation, mode="inverse", video=v)   # which actions make this happen?
dream, _ = policy.imagine(observation, memory, chunks=8)        # and then, and then, ...
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
from wam.config import ModelConfig, TextConfig, build
from wam.diffusion import sampler
from wam.diffusion.sampler import Program
from wam.imagination import Imagination, Imagined
from wam.inference import Engine, decoded, key_words, line_up, sampled
from wam.models.dynamics_paths import Constant
from wam.models.history import remember
from wam.models.joint_dit import JointDiT, create
from wam.observations import Embodiment, Observations
from wam.planning import Planning
from wam.pretrained.instructions import text_encoder
from wam.session import Memory, Sessions, apart, check_timing, together
from wam.tokenizers.video import VideoTokenizer, from_state
from wam.training.finetune import complete
from wam.training.finetune_config import FinetuneConfig
from wam.training.state import Apply
from wam.training.step import latents_of

DEFAULT_STEPS = {"policy": 2, "joint": 2, "forward": 1, "inverse": 1, "video": 1}
"""Sampler steps of each mode `infer` offers; one step gives the conditional mean of the frames."""


class Chunk(NamedTuple):
    """What `infer` returns; the part that the mode does not generate is None."""

    actions: np.ndarray | None
    """[K, raw action dim] in the robot's units"""
    video: dict[str, np.ndarray] | None
    """camera -> [n, h, w, 3] uint8, the future of every camera in `Policy.imagined`"""
    action_seconds: np.ndarray
    video_seconds: np.ndarray
    evaluations: int = 0
    """how often the network was asked for noisy streams"""


class Policy(Planning):
    """A trained checkpoint, ready to sample in any mode. Made by `load_policy`."""

    def __init__(self, saved: Inference, *, unroll: bool = True, text_path: str | Path | None = None, ahead: int = 4):
        assets = saved.assets
        self.assets, self.step = assets, saved.step
        self.config = build(ModelConfig, {**assets["model"], "scan_layers": not unroll})
        self.tokenizer: VideoTokenizer = jax.device_put(from_state(assets["tokenizer"], saved.tokenizer))
        text = build(TextConfig, assets["text"] | ({} if text_path is None else {"path": str(text_path)}))
        self.encode_text, self.text_config = text_encoder(text)
        self.params = complete(saved.params, build(FinetuneConfig, assets.get("finetune", {})))
        # One chunk at a time: the same parameters, whatever the number of chunks of a training sample.
        one = dataclasses.replace(self.config, chunks=1, latent_frames=1 + self.config.frames_per_chunk,
                                  history_chunks=self.config.window)  # fmt: skip
        self._constants = saved.constants
        self.engine = self._engine(one)
        self.observations = Observations(assets, one, self.tokenizer.image_size, self.encode_text)
        self.sessions = Sessions(self.observations, one, ahead) if self.config.chunks > 1 else None
        self._imagination = Imagination(self.engine, self.observations, self.sessions)
        if self.sessions:
            for name in self.embodiments:
                check_timing(self.embodiment(name), self.config)

    def _engine(self, config: ModelConfig) -> Engine:
        graph, *_ = nnx.split(nnx.eval_shape(lambda: create(config)), nnx.Param, Constant)
        return Engine(Apply(graph, self._constants), self.params, self.tokenizer, config)

    @functools.cached_property
    def whole(self) -> Engine:
        """For all chunks of a training sample at once."""
        return self.engine if self.config.chunks == 1 else self._engine(self.config)

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
    def camera_table(self) -> tuple[str, ...]:
        return self.observations.cameras

    @property
    def embodiments(self) -> tuple[str, ...]:
        return self.observations.names

    def embodiment(self, name: str) -> Embodiment:
        """ValueError for an embodiment the checkpoint does not know."""
        return self.observations.embodiment(name)

    @property
    def action_names(self) -> tuple[str, ...]:
        return self.embodiment(self.embodiments[0]).spec.action_names

    def frame_seconds(self, embodiment: str) -> np.ndarray:
        """f32 [T]: times of the frames of a training sample of a robot."""
        return np.asarray(self.embodiment(embodiment).frame_seconds, np.float32)

    def action_seconds(self, embodiment: str) -> np.ndarray:
        """f32 [K]: times of a chunk's actions."""
        return self.observations.action_seconds(embodiment)

    def chunk_steps(self, embodiment: str) -> int:
        """Actions that pass while a chunk's frames do: after so many, a session's next observation is due."""
        return round(float(self.observations.frame_seconds(embodiment)[-1]) * self.embodiment(embodiment).action_hz)

    def example_observation(self) -> dict[str, Any]:
        """A valid observation without content (mean images, zero state): for trying out the interface."""
        h, w = self.tokenizer.image_size
        spec = self.embodiment(self.embodiments[0]).spec
        return {
            "images": {camera: np.full((h, w, 3), 128, np.uint8) for camera in self.cameras},
            "state": np.zeros(spec.state_dim, np.float32),
            "instruction": "open the window",
            "embodiment": spec.name,
            "time": 0.0,
        }

    def program(self, mode: str) -> Program:
        """The default program of a mode; ValueError if there is none, or the checkpoint was not trained for it."""
        if mode not in DEFAULT_STEPS:
            raise ValueError(f"unknown mode {mode!r} for infer; choose from {', '.join(DEFAULT_STEPS)}")
        self.check_trained(mode)
        return sampler.program(mode, DEFAULT_STEPS[mode])

    def check_trained(self, name: str) -> None:
        """ValueError if no mode was trained that a program of this name needs."""
        objective = self.assets["config"]["objective"]
        trained = {mode for mode, weight in objective["modes"].items() if weight > 0}
        trained |= {"policy"} if objective["policy_draws"] else set()
        trained |= {"video"} if objective["with_video"] else set()  # of whatever has no actions
        trained |= {"async", "flash"} if trained & {"async", "independent"} else set()
        if name not in trained:
            raise ValueError(
                f"mode {name!r}: this checkpoint was trained for {', '.join(sorted(trained))}; give it a weight in "
                "objective.modes and train"
            )

    # ------------------------------------------------------------ sampling

    def infer(self, observation: Mapping[str, Any], memory: Memory | None = None, mode: str | None = None,
              program: Program | None = None, key: Array | None = None, actions: np.ndarray | None = None,
              video: Mapping[str, np.ndarray] | None = None,
              prefix: np.ndarray | None = None) -> tuple[Chunk, Memory]:  # fmt: skip
        """One chunk for one observation.

        Args:
          observation: {"images": {camera: uint8 [h, w, 3]}, "state": f32 [raw], "instruction": str,
            "embodiment": str, "time": seconds}. Where chunks see earlier ones, later observations of a session bring
            the frames since the last, uint8 [n, h, w, 3], at the times of `frame_seconds`.
          memory: what the last call of this session returned; None at its start.
          mode: policy (the default), joint, forward (needs `actions`), inverse (needs `video`) or video.
          program: how that is sampled, and then its mode counts; by default `DEFAULT_STEPS` even steps.
          key: noise key; by default fixed, so that equal calls give equal answers.
          actions: [K, raw action dim], given in `forward`.
          video: camera -> uint8 [n, h, w, 3], the frames after the observation, given in `inverse`.
          prefix: [k, raw action dim], actions that are decided already: the chunk begins with them. A whole number of
            action tokens.

        Raises ValueError naming the field that is wrong.
        """
        ids = np.array([*key_words(key), memory.chunk if memory else 0], np.uint32)
        chunks, memories = self.infer_many(
            [observation], ids[None], [memory], mode=mode, program=program,
            actions=None if actions is None else [actions], videos=None if video is None else [video],
            prefixes=None if prefix is None else [prefix],
        )  # fmt: skip
        return chunks[0], memories[0]

    def imagine(self, observation: Mapping[str, Any], memory: Memory | None = None, chunks: int = 4,
                mode: str | None = None, program: Program | None = None, key: Array | None = None,
                actions: np.ndarray | None = None) -> tuple[Imagined, Memory]:  # fmt: skip
        """An open-loop rollout: `chunks` chunks, each going on from what the one before imagined.

        Args:
          observation: as in `infer`.
          memory: of the session, as in `infer`.
          chunks: how many.
          mode: joint (the default), forward (needs `actions`) or video.
          program: of one of these modes.
          key: noise key.
          actions: [chunks * `chunk_steps`, raw action dim], in `forward`.

        Returns:
          what was imagined, and the session's memory with it: the next real observation overwrites it.

        Raises ValueError naming the field that is wrong.
        """
        (program,) = self._programs(None if program else mode or "joint", program, 1)
        if not program.imagines:
            raise ValueError(f"imagine: program {program.name!r} makes no video; take mode joint, forward or video")
        if (program.mode == "forward") != (actions is not None):
            raise ValueError("mode 'forward' needs `actions`" if actions is None else "only 'forward' takes `actions`")
        if chunks < 1:
            raise ValueError(f"chunks: expected at least 1, got {chunks}")
        steps = self.chunk_steps(self.embodiment(observation["embodiment"]).spec.name)
        if steps > self.config.action_horizon:
            raise ValueError(
                f"imagine: a chunk's frames last {steps} actions, its actions end after {self.config.action_horizon}"
            )
        return self._imagination(observation, memory, program, chunks, key_words(key), steps, actions)

    def infer_many(self, observations: Sequence[Mapping[str, Any]], ids: np.ndarray,
                   memories: Sequence[Memory | None] | None = None, *, mode: str | Sequence[str] | None = None,
                   program: Program | Sequence[Program] | None = None,
                   actions: Sequence[np.ndarray | None] | None = None,
                   videos: Sequence[Mapping[str, np.ndarray] | None] | None = None,
                   prefixes: Sequence[np.ndarray | None] | None = None,
                   batch_size: int | None = None) -> tuple[list[Chunk], list[Memory]]:  # fmt: skip
        """Like `infer` for several sessions at once, padded to `batch_size` (one compilation).

        Every row may have a mode and a program of its own. `ids` [n, 3] uint32 keys the noise of each row, so that an
        answer does not depend on its neighbours; but rows that reuse outputs (`Program.reuse`) decide on it together.
        """
        n = len(observations)
        size = batch_size or n
        if size < n:
            raise ValueError(f"batch_size {size} is smaller than the {n} observations")
        programs = self._programs(mode, program, n)
        memories = list(memories or [None] * n)
        rows, rings = [], []
        for i, observation in enumerate(observations):
            row, ring = self.sessions.row(observation, memories[i]) if self.sessions else (
                self.observations.row(observation), None)  # fmt: skip
            self.observations.give(
                row, observation, programs[i].mode, *(x[i] if x else None for x in (actions, videos, prefixes))
            )
            rows.append(row)
            rings.append(ring)
        fill = _filled(rows)
        pad = [min(i, n - 1) for i in range(size)]
        batch = {name: np.stack([fill[i][name] for i in pad]) for name in fill[0]}
        out, after = self._sample(batch, ids[pad], [programs[i] for i in pad], [rings[i] for i in pad])
        shown = np.asarray(self.pixels(out, batch)) if any(p.imagines for p in programs) else None
        action = None if out.action is None else np.asarray(out.action[:, 0])
        evaluations = np.broadcast_to(np.asarray(out.evaluations), size)
        chunks, new = [], []
        for i, (observation, way) in enumerate(zip(observations, programs, strict=True)):
            raw = frames = None
            if action is not None and way.action == "generated":
                raw = self.raw_actions(action[i], observation)
                if (decided := prefixes[i] if prefixes else None) is not None:
                    raw[: len(decided)] = decided
            if shown is not None and way.imagines:
                names = self._imagined(self.embodiment(observation["embodiment"]).views)
                frames = dict(zip(names, shown[i], strict=False))  # a robot may have fewer cameras than there are views
            chunks.append(self._chunk(raw, frames, observation["embodiment"], int(evaluations[i])))
            memory = memories[i]
            number = 1 + (memory.chunk if memory else 0)
            new.append(self.sessions.after(observation, rows[i], after[i], number) if self.sessions else Memory(number))
        return chunks, new

    def _programs(self, mode: str | Sequence[str] | None, program: Program | Sequence[Program] | None, n: int
                  ) -> list[Program]:  # fmt: skip
        """One program a row; ValueError if the checkpoint was not trained for it, or it is of another mode."""
        modes = [mode] * n if mode is None or isinstance(mode, str) else list(mode)
        if program is None:
            return [self.program(name or "policy") for name in modes]
        programs = [program] * n if isinstance(program, Program) else list(program)
        for name, given in zip(modes, programs, strict=True):
            if name not in (None, given.mode):
                raise ValueError(f"program {given.name!r} is of mode {given.mode!r}, not {name!r}")
            self.check_trained(given.name)
            if given.video_guidance.scale != 1 and not self.assets["config"]["objective"]["drop_text"]:
                raise ValueError("video_guidance: this checkpoint was trained with objective.drop_text 0, so it has no "
                                 "answer without an instruction")  # fmt: skip
        return programs

    def _chunk(self, actions: Any, video: Any, robot: str, evaluations: int) -> Chunk:
        return Chunk(
            actions, video, self.action_seconds(robot), self.observations.frame_seconds(robot)[1:], evaluations
        )

    def _sample(self, batch: Batch, ids: np.ndarray, programs: Sequence[Program], rings: Sequence[Any]) -> Any:
        """(sample, what every session then remembers) of a batch of single chunks."""
        way, rows = line_up(programs)

        def run(model: JointDiT, tokenizer: VideoTokenizer, batch: Batch, ids: Array, rows: Any, rings: Any) -> Any:
            ring = together(rings) if self.sessions else None
            out, context = sampled(model, tokenizer, way, batch, ids, rows, ring)
            return out, apart(remember(ring, context)) if ring is not None else [None] * len(rings)

        rings = self.engine.beside(list(rings))
        return self.engine.jit(("infer", way), run)(batch, jnp.asarray(ids, jnp.uint32), rows, rings)

    def generate(self, batch: Batch, ids: np.ndarray, program: Program) -> sampler.Sampled:
        """Samples whole batches of training samples, in latents and normalised actions.

        Every chunk follows the real ones before it; a given stream is read from the batch.
        """
        way, rows = line_up([program] * len(ids))

        def run(model: JointDiT, tokenizer: VideoTokenizer, batch: Batch, ids: Array, rows: Any) -> sampler.Sampled:
            return sampled(model, tokenizer, way, batch, ids, rows)[0]

        return self.whole.jit(("generate", way), run)(dict(batch), jnp.asarray(ids, jnp.uint32), rows)

    @functools.cached_property
    def _decode(self):
        cfg = self.config

        def decode(tokenizer: VideoTokenizer, video: Array, shown: Batch) -> Array:
            return decoded(tokenizer, cfg, video, shown["camera"], latents_of(shown, tokenizer))

        return jax.jit(decode)

    def pixels(self, sample: Any, batch: Batch) -> Array:
        """Future latents [B, M, f, v, P, C] and the batch they continue -> [B, v, n, h, w, 3] uint8."""
        targets = np.array(self.config.target_views)
        # Of a session's row, the observation is the last frame; of a training sample, the first.
        at = slice(-1, None) if "opens" in batch else slice(0, 1)
        shown = {name: batch[name][:, targets, at] for name in ("video", "latents") if name in batch}
        return self._decode(self.tokenizer, sample.video, shown | {"camera": batch["camera"][:, targets]})

    def raw_actions(self, normalised: np.ndarray, observation: Mapping[str, Any]) -> np.ndarray:
        """[K, A] normalised and padded -> [K, raw] in the robot's units; relative dimensions become absolute."""
        return self.embodiment(observation["embodiment"]).decode_action(normalised, observation["state"])


def _filled(rows: list[Batch]) -> list[Batch]:
    """Rows with the same fields: where only some are given a prefix or a future, the others have an empty one."""
    missing = {name: row[name] for row in rows for name in ("prefix", "future") if name in row}
    return [{name: np.zeros_like(value) for name, value in missing.items()} | row for row in rows]


def load_policy(directory: str | Path, *, step: int | None = None, unroll: bool = True,
                text_path: str | Path | None = None, ahead: int = 4) -> Policy:  # fmt: skip
    """The newest (or the given) checkpoint of a run directory.

    Args:
      directory: what `--workdir` named in training.
      step: a particular checkpoint.
      unroll: unstack the layers: faster answers, slower first call.
      text_path: where a pretrained text encoder lies, if no longer where training read it.
      ahead: imagined chunks that a session's memory has room for beside the real ones.

    Raises:
      FileNotFoundError: no checkpoint there, or no text encoder. ValueError: one of them is damaged, or of another
        format or encoder.
    """
    return Policy(read_inference(directory, step), unroll=unroll, text_path=text_path, ahead=ahead)
