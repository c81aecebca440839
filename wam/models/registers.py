"""Encoders of states and actions and a decoder of actions that are small networks, one for each embodiment.

Those of DreamZero (arXiv:2602.15922), which has them from GR00T N1 (arXiv:2503.14734). The action encoder reads the
noise level of its actions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from wam.models.layers import EmbodimentBank, sinusoid


class EmbodimentMLP(nnx.Module):
    """[B, ..., d_in] -> [B, ..., d_out]: two layers with a ReLU between."""

    def __init__(self, embodiments: int, d_in: int, hidden: int, d_out: int, *, rngs: nnx.Rngs, zero=False,
                 dtype=jnp.float32):  # fmt: skip
        self.hidden = EmbodimentBank(embodiments, d_in, hidden, rngs=rngs, dtype=dtype)
        self.output = EmbodimentBank(embodiments, hidden, d_out, rngs=rngs, zero=zero, dtype=dtype)

    def __call__(self, x: Array, embodiment_B: Array) -> Array:
        return self.output(jax.nn.relu(self.hidden(x, embodiment_B)), embodiment_B)


class TimedEmbodimentMLP(nnx.Module):
    """[B, ..., d_in] and sigma [B, ...] -> [B, ..., D]: W3 silu(W2 [W1 x, sines and cosines of 1000 sigma])."""

    def __init__(self, embodiments: int, d_in: int, width: int, *, rngs: nnx.Rngs, dtype=jnp.float32):
        bank: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.input = EmbodimentBank(embodiments, d_in, width, **bank)
        self.hidden = EmbodimentBank(embodiments, 2 * width, width, **bank)
        self.output = EmbodimentBank(embodiments, width, width, **bank)

    def __call__(self, x: Array, sigma: Array, embodiment_B: Array) -> Array:
        h = self.input(x, embodiment_B)
        width = h.shape[-1]
        level = jnp.roll(sinusoid(sigma, width), width // 2, axis=-1)  # here the sines come first
        level = jnp.broadcast_to(level, h.shape).astype(h.dtype)
        return self.output(jax.nn.silu(self.hidden(jnp.concatenate([h, level], -1), embodiment_B)), embodiment_B)
