"""Play: smooth random motion. The task does not predict its actions, so a model of their effect must read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.collect.recorder import Env, Recorder
from data_pipelines.episode import Episode

_APPROACH_PROBABILITY = 0.6
_APPROACH_STEPS = (5, 70)
_SEGMENT_STEPS = (8, 25)
_SPEED = (0.25, 1.0)
_NOISE_DECAY, _NOISE_SIZE = 0.85, 0.05


def play_episode(
    env: Env,
    layout: np.ndarray,
    rng: np.random.Generator,
    meta: Mapping[str, Any],
    *,
    steps: int,
    frame_stride: int,
) -> Episode:
    """`steps` control steps of piecewise-constant random motion plus a little autocorrelated noise, in the workspace.

    Most episodes begin where 5 to 69 steps of the expert lead (`meta["approach_steps"]`, not recorded), so that objects
    get touched. Nothing of it is to be imitated.
    """
    state = env.reset(layout)
    approach = int(rng.integers(*_APPROACH_STEPS)) if rng.random() < _APPROACH_PROBABILITY else 0
    for _ in range(approach):
        state, _ = env.step(env.expert_action())
    recorder = Recorder(env, state, frame_stride)
    low, high = env.workspace
    moves = len(low)  # the first dimensions move the hand, the others are set to one end of their range
    action, noise = np.zeros(env.spec.action_dim), np.zeros(moves)
    segment_end = 0
    while recorder.steps < steps:
        if recorder.steps >= segment_end:
            segment_end = recorder.steps + int(rng.integers(*_SEGMENT_STEPS))
            direction = rng.standard_normal(moves)
            action[:moves] = rng.uniform(*_SPEED) * direction / np.linalg.norm(direction)
            action[moves:] = rng.choice([-1.0, 1.0], env.spec.action_dim - moves)
        hand = recorder.state[:moves]
        action[:moves] = np.where(hand < low, abs(action[:moves]), action[:moves])
        action[:moves] = np.where(hand > high, -abs(action[:moves]), action[:moves])
        noise = _NOISE_DECAY * noise + _NOISE_SIZE * rng.standard_normal(moves)
        recorder.step(action + np.pad(noise, (0, env.spec.action_dim - moves)), imitate=False)
    return recorder.episode("play", {**meta, "approach_steps": approach})
