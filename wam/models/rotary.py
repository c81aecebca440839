"""3-D rotary positions (Su et al. 2021, arXiv:2104.09864): time, row, column; time in latent frames, fractional."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from wam.config import ModelConfig


def frame_positions(time_BG: Array, grid: tuple[int, int]) -> Array:
    """Positions [B, G, P, 3] of whole latent frames of (rows, columns) patches."""
    row, column = (x.ravel() for x in np.meshgrid(*(np.arange(n, dtype=np.float32) for n in grid), indexing="ij"))
    return jnp.stack(jnp.broadcast_arrays(time_BG[..., None], row, column), axis=-1)


def step_positions(time_BGn: Array) -> Array:
    """Positions [B, G, n, 3] of tokens without a place in the image."""
    return jnp.stack([time_BGn, jnp.zeros_like(time_BGn), jnp.zeros_like(time_BGn)], axis=-1)


def frame_angles(config: ModelConfig, seconds_BF: Array, views: Sequence[int]) -> Array:
    """Of every frame and, one after the other, the given views of it: [B, F V, P, H/2]."""
    positions = frame_positions(jnp.repeat(seconds_BF * config.latent_rate, len(views), axis=1), config.grid)
    if config.places == "rotary":
        columns = np.tile(np.asarray(views) * config.grid[1], seconds_BF.shape[1])
        positions = positions + jnp.zeros(3).at[2].set(1.0) * columns[:, None, None]
    return rope_angles(positions, config.head_dim)


def step_angles(config: ModelConfig, seconds_BMn: Array) -> Array:
    """Of n tokens a chunk, at their times, or at their number among those of all chunks: [B, M, n, H/2]."""
    if config.action_places == "count":
        number = jnp.arange(math.prod(seconds_BMn.shape[1:]), dtype=jnp.float32).reshape(seconds_BMn.shape[1:])
        return line_angles(jnp.broadcast_to(number, seconds_BMn.shape), config.head_dim)
    return rope_angles(step_positions(seconds_BMn * config.latent_rate), config.head_dim)


def rope_angles(positions_3: Array, head_dim: int, theta: float = 10000.0) -> Array:
    """Angles [..., H/2] of 3-D rotary embedding for positions [..., 3] (time, row, column), which may be fractional.

    The head is split over the axes as in Wan 2.x: columns and rows get 2 (H // 6) dimensions each, time the rest.
    """
    spatial = 2 * (head_dim // 6)
    sizes = (head_dim - 2 * spatial, spatial, spatial)
    angles = [line_angles(positions_3[..., axis], size, theta) for axis, size in enumerate(sizes)]
    return jnp.concatenate(angles, axis=-1)


def line_angles(positions: Array, head_dim: int, theta: float = 10000.0) -> Array:
    """Angles [..., H/2] of 1-D rotary embedding for positions [...]."""
    return positions[..., None] * jnp.asarray(theta ** (-np.arange(0, head_dim, 2) / head_dim), jnp.float32)


def apply_rope(x_NH: Array, angles_h: Array) -> Array:
    """Rotates consecutive pairs of the head dimension of x [..., N, H] by `angles` [..., H/2], in float32."""
    cos, sin = (jnp.repeat(f(angles_h), 2, axis=-1)[..., None, :] for f in (jnp.cos, jnp.sin))
    return rotate_pairs(x_NH, cos, sin)


def rotate_pairs(x_NH: Array, cos: Array, sin: Array) -> Array:
    """(even, odd) -> (even cos - odd sin, odd cos + even sin), cosines and sines per element of the head, in float32.

    The swap of a pair is written as a product with a constant matrix: no strided slices, which a CPU copies forwards
    and backwards.
    """
    H = x_NH.shape[-1]
    swap = np.zeros((H, H), np.float32)
    swap[np.arange(1, H, 2), np.arange(0, H, 2)] = -1.0
    swap[np.arange(0, H, 2), np.arange(1, H, 2)] = 1.0
    x = x_NH.astype(jnp.float32)
    return (x * cos + (x @ swap) * sin).astype(x_NH.dtype)
