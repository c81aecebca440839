"""The tables of `tools.study`: pooled over seeds, in the format of `tools.render_readme`, raw numbers beside them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.render_readme import format_cell
from wam.evaluation.baselines import success_rate

CONTROLS = ("policy", "joint", "blind_replay", "random", "swapped_instruction")
PARTS = ("forward_dynamics", "inverse_dynamics", "tokenizer", "train")
INTERVALS = "Brackets: 95 % Wilson intervals over the episodes of all seeds, which share their layouts."


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run: what it was, its metrics.json and its config.json."""

    study: str
    """`demo`, or the variant of an ablation."""
    seed: int
    metrics: dict[str, Any]
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.study}-s{self.seed}"

    @property
    def imagines(self) -> bool:
        """Was the video stream trained? Without it, joint mode and dynamics are those of an untrained network."""
        return self.record["config"]["objective"].get("with_video", True)


def pool(results: Sequence[Result], control: str, tasks: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Successes of a kind of control over seeds and `tasks` (None: all it was run on), with interval and seed by seed.

    None if it was run on none of the tasks.
    """
    counts = []
    for result in results:
        rows = result.metrics["closed_loop"][control]["tasks"]
        found = [rows[task] for task in (rows if tasks is None else tasks) if task in rows]
        counts.append((sum(row["successes"] for row in found), sum(row["episodes"] for row in found)))
    # Blind replay knows no seed: every run repeats the same episodes, and they count once.
    total = np.sum(counts[:1] if control == "blind_replay" else counts, axis=0).tolist()
    if not total[1]:
        return None
    return {
        **success_rate(*total),
        "by_seed": {str(r.seed): successes / n for r, (successes, n) in zip(results, counts, strict=True)},
    }


def spread(values: Sequence[float | None]) -> Any:
    """A table cell: the value of one run, or median and range of several; None where one of them has none."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    if len(known) == 1:
        return known[0]
    median = np.median(known).item()
    return {"median": round(median) if isinstance(known[0], int) else median, "min": min(known), "max": max(known)}


def facts(results: Sequence[Result], command: str) -> dict[str, Any]:
    """What the runs were: the keys every results file carries. A fact that differs between runs becomes a list."""

    def common(values: Iterable[Any]) -> Any:
        distinct = {json.dumps(value, sort_keys=True): value for value in values}
        return next(iter(distinct.values())) if len(distinct) == 1 else list(distinct.values())

    keys = ("chip", "devices", "cores", "versions", "git", "date")
    return {
        "command": command,
        "seeds": sorted({result.seed for result in results}),
        "budget_minutes": results[0].record["budget"]["minutes"],
        **{key: common(result.record[key] for result in results) for key in keys},
    }


def trained(results: Sequence[Result], asked: int) -> str:
    """How many seeds, how long, on what: the beginning of a table's note."""
    seeds, record = sorted({result.seed for result in results}), results[0].record
    return (
        f"{len(seeds)} of {max(asked, len(seeds))} seeds ({', '.join(map(str, seeds))}), each trained for "
        f"{record['budget']['minutes']:g} minutes on {record['chip']} with {record['cores']} cores."
    )


def raw(results: Sequence[Result]) -> dict[str, Any]:
    """The numbers of every run as they were measured."""
    return {
        result.name: {key: result.metrics[key] for key in ("about", "closed_loop", *PARTS)}
        | {"git": result.record["git"], "date": result.record["date"], "budget": result.record["budget"]}
        for result in results
    }


def sighted(results: Sequence[Result]) -> list[str]:
    """Tasks that blind replay solves in under half of the episodes."""
    found = ((task, pool(results, "blind_replay", [task])) for task in results[0].metrics["about"]["tasks"])
    return [task for task, row in found if row and row["success"] < 0.5]


def demo_table(results: Sequence[Result], asked: int, command: str) -> dict[str, Any]:
    """demo.json: success per task and kind of control, and every raw number."""
    tasks, need = results[0].metrics["about"]["tasks"], sighted(results)
    groups: dict[str, Sequence[str] | None] = {task: [task] for task in tasks}
    groups |= {"tasks that need sight": need} if need else {}
    groups["all tasks"] = None
    pooled = {name: {c: pool(results, c, group) for c in CONTROLS} for name, group in groups.items()}
    rows = []
    for name, row in pooled.items():
        by_seed = row["policy"]["by_seed"].values() if row["policy"] else []
        rows.append([name, *(row[control] for control in CONTROLS), ", ".join(f"{share:.2f}" for share in by_seed)])
    train = {
        key: spread([result.metrics["train"][key] for result in results])
        for key in ("steps", "seconds", "step_ms_median", "data_wait_share", "parameters")
    }
    episodes = results[0].metrics["about"]["episodes_per_task"]
    note = (
        f"{trained(results, asked)} That is {format_cell(train['steps'])} steps of "
        f"{format_cell(train['step_ms_median'])} ms. Solved of {episodes} held-out layouts per task and seed. "
        f"{INTERVALS} Blind replay (the mean demonstration, played without looking) does the same for every seed and "
        "is counted once; the tasks that it solves in under half of the episodes need sight. Swapped instruction: two "
        "tasks that share a scene, each under the other's instruction, scored by its own goal: a policy that listens "
        "fails."
    )
    columns = ["task", "policy", "joint", "blind replay", "random", "swapped instruction", "policy, seed by seed"]
    return {
        "columns": columns,
        "rows": rows,
        "note": note,
        "name": "demo",
        **facts(results, command),
        "pooled": pooled,
        "needs_sight": need,
        "tokenizer_psnr": spread([result.metrics["tokenizer"]["psnr"] for result in results]),
        "train": train,
        "runs": raw(results),
    }


def dynamics_table(results: Sequence[Result], asked: int, command: str) -> dict[str, Any]:
    """demo_dynamics.json: forward and inverse dynamics with the true and with the wrong input."""
    rows = []
    for kind in results[0].metrics["forward_dynamics"]:
        forward = [result.metrics["forward_dynamics"][kind] for result in results]
        for key, name in (("psnr", "forward, whole frame, dB"), ("moving", "forward, moving pixels, dB")):
            cells = [spread([f[key][c] for f in forward]) for c in ("true", "shuffled", "zero", "copy_last", "ceiling")]
            rows.append([kind, name, *cells, spread([f["win_rate"] for f in forward]) if key == "moving" else None])
        inverse = [result.metrics["inverse_dynamics"][kind] for result in results]
        right, wrong, policy, gripper = (
            spread([i.get(key) for i in inverse]) for key in ("r2", "r2_wrong_video", "policy_r2", "r2_gripper")
        )
        rows.append([kind, "inverse, translation, R²", right, wrong, None, policy, None, None])
        rows.append([kind, "inverse, gripper, R²", gripper, None, None, None, None, None])
    note = (
        f"{trained(results, asked)} Median over the seeds, with the range. Wrong input: the actions of another window "
        "of the same task (forward), the video of another window (inverse). Baseline: repeating the last frame "
        "(forward), the policy that does not see the future (inverse). Win rate: share of windows in which true "
        "actions predict the moving pixels better than shuffled ones."
    )
    columns = ["held-out data", "measure", "right input", "wrong input", "zero actions", "baseline",
               "tokenizer's ceiling", "win rate"]  # fmt: skip
    return {"columns": columns, "rows": rows, "note": note, "name": "demo_dynamics", **facts(results, command)}


def ablation_table(results: Sequence[Result], asked: int, command: str) -> dict[str, Any]:
    """demo_ablations.json: every variant beside the demo with the same seeds and the same minutes."""
    seeds = {result.seed for result in results if result.study != "demo"}
    results = [result for result in results if result.seed in seeds]
    rows = []
    for study in dict.fromkeys(result.study for result in results):
        own = [result for result in results if result.study == study]
        moving = {k: [r.metrics["forward_dynamics"][k]["moving"] for r in own] for k in ("play", "expert")}
        imagined: list[Any] = [
            pool(own, "joint"),
            *(spread([m["true"] - m["shuffled"] for m in moving[kind]]) for kind in moving),
            *(spread([r.metrics["inverse_dynamics"][kind]["r2"] for r in own]) for kind in moving),
        ]
        if not own[0].imagines:
            imagined = ["not trained"] * len(imagined)
        steps = spread([r.metrics["train"]["steps"] for r in own])
        need = pool(own, "policy", sighted(own))
        speed = spread([r.metrics["train"]["step_ms_median"] for r in own])
        rows.append([study, len(own), steps, speed, pool(own, "policy"), need, *imagined])
    note = (
        f"{trained(results, asked)} Equal wall-clock for every row, so a cheaper variant takes more steps; so does one "
        "whose turn came while a shared machine was faster, which the milliseconds show. Gain: moving pixels with true "
        "against shuffled actions, on held-out data. The demo is shown with the seeds of its ablations alone. "
        f"{INTERVALS}"
    )
    columns = ["variant", "seeds", "steps", "ms a step", "policy", "policy, tasks that need sight", "joint",
               "gain on play, dB", "gain on expert, dB", "inverse R² on play", "inverse R² on expert"]  # fmt: skip
    return {"columns": columns, "rows": rows, "note": note, "name": "demo_ablations", **facts(results, command),
            "runs": raw(results)}  # fmt: skip


def write_results(results: Sequence[Result], folder: Path, command: str, seeds: int, ablation_seeds: int) -> list[Path]:
    """Writes the results files for which there are runs; returns their paths.

    `seeds` and `ablation_seeds` are how many were asked for: a table of fewer says so.
    """
    demo = [result for result in results if result.study == "demo"]
    tables = []
    if demo:
        tables += [demo_table(demo, seeds, command), dynamics_table(demo, seeds, command)]
    if len(demo) < len(results):
        tables.append(ablation_table(results, ablation_seeds, command))
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        temporary = folder / f".{table['name']}.tmp"
        temporary.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
        temporary.replace(folder / f"{table['name']}.json")
    return [folder / f"{table['name']}.json" for table in tables]
