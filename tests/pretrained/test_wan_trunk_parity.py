"""The video expert against `diffusers.WanTransformer3DModel`: forward, gradients, names, full-size shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.pretrained.wan_reference import CASES, arrays, gradients, ours, reference
from wam.pretrained import wan_trunk
from wam.pretrained.mapping import check_complete, flatten, to_theirs
from wam.pretrained.wan_forward import patches, unpatched, wan_forward

TOLERANCE = 1e-4
TEXT = 512
"""Text tokens of an image-to-video trunk: the reference cuts the image's tokens off in front of so many."""


def report(what: str, error: float) -> None:
    print(f"parity {what}: max abs error {error:.1e}")
    assert error <= TOLERANCE


def largest(a, b) -> float:
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in zip(a, b, strict=True))


def inputs(config, seed=0, batch=2):
    """Random inputs with a grid that is not square, and one timestep a sample."""
    rng = np.random.default_rng(seed)
    f, p, q = config.patch_size
    frames, rows, columns = 3, 3, 5
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    video = normal(batch, frames * f, rows * p, columns * q, config.in_channels)
    text = normal(batch, TEXT if config.image_dim else 7, config.text_dim)
    image = normal(batch, 5, config.image_dim) if config.image_dim else None
    time = rng.uniform(0, 1000, batch).astype(np.float32)
    return video, text, image, time, (rows, columns)


def call_ours(model, config, video, sigma, text, mask, image, grid):
    """Ours on the reference's inputs [B, F, h, w, channels], with its output's layout."""
    noisy, guide = np.split(video, [config.out_channels], axis=-1)
    cut = functools.partial(patches, patch=config.patch_size)
    out = wan_forward(model, cut(noisy), sigma, text, mask, grid, image_BLd=image,
                      guide_BFPC=cut(guide) if guide.size else None)  # fmt: skip
    return unpatched(out, config.patch_size, grid)


def call_theirs(model, video, time, text, image):
    given = torch.from_numpy(np.ascontiguousarray(np.moveaxis(video, -1, 1)))
    image = None if image is None else torch.from_numpy(image)
    out = model(given, torch.from_numpy(time), torch.from_numpy(text), image, return_dict=False)[0]
    return torch.movedim(out, 1, -1)


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients_equal_the_reference(name):
    config = CASES[name]
    model = reference(config)
    video, text, image, time, grid = inputs(config)
    if name == "ti2v":  # the first frame is given: its tokens have timestep 0
        time = np.repeat(time[:, None], video.shape[1] * grid[0] * grid[1], axis=1)
        time[:, : grid[0] * grid[1]] = 0
    out = call_theirs(model, video, time, text, image)
    cotangent = np.random.default_rng(1).normal(size=out.shape).astype(np.float32) / np.sqrt(out.numel())
    (out * torch.from_numpy(cotangent)).sum().backward()
    apply, params = ours(config, model)
    mask = np.ones(text.shape[:2], bool)
    sigma = time / 1000 if time.ndim == 1 else (time / 1000).reshape(len(time), -1, grid[0] * grid[1])

    @jax.jit
    def forward(params):
        got = call_ours(apply.model(params), config, video, sigma, text, mask, image, grid)
        return jnp.sum(got * cotangent), got

    (_, got), grads = jax.value_and_grad(forward, has_aux=True)(params)
    report(f"wan {name} forward", largest([got], [out.detach().numpy()]))
    wanted = gradients(model)
    mapped = to_theirs(wan_trunk.entries(config), grads)
    assert mapped.keys() == wanted.keys()
    assert all(np.abs(x).max() > 0 for x in wanted.values())
    report(f"wan {name} gradients of {len(wanted)} tensors", largest(map(mapped.get, wanted), wanted.values()))
    back = to_theirs(wan_trunk.entries(config), params)
    assert all(np.array_equal(x, back[tensor]) for tensor, x in arrays(model).items())


def test_masked_text_is_text_that_is_not_there():
    """Our padding mask against the reference on each sample's own length, which has none; and zeros seen by both."""
    config = CASES["t2v"]
    model = reference(config)
    video, text, _, time, grid = inputs(config)
    lengths = [7, 4]
    mask = np.arange(7) < np.array(lengths)[:, None]
    text = text * mask[..., None]
    apply, params = ours(config, model)
    call = jax.jit(lambda mask: call_ours(apply.model(params), config, video, time / 1000, text, mask, None, grid))
    with torch.no_grad():
        short = [call_theirs(model, video[i : i + 1], time[i : i + 1], text[i : i + 1, :n], None).numpy()
                 for i, n in enumerate(lengths)]  # fmt: skip
        padded = call_theirs(model, video, time, text, None).numpy()
    report("wan masked text", largest([call(mask)], [np.concatenate(short)]))
    report("wan text padded with zeros", largest([call(np.ones_like(mask))], [padded]))
    assert np.abs(padded - np.concatenate(short)).max() > 1e-3, "the two ways of padding differ"


def test_both_namings_of_the_release_are_the_converters():
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    for config in CASES.values():
        original = {entry.theirs: i for i, entry in enumerate(wan_trunk.entries(config, "original"))}
        ours_now = {entry.theirs: i for i, entry in enumerate(wan_trunk.entries(config))}
        assert convert_wan_transformer_to_diffusers(dict(original)) == ours_now
        assert wan_trunk.naming_of(original) == "original"
        assert wan_trunk.naming_of(ours_now) == "diffusers"


COUNTS = {"wan2.1-1.3b": 1_418_996_800, "wan2.1-14b": 14_288_491_584, "wan2.1-14b-i2v": 16_394_878_784,
          "wan2.2-5b": 4_999_787_712}  # fmt: skip


@pytest.mark.parametrize("name", wan_trunk.RELEASED)
def test_full_sizes_have_the_names_shapes_and_counts_of_the_reference(name):
    from diffusers import WanTransformer3DModel

    from wam.models.joint_dit import create
    from wam.pretrained.loading import foreign_shape
    from wam.training.state import split

    config = wan_trunk.RELEASED[name]
    assert wan_trunk.parse(wan_trunk.to_json(config)) == config
    with torch.device("meta"):
        model = WanTransformer3DModel.from_config(wan_trunk.to_json(config))
    theirs = {tensor: tuple(x.shape) for tensor, x in model.state_dict().items()}
    shapes = jax.eval_shape(lambda: split(create(wan_trunk.model_config(config)))[1])
    own = {path: x.shape for path, x in flatten(shapes).items() if path.startswith(wan_trunk.OURS)}
    entries = wan_trunk.entries(config)
    check_complete(entries, theirs, own)
    assert {entry.theirs: foreign_shape(entry, own) for entry in entries} == theirs
    count = sum(int(np.prod(shape)) for shape in own.values())
    print(f"parity {name}: {len(theirs)} tensors, {count:,} parameters")
    assert count == sum(x.numel() for x in model.parameters()) == COUNTS[name]
