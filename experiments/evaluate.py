"""Evaluates a checkpoint: closed loop, baselines, and whether the dynamics obey the actions.

    python -m experiments.evaluate --checkpoint runs/demo --report
    python -m experiments.evaluate --checkpoint runs/demo --mode joint --tasks window-open --episodes 20 --seed 1
    python -m experiments.evaluate --checkpoint runs/demo --program flash --steps 1 --solver heun --split validation
    python -m experiments.evaluate --checkpoint runs/demo --planner best_of_n:agreement --n 8
    python -m experiments.evaluate --checkpoint runs/demo --open_loop

With `--report`: policy and joint mode, random actions, blind replay, swapped instructions, forward and inverse
dynamics on the held-out stores; fills metrics.json and eval/ of the run, which `experiments.report` turns into a page.
What is already there for the same checkpoint and settings is reused.

With `--open_loop`: no simulator; how far the policy's actions are from those of held-out episodes, for every robot of
the run, against predicting the mean. Writes open_loop.json.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from experiments import cli, planners
from experiments.programs import program_flags, program_from_flags

if TYPE_CHECKING:
    from wam.diffusion.sampler import Program

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory that holds checkpoints/.")
_MODE = flags.DEFINE_enum(
    "mode",
    "policy",
    ["policy", "joint", "inverse"],
    "How actions are sampled; inverse, from the video that follows, open loop alone.",
)
_TASKS = flags.DEFINE_list("tasks", None, "Tasks; by default those of the training recipe.")
_EPISODES = flags.DEFINE_integer("episodes", None, "Layouts per task; by default the recipe's.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", None, "Sampler steps of a chunk; by default the policy's.", lower_bound=1)
_EXECUTE = flags.DEFINE_integer(
    "execute_steps", None, "Control steps executed of each chunk; by default the recipe's.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the policy's noise.", lower_bound=0, upper_bound=65535)
_SPLIT = flags.DEFINE_enum(
    "split", None, ["validation", "test"],
    "Layouts: validation for choices, test for results (the default). Open loop: stores, by default validation.",
)  # fmt: skip
_REPORT = flags.DEFINE_bool("report", False, "Evaluate everything and write metrics.json and eval/.")
_OPEN_LOOP = flags.DEFINE_bool("open_loop", False, "Compare actions with those of held-out episodes; no simulator.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Simulator processes.", lower_bound=1)

WINDOWS = 160
DEMONSTRATIONS = 25  # a task, for blind replay


class Evaluation:
    """One checkpoint with its simulator; methods return plain dictionaries."""

    def __init__(self, workdir: Path, *, tasks: list[str] | None, episodes: int | None, steps: int | None, seed: int,
                 split: str, workers: int, execute_steps: int | None = None):  # fmt: skip
        from wam.envs import env_factory
        from wam.envs.metaworld import SPLIT_SEEDS, TASKS
        from wam.evaluation.closed_loop import Settings
        from wam.policy import DEFAULT_STEPS, load_policy

        self.steps = dict.fromkeys(DEFAULT_STEPS, steps) if steps else DEFAULT_STEPS
        self.workdir, self.seed, self.split = workdir, seed, split
        # Scanned layers: few calls, so the compilation counts more than the milliseconds of a call.
        self.policy = load_policy(workdir, unroll=False)
        config = self.policy.assets["config"]
        self.config, options = config, config["evaluate"]
        self.tasks = list(tasks or config["collect"]["tasks"])
        if unknown := [task for task in self.tasks if task not in TASKS]:
            raise ValueError(f"unknown task {unknown[0]!r}; choose from {', '.join(sorted(TASKS))}")
        self.make_env = env_factory(config["sim"]["name"], config["sim"]["render"], max_steps=options["max_steps"])
        execute_steps = execute_steps or options["execute_steps"]
        if execute_steps > self.policy.config.action_horizon:
            raise ValueError(
                f"--execute_steps {execute_steps} is more than a chunk holds ({self.policy.config.action_horizon})"
            )
        self.settings = Settings(
            max_steps=options["max_steps"], execute_steps=execute_steps, workers=workers, seed=seed
        )
        self.options, self.seeds = options, SPLIT_SEEDS
        self.layouts = self._layouts(SPLIT_SEEDS[split], episodes or options["episodes"])

    def _layouts(self, seed: int, count: int) -> dict[str, np.ndarray]:
        layouts = {}
        for task in self.tasks:
            env = self.make_env(task, ())
            layouts[task] = env.sample_layouts(seed, count)
            env.close()
        return layouts

    def closed_loop(self, mode: str, *, way: Program | None = None, film: bool = False, swap: bool = False,
                    planner: Any = None) -> dict[str, Any]:  # fmt: skip
        """Success of the policy in `mode`; with `swap`, the recipe's pair of tasks under each other's instruction.

        `way` is a program of this mode; by default, the standard one. A `planner` (see `planners`) chooses the chunks.
        """
        from wam.diffusion.sampler import program
        from wam.envs.metaworld import INSTRUCTIONS
        from wam.evaluation import closed_loop

        layouts, instructions = self.layouts, None
        if swap:
            first, second = self.options["swap"]
            instructions = {first: INSTRUCTIONS[second], second: INSTRUCTIONS[first]}
            layouts = {task: self.layouts[task] for task in (first, second)}
        name, way, answer = "swapped" if swap else mode, way or program(mode, self.steps[mode]), None
        if planner is not None:
            max_steps, workers = self.settings.max_steps, self.settings.workers
            answer = planners.answer_by(self.policy, planner, self.make_env, layouts, max_steps, workers)
        episodes = closed_loop.run_policy(
            self.policy, self.make_env, layouts, way, mode, self.settings,
            instructions=instructions, recorded=dict.fromkeys(layouts, 0) if film else None,
            progress=f"evaluate {name}", answer=answer,
        )  # fmt: skip
        if film:
            for episode in episodes:
                if episode.recording is not None:
                    self._save_recording(mode, episode)
        return closed_loop.summarize(episodes)

    def _save_recording(self, mode: str, episode: Any) -> None:
        fields: dict[str, Any] = {k: np.asarray(v) for k, v in episode.recording.items() if k != "camera"}
        directory = self.workdir / "eval"
        directory.mkdir(exist_ok=True)
        np.savez_compressed(directory / f"episode_{mode}_{episode.task}.npz", **fields, success=episode.success,
                            layout_index=episode.layout, action_names=np.array(self.policy.action_names))  # fmt: skip

    def baselines(self) -> dict[str, Any]:
        """Random actions and blind replay of the mean demonstration on the same layouts."""
        from wam.evaluation import closed_loop
        from wam.evaluation.baselines import BlindReplay, mean_demonstration

        settings, spec = self.settings, self.policy.embodiment(self.policy.embodiments[0]).spec
        random = {
            task: np.stack(
                [
                    np.random.default_rng([self.seed, closed_loop.task_id(task), i]).uniform(
                        -1, 1, (settings.max_steps, spec.action_dim)
                    )
                    for i in range(len(layouts))
                ]
            ).astype(np.float32)
            for task, layouts in self.layouts.items()
        }
        shown = self._layouts(self.seeds["train"], self.options.get("demonstrations", DEMONSTRATIONS))
        demonstrations = closed_loop.expert_demonstrations(self.make_env, shown, settings)
        delta = [kind == "delta" for kind in spec.action_kinds]
        blind = {}
        for task, layouts in self.layouts.items():
            replay = BlindReplay(mean_demonstration(demonstrations[task]), delta)
            actions = np.stack([replay(step) for step in range(settings.max_steps)])
            blind[task] = np.broadcast_to(actions, (len(layouts), *actions.shape))
        return {
            "random": closed_loop.summarize(closed_loop.run_open_loop(self.make_env, self.layouts, random, settings)),
            "blind_replay": closed_loop.summarize(
                closed_loop.run_open_loop(self.make_env, self.layouts, blind, settings)
            ),
        }

    def dynamics(self) -> dict[str, Any]:
        """Forward and inverse dynamics, self-consistency and the tokenizer on the held-out stores, with verdicts."""
        from wam.evaluation import consistency, world_model

        forward, inverse, own = {}, {}, {}
        for kind in ("play", "expert"):
            batch, tasks = self._windows(kind)
            forward[kind] = world_model.forward_dynamics(self.policy, batch, tasks)
            inverse[kind] = world_model.inverse_dynamics(self.policy, batch, tasks)
            own[kind] = consistency.self_consistency(self.policy, batch, tasks, steps=self.steps["joint"])
            del own[kind]["actions"], own[kind]["imagined"]
            frames, actions = forward[kind].pop("frames"), inverse[kind].pop("actions")
            self._save_windows(kind, batch, tasks, frames, actions)
        psnr = float(np.mean([forward[kind]["psnr"]["ceiling"] for kind in forward]))
        return {
            "forward_dynamics": forward,
            "inverse_dynamics": inverse,
            "consistency": own,
            "tokenizer": {"psnr": psnr},
            "verdicts": world_model.verdicts(forward, inverse)
            + [consistency.verdict(kind, found) for kind, found in own.items()],
        }

    def _windows(self, kind: str) -> tuple[dict[str, np.ndarray], list[str]]:
        """Up to WINDOWS windows of the split's store whose frames and actions are all real, evenly spaced."""
        from data_pipelines.store import ClipStore
        from experiments.held_out import batch_of, data_root, windows_of

        directory = data_root(self.policy, self.workdir) / self.split / kind
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory} is missing: dynamics are measured on held-out data; collect it first")
        windows = windows_of(self.policy, ClipStore(directory), kind)
        whole = [
            i
            for i in range(len(windows))
            if windows.low_dim(i)["action_mask"].all() and windows.frame_state(i)[1].all()
        ]
        if kind == "expert":
            whole = [i for i in whole if windows.low_dim(i)["imitate"].all()]
        if len(whole) < 2:
            raise ValueError(f"{directory} has {len(whole)} whole windows; dynamics need at least 2")
        chosen = [whole[i] for i in np.linspace(0, len(whole) - 1, min(WINDOWS, len(whole))).astype(int)]
        return batch_of(self.policy, windows, kind, chosen), [windows.meta(i)["task"] for i in chosen]

    def _save_windows(self, kind: str, batch: dict, tasks: list[str], frames: dict, actions: dict) -> None:
        robot = self.policy.embodiment(self.policy.embodiments[0])
        chosen = np.linspace(0, len(tasks) - 1, min(12, len(tasks))).astype(int)
        directory = self.workdir / "eval"
        directory.mkdir(exist_ok=True)
        normalised = {"action": batch["action"][:, 0], **actions}
        state = robot.decode_state(batch["state"][chosen, 0])
        raw = {name: robot.decode_action(a[chosen], state) for name, a in normalised.items()}
        # Film strips show the first predicted view.
        arrays: dict[str, Any] = {case: images[chosen, 0] for case, images in frames.items()} | raw
        np.savez_compressed(
            directory / f"dynamics_{kind}.npz",
            **arrays,
            task=np.array([tasks[i] for i in chosen]),
            seconds=self.policy.frame_seconds(robot.spec.name),
            action_names=np.array(robot.spec.action_names),
        )


def evaluate_all(evaluation: Evaluation) -> dict[str, Any]:
    """Everything the report shows; parts already in metrics.json for this checkpoint and settings are kept."""
    workdir = evaluation.workdir
    path = workdir / "metrics.json"
    about = {
        "checkpoint_step": evaluation.policy.step,
        "split": evaluation.split,
        "seed": evaluation.seed,
        "steps": {mode: evaluation.steps[mode] for mode in ("policy", "joint")},
        "execute_steps": evaluation.settings.execute_steps,
        "episodes_per_task": len(next(iter(evaluation.layouts.values()))),
        "tasks": evaluation.tasks,
    }
    metrics = json.loads(path.read_text()) if path.exists() else {}
    if metrics.get("about") != about:
        metrics = {"about": about, "closed_loop": {}, "seed": evaluation.seed, "split": evaluation.split}
    loop = metrics["closed_loop"]

    def write() -> None:
        path.with_suffix(".tmp").write_text(json.dumps(metrics, indent=1))
        path.with_suffix(".tmp").replace(path)

    for mode in ("policy", "joint"):
        if mode not in loop:
            loop[mode] = evaluation.closed_loop(mode, film=True)
            write()
    can_swap = "swap" in evaluation.options and set(evaluation.options["swap"]) <= set(evaluation.tasks)
    if can_swap and "swapped_instruction" not in loop:
        loop["swapped_instruction"] = evaluation.closed_loop("policy", swap=True)
        write()
    if "blind_replay" not in loop:
        loop |= evaluation.baselines()
        write()
    if "forward_dynamics" not in metrics:
        metrics |= evaluation.dynamics()
        write()
    for name in ("train", "phases"):
        if (workdir / f"{name}.json").exists():
            metrics[name] = json.loads((workdir / f"{name}.json").read_text())
    write()
    return metrics


def _open_loop(workdir: Path) -> None:
    from experiments.open_loop import evaluate_open_loop
    from wam.evaluation.open_loop import table

    others = {"report": _REPORT, "tasks": _TASKS, "episodes": _EPISODES, "execute_steps": _EXECUTE}
    if given := [name for name, flag in others.items() if flag.value] + program_flags():
        raise ValueError(f"--{given[0]} is of the closed loop, --open_loop takes --mode, --steps, --split and --seed")
    result = evaluate_open_loop(
        workdir, mode=_MODE.value, steps=_STEPS.value, split=_SPLIT.value or "validation", seed=_SEED.value
    )
    print(table(result))
    print(f"evaluate: wrote {workdir / 'open_loop.json'}")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"evaluate: unknown argument {argv[1]!r}; see --help")
    assert _CHECKPOINT.value is not None  # a required flag
    workdir = Path(_CHECKPOINT.value)
    start = time.monotonic()
    try:
        if shutil.disk_usage(workdir if workdir.exists() else ".").free < 50e6:
            raise OSError(f"less than 50 MB are free at {workdir}: the results would not fit")
        if planners.is_asked() and (_REPORT.value or _OPEN_LOOP.value):
            raise ValueError("--planner is of one closed loop: leave --report and --open_loop out")
        if _OPEN_LOOP.value:
            _open_loop(workdir)
            return
        if _MODE.value == "inverse":
            raise ValueError("--mode inverse reads the video that follows, which only --open_loop has")
        if _REPORT.value and (given := program_flags()):
            raise ValueError(f"--{given[0]} is of a single run, --report takes the standard program of each mode")
        evaluation = Evaluation(
            workdir, tasks=_TASKS.value, episodes=_EPISODES.value, steps=_STEPS.value, seed=_SEED.value,
            split=_SPLIT.value or "test", workers=_WORKERS.value, execute_steps=_EXECUTE.value,
        )  # fmt: skip
        way = program_from_flags(_MODE.value if _MODE.present else None, evaluation.steps)
        if _REPORT.value:
            evaluate_all(evaluation)
            print(f"evaluate: wrote {workdir / 'metrics.json'} in {time.monotonic() - start:.0f} s")
            return
        result = evaluation.closed_loop(way.mode, way=way, planner=planners.asked_for(way))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        sys.exit(f"evaluate: {error}")
    for task, row in [*result["tasks"].items(), ("all", result)]:
        low, high = row["ci95"]
        counts = f"{row['successes']:4d}/{row['episodes']:<4d}"
        print(f"{task:28s} {counts} {row['success']:6.1%}  95 % [{low:.2f}, {high:.2f}]")
    print(f"{result['evaluations']:g} calls of the network a chunk")


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint"])
    cli.run(main)
