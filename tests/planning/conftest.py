import numpy as np
import pytest

from tests.helpers import IMAGE, small_config, small_observation, small_policy

CONFIG = {"cameras": 2, "target_views": (0, 1), "value_bins": 9}


@pytest.fixture(scope="session")
def policy():
    return small_policy(small_config(**CONFIG))


@pytest.fixture
def observations(policy):
    """Three of them, of different scenes, each with a goal."""
    rng = np.random.default_rng(9)
    goals = [{c: rng.integers(0, 256, (IMAGE, IMAGE, 3), dtype=np.uint8) for c in policy.cameras} for _ in range(3)]
    return [{**small_observation(policy, seed), "goal": goal} for seed, goal in enumerate(goals)]
