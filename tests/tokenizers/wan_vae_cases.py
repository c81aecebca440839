"""Tiny autoencoders of both kinds, with random weights, for the tests."""

import jax
import numpy as np

from wam.tokenizers import wan_vae_config
from wam.tokenizers.wan_tokenizer import WanTokenizer, shapes

SHAPE = {"channels": 4, "blocks": 1, "mean": (0.1, -0.2, 0.3, 0.0), "std": (1.0, 2.0, 0.5, 1.5)}
KINDS = {
    "wan2.1": {**SHAPE, "encoder_width": 8, "decoder_width": 8},
    "wan2.2": {**SHAPE, "encoder_width": 6, "decoder_width": 8, "residual": True, "pixel_patch": 2},
}
"""As many stages as the released ones: 4 frames a latent."""
SHALLOW = {"multipliers": (1, 2, 2), "halve_time": (False, True)}
"""Compiles faster: 2 frames a latent."""


def config_of(kind, **run):
    return wan_vae_config.WanVAEConfig(**{**KINDS[kind], **run})


def random_params(config, seed=0):
    """No parameter is zero or one."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan = max(1, int(np.prod(leaf.shape[:-1])))
        bias = leaf.ndim == 1
        return (rng.standard_normal(leaf.shape) * (0.2 if bias else 1 / np.sqrt(fan)) + bias).astype(np.float32)

    return jax.tree.map(draw, shapes(config))


def tokenizer_of(kind, grid=(2, 1), **run):
    config = config_of(kind, **SHALLOW, **run)
    return WanTokenizer(config, grid, random_params(config))


def clip(tokenizer, frames, batch=1, seed=0):
    """[B, T, h, w, 3] float32 in [-1, 1]."""
    shape = (batch, frames, *tokenizer.image_size, 3)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
