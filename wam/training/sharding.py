"""Mesh and shardings. Parameters by logical-axis rules, moments and EMA like their parameters, batches by rows.

Activations are placed inside the network (`wam.models.placement`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wam.config import MeshConfig, ModelConfig
from wam.models.placement import ROWS
from wam.training.state import TrainState

AXES = ("data", "fsdp", "tensor", "context")

RULES: dict[str, str | None] = {"embed": "fsdp", "mlp": "tensor", "heads": "tensor", "layers": None, "embodiment": None}
"""Logical axis of a parameter -> mesh axis."""


def mesh_shape(config: MeshConfig, devices: int) -> dict[str, int]:
    """Devices along each axis; ValueError unless they use all of `devices`."""
    sizes = {axis: getattr(config, axis) for axis in AXES}
    if bad := [axis for axis, size in sizes.items() if size < 1 and (axis, size) != ("data", -1)]:
        raise ValueError(f"mesh.{bad[0]} is {sizes[bad[0]]}: a mesh axis has at least one device")
    others = math.prod(size for axis, size in sizes.items() if axis != "data")
    if sizes["data"] == -1:
        if devices % others:
            named = " x ".join(f"{axis}={sizes[axis]}" for axis in AXES[1:] if sizes[axis] > 1)
            raise ValueError(f"mesh {named} does not divide the {devices} devices")
        sizes["data"] = devices // others
    if sizes["data"] * others != devices:
        named = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ValueError(f"mesh {named} does not use the {devices} devices; data=-1 takes the rest")
    return sizes


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (all by default), of axis type Auto (jax defaults to Explicit)."""
    devices = list(devices or jax.devices())
    sizes = mesh_shape(config, len(devices))
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def check_mesh(sizes: Mapping[str, int], model: ModelConfig, batch_size: int, accumulate: int = 1) -> None:
    """ValueError unless batch, heads and patches divide over the mesh."""
    ways = sizes["data"] * sizes["fsdp"]
    if batch_size % ways:
        raise ValueError(f"train.batch_size {batch_size} does not divide over {ways} devices (data x fsdp)")
    if accumulate < 1 or batch_size % (ways * accumulate):
        raise ValueError(
            f"train.batch_size {batch_size} does not divide into train.accumulate {accumulate} microbatches over "
            f"{ways} devices (data x fsdp)"
        )
    splits = (
        ("tensor", "heads", model.heads),
        ("tensor", "columns of the video MLP", model.video_mlp),
        ("tensor", "columns of the action MLP", model.action_mlp),
        ("context", "patches of a frame", model.patches),
    )
    for axis, what, size in splits:
        if size % sizes[axis]:
            raise ValueError(f"mesh.{axis} = {sizes[axis]} does not divide the {size} {what}")


def param_specs(axes: Any, shapes: Any, sizes: Mapping[str, int]) -> Any:
    """Per parameter: each logical axis on its mesh axis where the size divides, at most one dimension a mesh axis."""

    def place(names, shape) -> PartitionSpec:
        used: set[str] = set()
        spec: list[str | None] = []
        for name, size in zip(tuple(names) + (None,) * (len(shape.shape) - len(names)), shape.shape, strict=True):
            axis = RULES.get(name) if name else None
            if axis is None or axis in used or size % sizes[axis]:
                spec.append(None)
            else:
                spec.append(axis)
                used.add(axis)
        return PartitionSpec(*spec)

    return jax.tree.map(place, axes, shapes, is_leaf=lambda x: isinstance(x, PartitionSpec))


def param_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """`param_specs` on a mesh of devices."""
    specs = param_specs(axes, shapes, mesh.shape)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def state_shardings(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shardings of the whole state from the parameters' (`jit(init)` alone would replicate the moments)."""
    everywhere: Any = NamedSharding(mesh, PartitionSpec())  # stands where the state has arrays
    shapes = jax.tree.map(lambda _: jnp.zeros((), jnp.float32), params)
    opt_state = jax.eval_shape(optimizer.init, shapes)
    moments = optax.tree.map_params(
        optimizer, lambda _, sharding: sharding, opt_state, params, transform_non_params=lambda _: everywhere
    )
    return TrainState(everywhere, everywhere, everywhere, params, params, moments)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp; the devices of the other axes hold copies."""
    return NamedSharding(mesh, PartitionSpec(ROWS))
