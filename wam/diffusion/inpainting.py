"""Real-time chunking: a new chunk continues actions that will already be executed when the answer arrives.

These committed actions are the chunk's frozen prefix: its tokens are clean and have sigma 0, for networks trained with
such prefixes (`ObjectiveConfig.prefix_tokens`; arXiv:2512.05964).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from wam.config import ModelConfig


def frozen_steps(prefix: Array, model: ModelConfig) -> Array:
    """bool [..., K]: control steps of the first `prefix` [...] action tokens."""
    return jnp.arange(model.action_horizon) < prefix[..., None] * model.steps_per_token
