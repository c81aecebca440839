"""Every recipe builds: its parts, its model by shape, and one training step by shape."""

import dataclasses
import functools
import importlib
import inspect
import pathlib

import jax
import numpy as np
import pytest

from data_pipelines.store import ShardWriter
from experiments.configs import demo
from experiments.recipe import Recipe
from wam.batch import fake_batch
from wam.config import ObjectiveConfig, build
from wam.models.joint_dit import create
from wam.pretrained import dreamzero, released
from wam.pretrained.mapping import flatten
from wam.tokenizers.patch_pca import PatchPCA
from wam.training import finetune, memory, optimizer, state, step

RECIPES = sorted(p.stem for p in pathlib.Path("experiments/configs").glob("*.py") if p.stem != "__init__")
VARIANTS = [*(f"demo:{variant}" for variant in demo.VARIANTS), "demo_distilled:two",
            "real_mixture:tiny", "wan1b_finetune:lora", "wan14b_dreamzero:i2v", "wan5b_dreamzero:released",
            "wan14b_dreamzero:released"]  # fmt: skip
PARAMETERS = {
    "debug": (4e4, 1e5),
    "demo": (1e6, 4e6),
    "demo_value": (1e6, 4e6),
    "demo_distilled": (1e6, 4e6),
    "real_mixture": (1e6, 4e6),
    "real_mixture:tiny": (4e4, 2e5),
    "metaworld_mt10": (1.1e8, 1.8e8),
    "metaworld_mt50": (1.1e8, 1.8e8),
    "small": (1.1e8, 1.8e8),
    "base": (1.6e9, 1.8e9),
    "wan5b": (5.9e9, 6.3e9),
    "wan14b": (1.6e10, 1.7e10),
    "wan1b_finetune": (1.6e9, 1.8e9),
    "wan5b_dreamzero": (4.9e9, 5.7e9),
    "wan14b_dreamzero": (1.4e10, 1.66e10),
    "fast_wam": (5.9e9, 6.3e9),
}
VIDEO_EXPERT = {"base": 1.42e9, "wan5b": 5.0e9, "wan14b": 14.3e9, "wan1b_finetune": 1.42e9, "fast_wam": 5.0e9}
"""Parameters of the released trunks whose shapes these are."""


def empty_tokenizer(recipe: Recipe, size: int, cameras: int) -> PatchPCA:
    """A tokenizer of the right shapes without data."""
    c = recipe.tokenizer
    side = size // c.patch
    first, group = c.patch**2 * 3, c.patch**2 * 3 * c.frames_per_latent
    arrays = {}
    for kind, pixels in (("first", first), ("group", group)):
        arrays |= {
            f"mean_{kind}": np.zeros((cameras, side * side, pixels), np.float32),
            f"basis_{kind}": np.zeros((pixels, c.channels), np.float32),
            f"scale_{kind}": np.ones(c.channels, np.float32),
        }
    return PatchPCA(c, (side, side), arrays, np.ones((2, c.channels), np.float32))


@pytest.mark.parametrize("recipe_name", [*RECIPES, *VARIANTS])
def test_recipe_builds_by_shape(recipe_name):
    name, *variant = recipe_name.split(":")
    config = importlib.import_module(f"experiments.configs.{name}").get_config(*variant)
    config.lock()
    recipe = Recipe.of(config)
    model, spec = recipe.by_shape()
    assert model.video_frames == len(config.data.frame_seconds)
    assert config.evaluate.swap[0] in config.collect.tasks
    # A clip serves no longer window, and `collect` writes clips of the default length.
    overlap = inspect.signature(ShardWriter).parameters["overlap_steps"].default
    reach = max(config.data.frame_seconds[-1], config.data.action_horizon / config.data.action_hz)
    assert reach * 80 <= overlap
    model = dataclasses.replace(model, attention="xla")  # cuDNN's cannot be traced where there is none
    batch = {k: jax.ShapeDtypeStruct(*field) for k, field in spec.fields(4).items()}
    transform = optimizer.make_optimizer(recipe.optimizer)

    def one_step(batch):
        apply, params = state.split(state.build(model, recipe.finetune.lora))
        params, frozen = finetune.divide(params, finetune.frozen_paths(recipe.finetune, flatten(params)))
        tokenizer = empty_tokenizer(recipe, spec.height, model.cameras)
        train_step = step.make_train_step(apply, recipe.objective, recipe.optimizer, sources=len(recipe.sources),
                                          learning_rates=recipe.finetune.learning_rates)  # fmt: skip
        start = state.init_state(params, transform, steps=10, seed=0)
        return train_step(start, batch, state.Fixed(frozen, tokenizer))

    new, metrics = jax.eval_shape(one_step, batch)
    assert metrics["loss"].shape == ()
    trained = memory.param_counts(model, recipe.finetune)
    assert sum(trained.values()) == state.count(new.params)
    counts = memory.param_counts(model)
    parameters = sum(counts.values())
    low, high = PARAMETERS.get(recipe_name, PARAMETERS[name])
    assert low < parameters < high, f"{parameters:,} parameters"
    if not recipe.finetune.freeze:
        assert trained == counts
    if name in VIDEO_EXPERT:
        assert counts["video"] == pytest.approx(VIDEO_EXPERT[name], rel=0.03)


@pytest.mark.parametrize("size", ["5b", "14b"])
def test_a_checkpoint_of_dreamzero_fits_its_recipe(size):
    config = importlib.import_module(f"experiments.configs.wan{size}_dreamzero").get_config("released")
    recipe = Recipe.of(config)
    release = dreamzero.RELEASED[f"dreamzero-{size}"]
    assert recipe.finetune.trunk == f"weights/dreamzero-{size}"
    params = jax.eval_shape(lambda: state.split(create(recipe.by_shape()[0]))[1])
    own = {path: x.shape for path, x in flatten(params).items() if path.startswith(release.fills)}
    assert own == released.trunk_shapes(release)


@pytest.mark.requires_sim
def test_shapes_without_data_are_those_of_the_collected_data(debug_run):
    """What `by_shape` derives from the recipe, a run has found in its stores."""
    from experiments.configs import debug
    from wam.checkpoint import read_inference

    model, _ = Recipe.of(debug.get_config()).by_shape()
    assert build(type(model), read_inference(debug_run).assets["model"]) == model


def test_a_recipe_that_collects_nothing_has_no_shape_of_its_own():
    config = demo.get_config()
    del config["sim"]
    with pytest.raises(ValueError, match=r"no `sim` and `collect`, and no data\.image_size: the model's shape is"):
        Recipe.of(config).by_shape()
    config = demo.get_config()
    config.sim.render.size = 60
    with pytest.raises(ValueError, match=r"tokenizer\.patch 16 does not divide the image size 60"):
        Recipe.of(config).by_shape()


def test_a_few_steps_of_a_gpu_recipe_run_on_the_cpu():
    """`small` with its real code path (bf16, remat, r = 4, velocity), narrowed: the loss of one batch falls."""
    config = importlib.import_module("experiments.configs.small").get_config()
    config.model.update(size="debug", lead_width=16, inverse_width=16, attention="xla")
    config.sim.render.size, config.tokenizer.channels = 32, 16
    recipe = Recipe.of(config)
    model, spec = recipe.by_shape()
    batch = fake_batch(spec, 6, cameras=3)
    apply, params = state.split(create(model))
    optimizer_config = build(type(recipe.optimizer), {"learning_rate": 1e-2, "warmup_steps": 1})
    transform = optimizer.make_optimizer(optimizer_config)
    train_step = jax.jit(step.make_train_step(apply, ObjectiveConfig(policy_draws=2), optimizer_config, sources=3))
    fixed = state.Fixed(tokenizer=empty_tokenizer(recipe, 32, 3))
    current = jax.jit(functools.partial(state.init_state, optimizer=transform, steps=100, seed=0))(params)
    losses = []
    for _ in range(6):
        current, metrics = train_step(current, batch, fixed)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert min(losses[3:]) < losses[0]
