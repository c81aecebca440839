"""Does planning by the world model beat one sample of its policy? Closed loop, several seeds, one table.

    python -m tools.prove.planning --workdir runs/planning --data runs/demo/data       # 3 seeds, test layouts
    python -m tools.prove.planning --seeds 0 --split validation --episodes 10 --rows best_of_8_value

For every seed: a first policy is trained short, so that there is room to be better; its disturbed rollouts go into a
store; a checkpoint with a value (`experiments/configs/demo_value.py`) is trained as short on all of it; every row of
the table plays the same layouts with that one checkpoint. What is done is in the work directory and is not done again
when the program is started again; rows, seeds and episodes may be added later.

The result goes to `tools/prove/results/planning.json`: success with 95 % intervals (Wilson), pooled over seeds, and the
paired difference to the policy on the same layouts (`wam.evaluation.paired`). `any_of_4` is no way of acting: the
layouts that at least one of four policy runs solves, which is the room that chance leaves. `judged` says what the value
knows, see `judgement.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.planners import answer_by, make_planner
from experiments.provenance import provenance
from tools.prove.judgement import judge
from tools.prove.survive import ENV, ROOT
from tools.render_readme import format_cell

RESULT = ROOT / "tools" / "prove" / "results" / "planning.json"
ROWS = {
    "policy": ("policy", 2, ""),
    "joint": ("joint", 2, ""),
    "flash_1": ("flash", 1, ""),
    "flash_2": ("flash", 2, ""),
    "flash_4": ("flash", 4, ""),
    "best_of_8_value": ("policy", 2, "best_of_n:value"),
    "best_of_8_reward_free": ("policy", 2, "best_of_n:agreement"),
    "cem_forward_dynamics": ("policy", 2, "cem:zero"),
}
"""Name -> (program, its steps, planner)."""
DRAWS = 4
"""Of the policy, the row's own among them."""


def commands(workdir: Path, data: Path, seed: int, steps: int, rollouts: int) -> dict[str, tuple[Path, list[str]]]:
    """Name -> (what exists once it is done, the command), in order."""
    first, stores = workdir / f"first-s{seed}", workdir / f"data-s{seed}"
    value = workdir / f"value-s{seed}"
    options = [f"--config.train.steps={steps}", f"--config.train.seed={seed}", "--noprogress"]
    rolled = ["rollouts", f"--checkpoint={first}", f"--out={stores}", "--perturb=0.3", f"--seed={seed}"]
    return {
        "train first": (first / "train.json", [
            "train", "--config=experiments/configs/demo.py", f"--workdir={first}", f"--config.data.root={data}",
            *options]),
        "rollouts": (stores / "train" / "rollouts" / "manifest.json", [*rolled, f"--episodes={rollouts}"]),
        "rollouts validation": (stores / "validation" / "rollouts" / "manifest.json", [
            *rolled, f"--episodes={max(1, rollouts // 5)}", "--split=validation"]),
        "train value": (value / "train.json", [
            "train", "--config=experiments/configs/demo_value.py", f"--workdir={value}",
            f"--config.data.root={stores}", *options]),
    }  # fmt: skip


def settle(workdir: Path, data: Path, steps: int, rollouts: int) -> None:
    """Writes what decides the checkpoints of a work directory; SystemExit if it was begun with something else."""
    asked, path = {"data": str(data.resolve()), "steps": steps, "rollouts": rollouts}, workdir / "study.json"
    if path.exists() and (begun := json.loads(path.read_text())) != asked:
        raise SystemExit(f"planning: {workdir} was begun with {begun}, now it is {asked}: choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked))


def prepare(workdir: Path, data: Path, seed: int, steps: int, rollouts: int) -> None:
    """Runs what is missing of the commands of a seed; SystemExit if one fails."""
    stores = workdir / f"data-s{seed}"
    for split in ("train", "validation"):
        (stores / split).mkdir(parents=True, exist_ok=True)
        for store in (data / split).iterdir():
            if not (link := stores / split / store.name).exists():
                link.symlink_to(store.resolve())
    for name, (done, command) in commands(workdir, data, seed, steps, rollouts).items():
        if not done.exists():
            print(f"planning: seed {seed}: {name}", flush=True)
            whole = [sys.executable, "-m", f"experiments.{command[0]}", *command[1:]]
            if status := subprocess.run(whole, cwd=ROOT, env=ENV, check=False).returncode:
                raise SystemExit(f"planning: seed {seed}: {name} failed with exit code {status}")


def play(workdir: Path, seed: int, row: str, split: str, episodes: int, draw: int = 0) -> dict[str, Any]:
    """One row of one seed: {"episodes": {"task/layout": success}, "seconds"}; from its file if it is there.

    Another `draw` is the same with other noise.
    """
    path = workdir / "rows" / f"{row}-{split}-{episodes}-s{seed}{f'-draw{draw}' if draw else ''}.json"
    if path.exists():
        return json.loads(path.read_text())
    from experiments.evaluate import Evaluation
    from wam.diffusion.sampler import program
    from wam.evaluation.closed_loop import run_policy

    name, steps, planner = ROWS[row]
    way = program(name, steps)
    evaluation = Evaluation(workdir / f"value-s{seed}", tasks=None, episodes=episodes, steps=None,
                            seed=seed + 1000 * draw, split=split, workers=2)  # fmt: skip
    policy, make_env, layouts = evaluation.policy, evaluation.make_env, evaluation.layouts
    answer = None
    if planner:
        answer = answer_by(policy, make_planner(planner, way), make_env, layouts, evaluation.settings.max_steps)
    begun = time.monotonic()
    played = run_policy(policy, make_env, layouts, way, way.mode, evaluation.settings, answer=answer,
                        progress=f"seed {seed} {row}")  # fmt: skip
    result = {
        "episodes": {f"{e.task}/{e.layout}": e.success for e in played},
        "seconds": round(time.monotonic() - begun, 1),
    }
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".tmp").write_text(json.dumps(result, indent=1))
    path.with_suffix(".tmp").replace(path)
    return result


def table_row(row: str, results: Sequence[Mapping[str, Any]], policy: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row, pooled over seeds; `policy` is that of the same seeds, of as many layouts or more."""
    from wam.evaluation.baselines import wilson_interval
    from wam.evaluation.paired import paired_difference

    wins = [success for result in results for success in result["episodes"].values()]
    low, high = wilson_interval(sum(wins), len(wins))
    out = {
        "how": row.replace("_", " "),
        "success": {"successes": sum(wins), "episodes": len(wins), "ci95": [round(low, 4), round(high, 4)]},
        "seconds an episode": round(sum(result["seconds"] for result in results) / len(wins), 2),
    }
    if row == "policy":
        return out
    layouts = list(results[0]["episodes"])
    mine, base = ([[of["episodes"][layout] for layout in layouts] for of in side] for side in (results, policy))
    paired = paired_difference(mine, base)
    low, high = paired["ci95"]
    return out | {
        "against policy": {"mean": paired["difference"], "low": low, "high": high},
        "only this solved": paired["only_first"],
        "only policy solved": paired["only_second"],
        "p (McNemar)": float(f"{paired['p']:.2g}"),
    }


def any_of(draws: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row's result that solves what any of these solve."""
    episodes = {layout: any(draw["episodes"][layout] for draw in draws) for layout in draws[0]["episodes"]}
    return {"episodes": episodes, "seconds": sum(draw["seconds"] for draw in draws)}


def note(asked: argparse.Namespace, judged: Sequence[Mapping[str, Any]]) -> str:
    mean = {
        value: {name: sum(of[value][name] for of in judged) / len(judged) for name in judged[0][value]}
        for value in ("V", "Q")
    }
    known = " ".join(
        f"{value} ranks moments by how their episodes end with an AUC of {of['auc']:.2f}; it spreads by "
        f"{of['between_moments']:.2f} over moments and by {of['between_chunks']:.3f} over the chunks of one."
        for value, of in mean.items()
    )
    return (
        f"Seeds {', '.join(map(str, asked.seeds))}, {asked.steps:,} training steps each (short on purpose), "
        f"{asked.split} layouts, {os.cpu_count()} CPU cores. Any of {DRAWS}: solved by at least one of {DRAWS} runs of "
        "the policy, which is the room that chance leaves. Goal images of CEM are privileged: the scripted expert's "
        f"last frame on the same layout. On held-out rollouts {known}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workdir", type=Path, default=Path("runs/planning"))
    parser.add_argument("--data", type=Path, default=Path("runs/demo/data"), help="stores of the demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500, help="of both trainings")
    parser.add_argument("--rollouts", type=int, default=100, help="episodes a task")
    parser.add_argument("--episodes", type=int, default=20, help="layouts a task and row")
    parser.add_argument("--cem_episodes", type=int, default=5, help="of cem, which imagines 192 chunks for one")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args(argv)
    if asked.cem_episodes > asked.episodes:
        parser.error("--cem_episodes must be at most --episodes: rows are compared on the policy's layouts")
    settle(asked.workdir, asked.data, asked.steps, asked.rollouts)
    rows = list(dict.fromkeys(["policy", *asked.rows]))
    played: dict[str, list[dict[str, Any]]] = {row: [] for row in [*rows, f"any_of_{DRAWS}"]}
    judged = []
    for seed in asked.seeds:
        prepare(asked.workdir, asked.data, seed, asked.steps, asked.rollouts)
        for row in rows:
            count = asked.cem_episodes if row.startswith("cem") else asked.episodes
            played[row].append(play(asked.workdir, seed, row, asked.split, count))
        played[f"any_of_{DRAWS}"].append(any_of([
            play(asked.workdir, seed, "policy", asked.split, asked.episodes, draw) for draw in range(DRAWS)
        ]))  # fmt: skip
        judged.append(
            judge(asked.workdir / f"value-s{seed}", asked.workdir / f"data-s{seed}" / "validation" / "rollouts")
        )
    table = [table_row(row, results, played["policy"]) for row, results in played.items()]
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({
        "name": "planning",
        **provenance(),
        "command": " ".join(["python -m tools.prove.planning", *(argv or sys.argv[1:])]),
        "rows": table, "judged": judged, "seeds": asked.seeds, "split": asked.split, "training_steps": asked.steps,
        "note": note(asked, judged),
    }, indent=1) + "\n")  # fmt: skip
    for line in table:
        print(*(f"{name}: {format_cell(cell)};" for name, cell in line.items()))


if __name__ == "__main__":
    main()
