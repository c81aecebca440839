"""Modes: what is given, what is generated and which losses count, as per-sample arrays inside one jitted batch.

`draw` makes every random choice of a training step (mode, noise levels, noise, dropout) outside the loss, keyed by
(seed, step, sample id), so the draw of a sample depends neither on its place in the batch nor on the devices.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from wam.batch import Batch
from wam.config import ModelConfig, ObjectiveConfig
from wam.diffusion import flow


@dataclasses.dataclass(frozen=True)
class Mode:
    """One row of the mode table. Noise rules: `t` (shared), `u` (independent), `beta` (near 1), `zero`, `one`."""

    name: str
    video: str
    action: str
    action_sees_video: float
    """Probability that the actions attend to the noisy video."""
    video_sees_action: float | None
    """Probability that the video attends to the actions; None: taken from the objective's configuration."""
    video_loss: bool
    action_loss: bool
    imitates: bool
    """Its action loss copies the demonstrator, so it needs `imitate`."""
    needs_action: bool = True
    value_sees_video: float = 0.0
    """Probability that the value query reads the video, V(s'), and not state and actions, Q(s, a). Its loss counts
    wherever what it reads is clean and the outcome known: in `value`, and beside the others in `forward` and `inverse`.
    """


MODES: tuple[Mode, ...] = (
    Mode("joint", "t", "t", 1.0, None, video_loss=True, action_loss=True, imitates=True),
    Mode("async", "beta", "u", 1.0, None, video_loss=True, action_loss=True, imitates=True),
    Mode("independent", "u", "u", 0.5, 0.5, video_loss=True, action_loss=True, imitates=True),
    Mode("policy", "one", "u", 0.0, 0.0, video_loss=False, action_loss=True, imitates=True),
    Mode("forward", "u", "zero", 0.0, 1.0, video_loss=True, action_loss=False, imitates=False),
    Mode("inverse", "zero", "u", 1.0, 0.0, video_loss=False, action_loss=True, imitates=False, value_sees_video=1.0),
    Mode("video", "u", "one", 0.0, 0.0, video_loss=True, action_loss=False, imitates=False, needs_action=False),
    Mode("value", "zero", "zero", 0.0, 0.0, video_loss=False, action_loss=False, imitates=False, needs_action=False,
         value_sees_video=0.5),
)  # fmt: skip
MODE_NAMES = tuple(mode.name for mode in MODES)


def mode_named(name: str) -> Mode:
    if name not in MODE_NAMES:
        raise ValueError(f"unknown mode {name!r}; choose from {', '.join(MODE_NAMES)}")
    return MODES[MODE_NAMES.index(name)]


class Draws(NamedTuple):
    """Every random choice of one step. Leading axis B."""

    mode: Array  # [B] int32, index into MODES
    sigma_video: Array  # [B, M, f] per latent frame of a chunk
    sigma_action: Array  # [B, M]
    noise_video: Array  # [B, M, f, v, P, C]
    noise_action: Array  # [B, M, K, A]
    action_sees_video: Array  # [B] f32, 0 or 1
    video_sees_action: Array  # [B] f32, 0 or 1
    policy_sigma: Array  # [B, M, R]
    policy_noise: Array  # [B, M, R, K, A]
    drop_text: Array  # [B] bool
    drop_state: Array  # [B] bool
    drop_history: Array  # [B] bool
    value_sees_video: Array  # [B] f32, 0 or 1
    prefix: Array | None = None  # [B, M] int32: leading action tokens that enter clean; None: no prefix is trained
    policy_prefix: Array | None = None  # [B, M, R] int32


def _noise_levels(rule_ids: Array, t: Array, u: Array, beta: Array) -> Array:
    return jnp.stack([t, u, beta, jnp.zeros_like(t), jnp.ones_like(t)])[rule_ids]


_RULES = ("t", "u", "beta", "zero", "one")


def _table(values) -> Array:
    return jnp.asarray(list(values), jnp.float32)


def draw(key: Array, batch: Batch, model: ModelConfig, objective: ObjectiveConfig) -> Draws:
    """Draws for one step; `key` already holds the seed and the step.

    A frozen prefix (training-time real-time chunking, arXiv:2512.05964) has 0 .. `prefix_tokens` tokens, all equally
    likely, but never a token with a step that is not real; in the `action` stream of imitating modes, and in all draws.
    ValueError for an unknown mode, or a prefix that leaves nothing to predict.
    """
    longest = objective.prefix_tokens
    if not 0 <= longest < model.action_tokens:
        raise ValueError(
            f"objective.prefix_tokens is {longest}; expected 0 to {model.action_tokens - 1}: at least one of the "
            f"{model.action_tokens} action tokens of a chunk must stay to be predicted"
        )
    weights = dict(objective.modes)
    for name in weights:
        mode_named(name)
    weight_M = _table(weights.get(mode.name, 0.0) for mode in MODES)
    imitates_M = jnp.asarray([mode.imitates for mode in MODES])
    needs_action_M = jnp.asarray([mode.needs_action for mode in MODES])
    needs_value_M = jnp.asarray([mode.name == "value" for mode in MODES])
    p_value_video = _table(mode.value_sees_video for mode in MODES)
    p_asv = _table(mode.action_sees_video for mode in MODES)
    joint_vsa = objective.joint_video_sees_action
    p_vsa = _table(joint_vsa if mode.video_sees_action is None else mode.video_sees_action for mode in MODES)
    video_rule = jnp.asarray([_RULES.index(mode.video) for mode in MODES])
    action_rule = jnp.asarray([_RULES.index(mode.action) for mode in MODES])
    M, f, R = model.chunks, model.frames_per_chunk, objective.policy_draws
    video_shape = (M, f, len(model.target_views), model.patches, model.latent_channels)
    # Action dimensions lead, so that padding them appends draws and leaves the others as they were.
    K, A = model.action_horizon, model.action_dim

    def one(sample_id: Array, imitate: Array, has_action: Array, real_tokens: Array, has_value: Array) -> Draws:
        sample_key = jax.random.fold_in(jax.random.fold_in(key, sample_id[0]), sample_id[1])
        k = jax.random.split(sample_key, 10)
        # Data without actions can only be video; data that must not be copied leaves the imitating modes.
        allowed = jnp.where(imitates_M, imitate & has_action, jnp.where(needs_action_M, has_action, True))
        allowed &= has_value | ~needs_value_M
        # `video` is for whatever has no actions: with a positive weight robot data may draw it as well.
        weight = jnp.where(allowed, weight_M, 0.0)
        video_only = jnp.asarray([float(mode.name == "video") for mode in MODES])
        weight = jnp.where(weight.sum() > 0, weight, video_only)
        mode = jax.random.categorical(k[0], jnp.log(weight)).astype(jnp.int32)
        t, u_video, u_action = jax.random.uniform(k[1], (3, M))
        # X ~ Beta(7, 1) is U^(1/7).
        beta = jax.random.uniform(k[2], (M,)) ** (1 / 7)
        inverse = mode == MODE_NAMES.index("inverse")
        # Inverse dynamics is read out in one step from pure noise, so it is trained mostly near sigma = 1.
        u_action = jnp.where(inverse, 1 - (1 - u_action) ** 2, u_action)
        sigma_video = flow.shift(_noise_levels(video_rule[mode], t, u_video, beta), objective.video_shift)
        sigma_action = flow.shift(_noise_levels(action_rule[mode], t, u_action, beta), objective.action_shift)
        bits = jax.random.uniform(k[3], (5,))
        # Stratified over the draws of a sample: one uniform per equal share of [0, 1].
        strata = (jnp.arange(R) + jax.random.uniform(k[4], (M, R))) / max(1, R)
        prefix = policy_prefix = None
        if longest:
            delays = jnp.minimum(jax.random.randint(k[8], (M, 1 + R), 0, longest + 1), real_tokens[:, None])
            prefix, policy_prefix = jnp.where(imitates_M[mode], delays[:, 0], 0), delays[:, 1:]
        return Draws(
            mode=mode,
            sigma_video=jnp.broadcast_to(sigma_video[:, None], (M, f)),
            sigma_action=sigma_action,
            noise_video=jax.random.normal(k[5], video_shape),
            noise_action=jnp.moveaxis(jax.random.normal(k[6], (A, M, K)), 0, -1),
            action_sees_video=(bits[0] < p_asv[mode]).astype(jnp.float32),
            video_sees_action=(bits[1] < p_vsa[mode]).astype(jnp.float32),
            policy_sigma=flow.shift(strata, objective.action_shift),
            policy_noise=jnp.moveaxis(jax.random.normal(k[7], (A, M, R, K)), 0, -1),
            drop_text=bits[2] < objective.drop_text,
            drop_state=bits[3] < objective.drop_state,
            drop_history=bits[4] < objective.drop_history,
            # The only thing there is to read, where the other is missing.
            value_sees_video=(
                ((jax.random.uniform(k[9]) < p_value_video[mode]) | ~has_action) & objective.with_video
            ).astype(jnp.float32),
            prefix=prefix,
            policy_prefix=policy_prefix,
        )

    real = batch["action_mask"].any(-1)  # [B, M, K]
    whole = real.reshape(*real.shape[:2], -1, model.steps_per_token).all(-1)
    real_tokens = jnp.cumprod(whole.astype(jnp.int32), -1).sum(-1)  # [B, M]: before the first that is not real
    has_value = batch["value_mask"].any(1) if model.value_bins else jnp.zeros(len(real), bool)
    return jax.vmap(one)(batch["sample_id"], batch["imitate"].all(1), real.any((1, 2)), real_tokens, has_value)


def loss_flags(mode: Array) -> tuple[Array, Array, Array]:
    """(video loss, action loss, imitates), each [B] bool, for mode indices [B]."""
    video = jnp.asarray([m.video_loss for m in MODES])[mode]
    action = jnp.asarray([m.action_loss for m in MODES])[mode]
    imitates = jnp.asarray([m.imitates for m in MODES])[mode]
    return video, action, imitates
