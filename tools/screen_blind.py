"""Which Meta-World tasks need eyes? Success of the scripted expert and of a policy that never looks, for every task.

    python tools/screen_blind.py

The blind policy replays the mean action per time step of the successful expert demonstrations on the training layouts
(`wam.evaluation.baselines`); both are scored on held-out validation layouts. Nothing is rendered and nothing learned.
Writes `experiments/results/screen_blind.json` and prints the table, most blindly solvable tasks first; the README shows
the candidates alone (`candidates`).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np

from data_pipelines.collect.layouts import check_disjoint
from wam.envs import metaworld
from wam.evaluation.baselines import BlindReplay, mean_demonstration, wilson_interval

FAST = 100  # control steps: what a candidate for a demo of minutes may take
AFTER_SUCCESS = 24  # control steps the demonstrations go on after success, as in collected data


def run_expert(env: metaworld.MetaWorldEnv, layout: np.ndarray, max_steps: int) -> tuple[np.ndarray, int | None]:
    """Actions [T, 4] of one clean expert episode and the step of its first success (None: it failed)."""
    env.reset(layout)
    actions, solved_at = [], None
    while len(actions) < max_steps if solved_at is None else len(actions) < solved_at + AFTER_SUCCESS:
        actions.append(env.expert_action())
        _, success = env.step(actions[-1])
        if success and solved_at is None:
            solved_at = len(actions)
    return np.stack(actions), solved_at


def run_blind(env: metaworld.MetaWorldEnv, layout: np.ndarray, policy: BlindReplay, max_steps: int) -> bool:
    env.reset(layout)
    return any(env.step(policy(step))[1] for step in range(max_steps))


def screen(job: tuple[str, int, int, int]) -> dict:
    """One row of the table; `job` is (task, training layouts, validation layouts, max_steps)."""
    task, n_train, n_validation, max_steps = job
    env = metaworld.MetaWorldEnv(task, max_steps=max_steps + AFTER_SUCCESS)
    layouts = {
        "train": env.sample_layouts(metaworld.SPLIT_SEEDS["train"], n_train),
        "validation": env.sample_layouts(metaworld.SPLIT_SEEDS["validation"], n_validation),
    }
    check_disjoint(layouts)
    demos = [run_expert(env, layout, max_steps) for layout in layouts["train"]]
    solved = [(actions, step) for actions, step in demos if step is not None]
    expert = [run_expert(env, layout, max_steps)[1] for layout in layouts["validation"]]
    row: dict[str, Any] = {
        "task": task,
        "expert": {"successes": sum(step is not None for step in expert), "episodes": n_validation},
        "expert_train": {"successes": len(solved), "episodes": n_train},
        "blind": {"successes": 0, "episodes": n_validation},
        "mean_expert_steps": float(np.mean([step for _, step in solved])) if solved else None,
        "max_expert_steps": max(step for _, step in solved) if solved else None,
    }
    if solved:
        delta = [kind == "delta" for kind in metaworld.SPEC.action_kinds]
        policy = BlindReplay(mean_demonstration([actions for actions, _ in solved]), delta)
        row["blind"]["successes"] = sum(run_blind(env, layout, policy, max_steps) for layout in layouts["validation"])
    for score in (row["expert"], row["expert_train"], row["blind"]):
        score["ci95"] = wilson_interval(score["successes"], score["episodes"])
    env.close()
    return row


def table(rows: list[dict]) -> str:
    lines = [f"{'task':28s} {'blind':>7s} {'95 %':>12s} {'expert':>7s} {'on train':>8s} {'steps':>6s} {'max':>4s}"]
    for row in rows:
        low, high = row["blind"]["ci95"]
        counts = [f"{row[name]['successes']}/{row[name]['episodes']}" for name in ("blind", "expert", "expert_train")]
        steps = row["mean_expert_steps"] or float("nan")
        lines.append(
            f"{row['task']:28s} {counts[0]:>7s} {f'[{low:.2f}, {high:.2f}]':>12s} {counts[1]:>7s} {counts[2]:>8s} "
            f"{steps:6.0f} {row['max_expert_steps'] or 0:4d}"
        )
    return "\n".join(lines)


def candidates(rows: list[dict]) -> dict:
    """The README's table of `rows`: tasks that need sight, and that the expert always solves, fast."""
    chosen = [
        row
        for row in rows
        if row["blind"]["successes"] < row["blind"]["episodes"] / 2
        and row["expert"]["successes"] == row["expert"]["episodes"]
        and row["mean_expert_steps"] <= FAST
    ]
    return {
        "columns": ["task", "blind replay", "scripted expert", "expert's control steps"],
        "rows": [[row["task"], row["blind"], row["expert"], round(row["mean_expert_steps"])] for row in chosen],
        "note": f"The {len(chosen)} of {len(rows)} tasks that blind replay solves in under half of the episodes and "
        f"the scripted expert in all, in at most {FAST} control steps on average. Held-out validation layouts, "
        "brackets: 95 % Wilson intervals.",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=metaworld.TASKS)
    parser.add_argument("--train-layouts", type=int, default=50)
    parser.add_argument("--validation-layouts", type=int, default=20)
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, default="experiments/results/screen_blind.json")
    args = parser.parse_args()
    if unknown := sorted(set(args.tasks) - set(metaworld.TASKS)):
        sys.exit(f"unknown task {unknown[0]!r}; choose from {', '.join(sorted(metaworld.TASKS))}")
    start = time.perf_counter()
    jobs = [(task, args.train_layouts, args.validation_layouts, args.max_steps) for task in args.tasks]
    rows = []
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for row in pool.imap_unordered(screen, jobs):
            rows.append(row)
            print(f"\r{len(rows)}/{len(jobs)} tasks", end="", file=sys.stderr, flush=True)
    rows.sort(key=lambda row: (-row["blind"]["successes"], row["task"]))
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    result = {
        **candidates(rows),
        "name": "screen_blind",
        "command": " ".join(["python", *sys.argv]),
        "cores": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in ("metaworld", "mujoco", "numpy")},
        "git": git,
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.perf_counter() - start, 1),
        "max_steps": args.max_steps,
        "seeds": {
            "train_layouts": metaworld.SPLIT_SEEDS["train"],
            "validation_layouts": metaworld.SPLIT_SEEDS["validation"],
        },
        "tasks": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n" + table(rows))
    print(f"max_steps {args.max_steps}, {result['seconds']:.0f} s, written to {args.out}")


if __name__ == "__main__":
    main()
