"""Losses over the active elements of the whole global batch.

Every term is sum(mask * error) / max(1, sum(mask)), both sums over the global batch: adding action-free samples,
padding dimensions or devices does not change the gradient of the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from wam.batch import Batch
from wam.config import ModelConfig, ObjectiveConfig
from wam.diffusion import flow
from wam.diffusion.inpainting import frozen_steps
from wam.diffusion.modes import MODES, Draws, loss_flags
from wam.diffusion.value import ValueTarget, value_target
from wam.models.joint_dit import JointDiT
from wam.models.streams import Noisy, observe


class Target(NamedTuple):
    """What one loss term compares the network with: the value, and a mask that broadcasts to it."""

    value: Array
    mask: Array

    def counts(self) -> Array:
        """[B] f32: active elements of each sample."""
        full = jnp.broadcast_to(self.mask, self.value.shape).astype(jnp.float32)
        return full.sum(tuple(range(1, full.ndim)))

    def error(self, output: Array) -> Array:
        """[B]: squared errors, summed over the active elements of each sample."""
        # where, not a product: a non-finite value in a masked place must not reach the sum.
        error = jnp.where(jnp.broadcast_to(self.mask, output.shape), (output - self.value) ** 2, 0.0)
        return error.sum(tuple(range(1, error.ndim)))


class Term(NamedTuple):
    """One loss term before the division: per-sample sums over its active elements, both [B]."""

    error: Array
    count: Array  # type: ignore[assignment]  # hides tuple.count, which means nothing here

    def mean(self) -> Array:
        return self.error.sum() / jnp.maximum(1.0, self.count.sum())


def future_latents(latents: Array, model: ModelConfig) -> Array:
    """[B, V, F, P, C] -> the predicted part [B, M, f, v, P, C]."""
    chosen = latents[:, jnp.array(model.target_views), 1:]
    B, v, frames, P, C = chosen.shape
    chunked = chosen.reshape(B, v, model.chunks, frames // model.chunks, P, C)
    return jnp.moveaxis(chunked, 1, 3)


def frame_masks(batch: Batch, model: ModelConfig) -> Array:
    """[B, M, f] bool: latent frames all of whose video frames are real."""
    later = batch["frame_mask"][:, 1:]
    return later.reshape(later.shape[0], model.chunks, model.frames_per_chunk, -1).all(-1)


def noisy_inputs(batch: Batch, latents: Array, draws: Draws, model: ModelConfig, with_video: bool = True) -> Noisy:
    """The batch with the step's noise added, but to frozen prefixes; without video its tokens are absent."""
    future = future_latents(latents, model)
    R = draws.policy_sigma.shape[-1]
    action = flow.add_noise(batch["action"], draws.noise_action, draws.sigma_action)
    repeated = jnp.broadcast_to(batch["action"][:, :, None], draws.policy_noise.shape)
    policy = flow.add_noise(repeated, draws.policy_noise, draws.policy_sigma)
    if draws.prefix is not None and draws.policy_prefix is not None:
        action = jnp.where(frozen_steps(draws.prefix, model)[..., None], batch["action"], action)
        policy = jnp.where(frozen_steps(draws.policy_prefix, model)[..., None], repeated, policy)
    return Noisy(
        video=flow.add_noise(future, draws.noise_video, draws.sigma_video) if with_video else None,
        sigma_video=draws.sigma_video,
        frame_mask=frame_masks(batch, model),
        action=action,
        action_mask=batch["action_mask"],
        sigma_action=draws.sigma_action,
        action_sees_video=draws.action_sees_video,
        video_sees_action=draws.video_sees_action,
        prefix=draws.prefix,
        draws=policy if R else None,
        sigma_draws=draws.policy_sigma if R else None,
        prefix_draws=draws.policy_prefix if R else None,
        value_sees_video=draws.value_sees_video if model.value_bins else None,
    )


def targets(batch: Batch, latents: Array, draws: Draws, model: ModelConfig, *,
            with_video: bool = True) -> dict[str, Target | ValueTarget]:  # fmt: skip
    """What every term is compared with, and where: `video`, `action`, `policy` (further draws), `inverse`, `value`."""
    future, frames = future_latents(latents, model), frame_masks(batch, model)
    views = batch["view_mask"][:, jnp.array(model.target_views)]
    video_on, action_on, imitates = loss_flags(draws.mode)
    copied = batch["action_mask"] & batch["imitate"][:, :, None, None]
    action_mask = jnp.where(imitates[:, None, None, None], copied, batch["action_mask"])
    action_mask, policy_mask = action_mask & action_on[:, None, None, None], copied[:, :, None]
    if draws.prefix is not None and draws.policy_prefix is not None:
        # A prefix is given: there is nothing to predict about it.
        action_mask = action_mask & ~frozen_steps(draws.prefix, model)[..., None]
        policy_mask = policy_mask & ~frozen_steps(draws.policy_prefix, model)[..., None]
    out: dict[str, Target | ValueTarget] = {}
    out["action"] = Target(flow.target(batch["action"], draws.noise_action, "velocity"), action_mask)
    if with_video:
        mask = frames[..., None] & views[:, None, None] & video_on[:, None, None, None]
        out["video"] = Target(flow.target(future, draws.noise_video, model.video_prediction), mask[..., None, None])
    if draws.policy_sigma.shape[-1]:
        value = flow.target(batch["action"][:, :, None], draws.policy_noise, "velocity")
        out["policy"] = Target(value, policy_mask)
    if model.inverse_width and with_video:
        seen = frames.any(-1) & views.any(-1, keepdims=True)
        out["inverse"] = Target(batch["action"], batch["action_mask"] & seen[..., None, None])
    if model.value_bins:
        out["value"] = value_target(batch, draws)
    return out


def denominators(counts: dict[str, Array]) -> dict[str, Array]:
    """Active elements of every term over the whole global batch, at least 1, from those of its samples [B]."""
    return {name: jnp.maximum(1.0, count.sum()) for name, count in counts.items()}


def predictions(model: JointDiT, batch: Batch, latents: Array, draws: Draws, noisy: Noisy) -> dict[str, Any]:
    """What the network says to every term of `targets`; None for streams that are absent."""
    cfg = model.config
    observation = observe(batch, latents, cfg.chunks, cfg.frames_per_chunk, drop_text=draws.drop_text,
                          drop_state=draws.drop_state, drop_history=draws.drop_history)  # fmt: skip
    given, out = model(observation, noisy)
    said: dict[str, Any] = {"action": out.action, "video": out.video, "policy": out.draws, "value": out.value}
    if cfg.inverse_width and noisy.video is not None:
        said["inverse"] = model.direct_inverse(given, future_latents(latents, cfg), noisy.frame_mask)
    return said


def compared(of: dict[str, Target | ValueTarget], said: dict[str, Any]) -> dict[str, Term]:
    """The terms of targets and what was said to them."""
    return {name: Term(target.error(said[name]), target.counts()) for name, target in of.items()}


def loss_terms(model: JointDiT, batch: Batch, latents: Array, draws: Draws, *,
               with_video: bool = True) -> dict[str, Term]:  # fmt: skip
    """The terms of `targets` for the network's outputs."""
    noisy = noisy_inputs(batch, latents, draws, model.config, with_video)
    of = targets(batch, latents, draws, model.config, with_video=with_video)
    return compared(of, predictions(model, batch, latents, draws, noisy))


def weights(objective: ObjectiveConfig) -> dict[str, float]:
    return {
        "video": objective.video_weight,
        "action": objective.action_weight,
        "policy": objective.policy_weight,
        "inverse": objective.inverse_weight,
        "value": objective.value_weight,
    }


def total_loss(terms: dict[str, Term], of: dict[str, Array], objective: ObjectiveConfig) -> Array:
    """Weighted errors over the `denominators` of the whole batch; `terms` may be those of a part of it."""
    weight = weights(objective)
    return sum((weight[name] * t.error.sum() / of[name] for name, t in terms.items()), jnp.float32(0.0))


def breakdown(terms: dict[str, Term], batch: Batch, draws: Draws, bins: int, sources: int) -> dict[str, Any]:
    """Sums and counts [n, 2] of every term per mode, per source and per sigma bin: never only the mean.

    The sigma of a bin is the stream's own (the first chunk's); the `policy` draws have no single one and the direct
    inverse and the value none, so those are split by source alone.
    """
    by: dict[str, tuple[Array, int]] = {"source": (batch["source"], sources)}
    out: dict[str, Any] = {}
    sigma = {"video": draws.sigma_video[:, 0, 0], "action": draws.sigma_action[:, 0]}
    for name, t in terms.items():
        groups = dict(by)
        if name in sigma:
            groups["mode"] = (draws.mode, len(MODES))
            index = jnp.clip((sigma[name] * bins).astype(jnp.int32), 0, bins - 1)
            groups["sigma"] = (index, bins)
        out[name] = {"all": jnp.stack([t.error.sum(), t.count.sum()])}
        for group, (index, size) in groups.items():
            onehot = jax.nn.one_hot(index, size)
            out[name][group] = jnp.stack([t.error @ onehot, t.count @ onehot], axis=-1)
    return out
