"""Random actions mixed into an episode, so that the way back is in the data, or failure."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.collect.recorder import Recorder


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """Random actions mixed into an episode, each one constant action for several control steps.

    An expert then shows how to recover, and the outcomes of a policy vary; the random steps are not to be imitated.
    """

    start_probability: float = 0.5
    """Share of the episodes that begin with one."""
    start_steps: tuple[int, int] = (5, 30)
    """Its length: low (inclusive) and high (exclusive)."""
    burst_probability: float = 0.0125
    """Chance per control step, until success, that a short one begins."""
    burst_steps: tuple[int, int] = (3, 10)


CLEAN = Perturbation(start_probability=0.0, burst_probability=0.0)


class Disturbance:
    """The random actions of one episode, drawn as it goes along."""

    def __init__(self, perturbation: Perturbation, rng: np.random.Generator, action_dim: int):
        self._settings, self._rng = perturbation, rng
        self._action, self._until = np.zeros(action_dim), 0
        if rng.random() < perturbation.start_probability:
            self._begin(0, perturbation.start_steps)

    def __call__(self, recorder: Recorder) -> np.ndarray | None:
        """The random action of the next step [action_dim]; None: the step is undisturbed, as all are after success."""
        if recorder.success_step >= 0:
            self._until = 0
        elif recorder.steps >= self._until and self._rng.random() < self._settings.burst_probability:
            self._begin(recorder.steps, self._settings.burst_steps)
        return self._action if recorder.steps < self._until else None

    def _begin(self, step: int, steps: tuple[int, int]) -> None:
        self._action[:] = self._rng.uniform(-1, 1, len(self._action))
        self._until = step + int(self._rng.integers(*steps))
