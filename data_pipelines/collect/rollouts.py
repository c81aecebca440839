"""Rollouts of a policy as episodes of a store: an environment that records whatever is done in it.

    <root>/<split>/<name>    one store, as `collect` writes them; one shard for every block of layouts of a task

Whoever runs the policy knows nothing of it: it makes its environments with `Recording` in place of `make_env`. Random
draws are keyed by (seed, split, source, task, layout index), as those of `collect`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipelines.collect.disturbance import CLEAN, Disturbance, Perturbation
from data_pipelines.collect.recorder import Env, Recorder
from data_pipelines.episode import Episode
from data_pipelines.store import ShardWriter, finished_shards
from wam.embodiment import EmbodimentSpec


@dataclasses.dataclass(frozen=True)
class Recording:
    """`make_env(task, cameras)` of environments that write the shard of their task; picklable."""

    make_env: Callable[[str, Sequence[str]], Env]
    store: str
    """directory of the store"""
    name: str
    """of its episodes: split/source"""
    cameras: tuple[str, ...]
    """All are filmed, whichever the policy looks through."""
    first: int
    """Number of the first layout that it will be reset to."""
    layout_seed: int
    frame_stride: int
    after_success: int = 0
    """Control steps that are still played: a value learns from whole chunks alone, those before success included."""
    perturbation: Perturbation = CLEAN
    imitate: bool = True
    """May undisturbed steps of successful episodes be copied? Those of failures never are."""
    seed: int = 0

    def shard(self, task: str) -> str:
        return f"{task}-{self.first:05d}"

    def is_done(self, task: str) -> bool:
        return self.shard(task) in finished_shards(self.store)

    def __call__(self, task: str, cameras: Sequence[str]) -> RecordedEnv:
        if missing := sorted(set(cameras) - set(self.cameras)):
            raise ValueError(f"the policy looks through {missing[0]!r}; the store films {', '.join(self.cameras)}")
        return RecordedEnv(self.make_env(task, self.cameras), task, self)


class RecordedEnv:
    """One environment and the shard it writes: an episode begins with `reset` and ends with the next, or with `close`.

    A shard without its last episode is never finished: only `close` does that.
    """

    def __init__(self, env: Env, task: str, recording: Recording):
        self._env, self._task, self._of = env, task, recording
        self._stack = contextlib.ExitStack()
        self._writer = self._stack.enter_context(ShardWriter(recording.store, recording.shard(task)))
        self._recorder: Recorder | None = None
        self._disturbance: Disturbance | None = None
        self._meta: dict[str, Any] = {}
        self._next = recording.first

    @property
    def spec(self) -> EmbodimentSpec:
        return self._env.spec

    @property
    def instruction(self) -> str:
        return self._env.instruction

    @property
    def state(self) -> np.ndarray:
        return self._running.state

    @property
    def _running(self) -> Recorder:
        if self._recorder is None:
            raise RuntimeError(f"task {self._task!r}: call reset(layout) first")
        return self._recorder

    def reset(self, layout: np.ndarray) -> np.ndarray:
        self._keep()
        of, index = self._of, self._next
        self._recorder = Recorder(self._env, self._env.reset(layout), of.frame_stride)
        rng = np.random.default_rng([of.seed, index, *f"{of.name}/{self._task}".encode()])
        self._disturbance = Disturbance(of.perturbation, rng, self.spec.action_dim)
        self._meta = {
            "episode": f"{of.name}/{self._task}/{index:05d}",
            "layout": np.asarray(layout).tolist(),
            "layout_index": index,
            "layout_seed": of.layout_seed,
        }
        self._next += 1
        return self.state

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """Like the environment's, but success comes `after_success` steps later.

        Now and then a random action is executed instead, as `perturbation` says.
        """
        recorder = self._running
        assert self._disturbance is not None  # made together with the recorder
        random = self._disturbance(recorder)
        recorder.step(action if random is None else random, imitate=self._of.imitate and random is None)
        solved = recorder.success_step
        return recorder.state, solved >= 0 and recorder.steps >= solved + self._of.after_success

    def render(self) -> dict[str, np.ndarray]:
        return self._running.images()

    def close(self) -> None:
        self._keep()
        self._stack.close()
        self._env.close()

    def _keep(self) -> None:
        if self._recorder is not None:
            self._recorder.film_end()
            self._writer.add(self._episode(self._recorder))
            self._recorder = None

    def _episode(self, recorder: Recorder) -> Episode:
        return recorder.episode("rollout", {**self._meta, "success": recorder.success_step >= 0})
