"""The policy that never looks, and the interval that every success rate carries."""

import numpy as np
import pytest

from wam.evaluation.baselines import BlindReplay, mean_demonstration, wilson_interval


def test_the_mean_at_a_step_is_over_the_demonstrations_that_still_run():
    demos = [np.full((2, 3), 1.0), np.full((4, 3), 3.0), np.full((3, 3), 5.0)]
    mean = mean_demonstration(demos)
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, np.array([3, 3, 4, 3])[:, None] * np.ones(3))
    with pytest.raises(ValueError, match="at least one demonstration"):
        mean_demonstration([])


def test_after_its_end_the_replay_stands_still_and_keeps_its_grip():
    actions = np.array([[0.1, 0.2, -1.0], [0.3, 0.4, 1.0]])
    policy = BlindReplay(actions, delta=(True, True, False))
    np.testing.assert_array_equal(policy(1), actions[1].astype(np.float32))
    for step in (2, 100):
        np.testing.assert_array_equal(policy(step), np.array([0, 0, 1], np.float32))


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(0, 20, 0.0, 0.161), (20, 20, 0.839, 1.0), (5, 10, 0.237, 0.763), (105, 120, 0.804, 0.923)],
)
def test_wilson_interval_matches_published_values(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=6e-4)


def test_an_interval_of_no_episodes_is_refused():
    with pytest.raises(ValueError, match="at least one episode, got 0"):
        wilson_interval(0, 0)
