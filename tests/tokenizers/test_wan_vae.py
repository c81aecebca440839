"""Wan's video autoencoders: chunks, tiles, convolution backends, sharding, and as a run's tokenizer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.tokenizers.wan_vae_cases import KINDS, clip, config_of, random_params, tokenizer_of
from wam.config import MeshConfig
from wam.tokenizers import causal_conv
from wam.tokenizers.causal_conv import frame_conv
from wam.tokenizers.tiling import starts, tiled, weights
from wam.tokenizers.video import from_state
from wam.tokenizers.wan_tokenizer import WanTokenizer, network
from wam.training.sharding import batch_sharding, make_mesh


@jax.jit
def encode(tokenizer, x):
    return tokenizer.encode_pixels(x)


@jax.jit
def decode(tokenizer, z):
    return tokenizer.decode_cells(z)


@functools.partial(jax.jit, static_argnums=0)
def encode_chunk(config, params, x, cache):
    return network(config, params).encode(x, cache)


@functools.partial(jax.jit, static_argnums=0)
def decode_chunk(config, params, z, cache):
    return network(config, params).decode(z, cache)


def close(a, b, atol=2e-5):
    assert a.shape == b.shape
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol)


def test_chunks_of_any_length_give_the_whole_clip():
    """The cache is handed over from call to call; the first call holds the first frame and any number of groups."""
    tokenizer = tokenizer_of("wan2.1", grid=(1, 1))
    config, params, x = tokenizer.config, tokenizer.params, clip(tokenizer, 7)
    whole = encode(tokenizer, x)
    pixels = decode(tokenizer, whole)
    assert whole.shape[1] == 4 and pixels.shape[1] == 7
    latents, frames, seen, shown = [], [], None, None
    for start, stop in ((0, 2), (2, 3), (3, 4)):
        at, to = (1 + 2 * (i - 1) if i else 0 for i in (start, stop))
        part, seen = encode_chunk(config, params, x[:, at:to], seen)
        latents.append(part)
        part, shown = decode_chunk(config, params, whole[:, start:stop], shown)
        frames.append(part)
    close(jnp.concatenate(latents, 1), whole)
    close(jnp.concatenate(frames, 1), pixels)


def test_the_history_matters():
    tokenizer = tokenizer_of("wan2.1", grid=(1, 1))
    x = clip(tokenizer, 7)
    fresh = encode(tokenizer, x[:, 2:])
    assert float(jnp.abs(encode(tokenizer, x)[:, 2:] - fresh[:, 1:]).max()) > 1e-2


def test_a_clip_computed_some_latent_frames_at_a_time():
    """The first alone, then two chunks of two in a loop, then the one that is left."""
    whole = tokenizer_of("wan2.2", grid=(1, 1))
    chunked = dataclasses.replace(whole, config=dataclasses.replace(whole.config, chunk=2))
    x = clip(whole, 11)
    latents = encode(whole, x)
    assert latents.shape[1] == 6
    close(encode(chunked, x), latents)
    close(decode(chunked, latents), decode(whole, latents))


def test_later_frames_do_not_change_earlier_latents():
    tokenizer = tokenizer_of("wan2.1", grid=(1, 1))
    x = clip(tokenizer, 7)
    changed = x.copy()
    changed[:, 5:] *= -1
    one, other = encode(tokenizer, x), encode(tokenizer, changed)
    np.testing.assert_array_equal(one[:, :3], other[:, :3])
    assert np.abs(one[:, 3] - other[:, 3]).max() > 1e-2


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("shape", [(1, 5, 6, 4, 3, 8), (2, 1, 3, 5, 4, 4), (1, 2, 4, 4, 5, 3)])
@pytest.mark.parametrize("space", [1, 3])
def test_the_convolution_backends_agree(space, shape, start):
    B, T, h, w, c_in, c_out = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, T, h, w, c_in)).astype(np.float32)
    kernel = rng.standard_normal((3, space, space, c_in, c_out)).astype(np.float32)
    before = None if start else rng.standard_normal((B, 2, h, w, c_in)).astype(np.float32)

    # The definition: a sum over the taps of 2-D convolutions of the padded clip.
    frames = np.concatenate([np.zeros((B, 2, h, w, c_in), np.float32) if start else before, x], 1)
    around = (space // 2, space // 2)
    expected = sum(frame_conv(jnp.asarray(frames[:, k : k + T]), kernel[k], padding=around) for k in range(3))
    gradients = []
    for backend in causal_conv.BACKENDS:
        conv = functools.partial(causal_conv.causal_conv, before=before, backend=backend)
        close(conv(x, kernel), expected)
        gradients.append(jax.grad(lambda x, k, conv=conv: (conv(x, k) ** 2).sum(), (0, 1))(x, kernel))
    for a, b in zip(*gradients, strict=True):
        close(a, b, atol=1e-2)  # of about 1000
    with pytest.raises(ValueError, match="unknown convolution 'fft'; choose from taps, conv3d"):
        causal_conv.causal_conv(x, kernel, before, backend="fft")


def test_the_backends_agree_in_the_whole_network():
    taps = tokenizer_of("wan2.1", grid=(1, 1))
    conv3d = dataclasses.replace(taps, config=dataclasses.replace(taps.config, convolution="conv3d"))
    x = clip(taps, 3)
    latents = encode(taps, x)
    close(encode(conv3d, x), latents)
    close(decode(conv3d, latents), decode(taps, latents))


def test_bfloat16_is_close_and_its_latents_are_float32():
    exact = tokenizer_of("wan2.2", grid=(1, 1))
    half = dataclasses.replace(exact, config=dataclasses.replace(exact.config, dtype="bfloat16"))
    x = clip(exact, 3)
    ours, theirs = encode(half, x), encode(exact, x)
    assert ours.dtype == jnp.float32
    difference = float(jnp.sqrt(jnp.mean((ours - theirs) ** 2) / jnp.mean(theirs**2)))
    assert 1e-4 < difference < 0.05


# ------------------------------------------------------------------ tiles


def test_a_frame_of_one_tile_takes_the_plain_path():
    plain = tokenizer_of("wan2.1", grid=(1, 2))
    x = clip(plain, 3)
    one = dataclasses.replace(plain, config=dataclasses.replace(plain.config, tile=4, tile_overlap=1))
    np.testing.assert_array_equal(encode(one, x), encode(plain, x))


def test_tiles_are_close_to_the_whole_where_they_see_enough():
    """Tiles differ from the whole by what they do not see; with a wide overlap less than with a narrow one."""
    plain = tokenizer_of("wan2.2", grid=(3, 3))
    x = clip(plain, 1)
    whole = encode(plain, x)
    errors = []
    for overlap in (1, 3):
        config = dataclasses.replace(plain.config, tile=4, tile_overlap=overlap)
        blended = encode(dataclasses.replace(plain, config=config), x)
        assert blended.shape == whole.shape
        errors.append(float(jnp.mean((blended - whole) ** 2) / jnp.mean(whole**2)))
    assert 0 < errors[1] < errors[0] < 0.5


@pytest.mark.parametrize(("size", "tile", "overlap"), [(15, 8, 2), (9, 8, 2), (40, 8, 3), (8, 8, 1), (64, 16, 8)])
def test_weights_of_tiles_add_up_to_one_without_a_jump(size, tile, overlap):
    first = starts(size, tile, overlap)
    assert first[0] == 0 and first[-1] + tile == size
    assert (first[:-1] + tile - first[1:] >= overlap).all()
    shares = np.zeros((len(first), size))
    for i, ramp in enumerate(weights(first, tile)):
        shares[i, first[i] : first[i] + tile] = ramp
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-6)
    assert np.abs(np.diff(shares, axis=1)).max() <= 1 / overlap + 1e-6  # no seam: weights fade over the overlap


def test_a_pointwise_function_is_unchanged_by_tiles():
    x = np.random.default_rng(0).standard_normal((2, 1, 11, 7, 3)).astype(np.float32)

    def double(part):
        return jnp.repeat(jnp.repeat(part, 2, 2), 2, 3) ** 2

    assert len(starts(11, 4, 1)) == 4
    close(tiled(double, x, tile=4, overlap=1, scale_out=2), double(jnp.asarray(x)), atol=1e-5)
    with pytest.raises(ValueError, match="overlap of tiles must be at least 0 and less than their size 4, got 4"):
        tiled(double, x, tile=4, overlap=4)


# ------------------------------------------------------------------ as the tokenizer of a run


def uint8(tokenizer, batch, views, frames):
    shape = (batch, views, frames, *tokenizer.image_size, 3)
    return np.random.default_rng(4).integers(0, 256, shape, np.uint8)


CAMERA = np.zeros((1, 1), np.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_the_face_of_a_tokenizer(kind):
    tokenizer = tokenizer_of(kind, grid=(2, 1))
    side = tokenizer.config.cell * 2
    assert tokenizer.image_size == (2 * side, side)
    assert [tokenizer.latent_frames(T) for T in (1, 3, 5)] == [1, 2, 3]
    video = uint8(tokenizer, 1, 2, 3)
    camera = np.zeros((1, 2), np.int32)
    latents = jax.jit(lambda t, v: t.encode(v, camera))(tokenizer, video)
    assert latents.shape == (1, 2, 2, 2, 16) and latents.dtype == jnp.float32
    assert tokenizer.gain.shape == (2, 16)

    @functools.partial(jax.jit, static_argnums=2)
    def show(t, latents, known):
        history = latents[:, :, :known] if known else None
        return t.decode(latents[:, :, known:], camera, history=history)

    pixels = show(tokenizer, latents, 0)
    assert pixels.shape == video.shape and float(pixels.min()) >= 0 and float(pixels.max()) <= 1
    close(show(tokenizer, latents, 1), pixels[:, :, 1:])


def test_the_order_inside_a_token_is_row_column_channel():
    tokenizer = tokenizer_of("wan2.1", grid=(2, 3))
    cells = np.random.default_rng(0).standard_normal((1, 2, 4, 6, 4)).astype(np.float32)
    tokens = np.asarray(tokenizer.tokens(cells))
    assert tokens.shape == (1, 2, 6, 16)
    y, x, p, q, c = 1, 2, 0, 1, 3
    assert tokens[0, 1, y * 3 + x, (2 * p + q) * 4 + c] == cells[0, 1, 2 * y + p, 2 * x + q, c]
    np.testing.assert_array_equal(tokenizer.cells(tokens), cells)
    # As the module's docstring tells those who map a trunk's patch embedding.
    kernel = np.random.default_rng(1).standard_normal((5, 4, 1, 2, 2)).astype(np.float32)
    linear = kernel[:, :, 0].transpose(2, 3, 1, 0).reshape(16, 5)
    patch = cells[0, 1, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
    close(tokens[0, 1, y * 3 + x] @ linear, np.einsum("pqc,ocpq->o", patch, kernel[:, :, 0]))


def test_weights_are_arguments_of_the_compiled_program():
    tokenizer = tokenizer_of("wan2.1", grid=(1, 1))
    video = uint8(tokenizer, 1, 1, 1)
    program = jax.make_jaxpr(lambda t, v: t.encode(v, CAMERA))(tokenizer, video)
    assert sum(np.size(constant) for constant in program.consts) < 100
    assert len(jax.tree.leaves(tokenizer)) == len(jax.tree.leaves(tokenizer.params))


def test_a_batch_over_eight_devices_equals_one_device():
    tokenizer = tokenizer_of("wan2.1", grid=(1, 1))
    video = uint8(tokenizer, 8, 1, 3)
    camera = np.zeros((8, 1), np.int32)
    run = jax.jit(lambda t, v: t.encode(v, camera))
    one = run(tokenizer, video)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    with jax.set_mesh(mesh):
        replicated = jax.device_put(tokenizer, jax.sharding.NamedSharding(mesh, PartitionSpec()))
        many = run(replicated, jax.device_put(video, batch_sharding(mesh)))
    assert len(many.sharding.device_set) == 8
    assert many.addressable_shards[0].data.shape[0] == 1  # computed where the rows live
    close(many, one)


def test_saved_and_read_back():
    tokenizer = tokenizer_of("wan2.2", grid=(1, 2))
    about, arrays = tokenizer.to_state()
    again = from_state(about, arrays)
    assert isinstance(again, WanTokenizer)
    assert (again.config, again.grid) == (tokenizer.config, tokenizer.grid)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(tokenizer), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_input_is_named():
    tokenizer = tokenizer_of("wan2.1", grid=(1, 1))
    with pytest.raises(ValueError, match="T = 1 \\+ 2 n frames, got 4"):
        tokenizer.encode(uint8(tokenizer, 1, 1, 4), CAMERA)
    with pytest.raises(ValueError, match="takes 8x8 images, got 8x4"):
        tokenizer.encode(uint8(tokenizer, 1, 1, 1)[:, :, :, :, :4], CAMERA)
    model, x = network(tokenizer.config, tokenizer.params), clip(tokenizer, 4)
    with pytest.raises(ValueError, match="starts with 1 \\+ 2 n frames and goes on by 2 n frames at a time, got 4"):
        model.encode(x)
    with pytest.raises(ValueError, match="goes on by 2 n frames at a time, got 3"):
        model.encode(x[:, 1:], ())
    about, arrays = tokenizer.to_state()
    name = "decoder.conv_in.bias"
    with pytest.raises(ValueError, match=f"array '{name}' has the shape None, expected \\(16,\\)"):
        from_state(about, {key: value for key, value in arrays.items() if key != name})
    with pytest.raises(ValueError, match=f"array '{name}' has the shape \\(3,\\), expected \\(16,\\)"):
        from_state(about, {**arrays, name: np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="array 'extra' has the shape \\(3,\\), expected None"):
        from_state(about, {**arrays, "extra": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="unknown video tokenizer 'jpeg'; known: patch_pca, wan_vae"):
        from_state({"kind": "jpeg"}, {})
    for field, value, said in (
        ("convolution", "fft", "choose from taps, conv3d"),
        ("dtype", "float16", "choose from float32, bfloat16"),
        ("mean", (0.0,), "mean has 1 entries for 4 latent channels"),
        ("halve_time", (True,), "4 stages need 3"),
    ):
        with pytest.raises(ValueError, match=said):
            config_of("wan2.1", **{field: value})


def test_random_weights_hide_nothing():
    assert all((leaf != 0).all() for leaf in jax.tree.leaves(random_params(config_of("wan2.2"))))
