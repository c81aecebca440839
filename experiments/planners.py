"""Planners on the command line of an evaluation, and the goal images that some of them need.

    python -m experiments.evaluate --checkpoint=runs/value --planner=best_of_n:value --n=8
    python -m experiments.evaluate --checkpoint=runs/demo --planner=best_of_n:agreement       # reward-free
    python -m experiments.evaluate --checkpoint=runs/demo --planner=cem:zero --samples=48     # forward dynamics alone

A goal image is what the cameras see when a scripted expert has just solved the same layout. That is privileged: on a
real robot somebody has to show the goal. The policy sees nothing of it, the energy of `cem` does.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

KINDS = ("best_of_n:value", "best_of_n:agreement", "cem:policy", "cem:zero")

_PLANNER = flags.DEFINE_enum("planner", None, list(KINDS), "Chooses every chunk; by default the policy's one sample.")
_N = flags.DEFINE_integer("n", 8, "Proposals of best_of_n.", lower_bound=1)
_FUTURES = flags.DEFINE_integer("futures", 3, "Imagined futures of each proposal of best_of_n.", lower_bound=1)
_AGGREGATE = flags.DEFINE_string("aggregate", "majority", "Of its scores: majority, mean or mean_minus_std.")
_SAMPLES = flags.DEFINE_integer("samples", 48, "Samples of cem in each iteration.", lower_bound=1)
_ELITES = flags.DEFINE_integer("elites", 6, "How many of them are kept.", lower_bound=1)
_ITERATIONS = flags.DEFINE_integer("iterations", 4, "Iterations of cem.", lower_bound=1)


def make_planner(kind: str, proposals: Any, **options: Any) -> Any:
    """The planner of a kind; `proposals` is the program of its chunks. ValueError for an unknown one."""
    from wam.planning.best_of_n import BestOfN
    from wam.planning.cem import CPU
    from wam.planning.model_cem import ModelCEM

    name, _, how = kind.partition(":")
    if kind not in KINDS:
        raise ValueError(f"unknown planner {kind!r}; choose from {', '.join(KINDS)}")
    if name == "best_of_n":
        return BestOfN(score=how, proposals=proposals, **options)
    return ModelCEM(start=how, proposals=proposals, **{"settings": CPU, **options})


def is_asked() -> bool:
    return _PLANNER.value is not None


def asked_for(proposals: Any) -> Any:
    """The planner that the flags ask for; None without `--planner`."""
    from wam.planning.cem import CemSettings

    kind = _PLANNER.value
    if kind is None:
        return None
    if kind.startswith("cem"):
        settings = CemSettings(samples=_SAMPLES.value, elites=_ELITES.value, iterations=_ITERATIONS.value)
        return make_planner(kind, proposals, settings=settings)
    return make_planner(kind, proposals, n=_N.value, futures=_FUTURES.value, aggregate=_AGGREGATE.value)


def answer_by(policy: Any, planner: Any, make_env: Any, layouts: Mapping[str, np.ndarray], max_steps: int,
              workers: int = 2) -> Callable[..., tuple[list[Any], list[Any]]]:  # fmt: skip
    """What `closed_loop.run_policy` takes as `answer`; `layouts` are those it will play, from its first on."""
    from wam.evaluation.closed_loop import task_id
    from wam.planning.model_cem import ModelCEM

    planner.check(policy)
    goals: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    if isinstance(planner, ModelCEM):
        for task, images in expert_goals(make_env, layouts, policy.cameras, max_steps, workers).items():
            goals |= {(task_id(task), i): image for i, image in enumerate(images)}

    def answer(observations: Sequence[Any], ids: np.ndarray, memories: Any, *, batch_size: int | None = None):
        if goals:
            # The lower half of the second number is the layout's, see `run_policy`.
            keys = [(int(task), int(layout) & 0xFFFF) for task, layout, _ in ids]
            observations = [{**o, "goal": goals[key]} for o, key in zip(observations, keys, strict=True)]
        chunks, after, _ = policy.plan_many(observations, ids, memories, planner=planner, batch_size=batch_size)
        return chunks, after

    return answer


def expert_goals(make_env: Any, layouts: Mapping[str, np.ndarray], cameras: Sequence[str], max_steps: int, workers: int
                 ) -> dict[str, list[dict[str, np.ndarray]]]:  # fmt: skip
    """task -> for every layout, images of the moment when the scripted expert solves it.

    Raises ValueError naming a layout that the expert does not solve within `max_steps`.
    """
    jobs = [(make_env, task, rows, tuple(cameras), max_steps) for task, rows in layouts.items()]
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        return dict(zip(layouts, pool.map(_goals_of_task, jobs, chunksize=1), strict=True))


def _goals_of_task(job: tuple) -> list[dict[str, np.ndarray]]:
    make_env, task, layouts, cameras, max_steps = job
    env, goals = make_env(task, cameras), []
    for i, layout in enumerate(layouts):
        env.reset(layout)
        for _ in range(max_steps):
            if env.step(env.expert_action())[1]:
                break
        else:
            raise ValueError(f"the expert does not solve layout {i} of {task!r} in {max_steps} steps: no goal image")
        goals.append(env.render())
    env.close()
    return goals
