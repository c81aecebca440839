"""Mesh and shardings. Parameters by logical-axis rules, moments and EMA like their parameters, batches by rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wam.config import MeshConfig
from wam.training.state import TrainState

RULES: dict[str, str | None] = {"embed": "fsdp", "mlp": None, "heads": None, "layers": None, "embodiment": None}
"""Logical axis of a parameter -> mesh axis."""

BATCH_AXES = ("data", "fsdp")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes (data, fsdp) over `devices` (all by default), of axis type Auto (jax defaults to Explicit)."""
    devices = list(devices or jax.devices())
    count = len(devices)
    if config.fsdp < 1 or count % config.fsdp:
        raise ValueError(f"mesh.fsdp = {config.fsdp} does not divide the {count} devices")
    data = count // config.fsdp if config.data == -1 else config.data
    if data * config.fsdp != count:
        raise ValueError(
            f"mesh data={data} x fsdp={config.fsdp} does not use the {count} devices; data=-1 takes the rest"
        )
    return jax.make_mesh((data, config.fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def param_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """Per parameter: each logical axis on its mesh axis where the size divides, at most one dimension a mesh axis."""

    def place(names, shape) -> NamedSharding:
        used: set[str] = set()
        spec: list[str | None] = []
        for name, size in zip(tuple(names) + (None,) * (len(shape.shape) - len(names)), shape.shape, strict=True):
            axis = RULES.get(name) if name else None
            if axis is None or axis in used or size % mesh.shape[axis]:
                spec.append(None)
            else:
                spec.append(axis)
                used.add(axis)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, axes, shapes, is_leaf=lambda x: isinstance(x, PartitionSpec))


def state_shardings(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shardings of the whole state from the parameters' (`jit(init)` alone would replicate the moments)."""
    everywhere: Any = NamedSharding(mesh, PartitionSpec())  # stands where the state has arrays
    shapes = jax.tree.map(lambda _: jnp.zeros((), jnp.float32), params)
    opt_state = jax.eval_shape(optimizer.init, shapes)
    moments = optax.tree.map_params(
        optimizer, lambda _, sharding: sharding, opt_state, params, transform_non_params=lambda _: everywhere
    )
    return TrainState(everywhere, everywhere, everywhere, params, params, moments)


def batch_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
    """Rows over data and fsdp; ValueError if the global batch does not divide."""
    ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % ways:
        raise ValueError(f"train.batch_size {batch_size} does not divide over {ways} devices (data x fsdp)")
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def place_batch(batch: Any, sharding: NamedSharding) -> Any:
    """This process's rows -> global arrays."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
