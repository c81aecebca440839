"""Success and seam jerk against latency: a trained policy behind the chunk executor, in Meta-World and simulated time.

    python -m tools.prove.real_time --checkpoint runs/demo [--episodes 20] [--seeds 0 1 2] [--delays 0 4 8 12]

Every answer comes `delay` control steps (of 1/80 s) after its observation, and the world goes on meanwhile. `naive`
executes, stops and waits; `async` lets a chunk take over when it comes; `ensemble` averages the chunks that cover a
step (ACT); `guided` pulls a chunk to the rest of the old one; `frozen_prefix` is told what is executed meanwhile, and
needs a checkpoint that was trained with `objective.prefix_tokens`. Where nothing is left to execute the robot holds,
or does what `--on_miss` says. Guidance wants about five sampler steps (`--steps 5`).

The same command goes on where it was stopped. Results go to tools/prove/results/real_time.json; seam jerk is
`wam.evaluation.real_time.seam_jerk` of the increments, in the robot's units.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from wam.serving.executor import ON_MISS

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tools" / "prove" / "results" / "real_time.json"
ENSEMBLE = 0.01  # ACT's
WAYS: dict[str, dict[str, Any]] = {
    "naive": {"strategy": "naive"},
    "async": {"strategy": "async"},
    "ensemble": {"strategy": "async", "ensemble": ENSEMBLE},
    "guided": {"strategy": "guided"},
    "frozen_prefix": {"strategy": "frozen_prefix"},
}


class Simulation:
    """One checkpoint and its simulator."""

    def __init__(self, checkpoint: Path, *, episodes: int, split: str, workers: int, tasks: list[str] | None,
                 execute: int, steps: int | None, on_miss: str):  # fmt: skip
        from wam.diffusion.sampler import program
        from wam.envs import env_factory
        from wam.envs.metaworld import SPLIT_SEEDS
        from wam.policy import load_policy
        from wam.serving.limits import Limits

        self.policy = load_policy(checkpoint, unroll=False)
        config = self.policy.assets["config"]
        self.max_steps, self.workers = config["evaluate"]["max_steps"], workers
        self.execute, self.on_miss = execute, on_miss
        self.make_env = env_factory(config["sim"]["name"], config["sim"]["render"], max_steps=self.max_steps)
        self.program = program("policy", steps) if steps else self.policy.program("policy")
        self.layouts = {}
        for task in tasks or config["collect"]["tasks"]:
            env = self.make_env(task, ())
            self.layouts[task] = env.sample_layouts(SPLIT_SEEDS[split], episodes)
            env.close()
        spec = self.policy.embodiment(self.policy.embodiments[0]).spec
        self.robot, self.limits = spec.name, Limits.of(spec.action_dim, -1, 1)
        self.increments = [i for i, kind in enumerate(spec.action_kinds) if kind == "delta"]
        self.about = {
            "checkpoint_step": self.policy.step,
            "prefix_tokens": config["objective"].get("prefix_tokens", 0),
            "split": split,
            "episodes_per_task": episodes,
            "tasks": list(self.layouts),
            "max_steps": self.max_steps,
            "execute": execute,
            "horizon": self.policy.config.action_horizon,
            "sampler_steps": self.program.steps,
            "on_miss": on_miss,
        }

    def run(self, way: str, delay: int, seed: int) -> dict[str, Any]:
        """The summary of one case; ValueError if the checkpoint cannot do it."""
        from wam.evaluation import real_time
        from wam.evaluation.closed_loop import Settings
        from wam.serving.continuation import Continuation

        continuation = Continuation(self.policy, WAYS[way]["strategy"], self.program)
        config = continuation.config(self.robot, execute=self.execute, on_miss=self.on_miss,
                                     ensemble=WAYS[way].get("ensemble"))  # fmt: skip
        settings = Settings(max_steps=self.max_steps, workers=self.workers, seed=seed)
        episodes = real_time.run(continuation, self.make_env, self.layouts, settings, config, self.limits, delay,
                                 progress=f"{way}, {delay} steps late, seed {seed}")  # fmt: skip
        return real_time.summarize(episodes, self.increments)


def pooled(cases: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One row of several seeds' cases: success with its interval, jerk weighted by seams, share of missed steps."""
    from wam.evaluation.baselines import wilson_interval

    found = list(cases)
    wins, episodes = (sum(case[name] for case in found) for name in ("successes", "episodes"))
    counts = {name: sum(case["counts"][name] for case in found) for name in found[0]["counts"]}
    seams = np.array([case["jerk"]["seams"] for case in found])
    return {
        "success": wins / episodes,
        "ci95": [round(x, 4) for x in wilson_interval(wins, episodes)],
        "episodes": episodes,
        "mean_steps": float(np.mean([case["mean_steps"] for case in found])),
        "seam": float(np.average([case["jerk"]["seam"] for case in found], weights=seams)),
        "inside": float(np.mean([case["jerk"]["inside"] for case in found])),
        "missed": counts["missed"] / counts["steps"],
    }


def table(cases: list[dict[str, Any]]) -> str:
    """Markdown, a row a way and delay."""
    lines = [
        "| way | delay, steps | success | 95 % | steps | seam jerk | inside | ratio | missed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for way, delay in dict.fromkeys((case["way"], case["delay"]) for case in cases):
        row = pooled(case for case in cases if (case["way"], case["delay"]) == (way, delay))
        low, high = row["ci95"]
        lines.append(
            f"| {way} | {delay} | {row['success']:.1%} of {row['episodes']} | {low:.2f} to {high:.2f} | "
            f"{row['mean_steps']:.0f} | {row['seam']:.3f} | {row['inside']:.3f} | {row['seam'] / row['inside']:.1f} | "
            f"{row['missed']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="run directory")
    parser.add_argument("--episodes", type=int, default=20, help="layouts a task")
    parser.add_argument("--tasks", nargs="+", help="by default those of the run")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 4, 8, 12])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--execute", type=int, default=8, help="actions of a chunk before the next is asked for")
    parser.add_argument("--steps", type=int, help="sampler steps; by default the policy's")
    parser.add_argument("--on_miss", choices=ON_MISS, default="hold", help="where no action is left")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()

    from experiments.provenance import provenance

    try:
        simulation = Simulation(
            arguments.checkpoint, episodes=arguments.episodes, split=arguments.split, workers=arguments.workers,
            tasks=arguments.tasks, execute=arguments.execute, steps=arguments.steps, on_miss=arguments.on_miss,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        sys.exit(f"real_time: {error}")
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if result and result["about"] != simulation.about:
        sys.exit(f"real_time: {arguments.out} is of another checkpoint or other settings; choose another --out")
    result = {
        "name": "real_time",
        **provenance(),
        "command": "python -m tools.prove.real_time",
        "about": simulation.about,
        "impossible": result.get("impossible", {}),
        "cases": result.get("cases", []),
    }
    done = {(case["way"], case["delay"], case["seed"]) for case in result["cases"]}
    for seed in arguments.seeds:
        for delay in arguments.delays:
            for way in arguments.ways:
                if (way, delay, seed) in done:
                    continue
                try:
                    case = simulation.run(way, delay, seed)
                except ValueError as error:
                    result["impossible"][way] = str(error)
                    continue
                result["cases"].append({"way": way, "delay": delay, "seed": seed, **case})
                temporary = arguments.out.with_suffix(".tmp")
                temporary.write_text(json.dumps(result, indent=1) + "\n")
                temporary.replace(arguments.out)
    for way, reason in result["impossible"].items():
        print(f"{way}: not possible: {reason}")
    print(table(result["cases"]))
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
