"""Closed-loop evaluation is a function of (checkpoint, task, layout, seed) alone."""

import numpy as np
import pytest

from wam.diffusion.reuse import Reuse
from wam.diffusion.sampler import program
from wam.envs import env_factory
from wam.envs.metaworld import SPLIT_SEEDS
from wam.evaluation import closed_loop
from wam.evaluation.closed_loop import Settings
from wam.policy import load_policy

pytestmark = pytest.mark.requires_sim


def test_results_do_not_depend_on_workers_or_company(debug_run):
    policy = load_policy(debug_run, unroll=False)
    render = policy.assets["config"]["sim"]["render"]
    make_env = env_factory("metaworld", render, max_steps=40)
    layouts = {}
    for task in ("faucet-open", "faucet-close"):
        env = make_env(task, ())
        layouts[task] = env.sample_layouts(SPLIT_SEEDS["validation"], 2)
        env.close()
    runs = []
    for workers in (1, 2):
        episodes = closed_loop.run_policy(
            policy, make_env, layouts, program("joint", 3, reuse=Reuse(0.9, 1)), "joint",
            Settings(max_steps=40, workers=workers), recorded={"faucet-open": 1},
        )  # fmt: skip
        runs.append(episodes)
    assert [(e.task, e.layout) for e in runs[0]] == [(t, i) for t in layouts for i in range(2)]
    for a, b in zip(*runs, strict=True):
        assert (a.task, a.layout, a.success, a.steps) == (b.task, b.layout, b.success, b.steps)
        assert a.evaluations == b.evaluations
        assert 2 <= a.evaluations <= 3
    filmed = [next(e for e in run if e.recording) for run in runs]
    for e in filmed:
        assert (e.task, e.layout) == ("faucet-open", 1)
        assert e.recording["imagined"].shape == (3, 4, 32, 32, 3)
        assert e.recording["frame_step"][:4] == [0, 4, 8, 12]
    # Different batch sizes (2 tasks in one worker, 1 in each of two) may round differently in the last bit.
    np.testing.assert_allclose(filmed[0].recording["predicted"], filmed[1].recording["predicted"], atol=1e-4)


def test_a_failing_simulator_is_reported(debug_run):
    policy = load_policy(debug_run, unroll=False)
    with pytest.raises(RuntimeError, match="a simulator failed: ValueError: unknown Meta-World task 'fly'"):
        closed_loop.run_policy(policy, env_factory("metaworld", {}), {"fly": np.zeros((1, 3))}, program("policy", 1),
                               "policy", Settings(workers=1))  # fmt: skip
