"""Every recipe builds: its parts, its model by shape, and one training step by shape."""

import functools
import importlib
import pathlib

import jax
import numpy as np
import pytest

from experiments.configs import demo
from experiments.recipe import Recipe, window_config
from wam.batch import fake_batch
from wam.config import ObjectiveConfig, build
from wam.models.joint_dit import create
from wam.tokenizers.patch_pca import PatchPCA
from wam.training import optimizer, state, step

RECIPES = sorted(p.stem for p in pathlib.Path("experiments/configs").glob("*.py") if p.stem != "__init__")
VARIANTS = [f"demo:{variant}" for variant in demo.VARIANTS]


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
    cameras = (*config.data.views, config.collect.ego_camera)
    window_config(config.data, cameras)
    size = config.sim.render.size
    model = recipe.model_config(size, cameras, 4, 4, 2)
    assert model.video_frames == len(config.data.frame_seconds)
    assert config.evaluate.swap[0] in config.collect.tasks
    spec = model.batch_spec(size, size, recipe.text.tokens)
    batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in fake_batch(spec, 4).items()}
    transform = optimizer.make_optimizer(recipe.optimizer)

    def one_step(batch):
        apply, params = state.split(create(model))
        tokenizer = empty_tokenizer(recipe, size, len(cameras))
        train_step = step.make_train_step(apply, tokenizer, recipe.objective, recipe.optimizer, sources=3)
        return train_step(state.init_state(params, transform, steps=10, seed=0), batch)

    new, metrics = jax.eval_shape(one_step, batch)
    assert metrics["loss"].shape == ()
    parameters = sum(x.size for x in jax.tree.leaves(new.params))
    expected = {"debug": (4e4, 1e5), "demo": (1e6, 4e6)}.get(name, (1.1e8, 1.8e8))
    assert expected[0] < parameters < expected[1], f"{parameters:,} parameters"


def test_a_few_steps_of_a_gpu_recipe_run_on_the_cpu():
    """`metaworld_mt10` with its real code path (bf16, remat, r = 2), narrowed: the loss of one batch falls."""
    config = importlib.import_module("experiments.configs.metaworld_mt10").get_config()
    config.model.update(size="debug", lead_width=16, inverse_width=16)
    config.sim.render.size, config.tokenizer.channels = 32, 16
    recipe = Recipe.of(config)
    cameras = (*config.data.views, config.collect.ego_camera)
    model = recipe.model_config(32, cameras, 4, 4, 2)
    batch = fake_batch(model.batch_spec(32, 32, recipe.text.tokens), 6, cameras=3)
    apply, params = state.split(create(model))
    optimizer_config = build(type(recipe.optimizer), {"learning_rate": 1e-2, "warmup_steps": 1})
    transform = optimizer.make_optimizer(optimizer_config)
    train_step = jax.jit(
        step.make_train_step(apply, empty_tokenizer(recipe, 32, 3), ObjectiveConfig(policy_draws=2), optimizer_config,
                             sources=3)
    )  # fmt: skip
    current = jax.jit(functools.partial(state.init_state, optimizer=transform, steps=100, seed=0))(params)
    losses = []
    for _ in range(6):
        current, metrics = train_step(current, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert min(losses[3:]) < losses[0]
