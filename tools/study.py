"""Seeds and ablations of the demo, over one shared collection. The same command again does only what is missing.

    python -m tools.study                            # the demo with three seeds, every ablation with one
    python -m tools.study --only demo --seeds 0      # less of it
    python -m tools.study --dry_run                  # what would run, in which order

A run is the recipe (an ablation is one of its variants, `demo.py:no_play`), trained for the same wall-clock minutes and
evaluated on the test layouts: one at a time, because the budget is wall-clock, and ordered by seed, so that a machine
that slows down hits all variants alike. Results come from the runs' metrics.json and config.json alone and go to
experiments/results/demo.json, demo_dynamics.json and demo_ablations.json after every run.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.configs import demo
from tools.study_tables import CONTROLS, PARTS, Result, write_results

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "experiments/configs/demo.py"
STUDIES = ("demo", *demo.ABLATIONS)
CHOOSE = "choose another --out, or delete it"

Execute = Callable[[list[str], Path], int]
"""(arguments of python, log file) -> exit status."""


@dataclasses.dataclass(frozen=True)
class Run:
    study: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.study}-s{self.seed}"

    @property
    def variant(self) -> str:
        return "" if self.study == "demo" else self.study

    def recipe(self, data: Path) -> dict[str, Any]:
        """The config that its training is asked for, as config.json holds it."""
        config = demo.get_config(self.variant)
        config.data.root, config.train.seed = str(data), self.seed
        return json.loads(config.to_json_best_effort())

    def commands(self, out: Path, data: Path, minutes: float) -> list[list[str]]:
        """Arguments of python, in order: train, then evaluate."""
        variant = self.variant and f":{self.variant}"
        workdir = str(out / self.name)
        return [
            ["-m", "experiments.train", f"--config={RECIPE}{variant}", f"--workdir={workdir}",
             f"--config.data.root={data}", f"--config.train.seed={self.seed}", f"--budget_minutes={minutes:g}",
             "--noprogress"],
            ["-m", "experiments.evaluate", "--checkpoint", workdir, "--report", f"--seed={self.seed}"],
        ]  # fmt: skip


def plan(only: Iterable[str], seeds: Sequence[int], ablation_seeds: Sequence[int]) -> list[Run]:
    """All runs asked for, seed by seed."""
    asked = {study: seeds if study == "demo" else ablation_seeds for study in STUDIES if study in set(only)}
    every = dict.fromkeys([*seeds, *ablation_seeds])
    return [Run(study, seed) for seed in every for study in asked if seed in asked[study]]


def read_result(run: Run, out: Path, data: Path, minutes: float) -> Result | None:
    """The run's result, None while something of it is missing; ValueError if its recipe or budget is another."""
    workdir = out / run.name
    if not (workdir / "config.json").exists():
        return None
    record = json.loads((workdir / "config.json").read_text())
    asked, wanted = record["asked"], run.recipe(data)
    if others := [part for part in {**wanted, **asked} if asked.get(part) != wanted.get(part)]:
        raise ValueError(f"{workdir} is a run of another recipe (config.{others[0]} differs); {CHOOSE}")
    if (found := record.get("budget", {}).get("minutes")) != minutes:
        raise ValueError(f"{workdir} was trained for {found} minutes, not {minutes:g}; {CHOOSE}")
    path = workdir / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    about = {
        "checkpoint_step": record["steps"],
        "split": "test",
        "seed": run.seed,
        "episodes_per_task": asked["evaluate"]["episodes"],
        "tasks": list(asked["collect"]["tasks"]),
    }
    same = all(metrics.get("about", {}).get(key) == value for key, value in about.items())
    whole = set(PARTS) <= set(metrics) and set(CONTROLS) <= set(metrics["closed_loop"])
    return Result(run.study, run.seed, metrics, record) if same and whole else None


def execute(arguments: list[str], log: Path) -> int:
    """Runs python in the environment of tools/env.sh; what it prints is appended to `log`."""
    shell = ["bash", "-c", '. "$0" && exec "$@"', str(ROOT / "tools/env.sh"), sys.executable, *arguments]
    with log.open("a") as file:
        file.write(f"$ python {' '.join(arguments)}\n")
        file.flush()
        return subprocess.run(shell, stdout=file, stderr=subprocess.STDOUT, check=False).returncode


def is_collected(data: Path) -> bool:
    """Did a collection under `data` reach its end? Its summary is written last."""
    path = data / "collection.json"
    return path.exists() and "rows" in json.loads(path.read_text())


def work(runs: Sequence[Run], out: Path, data: Path, minutes: float, *, run_command: Execute = execute,
         after_each: Callable[[], Any] = lambda: None) -> list[str]:  # fmt: skip
    """Does what is missing of the runs, one after the other; returns one sentence for each that failed."""
    failed = []
    for number, run in enumerate(runs, 1):
        head, log = f"study: {number}/{len(runs)} {run.name}", out / f"{run.name}.log"
        try:
            if read_result(run, out, data, minutes):
                print(f"{head}: found", flush=True)
                continue
            print(f"{head}: running, log in {log}", flush=True)
            for command in run.commands(out, data, minutes):
                if status := run_command(command, log):
                    raise RuntimeError(f"{command[1]} ended with status {status}; see the end of {log}")
            if read_result(run, out, data, minutes) is None:
                raise RuntimeError(f"evaluation left no complete {out / run.name / 'metrics.json'}; see {log}")
        except (RuntimeError, ValueError) as error:
            failed.append(f"{run.name}: {error}")
            print(f"{head}: FAILED: {error}", flush=True)
        else:
            after_each()
    return failed


def main(argv: Sequence[str] | None = None, run_command: Execute = execute) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="where the runs go")
    parser.add_argument("--data", type=Path, help="the collection; collected if missing (default: OUT/data)")
    parser.add_argument("--minutes", type=float, default=8.0, help="training minutes of every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the demo")
    parser.add_argument("--ablation_seeds", type=int, nargs="+", default=[0], help="of every ablation")
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=STUDIES, metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument("--results", type=Path, default=Path("experiments/results"), help="where the tables go")
    parser.add_argument("--dry_run", action="store_true", help="print what is missing and stop")
    arguments = parser.parse_args(argv)
    out, data, minutes = arguments.out, arguments.data or arguments.out / "data", arguments.minutes
    runs = plan(arguments.only, arguments.seeds, arguments.ablation_seeds)
    command = " ".join(["python -m tools.study", *(sys.argv[1:] if argv is None else argv)])
    collecting = ["-m", "experiments.collect", f"--config={RECIPE}", f"--out={data}"]

    def finished() -> list[Result]:
        # All that lies there, asked for now or before: a small call takes nothing away from the tables.
        there = [(study, path) for study in STUDIES for path in sorted(out.glob(f"{study}-s[0-9]*/"))]
        known = [Run(study, int(path.name.removeprefix(f"{study}-s"))) for study, path in there]
        return [result for run in known if (result := read_result(run, out, data, minutes))]

    def write() -> list[Path]:
        asked = [len({run.seed for run in runs if (run.study == "demo") == is_demo}) for is_demo in (True, False)]
        return write_results(finished(), arguments.results, command, *asked)

    try:
        finished()
    except ValueError as error:
        sys.exit(f"study: {error}")
    if arguments.dry_run:
        todo = [] if is_collected(data) else [collecting]
        for run in runs:
            if read_result(run, out, data, minutes) is None:
                todo += run.commands(out, data, minutes)
        print("\n".join("python " + " ".join(arguments) for arguments in todo) or "study: nothing is missing")
        return
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(
                f"study: another study runs in {out}: two at a time would share the machine and falsify the budget"
            )
        if not is_collected(data):
            print(f"study: collecting into {data}, log in {out / 'collect.log'}", flush=True)
            if status := run_command(collecting, out / "collect.log"):
                sys.exit(f"study: the collection ended with status {status}; see the end of {out / 'collect.log'}")
        failed = work(runs, out, data, minutes, run_command=run_command, after_each=write)
        written = write()
    for path in written:
        print(f"study: wrote {path}; tools/render_readme.py puts it into the README")
    if failed:
        sys.exit("\n".join(f"study: failed: {sentence}" for sentence in failed))


if __name__ == "__main__":
    main()
