"""Where activations lie on the mesh. The mesh is the ambient one (`jax.set_mesh`); without one nothing is placed.

Rows of the batch are split over `data` and `fsdp`, attention heads and MLP widths over `tensor`, and the patches of
every frame over `context`. Parameters are placed by `wam.training.sharding`.
"""

from __future__ import annotations

import jax
from jax import Array
from jax.sharding import AbstractMesh, PartitionSpec

ROWS = ("data", "fsdp")


def ambient_mesh() -> AbstractMesh | None:
    """The mesh this code is traced under; None where there is none or it has a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def constrain(x: Array, *spec: str | tuple[str, ...] | None) -> Array:
    """Asks the compiler to place the leading axes of `x` as named, the others whole."""
    return x if ambient_mesh() is None else jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def place_tokens(x_BGnD: Array, *, patches: bool) -> Array:
    """Tokens at a block boundary; `patches`: n counts the patches of a frame."""
    return constrain(x_BGnD, ROWS, None, "context" if patches else None)


def gathered(keys_BGnNH: Array) -> Array:
    """Keys or values of all patches on every device of the context axis."""
    return constrain(keys_BGnNH, ROWS, None, None, "tensor")
