"""Trains a recipe, on one host or several. The same command again resumes, bit for bit.

    python -m experiments.train --config=experiments/configs/demo.py --workdir=runs/demo [--config.train.seed=1]

With `--budget_minutes` the number of steps is chosen once, from 50 timed warm steps, and written to the run directory
before step 0; a resumed run never measures again. The weights of the sources (`--config.data.weights.NAME=0.3`) may
change when a run goes on, and nothing else of its config.

SIGTERM and SIGUSR1 save and end the run; so that a scheduler can tell a run that was stopped from one that is done, it
then exits with WAM_STOPPED_EXIT_CODE (0 if that is not set).
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

    from data_pipelines.differences import differences
    from data_pipelines.mixture import Mixture, choose_streams, share_streams
    from experiments import recipe as recipes
    from experiments.augmentation import augmentation
    from experiments.fitted import set_constants
    from experiments.run_record import settle_config, settle_weights, write_record
    from experiments.teacher import inherit_fitted, load_teacher
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
        distributed.from_main(lambda: inherit_fitted(recipe.distill, workdir))
        data = distributed.main_first(lambda: recipes.load_data(recipe, root, workdir))
        data.fitted.statistics.check_fitted_on(list(data.train.values()))

        assets = {**recipes.assets(recipe, data), "git": record["git"], "versions": record["versions"]}
        teacher = load_teacher(recipe.distill, assets, data.fitted)
        assets["teacher"] = teacher.about if teacher else None

        # Model and data, on the devices.
        tokenizer = None if data.spec.latent else data.fitted.tokenizer
        trainer = Trainer(
            data.model, recipe.objective, recipe.optimizer, tokenizer, sharding.make_mesh(recipe.mesh),
            batch_size=recipe.train.batch_size, sources=len(recipe.sources), accumulate=recipe.train.accumulate,
            prepare=lambda model: set_constants(model, data.fitted), finetune=recipe.finetune,
            augment=augmentation(recipe, data), teacher=teacher,
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
        said = f"train: {trainer.parameters:,} parameters, {settings.steps} steps of batch {settings.batch_size}"
        if checkpoints.latest() is not None:
            state, data_state, saved = checkpoints.restore(state, trainer.shardings)
            if changed := differences({"model": saved["model"]}, json.loads(json.dumps({"model": assets["model"]}))):
                raise ValueError(
                    f"the checkpoint in {workdir} is of another architecture ({changed}); use a new --workdir"
                )
            if (saved.get("trunk") or {}).get("files") != (assets["trunk"] or {}).get("files"):
                raise ValueError(
                    f"the run in {workdir} began from other weights than those in {recipe.finetune.trunk}; "
                    "import the ones its checkpoints name"
                )
            if (saved.get("teacher") or {}).get("digest") != (assets["teacher"] or {}).get("digest"):
                raise ValueError(
                    f"the run in {workdir} has another teacher than {recipe.distill.teacher} is now; set "
                    f"distill.checkpoint to the step it began with, {(saved.get('teacher') or {}).get('step')}"
                )
            note = batches.set_state(data_state)
            said = f"train: resuming at step {int(state.step)} of {settings.steps}" + (f"; {note}" if note else "")
        first = int(state.step)
        if first < settings.steps and settle_weights(record, mixture.weights, first):
            distributed.from_main(lambda: write_record(workdir, record))
        if is_main:
            print(said, flush=True)
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
            account=lambda data_state: {f"epochs/{k}": n for k, n in mixture.epochs(data_state).items()},
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
            facts = mixture_facts(workdir, record["weights"], {name: len(w) for name, w in data.train.items()})
            _write_json(workdir / "mixture.json", facts)
            _summary(workdir, trainer.parameters, checkpoints.best())
            print(f"train: drawn were {_mixture_sentence(facts)}", flush=True)
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


def mixture_facts(workdir: Path, history: list[dict[str, Any]], windows: dict[str, int]) -> dict[str, Any]:
    """What `mixture.json` holds, from the metrics of the whole run, resumed parts included.

    Args:
        workdir: of the run.
        history: the weights from each step on at which they changed, see `run_record`.
        windows: of each source.
    """
    from experiments.run_record import shares_asked
    from wam.training.metrics import read_rows, totals

    rows = [row for row in read_rows(workdir) if row["split"] == "train"]
    drawn = totals(rows, "drawn")
    total = sum(drawn.values())
    free = sum(row["action_free_share"] * sum(totals([row], "drawn").values()) for row in rows)
    return {
        "weights": history[-1]["weights"],
        "history": history,
        "asked": shares_asked(history, rows[-1]["step"]),
        "realised": {name: drawn.get(name, 0) / total for name in windows},
        "drawn": drawn,
        "windows": windows,
        "epochs": {name: drawn.get(name, 0) / count for name, count in windows.items()},
        "action_free": free / total,
        "modes": totals(rows, "modes"),
    }


def _mixture_sentence(facts: dict[str, Any]) -> str:
    """Each source's share, drawn and asked for, and its epochs."""
    parts = (
        f"{name} {share:.2%} ({facts['asked'][name]:.2%} asked, {facts['epochs'][name]:.1f} epochs)"
        for name, share in facts["realised"].items()
    )
    return ", ".join(parts) + f"; {facts['action_free']:.2%} without actions"


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)


def _summary(workdir: Path, parameters: int, best: int | None) -> None:
    """Writes `train.json` from the metrics of the whole run, resumed parts included."""
    import numpy as np

    from wam.training.metrics import read_rows

    rows = [row for row in read_rows(workdir) if row["split"] == "train"]
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
    _write_json(workdir / "train.json", facts)


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
