"""The FLOP formula against XLA's own count of an unrolled model, and against figures worked out by hand."""

import dataclasses
import math

import jax
import pytest
from flax import nnx

from wam.config import NAMED_SIZES, ModelConfig, ObjectiveConfig
from wam.diffusion import losses, modes
from wam.models.flops import attention_pairs, forward_flops, stream_tokens, tokens_per_sample, train_step_flops
from wam.models.joint_dit import create
from wam.pretrained import dreamzero
from wam.pretrained.wan_trunk import SWITCHES
from wam.training import state

TEXT = 7
# Wide enough for products to dominate: what XLA counts beside them (norms, softmax, rotations) is four per cent here.
WIDE = ModelConfig(
    depth=2, heads=8, head_dim=32, video_width=256, video_mlp=1024, action_width=192, action_mlp=512, time_width=64,
    grid=(5, 6), latent_channels=32, latent_frames=3, cameras=2, action_horizon=32, steps_per_token=2, text_dim=64,
    lead_width=32, lead_fourier=8, inverse_width=64, scan_layers=False,
)  # fmt: skip
SHARED = {"topology": "shared", "action_width": 256, "action_mlp": 1024}
CASES = {
    "dual": ({}, {}),
    "shared": (SHARED, {}),
    "no text attention": ({"text_attention": False}, {}),
    "both views": ({"target_views": (0, 1)}, {}),
    "two chunks": ({"chunks": 2, "latent_frames": 5}, {}),
    "value": ({"value_bins": 64}, {}),
    "no draws": ({}, {"policy_draws": 0}),
    "no video": ({}, {"with_video": False}),
    "no paths": ({"lead_width": 0, "inverse_width": 0}, {}),
    "wan": ({**SWITCHES, "guide_channels": 8, "image_dim": 48, "image_tokens": 9}, {}),
    "wan, shared": ({**SWITCHES, **SHARED, "image_dim": 48, "image_tokens": 9}, {}),
    "dreamzero": ({**SWITCHES, **SHARED, **dreamzero.SWITCHES, "code_width": 128}, {"policy_draws": 0}),
    "dreamzero, dual": ({**dreamzero.SWITCHES, "topology": "dual", "code_width": 128}, {"policy_draws": 0}),
}


def counted_by_xla(config: ModelConfig, objective: ObjectiveConfig, rows: int, *, gradient: bool = False) -> float:
    """FLOPs of the loss (or of its gradient) by XLA's cost analysis of the lowered program: nothing is compiled."""
    spec = dataclasses.replace(
        config.batch_spec(0, 0, TEXT), latent=(config.latent_frames, config.patches, config.latent_channels)
    )
    batch = {name: jax.ShapeDtypeStruct(*field) for name, field in spec.fields(rows).items()}
    apply, params = state.split(nnx.eval_shape(lambda: create(config)))
    drawn = jax.eval_shape(lambda b: modes.draw(jax.random.key(0), b, config, objective), batch)

    def loss(params, constants, batch, drawn):
        model = apply._replace(constants=constants).model(params)
        terms = losses.loss_terms(model, batch, batch["latents"], drawn, with_video=objective.with_video)
        return sum(term.error.sum() for term in terms.values())

    function = jax.grad(loss) if gradient else loss
    return jax.jit(function).lower(params, apply.constants, batch, drawn).cost_analysis()["flops"]


@pytest.mark.parametrize("case", CASES)
def test_the_forward_pass_agrees_with_xla(case):
    changes, of_objective = CASES[case]
    config = dataclasses.replace(WIDE, **changes)
    objective = ObjectiveConfig(**{"policy_draws": 2, **of_objective})
    ours = 2 * forward_flops(config, objective=objective, text_tokens=TEXT).total
    assert 1.0 < counted_by_xla(config, objective, 2) / ours < 1.06


@pytest.mark.parametrize("case", ["dual", "two chunks"])
def test_a_training_step_is_three_forward_passes(case):
    config = dataclasses.replace(WIDE, **CASES[case][0])
    objective = ObjectiveConfig(policy_draws=2)
    ours = train_step_flops(config, objective, 2, text_tokens=TEXT)
    assert 0.98 < counted_by_xla(config, objective, 2, gradient=True) / ours < 1.06


def test_a_scanned_model_is_why_there_is_a_formula():
    deep = dataclasses.replace(WIDE, depth=6, scan_layers=True)
    objective = ObjectiveConfig(policy_draws=2)
    assert counted_by_xla(deep, objective, 1) < 0.4 * forward_flops(deep, objective=objective, text_tokens=TEXT).total


def test_tokens_and_pairs_by_hand():
    config = dataclasses.replace(WIDE, chunks=2, latent_frames=5)  # 30 patches, 2 views, one of them predicted
    objective = ObjectiveConfig(policy_draws=3)
    tokens = stream_tokens(config, objective)
    assert dataclasses.astuple(tokens) == (2 * 30 * 3, 2, 2 * 2 * 30, 2 * 16, 2 * 3 * 16, 0)
    assert tokens_per_sample(config, objective) == 180 + 2 + 120 + 32 + 96
    assert tokens_per_sample(config) == 180 + 2 + 120 + 32
    pairs = attention_pairs(config, objective)
    assert pairs["history"] == 60 * 60 + 120 * 180
    assert pairs["video"] == 60 * (60 + 1 + 60 + 16) + 60 * (180 + 1 + 60 + 16)
    assert pairs["action"] == 16 * (60 + 1 + 16 + 60) + 16 * (180 + 1 + 16 + 60)
    assert pairs["draw"] == 48 * (60 + 1 + 16) + 48 * (180 + 1 + 16)
    assert pairs["state"] == 0


def test_the_video_expert_of_base_costs_what_wan_1_3b_does():
    """Per token 2 FLOPs for each of 1.25 G weights on its path, and 4 L^2 D a layer of attention."""
    config = ModelConfig(**NAMED_SIZES["base"], grid=(32, 32), latent_channels=64, latent_frames=8, views=1,
                         target_views=(0,), lead_width=0, inverse_width=0)  # fmt: skip
    flops = forward_flops(config, text_tokens=512)
    tokens = stream_tokens(config)
    assert tokens.history + tokens.video == 8192
    weights = 30 * (6 * 1536**2 + 2 * 1536 * 8960)
    assert weights == pytest.approx(1.25e9, rel=0.01)
    # The first frame neither attends to later ones nor needs its last layer, hence less than full attention.
    full = 2 * weights * 8192 + 30 * (4 * 8192**2 * 1536 + 4 * 8192 * 512 * 1536)
    assert full == pytest.approx(33.8e12, rel=0.03)
    assert 0.95 < flops.total / full < 1.01


def test_flops_grow_with_the_batch_alone():
    objective = ObjectiveConfig()
    one = train_step_flops(WIDE, objective, 1, text_tokens=TEXT)
    assert train_step_flops(WIDE, objective, 12, text_tokens=TEXT) == 12 * one
    recomputing = dataclasses.replace(WIDE, remat="full", scan_layers=True)
    assert train_step_flops(recomputing, objective, 1, text_tokens=TEXT) == one
    assert math.isclose(one, 3 * forward_flops(WIDE, objective=objective, text_tokens=TEXT).total)
