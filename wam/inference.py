"""What sampling is made of, as functions of a model: context, noise, predictions; and `Engine`, which compiles them.

`Policy`, planners, the server and benches sample through these, so that all of them run the same network.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from wam.batch import Batch
from wam.config import ModelConfig
from wam.diffusion import flow, losses
from wam.diffusion.guidance import guided, without_text
from wam.diffusion.inpainting import continuing, frozen_steps
from wam.diffusion.reuse import Reuse
from wam.diffusion.sampler import Guidance, Held, Predict, Program, Sample, Sampled, Schedule, sample, schedule
from wam.models.dynamics_paths import accumulate
from wam.models.history import Ring
from wam.models.joint_dit import JointDiT
from wam.models.layers import round_weights
from wam.models.streams import Context, Noisy, Observation, observe
from wam.models.trunk import unstack
from wam.tokenizers.video import VideoTokenizer
from wam.training.state import Apply, split
from wam.training.step import latents_of

Tree = TypeVar("Tree")

SESSION = ("clean_seconds", "opens")
"""Fields of a batch of sessions beside those of `BatchSpec`: f32 [B, f], times of the clean frames, and bool [B]."""


class Engine:
    """The current parameters of a checkpoint, as they are served, and what was compiled for them."""

    def __init__(self, apply: Apply, params: Any, tokenizer: VideoTokenizer, config: ModelConfig):
        self.tokenizer, self.config = tokenizer, config
        self.apply, self.params = split(served(apply.model(params)))
        self._compiled: dict[Any, Any] = {}

    def jit(self, name: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(model, tokenizer, *arrays)` as a compiled function of the arrays; one for each hashable `name`."""
        if name not in self._compiled:
            apply = self.apply
            self._compiled[name] = jax.jit(lambda params, *rest: function(apply.model(params), *rest))
        compiled = self._compiled[name]
        return lambda *arrays: compiled(self.params, self.tokenizer, *arrays)

    def beside(self, tree: Tree) -> Tree:
        """Fresh arrays on the parameters' devices, as the results of calls are: a mixture of both compiles nothing."""
        params = jax.tree.leaves(self.params)[0]
        if not params.committed:
            return tree
        where = params.sharding
        where = NamedSharding(where.mesh, PartitionSpec()) if isinstance(where, NamedSharding) else where
        return jax.tree.map(lambda x: x if x.committed else jax.device_put(x, where), tree)


def served(model: JointDiT) -> JointDiT:
    """The same network for sampling: layers one by one unless they are scanned, weights in their compute dtype."""
    if isinstance(model.blocks, nnx.Dict) and not model.config.scan_layers:
        model.blocks = unstack(model.blocks, model.config.depth)
    round_weights(model)
    return model


def observed(model: JointDiT, tokenizer: VideoTokenizer, batch: Batch, ring: Ring | None = None, *,
             text: bool = True) -> tuple[Context, Array]:  # fmt: skip
    """The context of a batch, and its latents [B, V, F, P, C]; with a `ring`, of the newest chunk of each session.

    Without `text` nobody hears the instruction; a ring holds what was remembered with it all the same.
    """
    latents, config = latents_of(batch, tokenizer), model.config
    heard = (lambda obs: obs) if text else without_text
    if ring is None:
        return model.context(heard(observe(batch, latents, config.chunks, config.frames_per_chunk))), latents
    return model.context(heard(newest(batch, latents, config)), ring), latents


def newest(batch: Batch, latents: Array, config: ModelConfig) -> Observation:
    """The newest clean chunk of every session, from latents [B, V, 1 + f, P, C] of the frame before it and its own.

    A session that opens has a first frame alone, which stands before; its f frames are filled up with it.
    """
    f = config.frames_per_chunk
    opens = batch["opens"]
    clean = jnp.where(opens[:, None, None, None, None], latents[:, :, :1], latents[:, :, 1 : 1 + f])
    there = jnp.broadcast_to((jnp.arange(f) == f - 1) | ~opens[:, None], (opens.shape[0], f))
    obs = observe(batch, latents, 1, f)
    return obs._replace(
        latents=clean,
        seconds=batch["clean_seconds"],
        seen=jnp.broadcast_to(there[..., None], (*there.shape, latents.shape[1])),
        opens=opens,
    )


def repeat_rows(tree: Tree, n: int, axis: int = 0) -> Tree:
    """Every row of every array n times, neighbours."""
    return jax.tree.map(lambda x: jnp.repeat(x, n, axis=axis), tree)


def repeat(context: Context, n: int) -> Context:
    """Every row of a context n times, neighbours: n candidates that share what was observed."""
    text, image = context.keys.text, context.keys.image
    keys = context.keys._replace(streams={}, text={}, image={})
    keys = keys._replace(
        streams=repeat_rows(context.keys.streams, n, 1), text=repeat_rows(text, n, 1), image=repeat_rows(image, n, 1)
    )
    return Context(repeat_rows(context.given, n), keys)


def noise(keys: Array, config: ModelConfig) -> Sample:
    """Pure noise of both streams for random keys [B]: [B, M, f, v, P, C] and [B, M, K, A]."""
    M = config.chunks
    video = (M, config.frames_per_chunk, len(config.target_views), config.patches, config.latent_channels)
    action = (M, config.action_horizon, config.action_dim)

    def draw(stream: int, shape: tuple[int, ...]) -> Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, stream), shape))(keys)

    return Sample(draw(0, video), draw(1, action))


def row_keys(ids: Array) -> Array:
    """Random keys [B] of the things that are sampled, numbered by uint32 [B, n]."""

    def fold(numbers: Array) -> Array:
        key = jax.random.key(0)
        for i in range(numbers.shape[0]):
            key = jax.random.fold_in(key, numbers[i])
        return key

    return jax.vmap(fold)(ids)


def key_words(key: Array | None) -> tuple[int, int]:
    """The two numbers of a random key; zeros, those of key 0, without one."""
    if key is None:
        return 0, 0
    first, second = np.asarray(jax.random.key_data(key)).ravel()[-2:]
    return int(first), int(second)


def decoded(tokenizer: VideoTokenizer, config: ModelConfig, video: Array, camera: Array, history: Array) -> Array:
    """Future latents [B, M, f, v, P, C] that go on from `history` [B, v, F', P, C] -> uint8 [B, v, n, h, w, 3]."""
    B, v = video.shape[0], len(config.target_views)
    latents = jnp.moveaxis(video, 3, 1).reshape(B, v, -1, config.patches, config.latent_channels)
    return jnp.round(tokenizer.decode(latents, camera, history=history) * 255).astype(jnp.uint8)


class Rows(NamedTuple):
    """How every row of a batch is sampled, as arrays: rows may differ, and other numbers compile nothing anew."""

    schedule: Schedule
    given_video: Array  # [B] bool
    given_action: Array  # [B] bool


@dataclasses.dataclass(frozen=True)
class Way:
    """What the rows of one compiled call have in common."""

    video: bool
    """Are there tokens of the future video?"""
    action: bool
    video_is_given: bool
    """In some row."""
    solver: str
    reuse: Reuse | None
    video_guidance: Guidance


def line_up(programs: Sequence[Program]) -> tuple[Way, Rows]:
    """One program a row; ValueError if they differ in what one call has in common."""
    return _line_up(tuple(programs))


@functools.lru_cache(maxsize=256)
def _line_up(programs: tuple[Program, ...]) -> tuple[Way, Rows]:
    way = Way(
        video=any(p.video != "absent" for p in programs),
        action=any(p.action != "absent" for p in programs),
        video_is_given=any(p.video == "given" for p in programs),
        solver=programs[0].solver,
        reuse=programs[0].reuse,
        video_guidance=programs[0].video_guidance,
    )
    with jax.ensure_compile_time_eval():  # who traces gets no tracers, which would stay in the cache
        given = [jnp.asarray([getattr(p, stream) == "given" for p in programs]) for stream in ("video", "action")]
        return way, Rows(schedule(programs), *given)


def begin(keys: Array, config: ModelConfig, way: Way, rows: Rows, batch: Batch, future: Array | None,
          known: Array | None = None) -> tuple[Sample, Held]:  # fmt: skip
    """What sampling begins with: noise where a row generates, else what is given.

    Args:
      keys: [B] random keys.
      config: the model's.
      way: from `line_up`.
      rows: from `line_up`.
      batch: whose `action` is given.
      future: [B, M, f, v, P, C], the video where it is given.
      known: [B, M, K] bool: steps of the actions that are given as well, a frozen prefix.
    """
    fresh = noise(keys, config)
    video = fresh.video if way.video else None
    action = fresh.action if way.action else None
    if video is not None and way.video_is_given:
        assert future is not None
        video = jnp.where(flow.expand(rows.given_video, video), future, video)
    if action is not None:
        given = flow.expand(rows.given_action, action)
        given = given if known is None else given | known[..., None]
        action = jnp.where(given, batch["action"], action)
    # Rows that are given have sigma 0 and do not move; a prefix is a part of a row that does.
    return Sample(video, action), Held(action=None if known is None else known[..., None])


def sampled(model: JointDiT, tokenizer: VideoTokenizer, way: Way, batch: Batch, ids: Array, rows: Rows,
            ring: Ring | None = None) -> tuple[Sampled, Context]:  # fmt: skip
    """Samples a batch in latents and normalised actions.

    Optional fields of the batch: `future` uint8 [B, V, n, h, w, 3], the frames of a given video, where those of the
    batch end with the observation; `prefix` int32 [B, M], leading action tokens that are given in `action`; `frozen`
    and `overlap` int32 [B], how many steps of `action` are executed anyway and how many are an old chunk's, which the
    new one is guided to.
    """
    context, latents = observed(model, tokenizer, batch, ring)
    config, prefix, future = model.config, batch.get("prefix"), None
    if "future" in batch:
        clip = jnp.concatenate([batch["video"][:, :, -1:], batch["future"]], axis=2)
        future = losses.future_latents(tokenizer.encode(clip, batch["camera"]), config)
    elif way.video_is_given:
        future = losses.future_latents(latents, config)
    known = None if prefix is None else frozen_steps(prefix, config)
    first, held = begin(row_keys(ids), config, way, rows, batch, future, known)
    predict = predictor(model, context, batch, rows.schedule, prefix=prefix)
    if way.video_guidance.scale != 1:
        silent, _ = observed(model, tokenizer, batch, ring, text=False)
        predict = guided(predict, predictor(model, silent, batch, rows.schedule, prefix=prefix), way.video_guidance)
    if "overlap" in batch:
        predict = continuing(predict, batch["action"], batch["action_mask"], batch["frozen"], batch["overlap"])
    out = sample(predict, first, rows.schedule, held, video_prediction=config.video_prediction, solver=way.solver,
                 reuse=way.reuse)  # fmt: skip
    return out, context


def predictor(model: JointDiT, context: Context, batch: Batch, schedule: Schedule, *,
              prefix: Array | None = None) -> Predict:  # fmt: skip
    """The network as a function of noisy streams and of their noise levels [B].

    Args:
      model: with the context's parameters.
      context: of the same rows.
      batch: whose `frame_mask` and `action_mask` count.
      schedule: whose visibility bits count.
      prefix: [B, M] int: leading action tokens that are clean.
    """
    config = model.config
    frames = losses.frame_masks(batch, config)

    def predict(x: Sample, sigma_video: Array, sigma_action: Array) -> Sample:
        out = model.denoise(
            context,
            Noisy(
                video=x.video,
                sigma_video=jnp.broadcast_to(sigma_video[:, None, None], frames.shape),
                frame_mask=frames,
                action=x.action,
                action_mask=batch["action_mask"],
                sigma_action=jnp.broadcast_to(sigma_action[:, None], frames.shape[:2]),
                action_sees_video=schedule.action_sees_video,
                video_sees_action=schedule.video_sees_action,
                prefix=prefix,
            ),
        )
        return Sample(out.video, out.action)

    return predict


def led_state(model: JointDiT, batch: Batch, action: Array) -> Array:
    """[B, 1, S]: the normalised state at a chunk's end, where its actions [B, 1, K, A] lead by the fitted constants."""
    state, frames = batch["state"] * batch["state_mask"], batch["video_time"][:, None, 1:]
    leads = accumulate(model.embodiments, action, batch["action_mask"], batch["action_time"], frames, state,
                       batch["embodiment"])  # fmt: skip
    return leads.state[:, :, -1]
