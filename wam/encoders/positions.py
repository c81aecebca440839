"""Positions of patches: interpolated grids of vectors, fixed sines, and the rotary angles of V-JEPA 2."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wam.encoders.transformer import Rotation

CUBIC = -0.75
"""Free coefficient of the cubic convolution kernel (Keys 1981) with which released position grids are interpolated."""


def cubic_matrix(size: int, new: int) -> np.ndarray:
    """[new, size] float32: cubic interpolation between cell centres of one axis; borders replicated, no antialias."""
    a = CUBIC
    place = (np.arange(new) + 0.5) * size / new - 0.5
    first = np.floor(place).astype(int)
    matrix = np.zeros((new, size))
    for tap in range(-1, 3):
        t = np.abs(place - (first + tap))
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, size - 1)), np.where(t <= 1, near, far))
    return matrix.astype(np.float32)


def interpolate(table_PD: Array, grid: tuple[int, int], new: tuple[int, int], *, antialias: bool = False) -> Array:
    """Vectors [rows * columns, D] of `grid` resampled to the grid `new`."""
    if grid == new:
        return table_PD
    if antialias:
        width = table_PD.shape[-1]
        return jax.image.resize(table_PD.reshape(*grid, width), (*new, width), "cubic").reshape(-1, width)
    rows, columns = (cubic_matrix(size, wanted) for size, wanted in zip(grid, new, strict=True))
    table = table_PD.reshape(*grid, -1)
    return jnp.einsum("yr,xc,rcD->yxD", rows, columns, table).reshape(-1, table.shape[-1])


def sincos(grid: tuple[int, int], width: int) -> np.ndarray:
    """[rows * columns, D] float32: sines and cosines of the column, then of the row, as MAE was trained with."""
    omega = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = (x.ravel() for x in np.meshgrid(*map(np.arange, grid), indexing="ij"))
    parts = [f(np.outer(x, omega)) for x in (column, row) for f in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def patch_positions(frames: int, grid: tuple[int, int]) -> np.ndarray:
    """[L, 3] int: (frame, row, column) of every patch, frame by frame and row by row.

    `grid` is that of the images at hand; `transformers` counts through the grid of the training images instead, and
    agrees where the images have that size.
    """
    return np.stack(np.meshgrid(np.arange(frames), *map(np.arange, grid), indexing="ij"), axis=-1).reshape(-1, 3)


def rotation(positions_3: Array, head_dim: int) -> Rotation:
    """3-D rotary embedding of V-JEPA 2 (arXiv:2506.09985) for positions [..., L, 3] (frame, row, column).

    Each axis turns an equal, even share of the head; what remains does not turn. The frequencies of a share are laid
    out twice one after the other although pairs are neighbours, so that the two elements of a pair turn by different
    angles: the released models were trained like this.
    """
    share = 2 * (head_dim // 3 // 2)
    omega = jnp.asarray(10000.0 ** (-np.arange(share // 2) / (share // 2)), jnp.float32)
    angles = [jnp.tile(positions_3[..., axis, None] * omega, 2) for axis in range(3)]
    angles.append(jnp.zeros((*positions_3.shape[:-1], head_dim - 3 * share)))
    angles_LH = jnp.concatenate(angles, axis=-1)
    return Rotation(jnp.cos(angles_LH), jnp.sin(angles_LH))
