"""Closed loop in simulated time: without latency it is the plain closed loop; seams are where sources change."""

import numpy as np

from tests.helpers import IMAGE, ROBOT, small_config, small_policy
from wam.diffusion.sampler import program
from wam.evaluation import closed_loop, real_time
from wam.evaluation.closed_loop import Settings
from wam.serving.continuation import Continuation
from wam.serving.limits import Limits

HORIZON, STEPS = 8, 20


class Plant:
    """Adds up increments; its pictures are as bright as it is high."""

    spec, instruction = ROBOT, "push the block"

    def __init__(self, task, cameras):
        self.cameras = cameras

    def reset(self, layout):
        self.state = np.array([*layout, 0.0], np.float32)

    def step(self, action):
        self.state = np.append(self.state[:3] + action[:3], action[3]).astype(np.float32)
        return self.state, False

    def render(self):
        level = np.uint8(np.clip(128 + 40 * self.state[2], 0, 255))
        return {camera: np.full((IMAGE, IMAGE, 3), level, np.uint8) for camera in self.cameras}

    def close(self):
        pass


def test_seam_jerk_by_hand():
    actions = np.array([0, 1, 2, 3, 5, 7, 9], float)[:, None]
    seam, inside = real_time.seam_jerk(actions, np.array([1, 1, 1, 1, 2, 2, 2]))
    assert seam.tolist() == [1.0, 0.0]
    assert inside.tolist() == [0.0, 0.0, 0.0]
    seam, inside = real_time.seam_jerk(actions, np.array([1, 1, 1, -1, -1, -1, -1]))
    assert len(seam) == 2
    assert inside.tolist() == [0.0]


def test_without_latency_it_is_the_plain_closed_loop_and_with_it_steps_are_waited():
    policy = small_policy(small_config(), prefix_tokens=2)
    layouts = {task: np.array([[0.1, 0.2, -0.3]]) for task in ("left", "right")}
    settings, limits = Settings(max_steps=STEPS, workers=1, execute_steps=HORIZON), Limits.of(4, -1, 1)
    plain = closed_loop.run_policy(policy, Plant, layouts, program("policy", 2), "policy", settings,
                                   recorded={"left": 0})  # fmt: skip
    continuation = Continuation(policy, "naive")
    loose = Limits.of(4)
    episodes = real_time.run(continuation, Plant, layouts, settings,
                             continuation.config(ROBOT.name, execute=HORIZON), loose, 0)  # fmt: skip
    first = episodes[0]
    assert [(e.task, e.layout, e.success, e.steps) for e in episodes] == [
        ("left", 0, False, 20),
        ("right", 0, False, 20),
    ]
    np.testing.assert_allclose(first.actions, plain[0].recording["executed"], atol=1e-6)
    assert first.sources.tolist() == [1] * 8 + [2] * 8 + [3] * 4

    continuation = Continuation(policy, "frozen_prefix")
    episodes = real_time.run(continuation, Plant, layouts, settings,
                             continuation.config(ROBOT.name, execute=4), limits, 3)  # fmt: skip
    np.testing.assert_array_equal(episodes[0].actions[:3], 0)
    # The first answer has seen what the plain loop's has, and the limits hold.
    np.testing.assert_allclose(episodes[0].actions[3:10], np.clip(first.actions[:7], -1, 1), atol=1e-6)
    assert episodes[0].sources.tolist() == [-1] * 3 + [1] * 7 + [2] * 4 + [3] * 4 + [4] * 2
    summary = real_time.summarize(episodes, dims=[0, 1, 2])
    assert summary["counts"] == {"steps": 40, "requests": 10, "answers": 8, "waited": 6, "missed": 0, "slowed": 0,
                                 "late": 0}  # fmt: skip
    assert summary["jerk"]["seams"] == 2 * 2 * 4
    assert (summary["episodes"], summary["mean_steps"]) == (2, 20)
