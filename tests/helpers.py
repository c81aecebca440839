"""Small models and batches that many tests share."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from wam.batch import Batch, fake_batch
from wam.config import NAMED_SIZES, ModelConfig, TokenizerConfig
from wam.models.joint_dit import JointDiT, create
from wam.tokenizers import patch_pca
from wam.tokenizers.patch_pca import PatchPCA

SMALL: dict[str, Any] = {**NAMED_SIZES["debug"], "time_width": 32, "lead_width": 16, "lead_fourier": 4,
                         "inverse_width": 16, "inverse_channels": 4, "grid": (2, 2), "latent_channels": 8,
                         "cameras": 3, "action_horizon": 8, "steps_per_token": 2, "text_dim": 8}  # fmt: skip
IMAGE = 16
"""Image size that goes with `SMALL`: a grid of 2 x 2 patches of 8 pixels."""


def small_config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{**SMALL, **changes})


def small_batch(config: ModelConfig, batch_size: int = 6, seed: int = 0) -> Batch:
    spec = config.batch_spec(IMAGE, IMAGE, text_tokens=3)
    return fake_batch(spec, batch_size, embodiments=config.embodiments, cameras=config.cameras, seed=seed)


def small_tokenizer(config: ModelConfig) -> PatchPCA:
    r = config.frames_per_latent
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (12, 1 + r, IMAGE, IMAGE, 3), dtype=np.uint8)
    chosen = TokenizerConfig(patch=8, frames_per_latent=r, channels=config.latent_channels)
    return patch_pca.fit(chosen, clips, np.arange(12) % config.cameras, config.cameras)


def random_model(config: ModelConfig, seed: int = 0) -> JointDiT:
    """A model none of whose parameters is zero, so that every path carries signal."""
    from flax import nnx

    model = create(config, seed)
    _, params, _ = nnx.split(model, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    nnx.update(model, jax.tree.unflatten(tree, noisy))
    model.embodiments.lead[...] = 0.1 * jax.random.normal(jax.random.key(7), model.embodiments.lead.shape)
    return model
