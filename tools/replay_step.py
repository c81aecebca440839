"""Rebuilds the batch of a training step that was skipped, and shows which part and which sample of it is to blame.

    python -m tools.replay_step runs/demo/skipped/step_1234.json [--checkpoint 1000]

Samples, noise, modes and dropout are exactly those of the step. The parameters of that moment were never stored: those
of the newest checkpoint before it stand in (or of the one asked for), so data that are not finite show at once, while a
training that diverged between the two may look healthy here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def rebuild(data: Any, sources: tuple[str, ...], samples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The batch of these samples (source and window), in their order."""
    from data_pipelines.mixture import stack

    return stack([data.to_sample(data.train[s["source"]][s["window"]], sources.index(s["source"])) for s in samples])


def faults(batch: dict[str, np.ndarray]) -> list[str]:
    """One line for every field and row of a batch that holds a value which is not finite."""
    found = []
    for name, values in batch.items():
        bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
        found += [f"sample {row}: {name} is not finite" for row in np.flatnonzero(bad)]
    return found


def replay(record: dict[str, Any], workdir: Path, checkpoint: int | None) -> list[str]:
    """Lines to print: faults of the data, the loss of every term, the gradient's norm, the errors of every sample.

    Raises:
        ValueError, FileNotFoundError: one sentence for the user.
    """
    import jax
    from ml_collections import ConfigDict

    from experiments import recipe as recipes
    from experiments.augmentation import augmentation
    from experiments.fitted import set_constants
    from wam.checkpoint import read_everything
    from wam.config import MeshConfig
    from wam.diffusion.modes import MODE_NAMES, draw
    from wam.training import sharding
    from wam.training.distill import read_teacher
    from wam.training.step import latents_of, networks
    from wam.training.trainer import Trainer

    config = ConfigDict(json.loads((workdir / "config.json").read_text())["config"])
    recipe = recipes.Recipe.of(config)
    data = recipes.load_data(recipe, Path(config.data.root) if config.data.root else workdir / "data", workdir)
    batch = rebuild(data, recipe.sources, record["samples"])
    lines = [f"step {record['step']}: loss {record['loss']}, gradient norm {record['grad_norm']} when it was skipped"]
    lines += faults(batch) or ["all inputs are finite"]

    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    augment = augmentation(recipe, data)
    trainer = Trainer(
        data.model, recipe.objective, recipe.optimizer, data.fitted.tokenizer, mesh, batch_size=len(batch["source"]),
        sources=len(recipe.sources), prepare=lambda model: set_constants(model, data.fitted),
        finetune=recipe.finetune, augment=augment,
        teacher=read_teacher(recipe.distill) if recipe.distill.teacher else None,
    )  # fmt: skip
    state = trainer.init(steps=1, seed=record["seed"])
    saved = (int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())
    step = max((s for s in saved if s < record["step"]), default=None) if checkpoint is None else checkpoint
    if step is None:
        lines.append("parameters: those before the first step, as no checkpoint is older than the step")
    else:
        params = jax.device_put(read_everything(workdir, step)[0]["params"], trainer.shardings.params)
        state = state._replace(params=params)
        lines.append(f"parameters: those of the checkpoint at step {step}")
    state = state._replace(step=jax.device_put(np.int32(record["step"] - 1), trainer.shardings.step))
    placed = trainer.place(batch)

    @jax.jit
    def errors(params, batch):
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        draws = draw(key, batch, data.model, recipe.objective)
        latents = latents_of(augment(key, batch), data.fitted.tokenizer)
        of = networks(trainer.apply, params, params, trainer.fixed)
        return trainer.terms(of, batch, latents, draws), draws.mode

    with jax.set_mesh(mesh):
        terms, modes = jax.device_get(errors(state.params, placed))
    _, metrics = jax.device_get(trainer.step(state, placed))
    lines.append(f"loss {metrics['loss']:.4g}, gradient norm {metrics['grad_norm']:.4g}")
    for name, term in metrics["terms"].items():
        lines.append(f"  {name}: {term['all'][0] / max(1.0, term['all'][1]):.4g}")
    for row, sample in enumerate(record["samples"]):
        own = ", ".join(f"{name} {t.error[row] / t.count[row]:.4g}" for name, t in terms.items() if t.count[row] > 0)
        lines.append(f"sample {row}: {sample['source']} window {sample['window']}, {MODE_NAMES[modes[row]]}: {own}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("record", type=Path, help="WORKDIR/skipped/step_N.json")
    parser.add_argument("--checkpoint", type=int, help="step whose parameters to take")
    arguments = parser.parse_args()
    try:
        record = json.loads(arguments.record.read_text())
        print("\n".join(replay(record, arguments.record.resolve().parent.parent, arguments.checkpoint)))
    except (ValueError, OSError) as error:
        sys.exit(f"replay_step: {error}")


if __name__ == "__main__":
    main()
