"""Bytes by shape against XLA's own account of a compiled, sharded training step on eight devices."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.helpers import IMAGE, small_config, small_tokenizer
from wam.config import MeshConfig, ModelConfig, ObjectiveConfig, OptimizerConfig
from wam.models.joint_dit import create
from wam.training import memory, optimizer, sharding, state, step
from wam.training.memory import Setting, device_bytes

OBJECTIVE = ObjectiveConfig(policy_draws=2)
OPTIMIZER = OptimizerConfig()
TEXT = 3


def setting_of(config: ModelConfig, batch_size: int = 32, accumulate: int = 1, **mesh: int) -> Setting:
    spec = config.batch_spec(IMAGE, IMAGE, TEXT)
    mesh = {axis: mesh.get(axis, 1) for axis in ("data", "fsdp", "tensor", "context")}
    return Setting(config, OBJECTIVE, spec, mesh, batch_size, accumulate)


def account(setting: Setting):
    """XLA's memory account of one device, from shapes alone: nothing runs."""
    mesh = sharding.make_mesh(MeshConfig(**{k: v for k, v in setting.mesh.items() if k in ("data", "fsdp")}))
    apply, params = state.split(create(setting.model))
    transform = optimizer.make_optimizer(OPTIMIZER)
    shardings = sharding.state_shardings(
        sharding.param_shardings(state.logical_axes(setting.model), jax.eval_shape(lambda: params), mesh),
        transform, mesh,
    )  # fmt: skip
    rows = sharding.batch_sharding(mesh, setting.batch_size)
    train_step = jax.jit(
        step.make_train_step(apply, small_tokenizer(setting.model), OBJECTIVE, OPTIMIZER, sources=3),
        donate_argnums=0, in_shardings=(shardings, rows),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
    )  # fmt: skip
    initial = jax.eval_shape(lambda p: state.init_state(p, transform, steps=10, seed=0), params)
    batch = {name: jax.ShapeDtypeStruct(*field) for name, field in setting.spec.fields(setting.batch_size).items()}
    return train_step.lower(initial, batch).compile().memory_analysis()
