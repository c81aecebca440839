"""The training step: golden values, every mesh against one device, what lives where, donation, skipped steps."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from tests.helpers import small_batch, small_config, small_tokenizer
from wam.config import MeshConfig, ObjectiveConfig, OptimizerConfig
from wam.training import sharding, trainer
from wam.training import step as step_module
from wam.training.trainer import Trainer

CONFIG = small_config(target_views=(0, 1))
OBJECTIVE = ObjectiveConfig(policy_draws=2)
GOLDEN = pathlib.Path(__file__).parent / "golden_step.json"
ROWS = 24


def build(mesh: MeshConfig, devices=None, config=CONFIG, **options) -> Trainer:
    return Trainer(
        config, OBJECTIVE, OptimizerConfig(warmup_steps=2), small_tokenizer(config),
        sharding.make_mesh(mesh, devices), batch_size=ROWS, sources=3, **options,
    )  # fmt: skip


def three_steps(made: Trainer, start=None):
    """Losses, optimizer states and the last state, on a fixed batch; from `start` or a fresh state."""
    current = made.init(steps=10, seed=0) if start is None else jax.device_put(start, made.shardings)
    batch = made.place(small_batch(made.model, ROWS))
    values, kept = [], []
    for _ in range(3):
        current, metrics = made.step(current, batch)
        terms = {name: float(t["all"][0] / max(1, t["all"][1])) for name, t in metrics["terms"].items()}
        values.append({"loss": float(metrics["loss"]), "grad_norm": float(metrics["grad_norm"]), **terms})
        kept.append(jax.device_get(current.opt_state))
    return values, kept, current


@pytest.fixture(scope="module")
def adam():
    """On one device, as it is used."""
    return build(MeshConfig(), jax.devices()[:1], small_config())


def test_golden_values_of_three_steps(adam):
    """A refactor that changes the maths is seen here. After an intended change: delete the file and run again."""
    values, _, _ = three_steps(adam)
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(values, indent=1) + "\n")
        pytest.fail(f"wrote {GOLDEN.name}: look at it, and commit it if the change was intended")
    for got, expected in zip(values, json.loads(GOLDEN.read_text()), strict=True):
        assert got == pytest.approx(expected, rel=2e-4)


def plain(mesh: MeshConfig, devices=None, **options) -> Trainer:
    """With gradient descent whose state is the last gradient: Adam turns rounding noise into whole steps."""
    keep = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, _, _params=None: (grads, grads)
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in (step_module, trainer):
            patch.setattr(module, "make_optimizer", lambda _: keep)
        return build(mesh, devices, **options)


@pytest.fixture(scope="module")
def one_device():
    made = plain(MeshConfig(), jax.devices()[:1])
    start = jax.device_get(made.init(steps=10, seed=0))
    return start, *three_steps(made, start)


MESHES = {
    "data": (MeshConfig(data=8), {}),
    "fsdp": (MeshConfig(fsdp=8), {}),
    "tensor": (MeshConfig(tensor=2), {}),
    "context": (MeshConfig(context=4), {}),
    "mixed": (MeshConfig(fsdp=2, tensor=2, context=2), {"accumulate": 3}),
}


@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_equals_one_device(one_device, name):
    """Same loss and gradients at every step, to 1e-5 of each leaf's maximum, and the same parameters."""
    mesh, options = MESHES[name]
    start, *expected = one_device
    values, gradients, current = three_steps(plain(mesh, **options), start)
    for got, wanted in zip(values, expected[0], strict=True):
        assert got == pytest.approx(wanted, rel=1e-5)
    for got, wanted in [*zip(gradients, expected[1], strict=True), (current.params, expected[2].params)]:
        for (path, g), w in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
            w = np.asarray(w)
            assert np.abs(np.asarray(g) - w).max() <= 1e-5 * np.abs(w).max() + 1e-9, jax.tree_util.keystr(path)


def test_moments_and_ema_are_sharded_like_their_parameters():
    made = build(MeshConfig(data=1, fsdp=4, tensor=2))
    current = made.init(steps=10, seed=0)
    adam = next(s for s in current.opt_state if hasattr(s, "mu"))
    split = 0
    for p, e, mu, nu in zip(*map(jax.tree.leaves, (current.params, current.ema, adam.mu, adam.nu)), strict=True):
        assert p.sharding.spec == e.sharding.spec == mu.sharding.spec == nu.sharding.spec
        split += any(axis is not None for axis in p.sharding.spec)
    assert split > 10
    kernel = current.params["blocks"]["video"]["up"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.shape == (kernel.shape[0], kernel.shape[1] // 4, kernel.shape[2] // 2)
    assert jax.tree.structure(made.shardings) == jax.tree.structure(jax.tree.map(lambda x: x.sharding, current))


def test_parameters_are_gathered_one_layer_at_a_time():
    """No device ever holds the whole stack of layers: every all-gather of a block's weights yields one layer's."""
    config = small_config(depth=3, video_width=64, video_mlp=96)
    made = plain(MeshConfig(data=1, fsdp=8), config=config)
    text = made.lower(small_batch(config, ROWS)).compile().as_text()
    gathered = [tuple(map(int, shape.split(","))) for shape in re.findall(r"f32\[([\d,]+)\][^=]* all-gather\(", text)]
    layer = {(64, 96), (1, 64, 96), (96, 64), (1, 96, 64)}
    stack = {(3, 64, 96), (3, 96, 64)}
    assert layer & set(gathered), gathered
    assert not stack & set(gathered), gathered


def test_a_step_that_is_not_finite_changes_nothing_but_the_count(adam):
    current, batch = adam.init(steps=10, seed=0), small_batch(adam.model, ROWS)
    # Of copies: an array that the host looks at cannot be donated.
    before = jax.device_get(jax.tree.map(jnp.copy, current))
    old = current.params["blocks"]["video"]["up"]["kernel"]
    batch["state"][0] = np.nan
    current, metrics = adam.step(current, adam.place(batch))
    assert old.is_deleted(), "the old state is donated"
    assert not metrics["finite"]
    np.testing.assert_array_equal(metrics["sample_id"], batch["sample_id"])
    assert int(current.step) == 1
    jax.tree.map(np.testing.assert_array_equal, before._replace(step=np.int32(1)), jax.device_get(current))
    batch["state"][0] = 0.0
    current, metrics = adam.step(current, adam.place(batch))
    assert metrics["finite"]
    assert set(metrics["norms"]["grad"]) == {"video", "action", "other"}
    total = np.sqrt(sum(float(n) ** 2 for n in metrics["norms"]["grad"].values()))
    assert total == pytest.approx(float(metrics["grad_norm"]), rel=1e-5)


def test_meshes_are_auto_and_bad_ones_are_named():
    mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=2))
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1, "context": 1}
    for bad, message in (
        (MeshConfig(fsdp=3), "mesh fsdp=3 does not divide the 8 devices"),
        (MeshConfig(data=3, fsdp=2), "data=3 x fsdp=2 x tensor=1 x context=1 does not use the 8 devices"),
        (MeshConfig(tensor=0), r"mesh.tensor is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            sharding.make_mesh(bad)
    sizes = {"data": 4, "fsdp": 2, "tensor": 1, "context": 1}
    for change, batch, accumulate, message in (
        ({}, 20, 1, "batch_size 20 does not divide over 8"),
        ({}, 24, 2, "does not divide into train.accumulate 2 microbatches"),
        ({"tensor": 4}, 24, 1, "mesh.tensor = 4 does not divide the 2 heads"),
        ({"context": 3}, 24, 1, "mesh.context = 3 does not divide the 4 patches of a frame"),
    ):
        with pytest.raises(ValueError, match=message):
            sharding.check_mesh({**sizes, **change}, CONFIG, batch, accumulate)
