"""Training a part: what stays as it was bit for bit, what it costs, adapters merged and taken off, rates by path."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import SMALL, small_batch, small_tokenizer
from tests.pretrained.files import CONFIG, random_trunk, release
from wam.config import MeshConfig, ModelConfig, ObjectiveConfig, OptimizerConfig
from wam.models import lora
from wam.pretrained import dreamzero, loading
from wam.pretrained.dreamzero import DreamZeroConfig
from wam.pretrained.imported import import_model
from wam.pretrained.mapping import flatten, unflatten
from wam.pretrained.wan_forward import wan_forward
from wam.training import finetune, sharding
from wam.training.finetune_config import FinetuneConfig
from wam.training.state import build, split
from wam.training.trainer import Trainer

ROWS = 8
MODEL = ModelConfig(**{**SMALL, **CONFIG.model_fields()})
LORA = (("blocks.video.[qkv]", 2, 4.0), ("blocks.video.up", 3, 3.0))
FREEZE = ("blocks.video.*", "sigma.video.*", "text_in.video.*", "video_in.*")


@pytest.fixture(scope="module")
def trunk(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("trunk")
    import_model("wan", release(directory / "release"), directory / "imported")
    return str(directory / "imported")


def trainer(config: FinetuneConfig, model: ModelConfig = MODEL) -> Trainer:
    return Trainer(
        model, ObjectiveConfig(policy_draws=0), OptimizerConfig(warmup_steps=1), small_tokenizer(model),
        sharding.make_mesh(MeshConfig(), jax.devices()[:1]), batch_size=ROWS, sources=3, finetune=config,
    )  # fmt: skip


def run(made: Trainer, steps: int):
    """Losses and the last state."""
    state, losses = made.init(steps=10, seed=0), []
    batch = made.place(small_batch(made.model, ROWS))
    for _ in range(steps):
        state, metrics = made.step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def tuned(trunk):
    """A trainer of adapters, its losses and its last state."""
    made = trainer(FinetuneConfig(trunk=trunk, freeze=FREEZE, lora=LORA))
    return made, *run(made, steps=3)


def test_adapters_train_and_the_base_stays_bit_for_bit(tuned):
    made, losses, state = tuned
    assert losses[-1] < losses[0]
    base = random_trunk()
    frozen = flatten(made.fixed.frozen)
    assert frozen.keys() == {p for p in base if not p.startswith("video_head")}
    assert all(np.array_equal(x, base[path]) for path, x in frozen.items())
    trained = flatten(state.params)
    adapters = {path for path in trained if path.endswith(lora.LEAVES)}
    assert adapters == {f"blocks.video.{name}.{leaf}" for name in ("q", "k", "v", "up") for leaf in lora.LEAVES}
    assert all(np.abs(trained[path]).max() > 0 for path in adapters), "B has left zero"
    assert trained["blocks.video.up.lora_a"].shape == (2, 32, 3)
    # Moments and EMA are those of what trains, and of nothing else.
    adam = next(s for s in state.opt_state if hasattr(s, "mu"))
    for tree in (state.ema, adam.mu, adam.nu):
        assert flatten(tree).keys() == trained.keys()


def test_a_checkpoint_is_completed_by_its_trunk(tuned):
    made, _, state = tuned
    whole = flatten(finetune.complete(jax.device_get(state.ema), made.finetune))
    _, shapes = split(build(MODEL))
    assert {p: x.shape for p, x in whole.items()} == {p: x.shape for p, x in flatten(shapes).items()}
    assert np.array_equal(whole["blocks.video.down.kernel"], random_trunk()["blocks.video.down.kernel"])
    assert not np.array_equal(whole["blocks.video.up.kernel"], random_trunk()["blocks.video.up.kernel"])


def test_a_run_starts_from_a_checkpoint_of_dreamzero(tmp_path):
    config = DreamZeroConfig(**dataclasses.asdict(CONFIG), action_dim=4, state_dim=4, code_width=12)
    given = random_trunk(config)
    pieces = loading.to_foreign(dreamzero.entries(config), given, np.dtype(np.float32))
    source = release(tmp_path / "release", made=pieces)
    heads = {"num_heads": config.num_attention_heads}
    (source / "config.json").write_text(json.dumps({"action_head_cfg": {"config": {"diffusion_model_cfg": heads}}}))
    import_model("dreamzero", source, tmp_path / "imported")
    robots = {"embodiments": 3}  # which share the one set of encoders
    made = trainer(FinetuneConfig(trunk=str(tmp_path / "imported")),
                   ModelConfig(**{**SMALL, **config.model_fields(), **robots}))  # fmt: skip
    before = flatten(jax.device_get(made.init(steps=10, seed=0).params))
    assert all(np.array_equal(before[path], x) for path, x in given.items())
    losses, state = run(made, steps=2)
    assert np.isfinite(losses).all()
    after = flatten(jax.device_get(state.params))
    for path in ("state_in.hidden.kernel", "action_in.hidden.kernel", "action_out.output.kernel", "video_in.kernel"):
        assert not np.array_equal(before[path], after[path]), path


def test_merged_adapters_compute_the_same_and_come_off_again():
    apply, params = split(build(MODEL, LORA))
    flat = flatten(params)
    keys = jax.random.split(jax.random.key(1), len(flat))
    flat = {p: x + 0.1 * jax.random.normal(k, x.shape) for (p, x), k in zip(flat.items(), keys, strict=True)}
    plain, shapes = split(build(MODEL))
    merged = lora.merge(flat, LORA)
    assert merged.keys() == flatten(shapes).keys()

    def video(apply, flat):
        model, key = apply.model(unflatten(flat)), jax.random.key(2)
        noisy, text = jax.random.normal(key, (2, 3, 4, MODEL.latent_channels)), jnp.ones((2, 3, MODEL.text_dim))
        return wan_forward(model, noisy, jnp.array([0.3, 0.8]), text, jnp.ones((2, 3), bool), (2, 2))

    beside, inside = (jax.jit(functools.partial(video, a))(p) for a, p in ((apply, flat), (plain, merged)))
    np.testing.assert_allclose(beside, inside, atol=1e-5)
    adapters = {path: x for path, x in flat.items() if path.endswith(lora.LEAVES)}
    assert np.abs(jax.jit(functools.partial(video, plain))({p: flat[p] for p in merged}) - inside).max() > 1e-2
    back = lora.unmerge(merged, LORA, adapters)
    assert back.keys() == flat.keys()
    assert max(float(jnp.abs(back[p] - x).max()) for p, x in flat.items()) <= 1e-5
    moved = {p for p, x in merged.items() if float(jnp.abs(x - flat[p]).max()) > 1e-3}
    assert moved == {f"blocks.video.{name}.kernel" for name in ("q", "k", "v", "up")}


def test_learning_rates_are_factors_by_path(trunk):
    """The first step of Adam is as long as the rate wherever there is a gradient, but for the decay of a hundredth."""
    config = FinetuneConfig(trunk=trunk, learning_rates=(("*.action.*", 0.5), ("blocks.video.*", 0.0)))
    made = trainer(config)
    start = jax.device_get(flatten(made.init(steps=10, seed=0).params))
    _, state = run(made, steps=1)
    rate = OptimizerConfig().learning_rate
    length = {path: np.abs(x - start[path]).max() / rate for path, x in flatten(state.params).items()}
    assert not any(length[path] for path in length if path.startswith("blocks.video."))
    for path, factor in {"blocks.action.v.kernel": 0.5, "sigma.video.hidden.kernel": 1, "video_in.kernel": 1}.items():
        assert length[path] == pytest.approx(factor, rel=0.02), path
    factors = finetune.rate_factors({"a": {"kernel": 1, "bias": 2}}, (("a.k*", 3.0), ("a.*", 4.0)))
    assert factors == {"a": {"kernel": 3.0, "bias": 4.0}}


def test_an_action_expert_can_start_from_the_video_experts_weights(trunk):
    model = dataclasses.replace(MODEL, action_width=12, action_mlp=30)
    made = trainer(FinetuneConfig(trunk=trunk, action_expert="interpolated"), model=model)
    params, base = flatten(made.init(steps=1, seed=0).params), random_trunk()
    for path in ("blocks.action.q.kernel", "blocks.action.down.kernel", "sigma.action.project.kernel",
                 "blocks.action.table", "text_in.action.output.bias", "blocks.action.q_norm.scale"):  # fmt: skip
        wide, narrow = base[path.replace(".action.", ".video.")], np.asarray(params[path])
        corner = (..., 0, 0) if path.endswith("kernel") else (..., 0)
        gain = np.sqrt(wide.shape[-2] / narrow.shape[-2]) if path.endswith("kernel") else 1.0
        np.testing.assert_allclose(narrow[corner], gain * wide[corner], rtol=1e-5)
    # The parts of the modulation stay apart: the second begins where the wide one's second begins.
    bias = np.asarray(params["sigma.action.project.bias"])
    np.testing.assert_allclose(bias[[12, 23]], base["sigma.video.project.bias"][[32, 63]], rtol=1e-5)
    line = np.linspace(0, 1, 9)
    np.testing.assert_allclose(finetune.narrowed(jnp.asarray(line), (4,)), np.linspace(0, 1, 4), atol=1e-6)
    np.testing.assert_array_equal(finetune.narrowed(jnp.asarray(line), (9,)), line.astype(np.float32))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"freeze": ("blocks.vdeo.*",)}, "finetune.freeze: 'blocks.vdeo.*' fits no parameter, as"),
        ({"learning_rates": (("nothing", 2.0),)}, "finetune.learning_rates: 'nothing' fits no parameter"),
        ({"lora": (("blocks.video.z", 2, 2.0),)}, "finetune.lora: 'blocks.video.z' fits no linear map"),
        ({"freeze": ("*",)}, "finetune.freeze leaves no parameter to train"),
        ({"freeze": ("blocks.*",)}, "would freeze 'blocks.action.down.bias', which does not come from the trunk"),
        ({"lora": (("blocks.action.up", 2, 2.0),)}, "would freeze 'blocks.action.up.kernel'"),
    ],
)
def test_patterns_that_cannot_be_meant_are_named(trunk, fields, said):
    with pytest.raises(ValueError, match="finetune") as error:
        trainer(FinetuneConfig(trunk=trunk, **fields)).init(steps=1, seed=0)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"action_expert": "narrow"}, "choose from fresh, interpolated"),
        ({"trunk": "x", "lora": (("blocks.*", 2),)}, r"write \(pattern, rank, alpha\)"),
        ({"trunk": "x", "lora": (("blocks.*", 0, 2.0),)}, "has rank 0"),
        ({"freeze": ("blocks.*",)}, r"need finetune\.trunk: fresh weights must train"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        FinetuneConfig(**fields)
