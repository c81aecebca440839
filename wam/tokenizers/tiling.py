"""A function of images applied tile by tile, with overlapping tiles blended: memory stays that of one tile.

All tiles have one size, so that one compiled program serves them all, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def starts(size: int, tile: int, overlap: int) -> np.ndarray:
    """First cells of tiles spread evenly over `size` cells; neighbours share `overlap` or a little more.

    ValueError unless 0 <= overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"the overlap of tiles must be at least 0 and less than their size {tile}, got {overlap}")
    count = max(1, -(-(size - overlap) // (tile - overlap)))
    return np.arange(count) * max(size - tile, 0) // max(count - 1, 1)


def weights(first: np.ndarray, tile: int) -> np.ndarray:
    """[tiles, tile]: linear ramps over what neighbours share; at every cell the weights of all tiles add up to one.

    The first shared cell is the earlier tile's alone.
    """
    raw = np.ones((len(first), tile))
    for i, shared in enumerate(first[:-1] + tile - first[1:]):
        if shared > 0:
            ramp = np.arange(shared) / shared
            raw[i + 1, :shared] *= ramp
            raw[i, tile - shared :] *= 1 - ramp
    cells = first[:, None] + np.arange(tile)
    total = np.zeros(cells.max() + 1)
    np.add.at(total, cells, raw)
    return (raw / total[cells]).astype(np.float32)


def tiled(fn: Callable[[Array], Array], x: Array, *, tile: int, overlap: int, scale_in: int = 1,
          scale_out: int = 1) -> Array:  # fmt: skip
    """`fn` of x [B, T, h, w, C] by tiles of `tile` x `tile` cells that overlap by at least `overlap` cells.

    A cell is `scale_in` pixels of x and `scale_out` pixels of the result wide. An axis no longer than a tile stays in
    one piece; where both do, this is `fn(x)`.
    """
    cells = tuple(size // scale_in for size in x.shape[2:4])
    if max(cells) <= tile:
        return fn(x)
    sides = [min(tile, size) for size in cells]
    corners = [starts(size, side, overlap if side < size else 0) for size, side in zip(cells, sides, strict=True)]
    ramps = [weights(first * scale_out, side * scale_out) for first, side in zip(corners, sides, strict=True)]
    row, column = np.divmod(np.arange(len(corners[0]) * len(corners[1])), len(corners[1]))
    tiles = (corners[0][row], corners[1][column], ramps[0][row], ramps[1][column])

    def result(top: Array, left: Array) -> Array:
        size = (*x.shape[:2], *(side * scale_in for side in sides), x.shape[-1])
        return fn(jax.lax.dynamic_slice(x, (0, 0, top * scale_in, left * scale_in, 0), size))

    def add(total: Array, one: tuple[Array, ...]) -> tuple[Array, None]:
        top, left, rows, columns = one
        part = result(top, left) * (rows[:, None, None] * columns[:, None])
        begin = (0, 0, top * scale_out, left * scale_out, 0)
        there = jax.lax.dynamic_slice(total, begin, part.shape)
        return jax.lax.dynamic_update_slice(total, there + part, begin), None

    one = jax.eval_shape(result, 0, 0)
    total = jnp.zeros((*one.shape[:2], *(size * scale_out for size in cells), one.shape[-1]), one.dtype)
    return jax.lax.scan(add, total, jax.tree.map(jnp.asarray, tiles))[0]
