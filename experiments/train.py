"""Trains a recipe. The same command again resumes, bit for bit.

    python -m experiments.train --config=experiments/configs/demo.py --workdir=runs/demo [--config.train.seed=1]

With `--budget_minutes` the number of steps is chosen once, from 50 timed warm steps, and written to the run directory
before step 0; a resumed run never measures again.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe; see experiments/configs.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run, new or to be resumed.")
_BUDGET = flags.DEFINE_float("budget_minutes", None, "Choose train.steps to last about this long.", lower_bound=0.05)
_PROGRESS = flags.DEFINE_bool("progress", True, "Show the progress bar.")

FEW_STEPS = 800
"""Below this the demo's policy has not learned to act; see the learning curves."""


def settle_config(config: ConfigDict, workdir: Path) -> dict:
    """The run's record (`config.json`): written before step 0, compared when the run is resumed.

    Raises ValueError naming the first difference to the run found in `workdir`.
    """
    wanted = json.loads(config.to_json_best_effort())
    path = workdir / "config.json"
    if path.exists():
        record = json.loads(path.read_text())
        if difference := _difference(record["asked"], wanted):
            raise ValueError(f"{workdir} holds a run with another config ({difference}); use a new --workdir")
        return record
    from experiments.provenance import provenance

    return {"asked": wanted, "config": wanted, **provenance()}


def _difference(a, b, path: str = "config") -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(set(a) | set(b)):
            if found := _difference(a.get(key), b.get(key), f"{path}.{key}"):
                return found
        return ""
    return "" if a == b else f"{path}: {a!r} there, {b!r} here"


def write_record(workdir: Path, record: dict) -> None:
    temporary = workdir / "config.json.tmp"
    temporary.write_text(json.dumps(record, indent=1))
    temporary.replace(workdir / "config.json")


def train(config: ConfigDict, workdir: Path, *, budget_minutes: float | None = None, progress: bool = True) -> Path:
    """Trains or resumes the run in `workdir`; returns it. ValueError, FileNotFoundError: one sentence for the user."""
    import dataclasses
    import functools

    import jax

    from data_pipelines.mixture import Mixture, eval_batches
    from experiments import recipe as recipes
    from wam.checkpoint import Checkpoints
    from wam.training import loop, metrics, sharding
    from wam.training.state import TrainState
    from wam.training.trainer import Trainer

    recipe = recipes.Recipe.of(config)
    if recipe.mesh.cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", recipe.mesh.cpu_devices)
    root = Path(config.data.root) if config.data.root else workdir / "data"
    workdir.mkdir(parents=True, exist_ok=True)
    lock = loop.workdir_lock(workdir)
    record = settle_config(config, workdir)
    data = recipes.load_data(recipe, root, workdir)
    data.fitted.statistics.check_fitted_on(list(data.train.values()))

    trainer = Trainer(
        data.model, recipe.objective, recipe.optimizer, data.fitted.tokenizer, sharding.make_mesh(recipe.mesh),
        batch_size=recipe.train.batch_size, sources=len(recipe.sources), accumulate=recipe.train.accumulate,
        prepare=functools.partial(recipes.set_constants, fitted=data.fitted),
    )  # fmt: skip

    def initial(steps: int) -> TrainState:
        return trainer.init(steps=steps, seed=recipe.train.seed)

    mixture = Mixture(
        data.train, dict(config.data.weights), data.to_sample, batch_size=recipe.train.batch_size,
        seed=recipe.train.seed, threads=config.data.get("threads", 2),
        replica=jax.process_index(), replicas=jax.process_count(),
    )  # fmt: skip
    batches = mixture.iterator(place=trainer.place)
    checkpoints = Checkpoints(workdir, keep=recipe.train.keep_latest)
    writer = None
    try:
        steps = record.get("steps", recipe.train.steps)
        if "steps" not in record:
            if budget_minutes is not None:
                compile_seconds, seconds = loop.time_steps(trainer.step, initial(1), next(batches))
                batches.set_state(mixture.state_after(0))
                # Validation and checkpoints take a little of the budget as well.
                steps = max(1, int(budget_minutes * 60 * 0.95 / seconds))
                record["budget"] = {
                    "minutes": budget_minutes, "compile_seconds": round(compile_seconds, 1),
                    "step_ms": round(1000 * seconds, 1),
                }  # fmt: skip
            record["steps"] = steps
            record["config"] = {**record["config"], "train": {**record["config"]["train"], "steps": steps}}
            write_record(workdir, record)
        if budget_minutes is not None and steps < FEW_STEPS:
            print(
                f"train: this machine does only {steps} steps in the budget; below {FEW_STEPS} the demo's policy is "
                "unlikely to act well: raise --budget_minutes",
                file=sys.stderr,
            )
        train_config = dataclasses.replace(recipe.train, steps=steps)
        current = initial(steps)
        assets = {**recipes.assets(recipe, data), "git": record["git"], "versions": record["versions"]}
        if checkpoints.latest() is not None:
            current, data_state, saved = checkpoints.restore(current, trainer.shardings)
            if saved["model"] != json.loads(json.dumps(assets["model"])):
                raise ValueError(f"the checkpoint in {workdir} is of another architecture; use a new --workdir")
            batches.set_state(data_state)
            print(f"train: resuming at step {int(current.step)} of {steps}")
        else:
            print(f"train: {trainer.parameters:,} parameters, {steps} steps of batch {recipe.train.batch_size}")
        metrics.truncate_metrics(workdir, int(current.step))
        writer = metrics.Writer(workdir)

        names = [name for name in recipe.sources if name in data.validation]

        def validation():
            import numpy as np

            for name in names:
                windows = data.validation[name]
                count = min(len(windows), config.data.get("validation_windows", 64))
                indices = np.linspace(0, len(windows) - 1, count).astype(int).tolist()
                for batch, valid in eval_batches(windows, data.validation_sample, recipe.sources.index(name),
                                                 recipe.train.batch_size, indices):  # fmt: skip
                    yield trainer.place(batch), trainer.place(valid)

        tokenizer_arrays = data.fitted.tokenizer.to_state()[1]

        def save(current, data_state) -> None:
            checkpoints.save(current, data_state, trainer.apply.constants, tokenizer_arrays, assets)

        run = loop.Run(trainer.step, trainer.evaluate, validation, save, recipe.sources)
        start = time.monotonic()
        final = loop.train(run, train_config, current, batches, writer, checkpoints, progress=progress)
        if int(final.step) == steps:
            _summary(workdir, recipe, data, trainer.parameters, time.monotonic() - start)
    finally:
        batches.close()
        checkpoints.close()
        if writer is not None:
            writer.close()
        lock.close()
    return workdir


def _summary(workdir: Path, recipe, data, parameters: int, seconds: float) -> None:
    """Writes `train.json` and `mixture.json` from the metrics of the whole run, resumed parts included."""
    import numpy as np

    from wam.training.metrics import read_rows, totals

    rows = [row for row in read_rows(workdir) if row["split"] == "train"]
    (workdir / "mixture.json").write_text(
        json.dumps(
            {
                "weights": dict(recipe.config.data.weights),
                "drawn": totals(rows, "drawn"),
                "modes": totals(rows, "modes"),
                "windows": {name: len(windows) for name, windows in data.train.items()},
            },
            indent=1,
        )
    )
    path = workdir / "train.json"
    if path.exists() and seconds < 1:  # nothing was left to do
        return
    counts = np.diff([0, *(row["step"] for row in rows)])  # the last interval may be shorter than the others
    facts = {
        "steps": rows[-1]["step"],
        "seconds": round(sum(row["step_ms"] * n for row, n in zip(rows, counts, strict=True)) / 1000, 1),
        "step_ms_median": round(float(np.median([row["step_ms"] for row in rows])), 1),
        "data_wait_share": round(float(np.mean([row["data_wait_share"] for row in rows])), 4),
        "parameters": parameters,
    }
    path.write_text(json.dumps(facts, indent=1))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"train: unknown argument {argv[1]!r}: everything is set with --config..., --workdir and flags")
    from wam.training.loop import NonFiniteLossError

    assert _WORKDIR.value is not None  # a required flag
    try:
        train(_CONFIG.value, Path(_WORKDIR.value), budget_minutes=_BUDGET.value, progress=_PROGRESS.value)
    except (ValueError, OSError, NonFiniteLossError) as error:
        sys.exit(f"train: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
