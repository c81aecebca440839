"""Fingerprints of arrays: 32 bits each, computed where the arrays live, equal on every mesh and layout.

Storage can change a bit without any reader noticing. A fingerprint taken before an array is written and compared after
it is read says so, and names the array. It costs one pass over the array in device memory and moves four bytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # bytes of an element -> words it is read as


def named_leaves(tree: Any) -> dict[str, Any]:
    """{"params.blocks.video.up.kernel": leaf}: the dotted path of every leaf, in the order of the tree."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def fingerprint(x: Array) -> Array:
    """[] uint32: the sum over all words of word * (2 * position + 1), modulo 2^32.

    The weights are odd, so that every single changed bit changes the sum, and differ with the position, so that
    swapped or shifted blocks do too (two words only share a weight when they are 2^31 words apart). Integer sums do not
    depend on their order, hence neither on the sharding.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    position = jnp.uint32(0)
    for axis, size in enumerate(words.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words * (2 * position + 1), dtype=jnp.uint32)


@functools.cache
def _compiled(mesh: Mesh | None) -> Callable[[Array], Array]:
    """One small program a shape: parameters, EMA and moments share them, and one for all would compile far longer."""
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(fingerprint, out_shardings=everywhere)


def fingerprints(tree: Any) -> dict[str, int]:
    """The fingerprint of every array of `tree` (jax or numpy) by its dotted path."""
    marks = {}
    for name, leaf in named_leaves(tree).items():
        sharding = getattr(leaf, "sharding", None)
        marks[name] = _compiled(sharding.mesh if isinstance(sharding, NamedSharding) else None)(leaf)
    return {name: int(mark) for name, mark in jax.device_get(marks).items()}


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys and whether its lists are still tuples."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
