"""One vision transformer for CLIP, SigLIP, DINOv2, V-JEPA 2 and MAE: what differs is a switch of `ViTConfig`."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from wam.encoders.config import PredictorConfig, ViTConfig
from wam.encoders.positions import interpolate, patch_positions, rotation, sincos
from wam.encoders.transformer import MLP, Attention, Rotation, Stack, norm_of
from wam.models.layers import Linear


class Features(NamedTuple):
    tokens: Array
    """[B, L, D]: class token and registers, if any, then patches frame by frame, row by row"""
    pooled: Array | None
    """[B, D] or [B, projection]; None for encoders without a pooling"""


def _vector(shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Param:
    init = nnx.with_partitioning(nnx.initializers.normal(0.02), (None,) * (len(shape) - 1) + ("embed",))
    return nnx.Param(init(rngs.params(), shape, jnp.float32))


def _position_table(config: ViTConfig, rngs: nnx.Rngs) -> nnx.Param | None:
    """[class token + patches, D], row by row; None where positions turn queries and keys instead."""
    if config.positions == "rotary":
        return None
    rows, columns = config.grid
    if config.positions == "learned":
        return _vector((config.class_token + rows * columns, config.width), rngs)
    table = np.pad(sincos(config.grid, config.width), ((int(config.class_token), 0), (0, 0)))
    init = nnx.with_partitioning(lambda _key, _shape, dtype: jnp.asarray(table, dtype), (None, "embed"))
    return nnx.Param(init(rngs.params(), table.shape, jnp.float32))


class AttentionPool(nnx.Module):
    """A learned query attends to all tokens; then a residual MLP (Zhai et al. 2023, arXiv:2303.15343)."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.query = _vector((config.width,), rngs)
        self.attention = Attention(config, rngs=rngs, one_kernel=True)
        self.norm, self.mlp = norm_of(config, rngs=rngs), MLP(config, rngs=rngs)

    def __call__(self, x_BLD: Array) -> Array:
        query = jnp.broadcast_to(self.query[...].astype(x_BLD.dtype), (x_BLD.shape[0], 1, x_BLD.shape[-1]))
        pooled = self.attention(query, x_BLD)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


class ViT(nnx.Module):
    """Pixels are [B, h, w, 3], or [B, T, h, w, 3] where `config.tubelet` > 1, normalised as the family's are."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.config, width, dtype = config, config.width, jnp.dtype(config.dtype)
        self.patch = Linear(
            config.tubelet * config.patch**2 * 3, width, rngs=rngs, axes=(None, "embed"), bias=config.patch_bias,
            dtype=dtype,
        )  # fmt: skip
        self.class_token = _vector((width,), rngs) if config.class_token else None
        self.registers = _vector((config.registers, width), rngs) if config.registers else None
        self.mask_token = _vector((width,), rngs) if config.mask_token else None
        self.positions = _position_table(config, rngs)
        self.pre_norm = norm_of(config, rngs=rngs) if config.pre_norm else None
        self.stack = Stack(config, rngs=rngs)
        self.final_norm = norm_of(config, rngs=rngs)
        self.pool = AttentionPool(config, rngs=rngs) if config.pooling == "attention" else None
        self.project = (
            Linear(width, config.projection, rngs=rngs, axes=("embed", None), bias=False, dtype=dtype)
            if config.projection
            else None
        )

    def __call__(self, pixels: Array, *, masked_BL: Array | None = None, keep_BK: Array | None = None) -> Features:
        """Features of the pixels.

        Args:
          pixels: sizes that are no multiple of the patch lose their last rows and columns.
          masked_BL: bool per patch; True: the mask token stands in for it (needs `config.mask_token`).
          keep_BK: int, indices of the patches to look at, in the order of the result (MAE); all by default.
        """
        x_BLD = self.hidden(pixels, self.config.depth, masked_BL=masked_BL, keep_BK=keep_BK)
        if self.config.final_norm == "tokens":
            x_BLD = self.final_norm(x_BLD)
        pooled_BD = None
        if self.pool is not None:
            pooled_BD = self.pool(x_BLD)
        elif self.config.pooling == "class":
            pooled_BD = x_BLD[:, 0]
        if pooled_BD is not None and self.config.final_norm == "pooled":
            pooled_BD = self.final_norm(pooled_BD)
        if pooled_BD is not None and self.project is not None:
            pooled_BD = self.project(pooled_BD)
        return Features(x_BLD, pooled_BD)

    def hidden(self, pixels: Array, depth: int, *, masked_BL: Array | None = None,
               keep_BK: Array | None = None) -> Array:  # fmt: skip
        """Tokens [B, L, D] after the first `depth` layers, without the final norm."""
        x_BLD, turn = self._embed(pixels, masked_BL, keep_BK)
        return self.stack(x_BLD, rotation=turn, depth=depth)

    def _embed(self, pixels: Array, masked_BL: Array | None, keep_BK: Array | None) -> tuple[Array, Rotation | None]:
        config = self.config
        x_BLD, frames, grid = self._patches(pixels)
        if masked_BL is not None:
            if self.mask_token is None:
                raise ValueError("this encoder has no mask token: leave out masked_BL, or set ViTConfig.mask_token")
            x_BLD = jnp.where(masked_BL[..., None], self.mask_token[...].astype(x_BLD.dtype), x_BLD)
        c, turn, table = int(config.class_token), None, None
        if self.positions is None:
            positions = jnp.asarray(patch_positions(frames, grid), jnp.float32)
            turn = rotation(positions if keep_BK is None else positions[keep_BK], config.head_dim)
        else:
            table = self.positions[...]
            table = jax.lax.stop_gradient(table) if config.positions == "sincos" else table
            patches_PD = interpolate(table[c:], config.grid, grid, antialias=config.antialias)
            x_BLD = x_BLD + patches_PD.astype(x_BLD.dtype)
        if keep_BK is not None:
            x_BLD = jnp.take_along_axis(x_BLD, keep_BK[..., None], axis=1)
        first = []
        if self.class_token is not None:
            first.append(self.class_token[...][None] + (0 if table is None else table[:c]))
        if self.registers is not None:
            first.append(self.registers[...])
        if first:
            prefix_nD = jnp.concatenate(first).astype(x_BLD.dtype)
            x_BLD = jnp.concatenate([jnp.broadcast_to(prefix_nD, (len(x_BLD), *prefix_nD.shape)), x_BLD], axis=1)
        return (x_BLD if self.pre_norm is None else self.pre_norm(x_BLD)), turn

    def _patches(self, pixels: Array) -> tuple[Array, int, tuple[int, int]]:
        """Embedded patches [B, L, D], the number of frames (of tubelets) and the grid of a frame."""
        config, p, t = self.config, self.config.patch, self.config.tubelet
        wanted = "[B, T, h, w, 3]" if t > 1 else "[B, h, w, 3]"
        if pixels.ndim != len(wanted.split(",")) or pixels.shape[-1] != 3:
            raise ValueError(f"the {config.family} encoder takes pixels {wanted}, got {list(pixels.shape)}")
        x = pixels if t > 1 else pixels[:, None]
        if x.shape[1] < t:  # a still image is a video that stands still
            x = jnp.tile(x, (1, t, 1, 1, 1))
        frames, rows, columns = x.shape[1] // t, x.shape[2] // p, x.shape[3] // p
        if not rows * columns:
            raise ValueError(f"images of {x.shape[2]}x{x.shape[3]} are smaller than the {p}x{p} patches")
        x = x[:, : frames * t, : rows * p, : columns * p]
        x = rearrange(x, "B (F t) (y p) (x q) c -> B (F y x) (t p q c)", t=t, p=p, q=p)
        return self.patch(x), frames, (rows, columns)


class MaskedPredictor(nnx.Module):
    """V-JEPA 2's predictor: from the encoder's tokens of some patches to those of others (arXiv:2506.09985)."""

    def __init__(self, config: PredictorConfig, *, rngs: nnx.Rngs):
        self.config, dtype = config, jnp.dtype(config.dtype)
        self.embed = Linear(config.encoder_width, config.width, rngs=rngs, axes=(None, "embed"), dtype=dtype)
        self.mask_tokens = _vector((config.mask_tokens, config.width), rngs)
        self.stack = Stack(config, rngs=rngs)
        self.final_norm = norm_of(config, rngs=rngs)
        self.out = Linear(config.width, config.encoder_width, rngs=rngs, axes=("embed", None), dtype=dtype)

    def __call__(self, tokens_BLD: Array, context_BK: Array, target_BQ: Array, grid: tuple[int, int], *,
                 mask_token: int = 1) -> Array:  # fmt: skip
        """Predicted tokens [B, Q, D] of the patches `target`.

        Args:
          tokens_BLD: the encoder's output.
          context_BK: indices of the patches that are seen.
          target_BQ: indices of the patches to predict.
          grid: (rows, columns) of a frame, which the indices count through.
          mask_token: which of the learned tokens stands for what is to be predicted.
        """
        context_BKD = self.embed(jnp.take_along_axis(tokens_BLD, context_BK[..., None], axis=1))
        mask_D = self.mask_tokens[...][mask_token % self.config.mask_tokens].astype(context_BKD.dtype)
        hidden = jnp.broadcast_to(mask_D, (*target_BQ.shape, mask_D.shape[-1]))
        index_BL = jnp.concatenate([context_BK, target_BQ], axis=1)
        rows, columns = grid
        positions = jnp.stack([index_BL // (rows * columns), index_BL // columns % rows, index_BL % columns], axis=-1)
        turn = rotation(positions.astype(jnp.float32), self.config.head_dim)
        x_BLD = self.stack(jnp.concatenate([context_BKD, hidden], axis=1), rotation=turn)
        return self.out(self.final_norm(x_BLD[:, context_BK.shape[1] :]))
