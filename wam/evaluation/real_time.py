"""Closed loop in simulated time: the chunk executor drives simulators while answers take so many control steps.

The executor is the one that drives robots (`wam.serving.executor`); only its clock and its inference are simulated.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from wam.evaluation import closed_loop
from wam.evaluation.closed_loop import Episode, MakeEnv, Settings
from wam.serving.background import Request, SimulatedClock, SimulatedInference
from wam.serving.continuation import Continuation
from wam.serving.executor import FALLBACK, ChunkExecutor, ExecutorConfig
from wam.serving.limits import Limits


@dataclasses.dataclass(frozen=True)
class Execution(Episode):
    """An episode and what was executed in it."""

    actions: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """f32 [steps, A], behind the limits"""
    sources: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    """int [steps]: the chunk that each action came from"""
    report: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """`ChunkExecutor.report`"""


def play(env: Any, task: str, layouts: np.ndarray, settings: Settings, _recorded: Mapping[str, int],
         _cameras: Sequence[str], *, config: ExecutorConfig, limits: Limits, delay: int
         ) -> Generator[Any, np.ndarray, list[Episode]]:  # fmt: skip
    """Slot of `closed_loop.run_policy`: every answer comes `delay` control steps after its observation."""
    episodes: list[Episode] = []
    delta = [kind == "delta" for kind in env.spec.action_kinds]
    for index, layout in enumerate(layouts):
        env.reset(layout)
        clock = SimulatedClock(config.control_hz)
        inference = SimulatedInference(clock, lambda: delay / config.control_hz)
        executor = ChunkExecutor(inference, config, limits, np.zeros(len(delta)), delta)
        actions: list[np.ndarray] = []
        sources: list[int] = []
        asked, success = 0, False
        while not success and clock.steps < settings.max_steps:
            if executor.due():
                executor.observe({
                    "images": env.render(), "state": env.state, "instruction": env.instruction,
                    "embodiment": env.spec.name, "time": clock(),
                })  # fmt: skip
            if inference.pending is not None:
                request = inference.pending
                continues = {"planned": request.planned, "frozen": request.frozen}
                inference.deliver((yield index, asked, {**request.observation, "continues": continues}))
                asked += 1
            actions.append(executor.act())
            sources.append(executor.source)
            _, success = env.step(actions[-1])
            clock.advance()
        report = executor.report()
        if executor.stopped:
            raise RuntimeError(f"{task}, layout {index}: {executor.stopped}")
        episodes.append(
            Execution(
                task, index, success, clock.steps, actions=np.stack(actions), sources=np.array(sources), report=report
            )
        )
    env.close()
    return episodes


def run(continuation: Continuation, make_env: MakeEnv, layouts: Mapping[str, np.ndarray], settings: Settings,
        config: ExecutorConfig, limits: Limits, delay: int, *, progress: str = "") -> list[Execution]:  # fmt: skip
    """Evaluates a policy behind executors: `layouts` is task -> [n, layout_dim], `delay` in control steps.

    `settings.execute_steps` does not count, `config.execute` does.
    """

    def answer(observations: Sequence[Mapping[str, Any]], ids: np.ndarray, _memories: Any, *, batch_size: int
               ) -> tuple[list[_Actions], list[None]]:  # fmt: skip
        requests = []
        for observation in observations:
            seen = {name: value for name, value in observation.items() if name != "continues"}
            requests.append(Request(seen, **observation["continues"]))
        return [_Actions(a) for a in continuation.answer(requests, ids, batch_size)], [None] * len(requests)

    episodes = closed_loop.run_policy(
        continuation.policy, make_env, layouts, continuation.program, continuation.program.mode, settings,
        progress=progress, play=functools.partial(play, config=config, limits=limits, delay=delay), answer=answer,
    )  # fmt: skip
    return [episode for episode in episodes if isinstance(episode, Execution)]


@dataclasses.dataclass(frozen=True)
class _Actions:
    """What `closed_loop.run_policy` looks at in a chunk."""

    actions: np.ndarray
    evaluations: int = 0


def seam_jerk(actions: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Norms of the second differences |a[t-1] - 2 a[t] + a[t+1]| of actions [n, A]: (at seams, inside chunks).

    It is at a seam where the three actions do not come from one source: from one chunk to the next, into a pause and
    out of it. Within a pause it is neither.
    """
    jerk = np.linalg.norm(actions[:-2] - 2 * actions[1:-1] + actions[2:], axis=-1)
    seam = (sources[:-2] != sources[1:-1]) | (sources[1:-1] != sources[2:])
    return jerk[seam], jerk[~seam & (sources[1:-1] != FALLBACK)]


def summarize(episodes: Sequence[Execution], dims: Sequence[int]) -> dict[str, Any]:
    """Success with its interval, seam jerk over the action dimensions `dims`, and the executors' counters added up."""
    found = [seam_jerk(e.actions[:, list(dims)], e.sources) for e in episodes if e.steps > 2]
    seam, inside = (np.concatenate(part) for part in zip(*found, strict=True))
    counts = {
        name: sum(e.report[name] for e in episodes)
        for name in ("steps", "requests", "answers", "waited", "missed", "slowed", "late")
    }
    return {
        **closed_loop.summarize(episodes),
        "mean_steps": float(np.mean([e.steps for e in episodes])),
        "jerk": {
            "seam": float(seam.mean()) if len(seam) else None,
            "inside": float(inside.mean()) if len(inside) else None,
            "seams": len(seam),
        },
        "counts": counts,
    }
