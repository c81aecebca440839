"""Real-time chunking: a new chunk continues actions that will already be executed when the answer arrives.

Two ways to make it do so. A *frozen prefix*: the committed actions are clean tokens of sigma 0, for networks trained
with such prefixes (`ObjectiveConfig.prefix_tokens`; arXiv:2512.05964). *Guidance*: any network's velocity is corrected
towards the rest of the old chunk, softly where that overlaps the new one (arXiv:2506.07339).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wam.config import ModelConfig
from wam.diffusion import flow
from wam.diffusion.sampler import Predict, Sample

# ------------------------------------------------------------------ frozen prefix


def frozen_steps(prefix: Array, model: ModelConfig) -> Array:
    """bool [..., K]: control steps of the first `prefix` [...] action tokens."""
    return jnp.arange(model.action_horizon) < prefix[..., None] * model.steps_per_token


def whole_tokens(steps: int, model: ModelConfig) -> int:
    """Tokens that hold `steps` control steps: a delay rounds up."""
    return math.ceil(steps / model.steps_per_token)


def frozen_chunk(committed: np.ndarray, model: ModelConfig, longest: int) -> tuple[np.ndarray, int]:
    """Committed actions as the front of a chunk, and how many tokens they fill.

    Args:
      committed: [n, A] normalised, n a multiple of `steps_per_token` (`whole_tokens` of the delay).
      model: shape of the network.
      longest: tokens of the longest prefix the network was trained with (`ObjectiveConfig.prefix_tokens`).

    Returns:
      f32 [K, A], zeros behind the committed actions, and the number of tokens.

    Raises:
      ValueError: n fills no whole tokens, or more of them than the network knows.
    """
    steps, k = len(committed), model.steps_per_token
    if steps % k:
        raise ValueError(f"prefix: expected whole action tokens, a multiple of {k} actions, got {steps}")
    if steps > longest * k:
        known = f"at most {longest * k} actions" if longest else "none (objective.prefix_tokens is 0)"
        raise ValueError(f"prefix: {steps} actions are given, but the checkpoint was trained for {known}")
    chunk = np.zeros((model.action_horizon, committed.shape[-1]), np.float32)
    chunk[:steps] = committed
    return chunk, steps // k


def with_prefix(start: Sample, chunk: Array, prefix: Array, model: ModelConfig) -> tuple[Sample, Array]:
    """(`start` that begins with the frozen actions, what must stay as it is: `Held.action`).

    `chunk` [B, M, K, A] holds them in front (`frozen_chunk`), `prefix` [B, M] counts their tokens. The network has to
    be told as well (`Noisy.prefix`).
    """
    assert start.action is not None
    held = frozen_steps(prefix, model)[..., None]  # [B, M, K, 1]
    return start._replace(action=jnp.where(held, chunk, start.action)), held


# ----------------------------------------------------------------------- guidance


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
