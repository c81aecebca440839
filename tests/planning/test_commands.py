"""The commands around planning: rollouts back into a store, and planners in closed loop."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.collect.layouts import layout_seed
from data_pipelines.store import ClipStore
from experiments import planners
from experiments.rollouts import Rollouts, collect_rollouts
from tests.planning.slider import Slider
from wam.diffusion.sampler import program
from wam.envs.metaworld import SPLIT_SEEDS
from wam.evaluation.closed_loop import Settings, run_policy
from wam.planning.cem import CemSettings

WAY = program("policy", 2)


@pytest.fixture
def simulated(policy):
    policy.assets["config"] |= {
        "sim": {"name": "slider", "cameras": list(policy.cameras), "render": {}},
        "collect": {"frame_stride": 2},
        "evaluate": {"max_steps": 24, "episodes": 5},
    }
    return policy


def test_rollouts_are_stored_once_and_say_whose_they_are(simulated, tmp_path):
    asked = Rollouts(("slide",), 3, WAY, 8, 0.0, imitate=True, seed=3)
    result = collect_rollouts(simulated, Slider, tmp_path, "train", "rollouts", asked, workers=1)
    (row,) = result["rows"]
    assert (row["episodes"], row["source"], result["shards"]) == (3, "rollouts", {"made": 1, "found": 0})
    store = ClipStore(tmp_path / "train" / "rollouts")
    about = store.manifest["meta"]
    assert about["policy"]["step"] == simulated.step and len(about["policy"]["digest"]) == 64
    assert about["rollouts"]["program"]["name"] == "policy"
    assert (store.manifest["kinds"], store.manifest["cameras"]) == (["rollout"], list(simulated.cameras))
    seed = layout_seed(SPLIT_SEEDS["train"], "rollouts")
    assert [meta["layout"] for meta in store.index.meta] == Slider("slide", ()).sample_layouts(seed, 3).tolist()
    for meta, steps, imitate in zip(store.index.meta, store.index.episode_steps, store.index.imitate, strict=True):
        assert meta["success"] == (meta["success_step"] >= 0) == (steps < 24 or meta["success_step"] == 24)
        assert imitate.all() if meta["success"] else not imitate.any()
    # The same again plays nothing; other settings are refused, for their episodes would be mixed.
    again = collect_rollouts(simulated, Slider, tmp_path, "train", "rollouts", asked, workers=1)
    assert again["shards"] == {"made": 0, "found": 1}
    assert json.dumps(ClipStore(store.directory).manifest) == json.dumps(store.manifest)
    other = dataclasses.replace(asked, perturb=0.5)
    with pytest.raises(ValueError, match=r"was collected with rollouts\.perturb = 0\.0, now it is 0\.5"):
        collect_rollouts(simulated, Slider, tmp_path, "train", "rollouts", other, workers=1)


def test_a_planner_plays_towards_goals_of_the_same_layouts(policy):
    layouts = {"slide": Slider("slide", ()).sample_layouts(1, 2)}
    goals = planners.expert_goals(Slider, layouts, policy.cameras, 40, 1)["slide"]
    for goal, where in zip(goals, layouts["slide"][:, 0], strict=True):
        assert 255 * where - 1 < goal["camera1"].max() < 255 * (where + 0.01) + 1  # the moment it is solved
    few = CemSettings(samples=4, elites=2, iterations=1)
    planner = planners.make_planner("cem:zero", WAY, settings=few)
    answer = planners.answer_by(policy, planner, Slider, layouts, max_steps=40, workers=1)
    settings = Settings(max_steps=12, execute_steps=8, workers=1)
    played = run_policy(policy, Slider, layouts, WAY, "policy", settings, answer=answer, recorded={"slide": 1})
    predicted = played[1].recording["predicted"]
    np.testing.assert_allclose(predicted[0][:4], np.broadcast_to(predicted[0][0], (4, 4)), atol=1e-6)  # held, as asked
    with pytest.raises(ValueError, match=r"the expert does not solve layout 0 of 'slide' in 3 steps"):
        planners.expert_goals(Slider, layouts, policy.cameras, 3, 1)
    for kind in ("best_of_n:luck", "cem"):
        with pytest.raises(ValueError, match="unknown planner"):
            planners.make_planner(kind, WAY)
