"""Episodes of a scripted expert, disturbed so that the way back is in the data, and the same seen from the hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.collect.disturbance import Disturbance, Perturbation
from data_pipelines.collect.recorder import Env, Recorder
from data_pipelines.episode import Episode


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
    disturbance = Disturbance(perturbation, rng, env.spec.action_dim)
    while recorder.steps < (max_steps if recorder.success_step < 0 else recorder.success_step + after_success):
        action = disturbance(recorder)
        if action is not None:
            recorder.step(action, imitate=False)
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
