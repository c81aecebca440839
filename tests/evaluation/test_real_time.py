"""Closed loop in simulated time: without latency it is the plain closed loop; seams are where sources change."""

import numpy as np
import pytest

from wam.diffusion.sampler import program
from wam.envs import env_factory
from wam.envs.metaworld import SPLIT_SEEDS
from wam.evaluation import closed_loop, real_time
from wam.evaluation.closed_loop import Settings
from wam.policy import load_policy
from wam.serving.continuation import Continuation
from wam.serving.limits import Limits


def test_seam_jerk_by_hand():
    actions = np.array([0, 1, 2, 3, 5, 7, 9], float)[:, None]
    seam, inside = real_time.seam_jerk(actions, np.array([1, 1, 1, 1, 2, 2, 2]))
    assert seam.tolist() == [1.0, 0.0]
    assert inside.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.requires_sim
def test_without_latency_it_is_the_plain_closed_loop_and_with_it_steps_are_waited(debug_run):
    policy = load_policy(debug_run, unroll=False)
    make_env = env_factory("metaworld", policy.assets["config"]["sim"]["render"], max_steps=40)
    env = make_env("faucet-open", ())
    layouts = {"faucet-open": env.sample_layouts(SPLIT_SEEDS["validation"], 1)}
    env.close()
    settings, limits = Settings(max_steps=40, workers=1), Limits.of(4, -1, 1)
    (plain,) = closed_loop.run_policy(policy, make_env, layouts, program("policy", 2), "policy", settings,
                                      recorded={"faucet-open": 0})  # fmt: skip
    continuation = Continuation(policy, "naive")
    config = continuation.config(policy.embodiments[0], execute=16)
    (episode,) = real_time.run(continuation, make_env, layouts, settings, config, limits, 0)
    assert (episode.task, episode.layout, episode.success, episode.steps) == ("faucet-open", 0, False, 40)
    np.testing.assert_allclose(episode.actions, np.clip(plain.recording["executed"], -1, 1), atol=1e-6)
    assert episode.sources.tolist() == [1] * 16 + [2] * 16 + [3] * 8

    continuation = Continuation(policy, "async")
    config = continuation.config(policy.embodiments[0], execute=8)
    episodes = real_time.run(continuation, make_env, layouts, settings, config, limits, 4)
    np.testing.assert_array_equal(episodes[0].actions[:4], 0)
    # The first answer has seen what the plain loop's has.
    np.testing.assert_array_equal(episodes[0].actions[4:16], episode.actions[:12])
    summary = real_time.summarize(episodes, dims=[0, 1, 2])
    assert summary["counts"] == {"steps": 40, "requests": 5, "answers": 4, "waited": 4, "missed": 0, "slowed": 0,
                                 "late": 0}  # fmt: skip
    assert summary["jerk"]["seams"] == 2 * 4
    assert summary["episodes"] == 1
