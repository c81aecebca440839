"""Attention over blocks of visible keys, with an explicit backend, and 3-D rotary positions.

A query block attends to the concatenation of its visible key blocks; nothing here builds a dense L x L mask. A block
may carry a key mask [B, L] (missing views, padded text, an optional stream switched off for a sample): it becomes an
additive bias per key, never zeroed keys.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

MASKED = -1e9


class Keys(NamedTuple):
    """One visible block: keys and values [B, L, N, H], and an optional key mask [B, L] (None: all visible)."""

    k: Array
    v: Array
    mask: Array | None = None


def attend(q_BLNH: Array, blocks: list[Keys], *, backend: str, chunk: int = 128, diagonal: int = 1) -> Array:
    """softmax(q k^T / sqrt(H)) v over the concatenated `blocks`; softmax in float32. Returns [B, L, N, H].

    With `diagonal` = R > 1 the queries and the last block are R groups one after the other (noise draws of one chunk),
    and a group sees only its own part of that block.
    """
    k_BLNH = jnp.concatenate([block.k for block in blocks], axis=1)
    v_BLNH = jnp.concatenate([block.v for block in blocks], axis=1)
    bias_BL = None
    if any(block.mask is not None for block in blocks):
        masks = [jnp.ones(b.k.shape[:2], bool) if b.mask is None else b.mask.astype(bool) for b in blocks]
        bias_BL = jnp.where(jnp.concatenate(masks, axis=1), 0.0, MASKED)
    bias = None if bias_BL is None else bias_BL[:, None, None, :]
    if diagonal > 1:
        shared = k_BLNH.shape[1] - blocks[-1].k.shape[1]
        own = np.kron(np.eye(diagonal), np.ones((q_BLNH.shape[1] // diagonal, blocks[-1].k.shape[1] // diagonal)))
        static = np.where(np.pad(own, ((0, 0), (shared, 0)), constant_values=1), 0.0, MASKED).astype(np.float32)
        bias = jnp.asarray(static) if bias is None else bias + static
    if backend == "xla":
        return _attend_xla(q_BLNH, k_BLNH, v_BLNH, bias)
    if backend == "chunked":
        # The draws are few: their static bias is not worth chunking.
        chunk = q_BLNH.shape[1] if diagonal > 1 else chunk
        return _attend_chunked(q_BLNH, k_BLNH, v_BLNH, bias, chunk)
    if backend == "cudnn":
        bias = None if bias is None else bias.astype(q_BLNH.dtype)
        return jax.nn.dot_product_attention(q_BLNH, k_BLNH, v_BLNH, bias=bias, implementation="cudnn")
    raise ValueError(f"unknown attention backend {backend!r}; choose from xla, chunked, cudnn")


def _attend_xla(q_BLNH: Array, k_BLNH: Array, v_BLNH: Array, bias: Array | None) -> Array:
    scale = 1 / np.sqrt(q_BLNH.shape[-1])
    logits = jnp.einsum("BLNH,BTNH->BNLT", q_BLNH * scale, k_BLNH, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BLNH.dtype)
    return jnp.einsum("BNLT,BTNH->BLNH", weights, v_BLNH)


def _attend_chunked(q_BLNH: Array, k_BLNH: Array, v_BLNH: Array, bias: Array | None, chunk: int) -> Array:
    """Query chunks one after the other, so that a CPU's logits tile stays in cache. Pads the last chunk."""
    B, L, N, H = q_BLNH.shape
    if chunk >= L:
        return _attend_xla(q_BLNH, k_BLNH, v_BLNH, bias)
    count = -(-L // chunk)
    padded = jnp.pad(q_BLNH, ((0, 0), (0, count * chunk - L), (0, 0), (0, 0)))
    tiles = padded.reshape(B, count, chunk, N, H).swapaxes(0, 1)
    out = jax.lax.map(jax.checkpoint(lambda q: _attend_xla(q, k_BLNH, v_BLNH, bias)), tiles)
    return out.swapaxes(0, 1).reshape(B, count * chunk, N, H)[:, :L]


def rope_angles(positions_BL3: Array, head_dim: int, theta: float = 10000.0) -> Array:
    """Angles [B, L, H/2] of 3-D rotary embedding for positions (time, row, column), which may be fractional.

    The head is split over the axes as in Wan 2.x: columns and rows get 2 (H // 6) dimensions each, time the rest.
    """
    spatial = 2 * (head_dim // 6)
    sizes = (head_dim - 2 * spatial, spatial, spatial)
    angles = [
        positions_BL3[..., axis, None] * jnp.asarray(theta ** (-np.arange(0, size, 2) / size), jnp.float32)
        for axis, size in enumerate(sizes)
    ]
    return jnp.concatenate(angles, axis=-1)


def apply_rope(x_BLNH: Array, angles_BLh: Array) -> Array:
    """Rotates consecutive pairs of the head dimension by `angles` [B, L, H/2], in float32.

    (even, odd) -> (even cos - odd sin, odd cos + even sin), with the swap of a pair written as a product with a
    constant matrix: no strided slices, which a CPU copies forwards and backwards.
    """
    H = x_BLNH.shape[-1]
    swap = np.zeros((H, H), np.float32)
    swap[np.arange(1, H, 2), np.arange(0, H, 2)] = -1.0
    swap[np.arange(0, H, 2), np.arange(1, H, 2)] = 1.0
    cos, sin = (jnp.repeat(f(angles_BLh), 2, axis=-1)[:, :, None, :] for f in (jnp.cos, jnp.sin))
    x = x_BLNH.astype(jnp.float32)
    return (x * cos + (x @ swap) * sin).astype(x_BLNH.dtype)
