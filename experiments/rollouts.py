"""Rollouts of a checkpoint's policy back into a store. Interrupted, it continues where it stopped.

    python -m experiments.rollouts --checkpoint=runs/demo --out=runs/demo/data --split=train,validation
    python -m experiments.train --config=experiments/configs/demo_value.py --workdir=runs/value

Writes OUT/SPLIT/rollouts beside what is there: episodes of kind `rollout` whose success is known, from which a value is
learned (`data.weights.rollouts`, `data.value`). Layouts are of the split, but new ones: neither demonstrated nor ever
evaluated. With `--perturb` random actions are mixed in, as into the demonstrations, so that outcomes vary.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from experiments import cli
from experiments.programs import program_from_flags

if TYPE_CHECKING:
    from wam.diffusion.sampler import Program

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory that holds checkpoints/.")
_OUT = flags.DEFINE_string("out", None, "Root of the stores, for instance the data of the run.")
_NAME = flags.DEFINE_string("name", "rollouts", "Of the store, which is its name in data.weights.")
_SPLIT = flags.DEFINE_list("split", ["train"], "Splits whose layouts are played: train, validation, or both.")
_TASKS = flags.DEFINE_list("tasks", None, "Tasks; by default those of the training recipe.")
_EPISODES = flags.DEFINE_integer("episodes", 20, "Episodes per task and split.", lower_bound=1)
_MODE = flags.DEFINE_enum("mode", None, ["policy", "joint"], "How actions are sampled; see --program for more ways.")
_STEPS = flags.DEFINE_integer("steps", None, "Sampler steps of a chunk; by default the policy's.", lower_bound=1)
_EXECUTE = flags.DEFINE_integer(
    "execute_steps", None, "Control steps executed of each chunk; by default the recipe's.", lower_bound=1
)
_PERTURB = flags.DEFINE_float(
    "perturb", 0.0, "Disturbances, as a share of those in demonstrations: 1 is as many, 0 none.", lower_bound=0.0
)
_IMITATE = flags.DEFINE_bool("imitate", True, "May undisturbed steps of successes be copied? Failures never are.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0, upper_bound=65535)
_WORKERS = flags.DEFINE_integer("workers", 2, "Simulator processes.", lower_bound=1)

BLOCK = 10  # episodes a shard


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """What is played, and how: all of it decides the data."""

    tasks: tuple[str, ...]
    episodes: int
    program: Program
    execute_steps: int
    perturb: float
    imitate: bool
    seed: int

    def __post_init__(self):
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"--tasks names a task twice: {', '.join(self.tasks)}")


def collect_rollouts(policy: Any, make_env: Any, root: Path, split: str, name: str, asked: Rollouts, workers: int
                     ) -> dict[str, Any]:  # fmt: skip
    """Plays and stores one split; returns what `summary.table` shows. ValueError: another collection lies there."""
    from data_pipelines.collect.collect import CollectConfig, check_same, write_json
    from data_pipelines.collect.disturbance import Perturbation
    from data_pipelines.collect.layouts import check_disjoint, layout_seed
    from data_pipelines.collect.rollouts import Recording
    from data_pipelines.collect.summary import store_rows
    from data_pipelines.store import finish_store
    from wam.envs.metaworld import SPLIT_SEEDS
    from wam.evaluation.closed_loop import Settings, run_policy
    from wam.fingerprint import fingerprints, json_digest

    begun, config, store = time.perf_counter(), policy.assets["config"], root / split / name
    sim, collected, options = config["sim"], config["collect"], config["evaluate"]
    after_success = collected.get("after_success", CollectConfig.after_success)
    seed, layouts = layout_seed(SPLIT_SEEDS[split], "rollouts"), {}
    for task in asked.tasks:
        env = make_env(task, ())
        layouts[task] = env.sample_layouts(seed, asked.episodes)
        evaluated = {s: env.sample_layouts(SPLIT_SEEDS[s], options["episodes"]) for s in ("validation", "test")}
        check_disjoint({f"{split}/{name}": layouts[task], **evaluated})
        env.close()
    played = {**dataclasses.asdict(asked), "split": split, "after_success": after_success}
    identity = {
        "rollouts": json.loads(json.dumps(played)),
        "policy": {"step": policy.step, "digest": json_digest(fingerprints(policy.params))},
        "simulator": json.loads(json.dumps({"name": sim["name"], "render": sim["render"]})),
    }
    check_same(store, identity)
    store.mkdir(parents=True, exist_ok=True)
    write_json(store / "collection.json", identity)
    made = 0
    p = Perturbation()
    p = dataclasses.replace(
        p, start_probability=min(1.0, asked.perturb * p.start_probability),
        burst_probability=min(1.0, asked.perturb * p.burst_probability),
    )  # fmt: skip
    for first in range(0, asked.episodes, BLOCK):
        recording = Recording(
            make_env, str(store), f"{split}/{name}", tuple(sim["cameras"]), first, seed,
            collected.get("frame_stride", 4), after_success, p, asked.imitate, asked.seed,
        )  # fmt: skip
        todo = {t: rows[first : first + BLOCK] for t, rows in layouts.items() if not recording.is_done(t)}
        made += len(todo)
        if todo:
            settings = Settings(max_steps=options["max_steps"], execute_steps=asked.execute_steps, workers=workers,
                                seed=asked.seed, first=first)  # fmt: skip
            run_policy(policy, recording, todo, asked.program, asked.program.mode, settings,
                       progress=f"{split} {first}-{first + BLOCK - 1}")  # fmt: skip
    finish_store(store, identity)
    shards = len(asked.tasks) * -(-asked.episodes // BLOCK)
    return {
        "rows": store_rows(root, split, name, {}),
        "shards": {"made": made, "found": shards - made},
        "seconds": time.perf_counter() - begun,
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"rollouts: unknown argument {argv[1]!r}; see --help")
    from data_pipelines.collect.summary import table
    from wam.envs import env_factory
    from wam.envs.metaworld import TASKS
    from wam.policy import DEFAULT_STEPS, load_policy

    assert _CHECKPOINT.value is not None  # required flags
    assert _OUT.value is not None
    try:
        if unknown := [split for split in _SPLIT.value if split not in ("train", "validation")]:
            raise ValueError(f"--split {unknown[0]}: rollouts are of train and validation; test is for results alone")
        policy = load_policy(_CHECKPOINT.value, unroll=False)
        config = policy.assets["config"]
        tasks = tuple(_TASKS.value or config["collect"]["tasks"])
        if unknown := [task for task in tasks if task not in TASKS]:
            raise ValueError(f"--tasks: unknown task {unknown[0]!r}; choose from {', '.join(sorted(TASKS))}")
        steps = dict.fromkeys(DEFAULT_STEPS, _STEPS.value) if _STEPS.value else DEFAULT_STEPS
        asked = Rollouts(
            tasks, _EPISODES.value, program_from_flags(_MODE.value, steps),
            _EXECUTE.value or config["evaluate"]["execute_steps"], _PERTURB.value, _IMITATE.value, _SEED.value,
        )  # fmt: skip
        sim, limit = config["sim"], config["evaluate"]["max_steps"]
        make_env = env_factory(sim["name"], sim["render"], max_steps=limit)
        for split in _SPLIT.value:
            result = collect_rollouts(policy, make_env, Path(_OUT.value), split, _NAME.value, asked, _WORKERS.value)
            print(table(result))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        sys.exit(f"rollouts: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint", "out"])
    cli.run(main)
