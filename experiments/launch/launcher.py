"""From the arguments of a launch to what is shown or submitted."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path, PurePosixPath
from types import ModuleType

from experiments.launch import gke, local, runs, slurm, sweep, tpu_vm, xpk
from experiments.launch.options import Options

BACKENDS: dict[str, ModuleType] = {"slurm": slurm, "gke": gke, "xpk": xpk, "tpu_vm": tpu_vm, "local": local}
HERE = ("slurm", "local")
"""Backends whose machines see the files of this one."""


def split_arguments(argv: list[str]) -> tuple[list[str], list[str], list[str]]:
    """(flags of the launch, `--config` with its overrides, what follows `--`); `--config X` becomes `--config=X`."""
    extra = argv[argv.index("--") + 1 :] if "--" in argv else []
    rest = iter(argv[: argv.index("--")] if "--" in argv else argv)
    own, recipe = [], []
    for argument in rest:
        name = argument.lstrip("-").partition("=")[0]
        if not argument.startswith("-") or name.partition(".")[0] not in ("config", "noconfig"):
            own.append(argument)
            continue
        if "=" not in argument and not name.startswith("no"):
            value = next(rest, None)
            if value is None:
                sys.exit(f"launch: {argument} has no value")
            argument = f"{argument}={value}"
        recipe.append("--" + argument.lstrip("-"))
    return own, recipe, extra


def launch(backend: str, recipe: list[str], workdir: str, chosen: Options, *, sweeps: list[str],
           extra: list[str], local_workdir: str = "", dry_run: bool = False) -> None:  # fmt: skip
    """Checks all runs, then records and submits one after the other; what cannot be is refused before anything is done.

    Raises:
        ValueError, OSError: what does not fit, in one sentence.
        RuntimeError: a submission, or a process on this machine, failed.
    """
    if not any(argument.startswith("--config=") for argument in recipe):
        raise ValueError("which recipe? give --config=FILE, see experiments/configs")
    if "://" in workdir:
        raise ValueError(f"--workdir {workdir} is a URL: mount the bucket, and name the directory")
    if backend in HERE:
        workdir = os.path.abspath(workdir)  # noqa: PTH100 (resolves no links: other machines may have others)
        python = sys.executable if backend == "local" else "python"
        chosen = dataclasses.replace(
            chosen, code_dir=chosen.code_dir or str(Path.cwd()), python=chosen.python or python
        )
    elif not workdir.startswith("/"):
        raise ValueError(f"--workdir {workdir} must be an absolute path of the machines that run it")
    points = sweep.product(*map(sweep.parse, sweeps)) if sweeps else []
    base = PurePosixPath(workdir)
    planned = runs.plan(recipe, points, base, chosen, extra)
    rendered = [BACKENDS[backend].render(run, chosen) for run in planned]
    if dry_run:
        for run, submission in zip(planned, rendered, strict=True):
            print(f"# {run.name}: {run.workdir}\n{submission.show()}")
        return
    here = Path(local_workdir) if local_workdir else base if backend in HERE else Path("runs", planned[0].name)
    places = [Path(here / run.workdir.relative_to(base)) for run in planned]
    for run, submission, place in zip(planned, rendered, places, strict=True):
        runs.check_workdir(run, place)
        submission.check()
    for run, submission, place in zip(planned, rendered, places, strict=True):
        runs.record(run, place, backend, submission.show())
        print(f"launch: {run.name}: {submission.submit()}", flush=True)
