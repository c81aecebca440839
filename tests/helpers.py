"""Small models and batches that many tests share."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from wam.batch import Batch, fake_batch
from wam.checkpoint import Inference
from wam.config import NAMED_SIZES, ModelConfig, ObjectiveConfig, TextConfig, TokenizerConfig, to_dict
from wam.embodiment import NONE_EMBODIMENT, EmbodimentSpec, Normalizer
from wam.models.joint_dit import JointDiT, create
from wam.policy import Policy
from wam.tokenizers import patch_pca
from wam.tokenizers.patch_pca import PatchPCA
from wam.training.state import split

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


ROBOT = EmbodimentSpec(
    name="test_robot", state_names=("x", "y", "z", "grip"), action_names=("dx", "dy", "dz", "grip"),
    action_kinds=("delta", "delta", "delta", "absolute"), control_hz=20.0,
)  # fmt: skip


def small_policy(config: ModelConfig, *, seed: int = 0, ahead: int = 4, **objective: Any) -> Policy:
    """A policy of `random_model` for `ROBOT`, whose chunk lasts as long as its actions; all modes count as trained."""
    apply, params = split(random_model(config, seed))
    about, arrays = small_tokenizer(config).to_state()
    n, hz = config.frames_per_chunk * config.frames_per_latent, ROBOT.control_hz
    span = config.action_horizon / hz / n
    times = [round(span * i, 6) for i in range(config.video_frames)]
    normal = Normalizer(np.full(4, -2.0), np.full(4, 2.0)).to_json()
    modes = dict.fromkeys(("joint", "async", "policy", "forward", "inverse", "video"), 1.0)
    cameras = [f"camera{i}" for i in range(config.cameras)]
    robot = {"spec": ROBOT.to_json(), "state": normal, "action": normal, "frame_seconds": times, "action_hz": hz,
             "views": cameras[: config.views]}  # fmt: skip
    assets = {
        "config": {"objective": to_dict(ObjectiveConfig(modes=modes, **objective))},
        "model": to_dict(config),
        "tokenizer": about,
        "text": to_dict(TextConfig(tokens=3, dim=config.text_dim)),
        "cameras": cameras,
        "embodiments": [{"spec": NONE_EMBODIMENT.to_json()}, robot],
    }
    return Policy(Inference(0, params, apply.constants, arrays, assets), unroll=False, ahead=ahead)


def small_observation(policy: Policy, seed: int = 0, frames: int = 0) -> dict[str, Any]:
    """Random images and state; with `frames` that many images of every camera, as in the course of a session."""
    rng = np.random.default_rng(seed)
    shape = (*([frames] if frames else []), *policy.tokenizer.image_size, 3)
    return {
        "images": {camera: rng.integers(0, 256, shape, dtype=np.uint8) for camera in policy.cameras},
        "state": rng.uniform(-1, 1, 4).astype(np.float32),
        "instruction": "push the block",
        "embodiment": ROBOT.name,
        "time": 0.0,
    }
