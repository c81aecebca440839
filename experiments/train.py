"""Trains a recipe, on one host or several. The same command again resumes, bit for bit.

    python -m experiments.train --config=experiments/configs/demo.py --workdir=runs/demo [--config.train.seed=1]

With `--budget_minutes` the number of steps is chosen once, from 50 timed warm steps, and written to the run directory
before step 0; a resumed run never measures again. SIGTERM and SIGUSR1 save and end the run; so that a scheduler can
tell a run that was stopped from one that is done, it then exits with WAM_STOPPED_EXIT_CODE (0 if that is not set).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe; see experiments/configs.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run, new or to be resumed.")
_BUDGET = flags.DEFINE_float("budget_minutes", None, "Choose train.steps to last about this long.", lower_bound=0.05)
_PROGRESS = flags.DEFINE_bool("progress", True, "Show the progress bar.")
_WANDB = flags.DEFINE_string("wandb", None, "Weights & Biases project to report to as well.")
_PROFILE = flags.DEFINE_string("profile_steps", None, "Trace these steps, A:B or how many, into WORKDIR/profile.")

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


def check_best_metric(name: str, objective: Any) -> None:
    """ValueError if no validation has this metric: without the check a run would only never keep its best."""
    import difflib

    from wam.diffusion.losses import weights

    known = ("loss", *weights(objective))
    if name and name.split("/")[0] not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
        raise ValueError(f"train.best_metric {name!r} is no metric of the validation; {hint}")


def train(config: ConfigDict, workdir: Path, *, budget_minutes: float | None = None, progress: bool = True,
          wandb: str | None = None, profile_steps: str | None = None) -> bool:  # fmt: skip
    """Trains or resumes the run in `workdir`; False if it was stopped before its last step.

    Raises:
        ValueError, OSError: one sentence for the user.
        NonFiniteError, SaveError: likewise; the last checkpoint is intact.
    """
    import jax

    from data_pipelines.mixture import Mixture, choose_streams, share_streams
    from experiments import recipe as recipes
    from experiments.fitted import set_constants
    from wam.checkpoint import Checkpoints
    from wam.training import distributed, loop, metrics, sharding
    from wam.training.profiler import Profiler
    from wam.training.trainer import Trainer

    recipe = recipes.Recipe.of(config)
    check_best_metric(recipe.train.best_metric, recipe.objective)
    if wandb is not None:
        metrics.require_wandb()
    if recipe.mesh.cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", recipe.mesh.cpu_devices)
    distributed.initialize()
    is_main = distributed.is_main()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(loop.StopSignals())

        # The run: its directory, and what was asked of it when it began.
        def claim() -> dict:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(loop.workdir_lock(workdir))
            return settle_config(config, workdir)

        record = distributed.from_main(claim)
        root = Path(config.data.root) if config.data.root else workdir / "data"
        data = distributed.main_first(lambda: recipes.load_data(recipe, root, workdir))
        data.fitted.statistics.check_fitted_on(list(data.train.values()))

        # Model and data, on the devices.
        trainer = Trainer(
            data.model, recipe.objective, recipe.optimizer, data.fitted.tokenizer, sharding.make_mesh(recipe.mesh),
            batch_size=recipe.train.batch_size, sources=len(recipe.sources), accumulate=recipe.train.accumulate,
            prepare=lambda model: set_constants(model, data.fitted), finetune=recipe.finetune,
        )  # fmt: skip
        replica = distributed.data_replica(trainer.rows, recipe.train.batch_size)
        streams = choose_streams(replica.count, asked=config.data.get("streams", 0), recorded=record.get("streams", 0))
        record.setdefault("streams", streams)
        mixture = Mixture(
            data.train, dict(config.data.weights), data.to_sample, batch_size=recipe.train.batch_size,
            seed=recipe.train.seed, threads=config.data.get("threads", 2), streams=streams,
            own=share_streams(streams, replica.index, replica.count),
        )  # fmt: skip
        batches = mixture.iterator(place=trainer.place)
        stack.callback(batches.close)

        # The number of steps, settled once.
        if "steps" not in record:
            record["steps"] = recipe.train.steps
            if budget_minutes is not None:
                probe = loop.time_steps(trainer.step, trainer.init(steps=1, seed=recipe.train.seed), next(batches))
                batches.set_state(mixture.state_after(0))
                record |= distributed.from_main(lambda: _within(budget_minutes, *probe))
            train_part = {**record["config"]["train"], "steps": record["steps"]}
            record["config"] = {**record["config"], "train": train_part}
            distributed.from_main(lambda: write_record(workdir, record))
        settings = dataclasses.replace(recipe.train, steps=record["steps"])
        if is_main and budget_minutes is not None and settings.steps < FEW_STEPS:
            print(
                f"train: this machine does only {settings.steps} steps in the budget; below {FEW_STEPS} the demo's "
                "policy is unlikely to act well: raise --budget_minutes",
                file=sys.stderr,
            )

        # The state: from the newest checkpoint, or from the beginning.
        checkpoints = Checkpoints(
            workdir, keep_latest=settings.keep_latest, keep_every=settings.keep_every, best_metric=settings.best_metric
        )
        stack.callback(checkpoints.close)
        state = trainer.init(steps=settings.steps, seed=settings.seed)
        assets = {**recipes.assets(recipe, data), "git": record["git"], "versions": record["versions"]}
        said = f"train: {trainer.parameters:,} parameters, {settings.steps} steps of batch {settings.batch_size}"
        if checkpoints.latest() is not None:
            state, data_state, saved = checkpoints.restore(state, trainer.shardings)
            if difference := _difference(saved["model"], json.loads(json.dumps(assets["model"])), "model"):
                raise ValueError(
                    f"the checkpoint in {workdir} is of another architecture ({difference}); use a new --workdir"
                )
            if (saved.get("trunk") or {}).get("files") != (assets["trunk"] or {}).get("files"):
                raise ValueError(
                    f"the run in {workdir} began from other weights than those in {recipe.finetune.trunk}; "
                    "import the ones its checkpoints name"
                )
            note = batches.set_state(data_state)
            said = f"train: resuming at step {int(state.step)} of {settings.steps}" + (f"; {note}" if note else "")
        if is_main:
            print(said, flush=True)
        first = int(state.step)
        tokenizer_arrays = data.fitted.tokenizer.to_state()[1]
        writer = metrics.Writer()
        if is_main:
            writer = metrics.open_writer(workdir, first, wandb=wandb, config=record["config"])
        stack.callback(writer.close)

        run = loop.Run(
            train_step=trainer.step,
            evaluate=trainer.evaluate,
            validation=lambda: _validation(recipe, data, trainer.place, replica),
            save=lambda state, data_state, validated: checkpoints.save(
                state, data_state, trainer.apply.constants, tokenizer_arrays, assets, validated
            ),
            checkpoints=checkpoints,
            sources=recipe.sources,
            writer=writer,
            meter=_meter(recipe, data),
            profiler=Profiler.asked(profile_steps, workdir / "profile", first, settings.steps),
            skips=loop.Skips(workdir / "skipped" if is_main else None, recipe.sources, seed=settings.seed,
                             limit=settings.max_skipped),
            stop=stop,
            agreement=distributed.Agreement(),
        )  # fmt: skip
        final = int(loop.train(run, settings, state, batches, progress=progress and is_main).step)
        if is_main and final == settings.steps and (final > first or not (workdir / "train.json").exists()):
            _summary(workdir, recipe, data, trainer.parameters, checkpoints.best())
        return final == settings.steps


def _within(minutes: float, compile_seconds: float, seconds: float) -> dict[str, Any]:
    """Entries of a run's record: how many steps of `seconds` fit into a budget, and what was measured."""
    # Validation and checkpoints take a little of the budget as well.
    return {
        "steps": max(1, int(minutes * 60 * 0.95 / seconds)),
        "budget": {
            "minutes": minutes,
            "compile_seconds": round(compile_seconds, 1),
            "step_ms": round(1000 * seconds, 1),
        },
    }


def _validation(recipe, data, place, replica) -> Iterator[tuple[Any, Any]]:
    """(batch, is_valid) of the same held-out windows every time, evenly spread over each source."""
    import numpy as np

    from data_pipelines.mixture import eval_batches

    for name in recipe.sources:
        if name not in data.validation:
            continue
        windows = data.validation[name]
        count = min(len(windows), recipe.config.data.get("validation_windows", 64))
        indices = np.linspace(0, len(windows) - 1, count).astype(int).tolist()
        for batch, is_valid in eval_batches(
            windows, data.validation_sample, recipe.sources.index(name), recipe.train.batch_size, indices,
            replica=replica.index, replicas=replica.count,
        ):  # fmt: skip
            yield place(batch), place(is_valid)


def _meter(recipe, data):
    """Throughput by the analytic formula; utilisation where the chip is one whose peak we know."""
    import jax

    from wam.models.flops import tokens_per_sample, train_step_flops
    from wam.training.chips import chip_of
    from wam.training.meter import Meter

    size, chip = recipe.train.batch_size, chip_of(jax.devices()[0].device_kind)
    return Meter(
        tokens=size * tokens_per_sample(data.model, recipe.objective),
        flops=train_step_flops(data.model, recipe.objective, size, text_tokens=recipe.text.tokens),
        peak=chip.flops * jax.device_count() if chip else None,
    )


def _summary(workdir: Path, recipe, data, parameters: int, best: int | None) -> None:
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
    counts = np.diff([0, *(row["step"] for row in rows)])  # steps of each row: every step is in exactly one
    facts = {
        "steps": rows[-1]["step"],
        "seconds": round(sum(row["step_ms"] * n for row, n in zip(rows, counts, strict=True)) / 1000, 1),
        "step_ms_median": round(float(np.median([row["step_ms"] for row in rows])), 1),
        "data_wait_share": round(float(np.average([row["data_wait_share"] for row in rows], weights=counts)), 4),
        "compile_seconds": round(sum(row.get("compile_seconds", 0.0) for row in rows), 1),
        "save_ms_median": round(float(np.median([row["save_ms"] for row in rows if "save_ms" in row] or [0.0])), 1),
        "skipped": int(sum(row.get("skipped", 0) for row in rows)),
        "best_step": best,
        "parameters": parameters,
    }
    temporary = workdir / "train.json.tmp"
    temporary.write_text(json.dumps(facts, indent=1))
    temporary.replace(workdir / "train.json")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"train: unknown argument {argv[1]!r}: everything is set with --config..., --workdir and flags")
    from wam.checkpoint import SaveError
    from wam.training.distributed import fail
    from wam.training.loop import NonFiniteError

    assert _WORKDIR.value is not None  # a required flag
    try:
        done = train(_CONFIG.value, Path(_WORKDIR.value), budget_minutes=_BUDGET.value, progress=_PROGRESS.value,
                     wandb=_WANDB.value, profile_steps=_PROFILE.value)  # fmt: skip
    except (ValueError, OSError, NonFiniteError, SaveError) as error:
        fail(f"train: {error}")
    if not done:
        sys.exit(int(os.environ.get("WAM_STOPPED_EXIT_CODE", "0")))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
