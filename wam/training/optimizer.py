"""AdamW with warm-up and cosine decay, clipping, and weight decay on matrices only."""

from __future__ import annotations

from typing import Any

import jax
import optax

from wam.config import OptimizerConfig


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step alone: linear warm-up, then cosine to `final_learning_rate` at `steps`."""
    warmup = min(config.warmup_steps, max(1, steps // 4))
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(steps, warmup + 1), end_value=config.final_learning_rate
    )


def decay_mask(params: Any) -> Any:
    """True for kernels: no decay on biases, norm scales, embeddings, nulls or modulation tables."""

    def decays(path, _):
        return getattr(path[-1], "key", None) in ("kernel", "positions")

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule(config, steps), b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=decay_mask
        ),
    )
