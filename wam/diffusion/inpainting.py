"""Real-time chunking: a new chunk continues actions that will already be executed when the answer arrives.

Two ways to make it do so. A *frozen prefix*: the committed actions are clean tokens of sigma 0, for networks trained
with such prefixes (`ObjectiveConfig.prefix_tokens`; arXiv:2512.05964). *Guidance*: any network's velocity is corrected
towards the rest of the old chunk, softly where that overlaps the new one (arXiv:2506.07339).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

from wam.config import ModelConfig
from wam.diffusion import flow
from wam.diffusion.sampler import Predict, Sample


def frozen_steps(prefix: Array, model: ModelConfig) -> Array:
    """bool [..., K]: control steps of the first `prefix` [...] action tokens."""
    return jnp.arange(model.action_horizon) < prefix[..., None] * model.steps_per_token


def overlap_weights(frozen: Array, overlap: Array, horizon: int) -> Array:
    """f32 [..., K]: how strongly each step of a new chunk is pulled towards the old one (arXiv:2506.07339, eq. 5).

    1 for the first `frozen` [...] steps; between them and `overlap` [...], how many steps of the new chunk the old one
    covers, c (e^c - 1) / (e - 1) with c falling evenly from 1 to 0, both ends left out; 0 behind.
    """
    frozen, overlap = jnp.minimum(frozen, overlap)[..., None], overlap[..., None]
    i = jnp.arange(horizon)
    c = jnp.clip((overlap - i) / (overlap - frozen + 1), 0, 1)
    return jnp.where(i < overlap, c * jnp.expm1(c) / (math.e - 1), 0.0)


def strength(sigma: Array, limit: float) -> Array:
    """Weight of the correction: min(limit, (sigma^2 + (1 - sigma)^2) / (sigma (1 - sigma))), the limit at both ends.

    With t = 1 - sigma it is the paper's min(beta, (1 - t) / (t r_t^2)), r_t^2 = (1 - t)^2 / (t^2 + (1 - t)^2).
    """
    spread = sigma * (1 - sigma)
    exact = (sigma**2 + (1 - sigma) ** 2) / jnp.where(spread > 0, spread, 1.0)
    return jnp.where(spread > 0, jnp.minimum(limit, exact), limit)


def continuing(predict: Predict, old: Array, action_mask: Array, frozen: Array, overlap: Array) -> Predict:
    """`predict`, guided to continue an old chunk.

    `old` and `action_mask` are [B, M, K, A]; the first `frozen` [B] steps of `old` are executed anyway, and the first
    `overlap` [B] are an old chunk's.
    """
    weight = overlap_weights(frozen, overlap, old.shape[2])[:, None, :, None]
    return guided(predict, old, weight * action_mask)


def guided(predict: Predict, target: Array, weight: Array, *, limit: float = 5.0) -> Predict:
    """`predict` whose action velocity leads to clean actions near `target` (arXiv:2506.07339, eq. 2 to 4).

    With the network's clean estimate x_hat = x - sigma v, whose error is e = weight (target - x_hat):
    v' = v - strength(sigma) (d x_hat / d x)^T e. The transposed Jacobian goes through the whole network; the paper's
    sign is the opposite, since its velocity points from noise to data. One backward pass a step.

    Args:
      predict: outputs of the network; actions are predicted as velocity.
      target: [B, M, K, A] normalised actions of the old chunk, from the new chunk's start on; any where weight is 0.
      weight: broadcasts to `target`: `overlap_weights` where an action dimension is real, 0 elsewhere.
      limit: beta, the largest strength.
    """

    def predict_guided(x: Sample, sigma_video: Array, sigma_action: Array) -> Sample:
        assert x.action is not None

        def estimate(action: Array) -> tuple[Array, Sample]:
            out = predict(x._replace(action=action), sigma_video, sigma_action)
            assert out.action is not None  # as `Predict` promises
            return action - flow.expand(sigma_action, action) * out.action, out

        x_hat, transposed, out = jax.vjp(estimate, x.action, has_aux=True)
        (correction,) = transposed(weight * (target - x_hat))
        assert out.action is not None
        return out._replace(action=out.action - flow.expand(strength(sigma_action, limit), correction) * correction)

    return predict_guided
