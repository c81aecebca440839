"""Policies that do not look: what a task yields without a camera. numpy only.

Scripted demonstrations of many tasks are so alike that replaying their average solves the task; a success rate means
something only next to this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def mean_demonstration(actions: Sequence[np.ndarray]) -> np.ndarray:
    """Mean action per time step, float32 [T, A], of demonstrations [T_i, A]; T is the longest T_i.

    At each step the demonstrations that still run are averaged. Raises ValueError if there are none.
    """
    if not actions:
        raise ValueError("the mean demonstration needs at least one demonstration, got none")
    length = max(len(a) for a in actions)
    total = np.zeros((length, actions[0].shape[1]), np.float64)
    count = np.zeros((length, 1))
    for a in actions:
        total[: len(a)] += a
        count[: len(a)] += 1
    return (total / count).astype(np.float32)


class BlindReplay:
    """Plays fixed actions [T, A] from the start of every episode, then holds still.

    Holding repeats the last action with the dimensions that are increments (`delta` [A] bool) set to zero, so that a
    gripper keeps its grip.
    """

    def __init__(self, actions: np.ndarray, delta: Sequence[bool]):
        self._actions = np.asarray(actions, np.float32)
        self._hold = np.where(np.asarray(delta, bool), 0, self._actions[-1]).astype(np.float32)

    def __call__(self, step: int) -> np.ndarray:
        """Action [A] of control step `step`, counted from the start of the episode."""
        return self._actions[step] if step < len(self._actions) else self._hold


def wilson_interval(successes: int, episodes: int, z: float = 1.96) -> tuple[float, float]:
    """95 % (for z = 1.96) confidence interval of a success rate; honest at 0 and at `episodes` successes too."""
    if episodes <= 0:
        raise ValueError(f"a success rate needs at least one episode, got {episodes}")
    rate = successes / episodes
    center = rate + z * z / (2 * episodes)
    spread = z * np.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes * episodes))
    scale = 1 + z * z / episodes
    return max(0.0, float((center - spread) / scale)), min(1.0, float((center + spread) / scale))


def success_rate(successes: int, episodes: int) -> dict[str, Any]:
    """`success`, `successes` of `episodes`, and its Wilson interval `ci95`: a rate as results files hold it."""
    interval = [round(bound, 4) for bound in wilson_interval(successes, episodes)]
    return {"success": successes / episodes, "successes": successes, "episodes": episodes, "ci95": interval}
