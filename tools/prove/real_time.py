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
from collections.abc import Sequence
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


def pooled(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of several seeds: success with its interval, jerk weighted by seams, share of missed steps."""
    from wam.evaluation.baselines import wilson_interval

    wins, episodes = (sum(case[name] for case in cases) for name in ("successes", "episodes"))
    counts = {name: sum(case["counts"][name] for case in cases) for name in cases[0]["counts"]}
    seam = np.average([c["jerk"]["seam"] for c in cases], weights=[c["jerk"]["seams"] for c in cases])
    inside = np.mean([c["jerk"]["inside"] for c in cases])
    return {
        "way": cases[0]["way"].replace("_", " "),
        "delay, steps": cases[0]["delay"],
        "success": {"successes": wins, "episodes": episodes,
                    "ci95": [round(x, 4) for x in wilson_interval(wins, episodes)]},
        "steps an episode": round(float(np.mean([case["mean_steps"] for case in cases])), 1),
        "seam jerk": round(float(seam), 4),
        "jerk inside chunks": round(float(inside), 4),
        "ratio": round(float(seam / inside), 2),
        "steps without an action": f"{counts['missed'] / counts['steps']:.1%}",
    }  # fmt: skip


def table(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a way and delay, delays together."""
    of: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for case in cases:
        of.setdefault((case["delay"], list(WAYS).index(case["way"])), []).append(case)
    return [pooled(of[key]) for key in sorted(of)]


def note(about: dict[str, Any], seeds: Sequence[int]) -> str:
    return (
        f"One checkpoint of {about['checkpoint_step']:,} training steps, {about['sampler_steps']} sampler steps, seeds "
        f"{', '.join(map(str, seeds))} of noise, {about['split']} layouts; {about['execute']} of a chunk's "
        f"{about['horizon']} actions are executed, with no action left: {about['on_miss'].replace('_', ' ')}. Jerk is "
        "the norm of second differences of commanded increments, where chunks meet and inside them."
    )


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
    from tools.render_readme import render_table

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
        "rows": result.get("rows", []),
        "note": result.get("note", ""),
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
                result["rows"] = table(result["cases"])
                result["note"] = note(simulation.about, sorted({case["seed"] for case in result["cases"]}))
                temporary = arguments.out.with_suffix(".tmp")
                temporary.write_text(json.dumps(result, indent=1) + "\n")
                temporary.replace(arguments.out)
    for way, reason in result["impossible"].items():
        print(f"{way}: not possible: {reason}")
    if result["rows"]:
        print(render_table(result))
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
