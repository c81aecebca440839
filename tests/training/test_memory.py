"""Bytes by shape against XLA's own account of a compiled, sharded training step on eight devices."""

import dataclasses

import pytest
from flax import nnx

from tests.helpers import small_config
from wam.batch import fake_batch
from wam.config import MeshConfig, ModelConfig, ObjectiveConfig, OptimizerConfig
from wam.models.joint_dit import create
from wam.training import memory, state
from wam.training.memory import Setting, device_bytes
from wam.training.sharding import AXES, make_mesh
from wam.training.trainer import Trainer

# As few operations as an honest step can have: what is slow here is compiling it.
PLAIN = {"depth": 4, "heads": 4, "head_dim": 32, "video_width": 128, "video_mlp": 512, "action_width": 128,
         "action_mlp": 512, "grid": (4, 4), "text_attention": False, "lead_width": 0, "inverse_width": 0}  # fmt: skip
OBJECTIVE = ObjectiveConfig(policy_draws=0)


def setting_of(config: ModelConfig, batch_size: int = 16, accumulate: int = 1, **mesh: int) -> Setting:
    latent = (config.latent_frames, config.patches, config.latent_channels)
    spec = dataclasses.replace(config.batch_spec(0, 0, text_tokens=3), latent=latent)
    return Setting(config, OBJECTIVE, spec, {axis: mesh.get(axis, 1) for axis in AXES}, batch_size, accumulate)


def account(setting: Setting):
    """XLA's account of one device: the step is compiled by shape, nothing runs."""
    mesh = make_mesh(MeshConfig(**setting.mesh))
    trainer = Trainer(setting.model, setting.objective, OptimizerConfig(), None, mesh, sources=3,
                      batch_size=setting.batch_size, accumulate=setting.accumulate)  # fmt: skip
    return trainer.lower(fake_batch(setting.spec, setting.batch_size)).compile().memory_analysis()


CASES = {
    "fsdp": ({}, {"data": 2, "fsdp": 4}, 1),
    "mixed": ({"topology": "shared", "remat": "full"}, {"fsdp": 2, "tensor": 2, "context": 2}, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_bytes_agree_with_the_account_of_xla(name):
    """Parameters, moments, EMA and batch to the byte; what differentiation needs within a quarter."""
    changes, mesh, accumulate = CASES[name]
    setting = setting_of(small_config(**{**PLAIN, **changes}), accumulate=accumulate, **mesh)
    needed, found = device_bytes(setting), account(setting)
    counters = 4 * 4  # step, steps, seed and Adam's count
    held = needed.params + needed.moments + needed.ema + counters
    unread = setting.rows * accumulate * (4 + 1)  # `value` and its mask: no loss reads them
    assert found.argument_size_in_bytes == held + needed.batch - unread
    assert found.alias_size_in_bytes == held
    assert found.temp_size_in_bytes == pytest.approx(needed.gradients + needed.activations, rel=0.25)


def test_parameters_are_counted_by_expert_and_shared_by_devices():
    config = small_config()
    _, params = state.split(nnx.eval_shape(lambda: create(config)))
    counts = memory.param_counts(config)
    assert sum(counts.values()) == state.count(params)
    assert counts["video"] > counts["action"] > 0
    whole = memory.param_bytes(config, setting_of(config).mesh)
    assert whole == 4 * state.count(params)
    quarter = memory.param_bytes(config, setting_of(config, fsdp=4).mesh)
    assert whole / 4 < quarter < whole / 3  # some small ones stay whole
    assert memory.param_bytes(config, setting_of(config, fsdp=4, tensor=2).mesh) < quarter


def test_every_lever_needs_fewer_activations():
    config = small_config(**PLAIN)
    base = device_bytes(setting_of(config, fsdp=2)).activations
    remat = [
        device_bytes(setting_of(dataclasses.replace(config, remat=policy), fsdp=2)).activations
        for policy in ("none", "dots", "full")
    ]
    assert remat[0] == base > remat[1] > remat[2]
    for changed in (
        setting_of(config, fsdp=2, accumulate=2),
        setting_of(config, fsdp=2, tensor=2),
        setting_of(config, fsdp=2, context=2),
        setting_of(config, batch_size=8, fsdp=2),
        setting_of(config, fsdp=4),
    ):
        assert device_bytes(changed).activations < 0.8 * base
    longer = dataclasses.replace(config, grid=(16, 16))
    flash = dataclasses.replace(longer, attention="cudnn")
    assert device_bytes(setting_of(flash)).activations < 0.5 * device_bytes(setting_of(longer)).activations


def test_a_mesh_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"mesh\.tensor = 3 does not divide the 4 heads"):
        device_bytes(setting_of(small_config(**PLAIN), tensor=3))
