"""Wan's video autoencoders against `diffusers`' `AutoencoderKLWan` on the same weights."""

import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from tests.tokenizers.wan_vae_cases import KINDS, SHALLOW, SHAPE
from wam.pretrained import wan_vae as names
from wam.pretrained.mapping import check_complete, flatten, to_ours, to_theirs
from wam.tokenizers.wan_tokenizer import WanTokenizer, network, shapes
from wam.tokenizers.wan_vae_config import WAN_VAES, WanVAEConfig

TOLERANCE = 1e-4
COUNTS = {"wan2.1": 126_892_531, "wan2.2": 704_688_668}
GRIDS = {1: (2, 1), 9: (1, 2)}
"""Frames -> grid of tokens: images that are not square."""


def reference(kind, **shape):
    """A tiny one; biases and norms are drawn too, since their initial values would hide errors."""
    torch.manual_seed(0)
    model = AutoencoderKLWan(**names.diffusers_config(WanVAEConfig(**{**KINDS[kind], **shape}))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tensors_of(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def imported(model, grid=(1, 1), **run):
    config = names.config_from_diffusers(model.config, **run)
    return WanTokenizer(config, grid, jax.device_put(to_ours(names.entries(config), tensors_of(model))))


def to_torch(x):
    return torch.tensor(np.array(x)).permute(0, 4, 1, 2, 3).contiguous()


def to_numpy(x):
    return x.detach().permute(0, 2, 3, 4, 1).numpy()


def normalised(model, mode):
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (model.config.latents_mean, model.config.latents_std))
    return (mode - mean) / std


def error(ours, theirs, what):
    assert ours.shape == theirs.shape
    worst = float(np.abs(np.asarray(ours) - theirs).max())
    print(f"parity: {what}: {worst:.1e}")
    assert worst <= TOLERANCE
    return worst


def video(tokenizer, frames, batch=2):
    return np.random.default_rng(1).uniform(-1, 1, (batch, frames, *tokenizer.image_size, 3)).astype(np.float32)


@jax.jit
def encode(tokenizer, x):
    return tokenizer.encode_pixels(x)


@jax.jit
def decode(tokenizer, z):
    return tokenizer.decode_cells(z)


@pytest.mark.parametrize("frames", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_encode_and_decode(kind, frames):
    model = reference(kind)
    tokenizer = imported(model, GRIDS[frames])
    x = video(tokenizer, frames)
    with torch.no_grad():
        mode = model.encode(to_torch(x)).latent_dist.mode()
        decoded = model.decode(mode).sample
    latents = encode(tokenizer, x)
    error(latents, to_numpy(normalised(model, mode)), f"{kind}, {frames} frames, encode")
    # Their pixels are clipped; ours are compared the same way, and most of them lie inside.
    assert (decoded.abs() < 1).float().mean() > 0.5
    pixels = np.clip(decode(tokenizer, latents), -1, 1)
    error(pixels, to_numpy(decoded), f"{kind}, {frames} frames, decode")


def test_gradients_with_respect_to_inputs_and_weights():
    kind = "wan2.2"  # has all that the other has
    model = reference(kind, **SHALLOW)
    tokenizer = imported(model, (1, 1))
    x = video(tokenizer, 5, batch=1)
    rng = np.random.default_rng(2)

    pixels = to_torch(x).requires_grad_()
    moments = model.encode(pixels).latent_dist.parameters
    latents, caches = model.post_quant_conv(moments[:, :4]), [None] * 100
    decoded = torch.cat(  # their `decode` clips, and so hides gradients
        [
            model.decoder(latents[:, :, i : i + 1], feat_cache=caches, feat_idx=[0], first_chunk=i == 0)
            for i in range(latents.shape[2])
        ],
        dim=2,
    )
    decoded = unpatchify(decoded, tokenizer.config.pixel_patch)
    scale = decoded.numel() ** -0.5
    weigh = [(scale * rng.standard_normal(to_numpy(y).shape)).astype(np.float32) for y in (moments, decoded)]
    sum((y * to_torch(w)).sum() for y, w in zip((moments, decoded), weigh, strict=True)).backward()

    config = tokenizer.config

    @jax.jit
    def ours(params, x):
        def loss(params, x):
            model = network(config, params)
            moments, _ = model.moments(x)
            decoded, _ = model.decode((moments[..., :4] - np.float32(config.mean)) / np.float32(config.std))
            return (moments * weigh[0]).sum() + (decoded * weigh[1]).sum()

        return jax.grad(loss, (0, 1))(params, x)

    g_params, g_x = ours(tokenizer.params, x)
    assert float(pixels.grad.abs().max()) > 1e-2
    error(g_x, to_numpy(pixels.grad), f"{kind}, gradient by pixels")
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    found = to_theirs(names.entries(config), jax.device_get(g_params))
    assert found.keys() == theirs.keys()
    assert min(np.abs(g).max() for g in theirs.values()) > 1e-3
    worst = max(np.abs(found[name] - theirs[name]).max() for name in theirs)
    print(f"parity: {kind}, gradients by {len(theirs)} weights: {worst:.1e}")
    assert worst <= TOLERANCE


@pytest.mark.parametrize("overlap", [0, 1])
def test_tiles_without_overlap_and_the_blend_between_two(overlap):
    """`diffusers` adds slivers at the far edges; up to there, and where no four tiles meet, both define the same."""
    model = reference("wan2.1", **SHALLOW)
    tile, count = 2, 2
    stride = tile - overlap
    tokenizer = imported(model, (2, 2), tile=tile, tile_overlap=overlap)
    size = tile + (count - 1) * stride
    cell = tokenizer.config.cell
    x = np.random.default_rng(3).uniform(-1, 1, (1, 5, size * cell, size * cell, 3)).astype(np.float32)
    model.enable_tiling(tile * cell, tile * cell, stride * cell, stride * cell)
    with torch.no_grad():
        mode = model.encode(to_torch(x)).latent_dist.mode()
        decoded = model.decode(mode).sample
        model.disable_tiling()
        whole = model.encode(to_torch(x)).latent_dist.mode()
    assert (whole - mode).abs().max() > 1e-3  # tiles matter
    latents, theirs = encode(tokenizer, x), to_numpy(normalised(model, mode))
    pixels, seen = np.clip(decode(tokenizer, theirs), -1, 1), to_numpy(decoded)
    same = count * stride
    for pair, unit in (((latents, theirs), 1), ((pixels, seen), cell)):
        first, second = (np.array(array[:, :, : same * unit, : same * unit]) for array in pair)
        if overlap:
            corner = slice(stride * unit, tile * unit)
            first[:, :, corner, corner] = second[:, :, corner, corner] = 0
        error(first, second, f"tiles, overlap {overlap}, {'encode' if unit == 1 else 'decode'}")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_travel_there_and_back(kind):
    model = reference(kind)
    tensors, tokenizer = tensors_of(model), imported(model)
    entries = names.entries(tokenizer.config)
    check_complete(entries, tensors, flatten(shapes(tokenizer.config)))
    back = to_theirs(entries, jax.device_get(tokenizer.params))
    again = AutoencoderKLWan(**names.diffusers_config(tokenizer.config)).eval()
    again.load_state_dict({name: torch.tensor(array) for name, array in back.items()})
    for name, tensor in again.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), tensors[name])


@pytest.mark.parametrize("kind", KINDS)
def test_full_size_by_shape(kind):
    config = WanVAEConfig(**WAN_VAES[kind])
    with torch.device("meta"):
        model = AutoencoderKLWan(**names.diffusers_config(config))
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ours = flatten(shapes(config))
    entries = names.entries(config)
    check_complete(entries, theirs, ours)
    for entry in entries:
        blank = np.broadcast_to(np.float32(0), theirs[entry.theirs])  # no memory behind it
        assert entry.layout.ours(blank).shape == ours[entry.ours].shape, entry
    count = sum(int(np.prod(shape)) for shape in theirs.values())
    print(f"parity: {kind}: {len(theirs)} tensors, {count:,} parameters")
    assert count == sum(leaf.size for leaf in ours.values()) == COUNTS[kind]


def test_the_released_defaults_are_those_of_diffusers():
    assert names.config_from_diffusers(AutoencoderKLWan(base_dim=8).config).mean == WAN_VAES["wan2.1"]["mean"]
    assert names.config_from_diffusers(AutoencoderKLWan(base_dim=8).config).std == WAN_VAES["wan2.1"]["std"]


def test_the_authors_names_of_wan_2_1():
    """Against the converter in `diffusers`, which knows the released depth alone."""
    config = WanVAEConfig(**{**KINDS["wan2.1"], "blocks": 2})
    diffusers, original = names.entries(config), names.entries(config, original=True)
    assert [entry.ours for entry in diffusers] == [entry.ours for entry in original]
    converted = convert_wan_vae_to_diffusers({entry.theirs: entry.ours for entry in original})
    assert converted == {entry.theirs: entry.ours for entry in diffusers}


def test_the_authors_names_of_wan_2_2():
    entries = names.entries(WanVAEConfig(**WAN_VAES["wan2.2"]), original=True)
    theirs = {entry.ours: entry.theirs for entry in entries}
    assert len({entry.theirs for entry in entries}) == len(entries)
    for ours, original in {
        "encoder.stages.0.blocks.0.norm1.scale": "encoder.downsamples.0.downsamples.0.residual.0.gamma",
        "encoder.stages.0.blocks.1.conv2.kernel": "encoder.downsamples.0.downsamples.1.residual.6.weight",
        "encoder.stages.1.blocks.0.shortcut.kernel": "encoder.downsamples.1.downsamples.0.shortcut.weight",
        "encoder.stages.0.resample.space.kernel": "encoder.downsamples.0.downsamples.2.resample.1.weight",
        "encoder.stages.1.resample.time.kernel": "encoder.downsamples.1.downsamples.2.time_conv.weight",
        "decoder.stages.0.blocks.2.norm2.scale": "decoder.upsamples.0.upsamples.2.residual.3.gamma",
        "decoder.stages.0.resample.time.kernel": "decoder.upsamples.0.upsamples.3.time_conv.weight",
        "decoder.stages.3.blocks.0.shortcut.bias": "decoder.upsamples.3.upsamples.0.shortcut.bias",
        "decoder.middle.attention.qkv.kernel": "decoder.middle.1.to_qkv.weight",
        "encoder.conv_out.bias": "encoder.head.2.bias",
        "moments_out.kernel": "conv1.weight",
        "latents_in.bias": "conv2.bias",
    }.items():
        assert theirs[ours] == original


def test_a_config_file_that_asks_for_more_is_refused():
    about = names.diffusers_config(WanVAEConfig(**SHAPE))
    assert names.config_from_diffusers(about) == WanVAEConfig(**SHAPE)
    with pytest.raises(ValueError, match="it lacks 'z_dim', so it is not that of an AutoencoderKLWan"):
        names.config_from_diffusers({name: value for name, value in about.items() if name != "z_dim"})
    for name, value in (("attn_scales", [0.5]), ("in_channels", 4), ("scale_factor_spatial", 16)):
        with pytest.raises(ValueError, match=f"config.json: {name} is"):
            names.config_from_diffusers({**about, name: value})
