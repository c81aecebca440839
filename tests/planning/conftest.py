"""A policy without data or training: random parameters, one robot, 16 pixel images."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from tests.helpers import IMAGE, random_model, small_config, small_tokenizer
from wam.checkpoint import Inference
from wam.config import ObjectiveConfig, TextConfig
from wam.embodiment import NONE_EMBODIMENT, EmbodimentSpec, Normalizer
from wam.models.dynamics_paths import Constant
from wam.policy import Policy

ROBOT = EmbodimentSpec(
    "robot", action_kinds=("delta", "delta", "delta", "gripper"), state_names=("x", "y", "z", "opening"),
    action_names=("dx", "dy", "dz", "grip"), control_hz=40.0,
)  # fmt: skip
EVERY_MODE = {"joint": 0.2, "policy": 0.2, "forward": 0.2, "inverse": 0.2, "value": 0.2}


def make_policy(modes=EVERY_MODE, **changes) -> Policy:
    config = small_config(**{"cameras": 2, "target_views": (0, 1), "value_bins": 9, **changes})
    _, params, constants = nnx.split(random_model(config), nnx.Param, Constant)
    about, arrays = small_tokenizer(config).to_state()
    one, seconds = Normalizer(-np.ones(4), np.ones(4)), [0.1 * i for i in range(config.video_frames)]
    robot = {"spec": ROBOT.to_json(), "state": one.to_json(), "action": one.to_json(), "frame_seconds": seconds,
             "action_hz": 40.0, "views": ["front", "side"]}  # fmt: skip
    assets = {
        "model": dataclasses.asdict(config),
        "tokenizer": about,
        "text": dataclasses.asdict(TextConfig(tokens=3, dim=8)),
        "cameras": ["front", "side"],
        "embodiments": [{"spec": NONE_EMBODIMENT.to_json()}, robot],
        "config": {"objective": dataclasses.asdict(ObjectiveConfig(modes=modes))},
    }
    return Policy(Inference(0, nnx.to_pure_dict(params), constants, arrays, assets), unroll=False)


@pytest.fixture(scope="session")
def policy() -> Policy:
    return make_policy()


@pytest.fixture
def observations():
    """Three of them, of different scenes, each with a goal."""
    rng = np.random.default_rng(0)

    def images():
        return {camera: rng.integers(0, 256, (IMAGE, IMAGE, 3), dtype=np.uint8) for camera in ("front", "side")}

    return [
        {"images": images(), "state": rng.uniform(-1, 1, 4).astype(np.float32), "instruction": "push the puck",
         "embodiment": "robot", "time": 0.0, "goal": images()}
        for _ in range(3)
    ]  # fmt: skip
