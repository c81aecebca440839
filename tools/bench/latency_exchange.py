"""Writes what both sides of a case start from: weights, constants, a fitted tokenizer, one observation, and the noise.

    python -m tools.bench.latency_exchange SPEC.json      # started by the bench

One .npz whose names begin with params/, constants/, tokenizer/, batch/ or noise/.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.exchange import flatten, weights
from wam.batch import Batch, fake_batch
from wam.config import ModelConfig, build

UNREAD = ("imitate", "value", "value_mask", "source", "sample_id")
"""Fields of a batch that training reads and no answer does."""


def observation(config: ModelConfig, spec: dict[str, Any]) -> Batch:
    """One row with the first frame alone, and the actions that `forward` is given."""
    height, width = spec["image_size"]
    fields = config.batch_spec(height, width, spec["text_tokens"])
    batch = fake_batch(fields, 1, embodiments=config.embodiments, cameras=config.cameras, seed=spec["seed"])
    batch["video"] = np.ascontiguousarray(batch["video"][:, :, :1])
    return {name: array for name, array in batch.items() if name not in UNREAD}


def noise(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed + 1)
    video = (config.chunks, config.frames_per_chunk, len(config.target_views), config.patches, config.latent_channels)
    action = (config.chunks, config.action_horizon, config.action_dim)
    return {
        name: rng.standard_normal((1, *shape), np.float32) for name, shape in (("video", video), ("action", action))
    }


def tokenizer(config: ModelConfig, patch: int, seed: int) -> dict[str, np.ndarray]:
    """Arrays of a `PatchPCA` by its own names; an orthonormal basis would be fitted, a random one is as fast."""
    rng = np.random.default_rng(seed + 2)
    out: dict[str, np.ndarray] = {"gain": np.ones((2, config.latent_channels), np.float32)}
    for kind, frames in (("first", 1), ("group", config.frames_per_latent)):
        size = 3 * frames * patch**2
        out[f"mean_{kind}"] = rng.uniform(0.3, 0.7, (config.cameras, config.patches, size)).astype(np.float32)
        out[f"basis_{kind}"] = rng.standard_normal((size, config.latent_channels), np.float32) / np.float32(size**0.5)
        out[f"scale_{kind}"] = rng.uniform(1.0, 4.0, config.latent_channels).astype(np.float32)
    return out


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    config, seed = build(ModelConfig, spec["model"]), spec["seed"]
    params, constants = weights(config, seed)
    parts = {"tokenizer": tokenizer(config, spec["patch"], seed), "batch": observation(config, spec),
             "noise": noise(config, seed)}  # fmt: skip
    arrays = params | constants
    for part, tree in parts.items():
        arrays |= dict(flatten(tree, part))
    np.savez(spec["arrays"], **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
