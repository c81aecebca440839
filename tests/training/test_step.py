"""The training step: golden values, sharding of the whole state, donation, one device against eight."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.helpers import small_batch, small_config, small_tokenizer
from wam.config import MeshConfig, ObjectiveConfig, OptimizerConfig
from wam.models.joint_dit import create
from wam.training import optimizer, sharding, state, step

CONFIG = small_config()
OBJECTIVE = ObjectiveConfig(policy_draws=2)
OPTIMIZER = OptimizerConfig(warmup_steps=2)
GOLDEN = pathlib.Path(__file__).parent / "golden_step.json"


def build(mesh_config: MeshConfig, devices=None):
    """(jitted step, state, batch sharding, shardings) on a mesh."""
    mesh = sharding.make_mesh(mesh_config, devices)
    apply, params = state.split(create(CONFIG, 0))
    shardings = sharding.state_shardings(
        sharding.param_shardings(state.logical_axes(CONFIG), jax.eval_shape(lambda: params), mesh),
        optimizer.make_optimizer(OPTIMIZER), mesh,
    )  # fmt: skip
    rows = sharding.batch_sharding(mesh, 24)
    everywhere = NamedSharding(mesh, PartitionSpec())
    train_step = jax.jit(
        step.make_train_step(apply, small_tokenizer(CONFIG), OBJECTIVE, OPTIMIZER, sources=3),
        donate_argnums=0, in_shardings=(shardings, rows), out_shardings=(shardings, everywhere),
    )  # fmt: skip
    transform = optimizer.make_optimizer(OPTIMIZER)
    initial = jax.jit(lambda p: state.init_state(p, transform, steps=10, seed=0), out_shardings=shardings)(params)
    return train_step, initial, rows, shardings


def three_steps(mesh_config, devices=None):
    train_step, current, rows, _ = build(mesh_config, devices)
    batch = sharding.place_batch(small_batch(CONFIG, 24), rows)
    values = []
    for _ in range(3):
        current, metrics = train_step(current, batch)
        terms = {name: float(t["all"][0] / max(1, t["all"][1])) for name, t in metrics["terms"].items()}
        values.append({"loss": float(metrics["loss"]), "grad_norm": float(metrics["grad_norm"]), **terms})
    return values, current


@pytest.fixture(scope="module")
def one_device():
    return three_steps(MeshConfig(), jax.devices()[:1])


def test_golden_values_of_three_steps(one_device):
    """A refactor that changes the maths is seen here. After an intended change: delete the file and run again."""
    values, _ = one_device
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(values, indent=1) + "\n")
        pytest.fail(f"wrote {GOLDEN.name}: look at it, and commit it if the change was intended")
    for got, expected in zip(values, json.loads(GOLDEN.read_text()), strict=True):
        assert got == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=4)])
def test_eight_devices_equal_one(one_device, mesh):
    values, current = three_steps(mesh)
    for got, expected in zip(values, one_device[0], strict=True):
        assert got == pytest.approx(expected, rel=1e-4)
    # Adam turns rounding noise on near-zero gradients into steps: parameters are compared loosely.
    largest = max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(jax.tree.leaves(current.params), jax.tree.leaves(one_device[1].params), strict=True)
    )
    assert largest < 5e-3


def test_moments_and_ema_are_sharded_like_their_parameters():
    _, current, _, shardings = build(MeshConfig(data=1, fsdp=8))
    adam = next(s for s in current.opt_state if hasattr(s, "mu"))
    split = 0
    for p, e, mu, nu in zip(*map(jax.tree.leaves, (current.params, current.ema, adam.mu, adam.nu)), strict=True):
        assert p.sharding.spec == e.sharding.spec == mu.sharding.spec == nu.sharding.spec
        split += any(axis is not None for axis in p.sharding.spec)
    assert split > 10
    kernel = current.params["blocks"]["video"]["up"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", None)
    assert kernel.addressable_shards[0].data.shape[1] == kernel.shape[1] // 8
    assert jax.tree.structure(shardings) == jax.tree.structure(jax.tree.map(lambda x: x.sharding, current))


def test_the_old_state_is_donated():
    train_step, current, rows, _ = build(MeshConfig(), jax.devices()[:1])
    old = current.params["blocks"]["video"]["up"]["kernel"]
    train_step(current, sharding.place_batch(small_batch(CONFIG, 24), rows))
    assert old.is_deleted()


def test_meshes_are_auto_and_bad_ones_are_named():
    mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=2))
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    with pytest.raises(ValueError, match="fsdp = 3 does not divide the 8 devices"):
        sharding.make_mesh(MeshConfig(fsdp=3))
    with pytest.raises(ValueError, match="data=3 x fsdp=2"):
        sharding.make_mesh(MeshConfig(data=3, fsdp=2))
    with pytest.raises(ValueError, match="batch_size 20 does not divide over 8"):
        sharding.batch_sharding(mesh, 20)


def test_learning_rate_and_decay_mask():
    rate = lambda s: float(optimizer.learning_rate(OptimizerConfig(), jnp.int32(s), jnp.int32(1000)))  # noqa: E731
    assert rate(0) == pytest.approx(1e-5)
    assert rate(100) == pytest.approx(1e-3, rel=1e-3)
    assert rate(1000) == pytest.approx(2e-5, rel=1e-3)
    assert all(rate(a) > rate(b) for a, b in ((200, 400), (400, 800)))
    _, params = state.split(create(CONFIG, 0))
    mask = optimizer.decay_mask(params)
    assert mask["blocks"]["video"]["up"] == {"kernel": True, "bias": False}
    assert mask["blocks"]["video"]["table"] is False
    assert mask["view_embedding"] is False


def test_ema_follows_the_ramp():
    ema = state.update_ema({"w": jnp.zeros(())}, {"w": jnp.ones(())}, jnp.int32(0), 0.995)
    assert float(ema["w"]) == pytest.approx(0.9)
    late = state.update_ema({"w": jnp.zeros(())}, {"w": jnp.ones(())}, jnp.int32(10**6), 0.995)
    assert float(late["w"]) == pytest.approx(0.005, rel=1e-3)
