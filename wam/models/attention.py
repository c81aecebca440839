"""Attention over blocks of visible keys, with an explicit backend.

A query block attends to the concatenation of its visible key blocks; nothing here builds a dense L x L mask. A block
may carry a key mask (missing views, padded text, an optional stream switched off for a sample): it becomes an additive
bias per key, never zeroed keys.

On a mesh every device runs the backend on its own rows, heads and patches of the queries, against all keys: kernels
see local shapes, whatever they know of partitioning.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from wam.models.placement import ROWS, ambient_mesh

MASKED = -1e9


class Keys(NamedTuple):
    """One visible block: keys and values [B, G, n, N, H]; `mask` broadcasts to [B, G, n] (None: all visible)."""

    k: Array
    v: Array
    mask: Array | None = None

    def flat(self) -> Keys:
        """[B, T, N, H] with T = G n; the mask, if any, [B, T]."""
        B, G, n, N, H = self.k.shape
        mask = None if self.mask is None else jnp.broadcast_to(self.mask, (B, G, n)).reshape(B, G * n)
        return Keys(self.k.reshape(B, G * n, N, H), self.v.reshape(B, G * n, N, H), mask)


def attend(q_BGnNH: Array, blocks: list[Keys], *, backend: str, chunk: int = 128, diagonal: int = 1,
           patches: bool = False) -> Array:  # fmt: skip
    """softmax(q k^T / sqrt(H)) v over the concatenated `blocks`; softmax in float32. Returns [B, G, n, N, H].

    With `diagonal` = R > 1 the queries and the last block are R groups one after the other (noise draws of one chunk),
    and a group sees only its own part of that block. `patches`: n counts the patches of a frame, which a mesh may
    split over its `context` axis; the keys are gathered.
    """
    run: Callable[..., Array] = functools.partial(_attend, backend=backend, chunk=chunk, diagonal=diagonal)
    mesh = ambient_mesh()
    if mesh is None:
        return run(q_BGnNH, blocks)
    queries = PartitionSpec(ROWS, None, "context" if patches else None, "tensor")
    keys = PartitionSpec(ROWS, None, None, "tensor")
    specs = [(keys, keys, None if block.mask is None else PartitionSpec(ROWS)) for block in blocks]
    return jax.shard_map(run, in_specs=(queries, specs), out_specs=queries, check_vma=False)(
        q_BGnNH, [tuple(block) for block in blocks]
    )


def _attend(
    q_BGnNH: Array, blocks: list[tuple[Array, Array, Array | None]], *, backend: str, chunk: int, diagonal: int
) -> Array:
    B, G, n, N, H = q_BGnNH.shape
    q_BLNH, flat = q_BGnNH.reshape(B, G * n, N, H), [Keys(*block).flat() for block in blocks]
    k_BTNH = jnp.concatenate([block.k for block in flat], axis=1)
    v_BTNH = jnp.concatenate([block.v for block in flat], axis=1)
    bias = None
    if any(block.mask is not None for block in flat):
        masks = [jnp.ones(b.k.shape[:2], bool) if b.mask is None else b.mask.astype(bool) for b in flat]
        bias = jnp.where(jnp.concatenate(masks, axis=1), 0.0, MASKED)[:, None, None, :]
    if diagonal > 1:
        own_keys = flat[-1].k.shape[1]
        own = np.kron(np.eye(diagonal), np.ones((G * n // diagonal, own_keys // diagonal)))
        shared = np.ones((G * n, k_BTNH.shape[1] - own_keys))
        static = np.where(np.concatenate([shared, own], axis=1), 0.0, MASKED).astype(np.float32)
        bias = jnp.asarray(static) if bias is None else bias + static
        chunk = G * n  # the draws are few: their static bias is not worth chunking
    if backend == "xla":
        out = _attend_xla(q_BLNH, k_BTNH, v_BTNH, bias)
    elif backend == "chunked":
        out = _attend_chunked(q_BLNH, k_BTNH, v_BTNH, bias, chunk)
    elif backend == "cudnn":
        if bias is not None:  # cuDNN wants a row for every query
            bias = jnp.broadcast_to(bias.astype(q_BLNH.dtype), (*bias.shape[:2], G * n, bias.shape[3]))
        out = jax.nn.dot_product_attention(q_BLNH, k_BTNH, v_BTNH, bias=bias, implementation="cudnn")
    else:
        raise ValueError(f"unknown attention backend {backend!r}; choose from xla, chunked, cudnn")
    return out.reshape(B, G, n, N, H)


def _attend_xla(q_BLNH: Array, k_BTNH: Array, v_BTNH: Array, bias: Array | None) -> Array:
    scale = 1 / np.sqrt(q_BLNH.shape[-1])
    logits = jnp.einsum("BLNH,BTNH->BNLT", q_BLNH * scale, k_BTNH, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BTNH.dtype)
    return jnp.einsum("BNLT,BTNH->BLNH", weights, v_BTNH)


def _attend_chunked(q_BLNH: Array, k_BTNH: Array, v_BTNH: Array, bias: Array | None, chunk: int) -> Array:
    """Query chunks one after the other, so that a CPU's logits tile stays in cache. Pads the last chunk."""
    B, L, N, H = q_BLNH.shape
    if chunk >= L:
        return _attend_xla(q_BLNH, k_BTNH, v_BTNH, bias)
    count = -(-L // chunk)
    padded = jnp.pad(q_BLNH, ((0, 0), (0, count * chunk - L), (0, 0), (0, 0)))
    tiles = padded.reshape(B, count, chunk, N, H).swapaxes(0, 1)
    out = jax.lax.map(jax.checkpoint(lambda q: _attend_xla(q, k_BTNH, v_BTNH, bias)), tiles)
    return out.swapaxes(0, 1).reshape(B, count * chunk, N, H)[:, :L]
