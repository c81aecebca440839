"""Episodes of a scripted expert, disturbed so that the way back is in the data, and the same seen from the hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.collect.recorder import Env, Recorder
from data_pipelines.episode import Episode


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """Random actions mixed into an expert episode, each one constant action for several control steps.

    The expert then shows how to recover; its own steps are flagged `imitate`, the random ones are not.
    """

    start_probability: float = 0.5
    """Share of the episodes that begin with one."""
    start_steps: tuple[int, int] = (5, 30)
    """Its length: low (inclusive) and high (exclusive)."""
    burst_probability: float = 0.0125
    """Chance per control step, until success, that a short one begins."""
    burst_steps: tuple[int, int] = (3, 10)


CLEAN = Perturbation(start_probability=0.0, burst_probability=0.0)


def expert_episode(
    env: Env,
    layout: np.ndarray,
    rng: np.random.Generator,
    meta: Mapping[str, Any],
    *,
    perturbation: Perturbation,
    max_steps: int,
    after_success: int,
    frame_stride: int,
) -> Episode:
    """The expert from `layout` until `after_success` steps past its first success, at most `max_steps` to success."""
    recorder = Recorder(env, env.reset(layout), frame_stride)
    disturbance = np.zeros(env.spec.action_dim)
    disturbed_until = 0

    def disturb(steps: tuple[int, int]) -> int:
        disturbance[:] = rng.uniform(-1, 1, env.spec.action_dim)
        return recorder.steps + int(rng.integers(*steps))

    if rng.random() < perturbation.start_probability:
        disturbed_until = disturb(perturbation.start_steps)
    while recorder.steps < (max_steps if recorder.success_step < 0 else recorder.success_step + after_success):
        if recorder.success_step >= 0:
            disturbed_until = 0
        elif recorder.steps >= disturbed_until and rng.random() < perturbation.burst_probability:
            disturbed_until = disturb(perturbation.burst_steps)
        if recorder.steps < disturbed_until:
            recorder.step(disturbance, imitate=False)
        else:
            recorder.step(env.expert_action(), imitate=True)
    return recorder.episode("expert", meta)


def without_actions(episode: Episode) -> Episode:
    """The same episode as action-free egocentric video: images and instruction only, no robot."""
    return dataclasses.replace(
        episode,
        state=None,
        action=None,
        imitate=np.zeros_like(episode.imitate),
        meta=episode.meta | {"kind": "ego", "embodiment": "none"},
    )
