"""A simulator for tests that need none: instant, exact, importable by worker processes."""

import numpy as np

from tests.helpers import IMAGE, ROBOT


class Slider:
    """A hand that moves; solved once it is past `layout` along x. What it shows tells where it is."""

    instruction = "slide the hand"

    def __init__(self, task, cameras, spec=ROBOT):
        self.task, self.cameras, self.spec = task, cameras, spec

    def sample_layouts(self, seed, n):
        return np.random.default_rng(seed).uniform(0.05, 0.2, (n, 1))

    def reset(self, layout):
        self.goal, self.state = float(layout[0]), np.zeros(4, np.float32)
        return self.state

    def step(self, action):
        self.state = self.state + 0.01 * np.asarray(action, np.float32)
        return self.state, bool(self.state[0] >= self.goal)

    def render(self):
        level = np.uint8(np.clip(255 * self.state[0], 0, 255))
        return {c: np.full((IMAGE, IMAGE, 3), level, np.uint8) for c in self.cameras}

    def expert_action(self):
        return np.array([1.0, 0.0, 0.0, 1.0], np.float32)

    def close(self):
        pass
