"""How a released video trunk takes in what its blocks attend to: the text's tokens and those of one image."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from wam.models.layers import LayerNorm, Linear


class TextInput(nnx.Module):
    """A text encoder's tokens [B, Lt, d_in] -> [B, Lt, D]: two layers with a tanh-GELU between (Wan 2.x)."""

    def __init__(self, d_in: int, width: int, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.input = Linear(d_in, width, rngs=rngs, axes=(None, "embed"), dtype=dtype)
        self.output = Linear(width, width, rngs=rngs, axes=("embed", None), dtype=dtype)

    def __call__(self, text_BLd: Array) -> Array:
        return self.output(jax.nn.gelu(self.input(text_BLd), approximate=True))


class ImageInput(nnx.Module):
    """An image encoder's tokens [B, Li, d_in] -> [B, Li, D], normalised before and after (Wan 2.1 I2V)."""

    def __init__(self, d_in: int, width: int, *, rngs: nnx.Rngs, dtype=jnp.float32):
        linear: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.norm_in = LayerNorm(d_in, rngs=rngs, eps=1e-5)
        self.input = Linear(d_in, d_in, axes=(None, "mlp"), **linear)
        self.output = Linear(d_in, width, axes=("mlp", "embed"), **linear)
        self.norm_out = LayerNorm(width, rngs=rngs, eps=1e-5)

    def __call__(self, image_BLd: Array) -> Array:
        return self.norm_out(self.output(jax.nn.gelu(self.input(self.norm_in(image_BLd)), approximate=False)))
