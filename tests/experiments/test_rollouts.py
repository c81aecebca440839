"""The commands around planning, in a simulator: rollouts back into a store, and planners in closed loop."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.store import ClipStore
from experiments import planners
from experiments.rollouts import Rollouts, collect_rollouts
from wam.diffusion.sampler import program
from wam.envs import env_factory
from wam.envs.metaworld import SPLIT_SEEDS
from wam.evaluation.closed_loop import Settings, run_policy
from wam.planning.cem import CemSettings
from wam.policy import load_policy

pytestmark = pytest.mark.requires_sim


@pytest.fixture(scope="module")
def policy(debug_run):
    policy = load_policy(debug_run, unroll=False)
    policy.assets["config"]["evaluate"].update(max_steps=24, episodes=2)
    return policy


def test_rollouts_are_stored_once_and_say_whose_they_are(policy, tmp_path):
    asked = Rollouts(("faucet-open",), 2, program("policy", 2), 16, 0.0, imitate=True, seed=3)
    result = collect_rollouts(policy, tmp_path, "train", "rollouts", asked, workers=1)
    (row,) = result["rows"]
    assert (row["episodes"], row["source"], result["shards"]) == (2, "rollouts", {"made": 1, "found": 0})
    store = ClipStore(tmp_path / "train" / "rollouts")
    about = store.manifest["meta"]
    assert about["policy"]["step"] == policy.step and len(about["policy"]["digest"]) == 64
    assert about["rollouts"]["program"]["name"] == "policy"
    assert store.manifest["kinds"] == ["rollout"]
    assert store.manifest["cameras"] == list(policy.assets["config"]["sim"]["cameras"])
    assert store.index.episode_steps.max() <= 24 and not store.index.imitate[0].any()  # nothing is solved so soon
    assert np.abs(store.index.action[0]).max() > 0
    env = env_factory("metaworld", policy.assets["config"]["sim"]["render"])("faucet-open", ())
    evaluated = [env.sample_layouts(SPLIT_SEEDS[split], 50) for split in SPLIT_SEEDS]
    env.close()
    assert all(meta["layout"] not in np.concatenate(evaluated).tolist() for meta in store.index.meta)
    # The same again plays nothing; other settings are refused, for their episodes would be mixed.
    manifest = json.dumps(store.manifest)
    again = collect_rollouts(policy, tmp_path, "train", "rollouts", asked, workers=1)
    assert again["shards"] == {"made": 0, "found": 1}
    assert json.dumps(ClipStore(tmp_path / "train" / "rollouts").manifest) == manifest
    with pytest.raises(ValueError, match=r"was collected with rollouts\.perturb = 0\.0, now it is 0\.5"):
        collect_rollouts(policy, tmp_path, "train", "rollouts", dataclasses.replace(asked, perturb=0.5), workers=1)


def test_a_planner_plays_towards_goals_of_the_same_layouts(policy):
    config = policy.assets["config"]
    layouts = {}
    make_env = env_factory("metaworld", config["sim"]["render"], max_steps=200)
    env = make_env("faucet-close", ())
    layouts["faucet-close"] = env.sample_layouts(SPLIT_SEEDS["validation"], 1)
    env.close()
    few = CemSettings(samples=4, elites=2, iterations=1)
    planner = planners.make_planner("cem:zero", program("policy", 2), settings=few, hold=8)
    answer = planners.answer_by(policy, planner, make_env, layouts, max_steps=200)
    way, settings = program("policy", 2), Settings(max_steps=20)
    played = run_policy(policy, make_env, layouts, way, "policy", settings, answer=answer, recorded={"faucet-close": 0})
    assert played[0].recording["predicted"].shape == (2, 16, 4)
    for flag in ("best_of_n:luck", "cem"):
        with pytest.raises(ValueError, match="unknown planner"):
            planners.make_planner(flag, program("policy", 2))
