"""Training from an imported trunk: a small random Wan of `diffusers`, tuned in all ways at once, on eight devices."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.helpers import SMALL, small_batch, small_tokenizer
from tests.pretrained.wan_reference import TINY, reference
from tools import import_weights
from wam.config import MeshConfig, ModelConfig, ObjectiveConfig, OptimizerConfig
from wam.pretrained.mapping import flatten
from wam.pretrained.wan_trunk import WanConfig
from wam.training import sharding
from wam.training.finetune_config import FinetuneConfig
from wam.training.trainer import Trainer

CONFIG = WanConfig(**{**TINY, "text_dim": SMALL["text_dim"]}, in_channels=2, out_channels=2)
MODEL = ModelConfig(**{**SMALL, **CONFIG.model_fields(), "lead_width": 0, "inverse_width": 0})
ROWS, STEPS = 8, 4


@pytest.fixture(scope="module")
def trunk(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("wan")
    reference(CONFIG).save_pretrained(directory / "release", max_shard_size="20KB")
    import_weights.main(["--from", "wan", "--src", str(directory / "release"), "--out", str(directory / "imported")])
    return str(directory / "imported")


def losses(finetune: FinetuneConfig, mesh, model=MODEL) -> list[float]:
    made = Trainer(
        model, ObjectiveConfig(policy_draws=0), OptimizerConfig(warmup_steps=1), small_tokenizer(model), mesh,
        batch_size=ROWS, sources=3, finetune=finetune,
    )  # fmt: skip
    state, values = made.init(steps=10, seed=0), []
    batch = made.place(small_batch(model, ROWS))
    for _ in range(STEPS):
        state, metrics = made.step(state, batch)
        assert metrics["finite"]
        values.append(float(metrics["loss"]))
    for tree in (state.params, state.ema, made.fixed.frozen):
        for path, x in flatten(tree).items():
            if path in ("blocks.video.up.kernel", "blocks.video.up.lora_b"):
                assert x.addressable_shards[0].data.size * min(2, len(mesh.devices.flat)) <= x.size, "it is shared out"
    return values


TUNED = {
    "action_expert": "interpolated",
    "freeze": ("sigma.video.*",),
    "lora": (("blocks.video.*", 4, 8.0),),
}  # the rest trains whole


@pytest.fixture(scope="module")
def alone(trunk):
    """Losses on one device."""
    return losses(FinetuneConfig(trunk=trunk, **TUNED), sharding.make_mesh(MeshConfig(), jax.devices()[:1]))


def test_eight_devices_give_the_losses_of_one(trunk, alone):
    eight = losses(FinetuneConfig(trunk=trunk, **TUNED), sharding.make_mesh(MeshConfig(fsdp=2, tensor=2, context=2)),
                   dataclasses.replace(MODEL, remat="full"))  # fmt: skip
    error = np.abs(np.array(alone) / eight - 1).max()
    print(f"parity of meshes, imported trunk: losses {alone[0]:.3f} to {alone[-1]:.3f}, relative error {error:.1e}")
    assert alone[-1] < alone[0]
    # Adam turns rounding noise of tiny gradients into whole steps, hence not the last bit.
    assert error < 2e-4
