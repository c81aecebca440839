"""Features of uint8 images, and what is said of images that do not fit."""

import jax
import numpy as np
import pytest
from flax import nnx

from wam.encoders.config import CLIP_MEAN, ViTConfig
from wam.encoders.images import image_encoder, normalise, resize
from wam.encoders.transformer import structure
from wam.encoders.vit import ViT

SHAPE = {"width": 16, "depth": 2, "heads": 2, "head_dim": 8, "mlp": 32, "patch": 4, "image_size": 12}


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def random_params(config):
    _, shapes = structure(ViT, config)
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(tree, [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


@pytest.mark.parametrize("features", ["final", "penultimate"])
def test_features_of_images(features):
    config = ViTConfig(family="clip", pooling="class", features=features, mean=CLIP_MEAN, **SHAPE)
    params, x = random_params(config), images(2, 3, 20, 16, 3)
    out = image_encoder(config, params)(x)
    assert out.tokens.shape == (2, 3, 10, 16)
    model = nnx.merge(structure(ViT, config)[0], params)
    pixels = normalise(resize(x[1, 2], (12, 12), config), config)[None]
    wanted = model(pixels).tokens if features == "final" else model.hidden(pixels, 1)
    np.testing.assert_allclose(out.tokens[1, 2], wanted[0], atol=1e-4)
    assert (out.pooled is None) == (features == "penultimate")
    wide = image_encoder(config, params, (20, 16))(x)
    assert wide.tokens.shape == (2, 3, 21, 16)


def test_bfloat16_features_are_close_and_come_as_float32():
    sharp = ViTConfig(family="dinov2", pooling="class", **SHAPE)
    rough = ViTConfig(family="dinov2", pooling="class", dtype="bfloat16", **SHAPE)
    params, x = random_params(sharp), images(4, 12, 12, 3)
    a, b = (image_encoder(config, params)(x) for config in (sharp, rough))
    assert b.tokens.dtype == np.float32
    scale = float(np.abs(a.tokens).max())
    assert 0 < float(np.abs(a.tokens - b.tokens).max()) < 0.1 * scale
    with pytest.raises(ValueError, match=r"takes uint8 \[..., h, w, 3\], got float32 \[4, 12, 12, 3\]"):
        image_encoder(sharp, params)(x.astype(np.float32))


def test_features_of_video_and_of_a_still_image():
    config = ViTConfig(family="vjepa2", tubelet=2, class_token=False, positions="rotary", **SHAPE)
    params, x = random_params(config), images(2, 4, 12, 12, 3)
    encode = image_encoder(config, params)
    assert encode(x).tokens.shape == (2, 18, 16) and encode(x).pooled is None
    np.testing.assert_allclose(encode(x[:, :1]).tokens, encode(x[:, [0, 0]]).tokens, atol=1e-5)
    with pytest.raises(ValueError, match=r"uint8 \[..., T, h, w, 3\]"):
        encode(x[0, 0])


def test_bad_input_is_named():
    config = ViTConfig(family="siglip", class_token=False, **SHAPE)
    model = nnx.merge(structure(ViT, config)[0], random_params(config))
    x = np.zeros((1, 12, 12, 3), np.float32)
    with pytest.raises(ValueError, match=r"takes pixels \[B, h, w, 3\], got \[12, 12, 3\]"):
        model(x[0])
    with pytest.raises(ValueError, match="images of 3x12 are smaller than the 4x4 patches"):
        model(x[:, :3])
    with pytest.raises(ValueError, match="this encoder has no mask token"):
        model(x, masked_BL=np.zeros((1, 9), bool))
    with pytest.raises(ValueError, match="the encoder has 2 layers, asked for the tokens after 3"):
        model.hidden(x, 3)
    with pytest.raises(ValueError, match=r"ViTConfig.pooling is 'mean'; choose from none, class, attention"):
        ViTConfig(family="siglip", pooling="mean", **SHAPE)
    with pytest.raises(ValueError, match="'class' needs class_token=True"):
        ViTConfig(family="siglip", class_token=False, pooling="class", **SHAPE)
    with pytest.raises(ValueError, match="'cudnn' computes in bfloat16"):
        ViTConfig(family="siglip", attention="cudnn", **SHAPE)
