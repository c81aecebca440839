"""One text encoder for T5, UMT5, CLIP and SigLIP: what differs is a switch of `TextEncoderConfig`."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from wam.encoders.config import TextEncoderConfig
from wam.encoders.transformer import Stack, norm_of
from wam.models.layers import Linear


class EncodedText(NamedTuple):
    tokens: Array
    """[B, L, D]"""
    pooled: Array | None
    """[B, D] or [B, projection]; None for encoders without a pooling"""


class TextTransformer(nnx.Module):
    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        normal = nnx.with_partitioning(nnx.initializers.normal(0.02), (None, "embed"))
        self.embedding = nnx.Param(normal(rngs.params(), (config.vocabulary, config.width), jnp.float32))
        self.positions = (
            nnx.Param(normal(rngs.params(), (config.positions, config.width), jnp.float32))
            if config.positions
            else None
        )
        self.stack = Stack(config, rngs=rngs)
        self.final_norm = norm_of(config, rngs=rngs)
        head = {"axes": ("embed", None), "bias": config.projection_bias, "dtype": jnp.dtype(config.dtype)}
        self.project = Linear(config.width, config.projection, rngs=rngs, **head) if config.projection else None

    def __call__(self, ids_BL: Array, mask_BL: Array | None = None) -> EncodedText:
        """Encodes token ids; tokens where the mask is False are seen by none (all are real without a mask).

        ValueError if the text is longer than the learned positions.
        """
        x_BLD = self.final_norm(self.hidden(ids_BL, self.config.depth, mask_BL))
        pooled_BD = None
        if self.config.pooling == "last":
            pooled_BD = x_BLD[:, -1]
        elif self.config.pooling == "eos":
            end_B = jnp.argmax(ids_BL == self.config.eos_id, axis=1)
            pooled_BD = jnp.take_along_axis(x_BLD, end_B[:, None, None], axis=1)[:, 0]
        if pooled_BD is not None and self.project is not None:
            pooled_BD = self.project(pooled_BD)
        return EncodedText(x_BLD, pooled_BD)

    def hidden(self, ids_BL: Array, depth: int, mask_BL: Array | None = None) -> Array:
        """Tokens [B, L, D] after the first `depth` layers, without the final norm."""
        length, limit = ids_BL.shape[1], self.config.positions
        if self.positions is not None and length > limit:
            raise ValueError(f"the {self.config.family} text encoder reads up to {limit} tokens, got {length}")
        x_BLD = self.embedding[...].astype(jnp.dtype(self.config.dtype))[ids_BL]
        if self.positions is not None:
            x_BLD = x_BLD + self.positions[...][:length].astype(x_BLD.dtype)
        return self.stack(x_BLD, mask_BL=mask_BL, depth=depth)
