"""Distils the demo to one and to two sampler steps, and sets the students beside their teacher in closed loop.

    python -m tools.prove.distill --teachers runs/demo [runs/study/demo-s1 ...] [--seeds 0 1 2] [--split test]

Every seed trains both students (`experiments/configs/demo_distilled.py` and its variant `two`) and evaluates them and
the teacher in policy and joint mode: the teacher in 1, 2 and 5 steps, a student in its own number. A seed is that of
the student's training and of the noise in the evaluation; with several teachers, seed i learns from the i-th. Success
comes with Wilson intervals; differences are paired over seeds and layouts. Without a simulator, on held-out windows:
how far a few steps end from where the teacher's 8 steps end from the same noise.

What is done is not done again when the program is started again (cells in WORKDIR/cells). The result goes to
`tools/prove/results/distill.json`. It fails if a student is beyond the interval worse than its teacher in as many
steps, or does not end nearer to the teacher's 8 steps than the teacher itself does in as many.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.prove.survive import ENV, ROOT
from wam.evaluation.baselines import success_rate
from wam.evaluation.paired import paired_difference

RESULT = ROOT / "tools" / "prove" / "results" / "distill.json"
CONFIG = "experiments/configs/demo_distilled.py"
STUDENTS = {"one": ("", 1), "two": (":two", 2)}
"""name -> (variant of the recipe, sampler steps)"""
SYSTEMS = {"teacher": (1, 2, 5), **{name: (steps,) for name, (_, steps) in STUDENTS.items()}}
MODES = ("policy", "joint")
LONG = 8
"""Sampler steps of the teacher whose ends are taken for those of its ODE."""
WINDOWS = 96


def train_command(student: str, teacher: Path, workdir: Path, seed: int, steps: int | None) -> list[str]:
    record = json.loads((teacher / "config.json").read_text())
    root = record["config"]["data"]["root"] or str(teacher / "data")
    command = [
        "-m", "experiments.train", f"--config={CONFIG}{STUDENTS[student][0]}", f"--workdir={workdir}", "--noprogress",
        f"--config.distill.teacher={teacher}", f"--config.data.root={root}", f"--config.train.seed={seed}",
    ]  # fmt: skip
    return command if steps is None else [*command, f"--config.train.steps={steps}"]


def closed_loop(run: Path, mode: str, steps: int, seed: int, split: str, episodes: int | None) -> dict[str, Any]:
    from experiments.evaluate import Evaluation

    evaluation = Evaluation(run, tasks=None, episodes=episodes, steps=steps, seed=seed, split=split, workers=2)
    return evaluation.closed_loop(mode)


def ends(runs: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Mode -> stream -> system and steps -> root mean square distance to where the teacher's `LONG` steps end.

    From the same noise, on held-out demonstrations, in normalised actions and latents.
    """
    from data_pipelines.store import ClipStore
    from experiments.held_out import batch_of, data_root, windows_of
    from wam.diffusion.sampler import program
    from wam.policy import load_policy

    policies = {name: load_policy(run, unroll=False) for name, run in runs.items()}
    windows = windows_of(policies["teacher"], ClipStore(data_root(policies["teacher"], runs["teacher"]) / "validation" /
                                                        "expert"), "expert")  # fmt: skip
    whole = [i for i in range(len(windows)) if windows.low_dim(i)["action_mask"].all()
             and windows.frame_state(i)[1].all()]  # fmt: skip
    chosen = [whole[i] for i in np.linspace(0, len(whole) - 1, min(WINDOWS, len(whole))).astype(int)]
    batch = batch_of(policies["teacher"], windows, "expert", chosen)
    ids = np.concatenate([batch["sample_id"], np.zeros((len(chosen), 1), np.uint32)], 1)
    out: dict[str, dict[str, Any]] = {}
    for mode in (*MODES, "forward"):
        long = policies["teacher"].generate(batch, ids, program(mode, LONG))
        for name, steps in SYSTEMS.items():
            for n in steps:
                found = policies[name].generate(batch, ids, program(mode, n))
                for stream in ("action", "video"):
                    if getattr(found, stream) is not None and not (mode == "forward" and stream == "action"):
                        distance = np.asarray(getattr(found, stream)) - np.asarray(getattr(long, stream))
                        rms = round(float(np.sqrt((distance**2).mean())), 4)
                        out.setdefault(mode, {}).setdefault(stream, {})[f"{name}-{n}"] = rms
    return out


def cell(path: Path, make: Callable[[], Any], asked: dict[str, Any]) -> Any:
    """What is in the file, or what `make` returns, which is then written there.

    Raises:
        ValueError: the file is of other settings.
    """
    if path.exists():
        found = json.loads(path.read_text())
        if found["asked"] != asked:
            raise ValueError(f"{path} is of other settings ({found['asked']}); choose another --workdir, or delete it")
        return found["value"]
    print(f"distill: {path.stem}", flush=True)
    value = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(json.dumps({"asked": asked, "value": value}, indent=1))
    path.with_suffix(".tmp").replace(path)
    return value


def outcomes(summary: dict[str, Any]) -> list[int]:
    return [won for row in summary["tasks"].values() for won in row["outcomes"]]


def table(cells: dict[tuple[str, int, str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row a system, number of steps and mode, pooled over seeds; students with their difference to the teacher."""
    rows = []
    for (system, steps, mode), summaries in cells.items():
        by_seed = [outcomes(summary) for summary in summaries]
        won = list(itertools.chain(*by_seed))
        row: dict[str, Any] = {
            "system": system, "steps": steps, "mode": mode, **success_rate(sum(won), len(won)),
            "by_seed": [sum(of) / len(of) for of in by_seed],
        }  # fmt: skip
        if system != "teacher":
            for against in SYSTEMS["teacher"]:
                other = [outcomes(summary) for summary in cells["teacher", against, mode]]
                row[f"minus_teacher_{against}"] = paired_difference(by_seed, other)
        rows.append(row)
    return rows


def shown(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the README: mode by mode, a student with what it is above or below its teacher in as many steps."""
    out = []
    for row in sorted(rows, key=lambda row: MODES.index(row["mode"])):
        student = row["system"] != "teacher"
        line = {
            "mode": row["mode"],
            "model": "student" if student else "teacher",
            "sampler steps": row["steps"],
            "success": {name: row[name] for name in ("successes", "episodes", "ci95")},
        }
        for name, against in {"minus the teacher in as many steps": row["steps"], "minus the teacher in 5": 5}.items():
            gap = row.get(f"minus_teacher_{against}")
            line[name] = gap and {"mean": gap["difference"], "low": gap["ci95"][0], "high": gap["ci95"][1]}
        out.append(line)
    return out


def verdicts(rows: Sequence[dict[str, Any]], distances: Sequence[dict[str, Any]]) -> list[str]:
    """What is not as it should be."""
    gaps = [(row, row.get(f"minus_teacher_{row['steps']}")) for row in rows]
    wrong = [
        f"student {row['system']}, {row['mode']} mode: {gap['difference']:+.3f}, 95 % {gap['ci95']}"
        for row, gap in gaps
        if gap and gap["ci95"][1] < 0
    ]
    pairs = [(mode, name, of) for found in distances for mode, streams in found.items() for name, of in streams.items()]
    for name, (_, steps) in STUDENTS.items():
        own, other = f"{name}-{steps}", f"teacher-{steps}"
        wrong += [
            f"student {name}, {mode} mode: its {stream} ends {of[own]} away, the teacher's {of[other]}"
            for mode, stream, of in pairs
            if not of[own] < of[other]
        ]
    return wrong


def note(seeds: Sequence[int], split: str, runs: Sequence[dict[str, Any]]) -> str:
    teachers = len({run["teacher"] for run in runs})
    steps = max(run[name]["steps"] for run in runs for name in STUDENTS)
    return (
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)} of the students' training, {steps:,} steps each, of "
        f"{teachers} teacher{'s' * (teachers > 1)}; {split} layouts. Differences are paired over layouts, with "
        "95 % bootstrap intervals."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teachers", type=Path, nargs="+", default=[ROOT / "runs" / "demo"])
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "distill", help="of students and cells")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="layouts")
    parser.add_argument("--episodes", type=int, help="layouts per task; by default the recipe's")
    parser.add_argument("--steps", type=int, help="of the students' training; by default the recipe's")
    arguments = parser.parse_args()
    workdir, seeds = arguments.workdir.resolve(), arguments.seeds
    teachers = [path.resolve() for path in arguments.teachers]
    if missing := [str(path) for path in teachers if not (path / "train.json").exists()]:
        sys.exit(f"distill: {missing[0]} is no finished training; train the teacher first")
    if len(teachers) not in (1, len(seeds)):
        sys.exit(f"distill: {len(teachers)} teachers for {len(seeds)} seeds: give one, or one a seed")

    cells: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    distances, runs = [], []
    for i, seed in enumerate(seeds):
        teacher = teachers[i % len(teachers)]
        of = {"teacher": teacher, **{name: workdir / f"{name}-s{seed}" for name in STUDENTS}}
        for name in STUDENTS:
            command = train_command(name, teacher, of[name], seed, arguments.steps)
            print(f"distill: {of[name].name}", flush=True)
            if status := subprocess.run([sys.executable, *command], cwd=ROOT, env=ENV, check=False).returncode:
                sys.exit(f"distill: training {of[name]} ended with status {status}")
        asked = {"teacher": str(teacher), "split": arguments.split, "episodes": arguments.episodes, "seed": seed}
        asked["digests"] = about = {name: _about(of[name]) for name in STUDENTS}
        for name, steps in SYSTEMS.items():
            for n in steps:
                for mode in MODES:
                    make = functools.partial(closed_loop, of[name], mode, n, seed, arguments.split, arguments.episodes)
                    made = cell(workdir / "cells" / f"{name}-{n}-{mode}-s{seed}.json", make, asked)
                    cells.setdefault((name, n, mode), []).append(made)
        distances.append(cell(workdir / "cells" / f"ends-s{seed}.json", functools.partial(ends, of), asked))
        runs.append({"seed": seed, "teacher": teacher.name, **about})

    from experiments.provenance import provenance

    rows = table(cells)
    found = {
        "name": "distill", **provenance(), "command": " ".join(["python -m tools.prove.distill", *sys.argv[1:]]),
        "seeds": seeds, "split": arguments.split, "rows": shown(rows), "note": note(seeds, arguments.split, runs),
        "pooled": rows, "ends": distances, "runs": runs, "failed": verdicts(rows, distances),
    }  # fmt: skip
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    for row in rows:
        low, high = row["ci95"]
        print(
            f"{row['system']:8s} {row['steps']} steps  {row['mode']:7s} {row['success']:.3f}  [{low:.3f}, {high:.3f}]"
        )
    print(f"wrote {RESULT.relative_to(ROOT)}")
    if found["failed"]:
        sys.exit(f"distill: {'; '.join(found['failed'])}")


def _about(run: Path) -> dict[str, Any]:
    """Steps and median step of a student, and its teacher as its checkpoint names it."""
    from wam.checkpoint import read_inference

    trained = json.loads((run / "train.json").read_text())
    return {key: trained[key] for key in ("steps", "step_ms_median")} | {
        "teacher": read_inference(run).assets["teacher"]
    }


if __name__ == "__main__":
    main()
