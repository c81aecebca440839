"""Augmentation: against references, one draw a clip, keyed by the sample, off means untouched."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage

from tests.helpers import small_batch, small_config, small_tokenizer
from wam.config import MeshConfig, ObjectiveConfig, OptimizerConfig
from wam.training import sharding
from wam.training.augment import LUMA, OFF, Augmentation, jitter, warp
from wam.training.augment_config import AugmentConfig
from wam.training.optimizer import make_optimizer
from wam.training.state import Fixed, build, init_state, split
from wam.training.step import latents_of, make_eval_step, make_train_step, microbatches

USUAL = AugmentConfig(crop=0.8, rotation=8, brightness=0.3, contrast=0.4, saturation=0.5, hue=0.08)
KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
PICTURE = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize((28, 20), Image.Resampling.BICUBIC)
)
"""Smooth, and not square: axes that were mixed up would be seen."""


def batch(rows=8):
    """Cameras 0 and 1 in two views; the clip of a view stands still, the second view of row 1 is none."""
    made = small_batch(small_config(cameras=2), rows)
    made["video"] = np.broadcast_to(made["video"][:, :, :1], made["video"].shape).copy()
    made["view_mask"][1, 1] = False
    return made


def augmented(config=USUAL, wrist=(), given=None, key=KEY):
    return np.asarray(jax.jit(Augmentation(config, wrist))(key, given if given is not None else batch())["video"])


@pytest.mark.parametrize(
    ("scale", "degrees", "offset"), [(1.0, 7.0, (0, 0)), (0.8, 0.0, (0.1, -0.05)), (0.9, -20.0, (0.05, 0.03))]
)
def test_warp_equals_an_affine_transform_of_scipy(scale, degrees, offset):
    found = warp(PICTURE[None], scale, np.deg2rad(degrees), jnp.array(offset))[0]
    h, w, _ = PICTURE.shape
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = scale * np.array([[cos, sin], [-sin, cos]])
    middle = (np.array([h, w]) - 1) / 2
    shift = middle + np.array(offset) * (h, w) - matrix @ middle
    expected = np.stack(
        [
            ndimage.affine_transform(PICTURE[..., c].astype(np.float64), matrix, shift, order=1, mode="nearest")
            for c in range(3)
        ],
        -1,
    )
    np.testing.assert_allclose(found, expected, atol=2e-2)


def test_warp_has_pixel_centres_where_pillow_has_them():
    """A crop on whole pixels resized is Pillow's; a turn by a right angle of a square moves pixels and nothing else."""
    h, w, _ = PICTURE.shape
    half = warp(PICTURE[None], 0.5, 0.0, jnp.array([-0.25, 0.25]))[0]
    pillow = Image.fromarray(PICTURE).transform(
        (w, h), Image.Transform.EXTENT, (w / 2, 0, w, h / 2), Image.Resampling.BILINEAR
    )
    inside = np.s_[1:-2, 2:-1]  # at the crop's edges Pillow sees the frame beyond, and at the frame's black
    np.testing.assert_allclose(half[inside], np.asarray(pillow)[inside], atol=1)
    square = PICTURE[:, :20]
    np.testing.assert_allclose(warp(square[None], 1.0, np.pi / 2, jnp.zeros(2))[0], np.rot90(square), atol=1e-2)


@pytest.mark.parametrize("kind", ["Brightness", "Contrast", "Color"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.4])
def test_colours_equal_those_of_pillow(kind, factor):
    factors = {"Brightness": (factor, 1, 1), "Contrast": (1, factor, 1), "Color": (1, 1, factor)}[kind]
    found = jitter(jnp.asarray(PICTURE[None], jnp.float32), *map(jnp.float32, factors), jnp.float32(0))[0]
    expected = getattr(ImageEnhance, kind)(Image.fromarray(PICTURE)).enhance(factor)
    np.testing.assert_allclose(found, np.asarray(expected), atol=2.0)


def test_hue_turns_colours_keeps_luma_and_leaves_grey_alone():
    muted = jnp.asarray(PICTURE[None] * 0.2 + 100, jnp.float32)  # no value is clipped
    turned = jitter(muted, *map(jnp.float32, (1, 1, 1, 0.2)))
    assert np.abs(turned - muted).max() > 5
    np.testing.assert_allclose(turned @ LUMA, muted @ LUMA, atol=0.05)
    np.testing.assert_allclose(jitter(turned, *map(jnp.float32, (1, 1, 1, -0.2))), muted, atol=0.05)
    grey = jnp.full((1, 4, 4, 3), 77.0)
    np.testing.assert_allclose(jitter(grey, *map(jnp.float32, (1, 1, 1, 0.3))), grey, atol=0.05)


def test_off_is_the_very_same_array_and_no_operation():
    given = batch()
    assert OFF(KEY, given) is given
    jaxpr = jax.make_jaxpr(lambda video: OFF(KEY, given | {"video": video})["video"])(given["video"])
    assert not jaxpr.eqns


def test_all_frames_of_a_clip_change_alike_and_views_do_not():
    found, given = augmented(), batch()
    assert found.dtype == np.uint8 and found.shape == given["video"].shape
    assert (found == found[:, :, :1]).all()
    same = given | {"video": np.broadcast_to(given["video"][:1, :1], given["video"].shape)}
    clips = augmented(given=same).reshape(16, -1)
    drawn = np.delete(clips, 3, axis=0)  # all but the view that is none
    assert len(np.unique(drawn, axis=0)) == 15
    assert (found[1, 1] == given["video"][1, 1]).all()


@pytest.mark.parametrize(
    ("wrist", "moved", "coloured"), [("none", False, False), ("colour", False, True), ("all", True, True)]
)
def test_wrist_cameras_get_what_they_are_meant_to(wrist, moved, coloured):
    given = batch()
    given["camera"][0] = [1, 0]  # found by the camera, not by the view
    on_wrist = (given["camera"] == 1) & given["view_mask"]
    for part, expected in (({"crop": 0.8}, moved), ({"hue": 0.08, "brightness": 0.3}, coloured)):
        found = augmented(AugmentConfig(wrist=wrist, **part), (1,), given)
        changed = (found != given["video"]).any((2, 3, 4, 5))
        assert (changed == ((given["view_mask"] & ~on_wrist) | (on_wrist & expected))).all()


def test_draws_belong_to_the_sample_and_the_step():
    given, order = batch(), RNG.permutation(8)
    shuffled = {name: value[order] for name, value in given.items()}
    whole = augmented()
    assert (augmented(given=shuffled) == whole[order]).all()
    assert (augmented(given={name: value[2:5] for name, value in given.items()}) == whole[2:5]).all()
    assert (augmented(key=jax.random.fold_in(KEY, 1)) != whole).any()


def test_ranges_are_kept_and_used():
    """Brightness of a grey clip is the factor itself; over many samples it fills its range and no more."""
    rows = 400
    given = small_batch(small_config(cameras=2), rows)
    given["video"] = np.full((rows, 2, 1, 2, 2, 3), 100, np.uint8)
    given["view_mask"][:] = True
    values = augmented(AugmentConfig(brightness=0.3), given=given)[:, :, 0, 0, 0, 0]
    assert 70 <= values.min() <= 72 and 128 <= values.max() <= 130
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.15  # views are drawn independently


def test_latents_and_ranges_out_of_bounds_are_refused():
    given = batch()
    given["latents"] = given.pop("video")
    with pytest.raises(ValueError, match="augment changes pixels, but the batches hold precomputed latents"):
        Augmentation(USUAL)(KEY, given)
    for change, said in (
        ({"crop": 0.3}, "augment.crop is 0.3; it is a part of the image's side"),
        ({"rotation": -1}, r"augment.rotation is -1; it goes from 0 \(off\) to 45"),
        ({"hue": float("nan")}, "augment.hue is nan"),
        ({"wrist": "yes"}, "augment.wrist is 'yes'; choose from none, colour, all"),
    ):
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(USUAL, **change)


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=2, context=2)], ids=["data", "mixed"])
def test_sharded_rows_and_microbatches_give_what_the_whole_batch_gives(mesh):
    """But for grey values on the edge of two, where another order of sums decides; and no pixel crosses devices."""
    given, augment = batch(24), Augmentation(USUAL, (1,))
    whole = augmented(wrist=(1,), given=given)
    rows = sharding.batch_sharding(sharding.make_mesh(mesh))
    program = jax.jit(augment, in_shardings=(None, rows)).lower(KEY, given).compile()
    found = program(KEY, jax.device_put(given, rows))["video"]
    assert_same_pixels(found, whole)
    assert found.sharding.is_equivalent_to(rows, found.ndim)
    assert not re.search(r"all-(gather|reduce|to-all)|collective", program.as_text())
    parts = [augmented(wrist=(1,), given=part) for part in split_up(microbatches(given, 3))]
    assert_same_pixels(np.concatenate(parts), np.concatenate(list(microbatches({"v": whole}, 3)["v"])))


def assert_same_pixels(found, expected):
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-4


def split_up(parts):
    return [jax.tree.map(lambda x, i=i: np.asarray(x[i]), parts) for i in range(len(parts["video"]))]


def test_the_step_trains_on_the_changed_pixels_and_validation_does_not():
    """By trace alone: the pixels that reach the tokenizer are those that the augmentation returned."""
    config, objective = small_config(), ObjectiveConfig(policy_draws=0)
    given, seen = small_batch(config, 6), []

    def augment(key, part):
        seen.append(part["video"].shape[0])
        return {name: value for name, value in part.items() if name != "video"} | {
            "latents": latents_of(part, tokenizer)
        }

    tokenizer = small_tokenizer(config)

    def step(batch):
        # Without a tokenizer only what the augmentation made of the pixels can be encoded.
        apply, params = split(build(config, (), 0))
        train = make_train_step(apply, objective, OptimizerConfig(), sources=3, accumulate=3, augment=augment)
        start = init_state(params, make_optimizer(OptimizerConfig()), steps=3, seed=0)
        return train(start, batch, Fixed({}, None))

    def evaluate(batch):
        apply, params = split(build(config, (), 0))
        return make_eval_step(apply, objective, seed=0, sources=3)(params, batch, np.ones(6, bool), Fixed({}, None))

    jax.eval_shape(step, given)
    assert set(seen) == {6, 2}
    with pytest.raises(AssertionError, match="needs a tokenizer"):
        jax.eval_shape(evaluate, given)
