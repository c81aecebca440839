"""Where every tensor of a released model lies in ours, in both directions.

A model's map is a list of `Entry`s, one a foreign tensor. Our parameters are addressed by their dotted path in the
nested dict; those of scanned layers are stacked on a leading axis, and `layer` says at which index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


class Layout(NamedTuple):
    """How an array is laid out abroad; the two functions invert each other."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


def reshaped(ours: tuple[int, ...], theirs: tuple[int, ...]) -> Layout:
    """The same numbers in the same order, in another shape."""
    return Layout(lambda x: x.reshape(ours), lambda x: x.reshape(theirs))


def _kernel_to_ours(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, (0, 1), (-1, -2))


def _kernel_to_theirs(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, (-1, -2), (0, 1))


SAME = Layout(lambda x: x, lambda x: x)
KERNEL = Layout(_kernel_to_ours, _kernel_to_theirs)
"""Linear [out, in] and convolution [out, in, *window] kernels of PyTorch -> [in, out] and [*window, in, out]."""


class Entry(NamedTuple):
    theirs: str
    """Name of the foreign tensor."""
    ours: str
    """Dotted path of our parameter."""
    layout: Layout = SAME
    layer: int | None = None
    """Index into the leading axis of a stacked parameter."""


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """A nested dict as {dotted path: leaf}."""
    return flatten_dict(tree, sep=".")


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return unflatten_dict(flat, sep=".")


def check_complete(entries: Iterable[Entry], theirs: Iterable[str], ours: Iterable[str]) -> None:
    """ValueError unless the entries name every foreign tensor and every parameter of ours, and no other."""
    entries = list(entries)
    for side, named, present in (
        ("the file", {entry.theirs for entry in entries}, set(theirs)),
        ("the model", {entry.ours for entry in entries}, set(ours)),
    ):
        for problem, names in (("lacks", named - present), ("has, beyond the map,", present - named)):
            if names:
                first, *rest = sorted(names)
                more = f" and {len(rest)} more" if rest else ""
                raise ValueError(f"{side} {problem} {first!r}{more}")


def to_ours(entries: Iterable[Entry], tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Foreign tensors -> our nested dict of arrays."""
    flat: dict[str, Any] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for entry in entries:
        array = entry.layout.ours(np.asarray(tensors[entry.theirs]))
        if entry.layer is None:
            flat[entry.ours] = array
        else:
            stacks.setdefault(entry.ours, {})[entry.layer] = array
    for path, layers in stacks.items():
        if sorted(layers) != list(range(len(layers))):
            raise ValueError(f"the map of {path!r} names layers {sorted(layers)}, not 0 .. {len(layers) - 1}")
        flat[path] = np.stack([layers[i] for i in range(len(layers))])
    return unflatten(flat)


def to_theirs(entries: Iterable[Entry], params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Our nested dict of arrays -> foreign tensors."""
    flat = flatten(params)
    return {
        entry.theirs: np.ascontiguousarray(
            entry.layout.theirs(np.asarray(flat[entry.ours] if entry.layer is None else flat[entry.ours][entry.layer]))
        )
        for entry in entries
    }
