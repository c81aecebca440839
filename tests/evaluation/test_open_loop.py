"""What open-loop errors are compared with, and how sure they are; answers of a model are in test_real_mixture."""

import numpy as np
import pytest

from wam.embodiment import EmbodimentSpec, Gripper, Normalizer, Rotation
from wam.evaluation import open_loop as module
from wam.observations import Embodiment

TURN = ("rx", "ry", "rz")
ROBOT = EmbodimentSpec(
    "arm",
    action_kinds=("delta", "absolute", "relative", "relative", "relative", "relative", "gripper", "gripper"),
    action_names=("dx", "height", "lift", *TURN, "grip", "suction"),
    state_names=("height", "lift", *TURN, "grip", "suction"),
    control_hz=10.0,
    state_rotations=(Rotation("hand", TURN, "rotation_vector"),),
    action_rotations=(Rotation("hand", TURN, "rotation_vector"),),
    state_grippers=(Gripper("grip", open=0.0, closed=0.04),),
    action_grippers=(Gripper("grip", open=1.0, closed=-1.0),),
)


def test_holding_still_is_where_the_robot_is():
    dims = ROBOT.model_action_dim
    low, high = np.linspace(-3, -1, dims), np.linspace(1, 4, dims)
    robot = Embodiment(ROBOT, action=Normalizer(low, high), state=Normalizer(low[:-1], high[:-1]))
    state = np.array([[0.7, 0.2, 0.3, -0.1, 0.4, 0.03, 9.0]], np.float32)
    mean = np.full(dims, 0.25)
    answer = robot.normalizers[1].denormalize(module.hold(robot, state, mean))
    raw = ROBOT.decode_action(answer[:, None], state)[0, 0]
    expected = {"dx": 0, "height": 0.7, "lift": 0.2, "rx": 0.3, "ry": -0.1, "rz": 0.4, "grip": -0.5}
    for name, value in expected.items():
        assert raw[ROBOT.action_names.index(name)] == pytest.approx(value, abs=1e-5), name
    # Nobody said in which units the suction's state is.
    assert module.hold(robot, state, mean)[0, -1] == pytest.approx(0.25, abs=1e-5)


def test_intervals_are_of_episodes_not_of_windows():
    rng = np.random.default_rng(1)
    episodes = np.repeat([f"e{i}" for i in range(6)], 40)
    of_episode = np.repeat(rng.uniform(0.1, 0.9, 6), 40)  # windows of one episode are equally hard
    reference = np.ones(240)
    _, units = module._units(episodes, np.zeros(240), 1.0)
    low, high = module._interval(of_episode, reference, units)
    low_windows, high_windows = module._interval(of_episode, reference, [("", i) for i in range(240)])
    assert low < module._skill(of_episode, reference) < high
    assert high - low > 3 * (high_windows - low_windows)
    # One episode alone: by stretches of a chunk's length.
    kind, units = module._units(["e"] * 6, [0.0, 0.3, 0.39, 0.41, 0.8, 0.81], 0.4)
    assert kind == "stretch" and [stretch for _, stretch in units] == [0, 0, 0, 1, 2, 2]
