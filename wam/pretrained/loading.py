"""Released tensors against a map: verified by name, shape and dtype, and loaded straight into sharded arrays.

Parameters are float32 here, whatever the file holds: float32, bfloat16 and float16 all fit into it exactly. Going back,
each tensor is written in the dtype asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from jax import Array
from jax.sharding import Sharding

from wam.pretrained.mapping import Entry, check_complete
from wam.pretrained.tensor_files import NAMES, TensorFiles
from wam.pretrained.writing import Piece

EXACT = tuple(map(np.dtype, (np.float32, ml_dtypes.bfloat16, np.float16)))
"""Dtypes whose every value is a float32."""

Shapes = Mapping[str, tuple[int, ...]]
"""Dotted path of a parameter -> its shape, with the axis of layers where it is stacked."""


class Row(NamedTuple):
    """One verified tensor."""

    theirs: str
    shape: tuple[int, ...]
    dtype: np.dtype
    ours: str
    """Our name, with the layer where it is one of a stack."""


def own_name(entry: Entry) -> str:
    """The name of one foreign tensor in our own files: the parameter's path, and the layer where it is stacked."""
    return entry.ours if entry.layer is None else f"{entry.ours}.{entry.layer}"


def foreign_shape(entry: Entry, shapes: Shapes) -> tuple[int, ...]:
    """The shape an entry's tensor must have, by that of our parameter."""
    own = shapes[entry.ours] if entry.layer is None else shapes[entry.ours][1:]
    return entry.layout.theirs(np.broadcast_to(np.float32(0), own)).shape


def verify(entries: Sequence[Entry], tensors: TensorFiles, shapes: Shapes) -> list[Row]:
    """Every tensor of the files, as the map and our shapes have it.

    Raises:
      ValueError: one is missing, one too many, has another shape, or a dtype that float32 does not hold exactly.
    """
    check_complete(entries, tensors, shapes)
    layers: dict[str, set[int]] = {}
    rows = []
    for entry in entries:
        info, wanted = tensors.info[entry.theirs], foreign_shape(entry, shapes)
        if info.shape != wanted:
            raise ValueError(f"{entry.theirs!r} has shape {_shape(info.shape)}, expected {_shape(wanted)}")
        if info.dtype not in EXACT:
            expected = ", ".join(NAMES[dtype] for dtype in EXACT)
            raise ValueError(
                f"{entry.theirs!r} is {NAMES.get(info.dtype, info.dtype)}, expected one of {expected}: quantised "
                "weights are not read, take the full ones"
            )
        if entry.layer is not None:
            layers.setdefault(entry.ours, set()).add(entry.layer)
        rows.append(Row(entry.theirs, info.shape, info.dtype, own_name(entry)))
    for path, found in layers.items():
        if found != set(range(shapes[path][0])):
            raise ValueError(f"the map of {path!r} names {len(found)} layers, the model has {shapes[path][0]}")
    return rows


def table(rows: Sequence[Row]) -> str:
    """One line a tensor: name, shape, dtype -> ours."""
    cells = [(row.theirs, _shape(row.shape), NAMES[row.dtype], row.ours) for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    lines = [f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:{widths[2]}} -> {d}" for a, b, c, d in cells]
    return "\n".join(lines)


def load(entries: Sequence[Entry], tensors: TensorFiles, shapes: Shapes,
         shardings: Mapping[str, Sharding]) -> dict[str, Array]:  # fmt: skip
    """The mapped parameters by dotted path, float32, each where its sharding says.

    The host holds the part of one parameter that one device asks for, and the tensors of one layer it is cut from.

    Raises:
      ValueError: as `verify`.
    """
    verify(entries, tensors, shapes)
    by_path: dict[str, list[Entry]] = {}
    for entry in entries:
        by_path.setdefault(entry.ours, []).append(entry)

    def part(path: str, index: tuple[slice, ...]) -> np.ndarray:
        found = sorted(by_path[path], key=lambda entry: entry.layer or 0)
        if found[0].layer is None:
            return _cut(found[0], tensors, index)
        chosen, rest = found[index[0]], index[1:]
        out = None
        for i, entry in enumerate(chosen):
            cut = _cut(entry, tensors, rest)
            out = np.empty((len(chosen), *cut.shape), np.float32) if out is None else out
            out[i] = cut
        assert out is not None, "a parameter without layers"
        return out

    return {
        path: jax.make_array_from_callback(shapes[path], shardings[path], functools.partial(part, path))
        for path in by_path
    }


def _cut(entry: Entry, tensors: TensorFiles, index: tuple[slice, ...]) -> np.ndarray:
    return np.ascontiguousarray(entry.layout.ours(tensors[entry.theirs])[index], np.float32)


def own_entries(entries: Sequence[Entry]) -> list[Entry]:
    """The map of files that hold our own layout under our own names (`own_name`)."""
    return [Entry(own_name(entry), entry.ours, layer=entry.layer) for entry in entries]


def to_own(entries: Sequence[Entry], tensors: TensorFiles) -> list[Piece]:
    """Foreign tensors in our layout and under our names, in the dtype they have."""

    def piece(entry: Entry) -> Piece:
        make = lambda: entry.layout.ours(tensors[entry.theirs])  # noqa: E731
        info = tensors.info[entry.theirs]
        shape = entry.layout.ours(np.broadcast_to(np.zeros((), info.dtype), info.shape)).shape
        return Piece(own_name(entry), info.dtype, shape, make)

    return [piece(entry) for entry in entries]


def to_foreign(entries: Sequence[Entry], params: Mapping[str, Any], dtypes: Mapping[str, np.dtype] | np.dtype
               ) -> list[Piece]:  # fmt: skip
    """Our parameters as tensors of the reference.

    `params`: dotted path -> array, stacked where they are, or the files of imported weights. `dtypes`: one for all, or
    that of each foreign tensor. A parameter that was read as bfloat16 and not trained goes back bit for bit; one that
    was trained is rounded to it.
    """

    def shape_of(entry: Entry) -> tuple[int, ...]:
        if isinstance(params, TensorFiles):
            return params.info[own_name(entry)].shape
        return tuple(params[entry.ours].shape[0 if entry.layer is None else 1 :])

    def make(entry: Entry, dtype: np.dtype) -> np.ndarray:
        if isinstance(params, TensorFiles):
            x = params[own_name(entry)]
        else:
            x = params[entry.ours] if entry.layer is None else params[entry.ours][entry.layer]
        return entry.layout.theirs(np.asarray(x)).astype(dtype)

    def piece(entry: Entry) -> Piece:
        dtype = np.dtype(dtypes[entry.theirs] if isinstance(dtypes, Mapping) else dtypes)
        shape = entry.layout.theirs(np.broadcast_to(np.float32(0), shape_of(entry))).shape
        return Piece(entry.theirs, dtype, shape, functools.partial(make, entry, dtype))

    return [piece(entry) for entry in entries]


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
