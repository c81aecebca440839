"""Writes what both sides of a case start from: weights, constants, the batch, and every random draw of the first steps.

    python -m tools.bench.exchange SPEC.json      # started by the bench

One .npz whose names begin with params/, constants/, batch/ or draws/ and are joined by slashes as in our parameters.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wam.batch import Batch, fake_batch
from wam.config import ModelConfig, ObjectiveConfig, build
from wam.diffusion.modes import draw, loss_flags
from wam.models.joint_dit import create
from wam.training.state import split

NOISE = 0.02


def flatten(tree: Any, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, dict):
        for name, branch in tree.items():
            yield from flatten(branch, f"{prefix}/{name}")
    else:
        yield prefix, np.asarray(tree)


def latent_batch(config: ModelConfig, text_tokens: int, batch_size: int) -> Batch:
    """A fake batch with precomputed latents: no tokenizer runs in the step."""
    spec = config.batch_spec(1, 1, text_tokens)
    latent = (config.latent_frames, config.patches, config.latent_channels)
    return fake_batch(dataclasses.replace(spec, latent=latent), batch_size, embodiments=config.embodiments)


def weights(config: ModelConfig, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Flat parameters and constants of a fresh model with a little noise on all, so that nothing zero hides a path."""
    with jax.default_matmul_precision("highest"):
        apply, params = split(create(config, seed))
    rng = np.random.default_rng(seed)
    noisy = {
        name: array + NOISE * rng.standard_normal(array.shape, np.float32) for name, array in flatten(params, "params")
    }
    constants = dict(flatten(apply.constants, "constants"))
    lead = "constants/embodiments/lead"
    constants[lead] = 0.1 * rng.standard_normal(constants[lead].shape, np.float32)
    return noisy, constants


def draws(spec: dict[str, Any], config: ModelConfig, batch: Batch) -> dict[str, np.ndarray]:
    """The step's own draws [steps, ...] of the first steps, and which losses its modes count."""
    objective = build(ObjectiveConfig, spec["objective"])
    out = []
    for step in range(spec["checked_steps"]):
        drawn = draw(jax.random.fold_in(jax.random.key(spec["seed"]), step), batch, config, objective)
        flags = dict(zip(("video_on", "action_on", "imitates"), loss_flags(drawn.mode), strict=True))
        out.append({name: np.asarray(value) for name, value in (drawn._asdict() | flags).items()})
    return {f"draws/{name}": np.stack([one[name] for one in out]) for name in out[0]}


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    config = build(ModelConfig, spec["model"])
    params, constants = weights(config, spec["seed"])
    batch = latent_batch(config, spec["text_tokens"], spec["batch_size"])
    arrays = params | constants | draws(spec, config, batch) | dict(flatten(batch, "batch"))
    np.savez(spec["arrays"], **arrays)  # type: ignore[arg-type]
    count = sum(array.size for array in params.values())
    print(json.dumps({"parameters": count}))


if __name__ == "__main__":
    main()
