"""AdamW with warm-up and cosine decay, clipping, and weight decay on matrices only."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from wam.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: Array, steps: Array) -> Array:
    """Linear warm-up, then cosine to `final_learning_rate` at `steps`: a function of the step alone.

    `steps` is an array, so that runs of different length share one compiled step.
    """
    warmup = jnp.minimum(config.warmup_steps, jnp.maximum(1, steps // 4)).astype(jnp.float32)
    done = jnp.clip((step - warmup) / jnp.maximum(1.0, steps - warmup), 0.0, 1.0)
    low, high = config.final_learning_rate, config.learning_rate
    cosine = low + (high - low) * 0.5 * (1 + jnp.cos(jnp.pi * done))
    return jnp.where(step < warmup, high * (step + 1) / warmup, cosine)


def decay_mask(params: Any) -> Any:
    """True for kernels: no decay on biases, norm scales, embeddings, nulls or modulation tables."""

    def decays(path, _):
        return getattr(path[-1], "key", None) in ("kernel", "positions")

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipped AdamW directions of unit learning rate; the step multiplies them by `-learning_rate`."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.b1, b2=config.b2),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
    )
