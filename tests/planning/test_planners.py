"""Best of N and CEM over a policy: they choose what they say, and answers do not depend on company."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.helpers import small_config, small_observation, small_policy
from tests.planning.conftest import CONFIG
from wam.diffusion.sampler import program
from wam.planning.best_of_n import BestOfN
from wam.planning.cem import CemSettings
from wam.planning.model_cem import ModelCEM
from wam.planning.scores import AGGREGATES, Rows, majority, mean_minus_std

IDS = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint32)
FEW = CemSettings(samples=8, elites=2, iterations=2, low=-0.5, high=0.5)


def test_aggregates_by_hand():
    scores = np.array([[0.9, 0.1, 0.8], [0.2, 0.1, 0.9], [0.5, 0.5, 0.5]])
    np.testing.assert_allclose(majority(scores), [0.85, 0.15, 0.5], rtol=1e-6)
    np.testing.assert_allclose(majority(np.array([0.0, 0.1, 0.8, 1.0])), 0.475)  # two against two: all
    np.testing.assert_allclose(majority(np.array([0.2, 0.6])), 0.4)
    np.testing.assert_allclose(mean_minus_std(np.array([0.2, 0.6])), 0.2, rtol=1e-6)
    assert float(AGGREGATES["mean"](np.array([0.2, 0.6]))) == pytest.approx(0.4)


def test_one_proposal_is_what_the_policy_does(policy, observations):
    own, _ = policy.infer_many(observations, IDS)
    planned, memories, infos = policy.plan_many(observations, IDS, planner=BestOfN(n=1, futures=1))
    for a, b, memory, info in zip(own, planned, memories, infos, strict=True):
        np.testing.assert_allclose(a.actions, b.actions, atol=1e-5)
        assert (memory.chunk, info["chosen"], info["judged"].shape) == (1, 0, (1, 1))


@pytest.mark.parametrize("score", ["value", "agreement"])
def test_the_best_by_its_own_score_is_chosen_whoever_is_beside(policy, observations, score):
    planner = BestOfN(n=4, futures=2, score=score, aggregate="mean_minus_std")
    chunks, _, infos = policy.plan_many(observations, IDS, planner=planner)
    for info in infos:
        assert info["judged"].shape == (4, 2)
        np.testing.assert_allclose(info["scores"], info["judged"].mean(-1) - info["judged"].std(-1), atol=1e-5)
        assert info["chosen"] == info["scores"].argmax()
        assert np.ptp(info["scores"]) > 1e-5
    assert {int(info["chosen"]) for info in infos} != {0}
    alone, _, (info,) = policy.plan_many(observations[1:2], IDS[1:2], planner=planner, batch_size=3)
    np.testing.assert_allclose(alone[0].actions, chunks[1].actions, atol=1e-5)
    np.testing.assert_allclose(info["scores"], infos[1]["scores"], atol=1e-5)


def test_a_known_scorer_finds_its_favourite(policy, observations, monkeypatch):
    """Scored by their first action, of 6 proposals the one with the largest is returned."""
    monkeypatch.setattr(Rows, "agreement", lambda *args: args[3][:, 0, 0, 0])
    planner = BestOfN(n=6, futures=1, score="agreement", aggregate="mean")
    chunks, _, infos = policy.plan_many(observations, IDS, planner=planner)
    for chunk, info in zip(chunks, infos, strict=True):
        assert chunk.actions[0, 0] == pytest.approx(2 * info["scores"].max(), abs=1e-5)  # as the robot is normalised
        assert np.ptp(info["scores"]) > 0.1


def test_action_values_are_those_of_the_policy(policy, observations):
    planner = BestOfN(n=3, futures=1, action_value=True, aggregate="mean")
    chunk, _, info = policy.plan(observations[0], planner=planner, key=jax.random.key(5))
    assert info["judged"].shape == (3, 2)
    own = policy.value(observations[0], actions=chunk.actions)
    assert 0 < own < 1
    assert info["judged"][info["chosen"], 1] == pytest.approx(own, abs=1e-5)


def test_a_value_reads_the_video_it_is_given(policy, observations):
    """V(s') is of what is shown: other frames, another value; the same for actions; never both."""
    h = observations[0]["images"]["camera0"].shape[0]
    frames = [{c: np.full((2, h, h, 3), level, np.uint8) for c in policy.cameras} for level in (0, 255)]
    dark, light = (policy.value(observations[0], video=video) for video in frames)
    assert min(dark, light) > 0 and abs(dark - light) > 1e-4
    with pytest.raises(ValueError, match="expected either `actions` or `video`"):
        policy.value(observations[0])


@pytest.mark.parametrize("start", ["policy", "zero"])
def test_cem_moves_towards_the_goal_within_its_clips(policy, observations, start):
    planner = ModelCEM(start=start, settings=FEW, hold=4)
    chunks, _, infos = policy.plan_many(observations, IDS, planner=planner)
    for chunk, info in zip(chunks, infos, strict=True):
        assert np.abs(chunk.actions).max() <= 2 * 0.5 + 1e-6  # in units of the robot
        assert info["energy"].shape == (2,)
        assert (info["best"] <= info["energy"] + 1e-6).all() and np.isfinite(info["energy"]).all()
        if start == "zero":
            np.testing.assert_allclose(chunk.actions[:4], np.broadcast_to(chunk.actions[0], (4, 4)), atol=1e-6)
    again, _, (info,) = policy.plan_many(observations[2:], IDS[2:], planner=planner, batch_size=3)
    np.testing.assert_allclose(again[0].actions, chunks[2].actions, atol=1e-4)
    other = {**observations[2], "goal": observations[0]["goal"]}
    _, _, (moved,) = policy.plan_many([other], IDS[2:], planner=planner, batch_size=3)
    assert abs(moved["energy"][0] - info["energy"][0]) > 1e-4


def test_a_goal_of_another_size_or_none_is_named(policy, observations):
    small = {**observations[0], "goal": {c: image[:8] for c, image in observations[0]["goal"].items()}}
    with pytest.raises(ValueError, match=r"observation.goal\['camera0'\]: expected uint8 \[16, 16, 3\], got uint8 \[8"):
        policy.plan(small, planner=ModelCEM(settings=FEW))
    bare = {name: value for name, value in observations[0].items() if name != "goal"}
    with pytest.raises(ValueError, match="the observation lacks 'goal'"):
        policy.plan(bare, planner=ModelCEM(settings=FEW))
    with pytest.raises(ValueError, match=r"cem\.hold: expected a divisor of the chunk's 8 steps, got 3"):
        policy.plan(observations[0], planner=ModelCEM(settings=FEW, hold=3))


def test_what_a_checkpoint_lacks_is_said(observations):
    plain = small_policy(small_config(**{**CONFIG, "value_bins": 0}))
    modes = plain.assets["config"]["objective"]["modes"]
    with pytest.raises(ValueError, match=r"no value query \(model.value_bins is 0\)"):
        plain.value(observations[0], actions=np.zeros((8, 4)))
    with pytest.raises(ValueError, match="no value query"):
        plain.plan(observations[0], planner=BestOfN(n=2))
    modes["inverse"] = 0.0
    with pytest.raises(ValueError, match="mode 'inverse': this checkpoint was trained for"):
        plain.plan(observations[0], planner=BestOfN(n=2, score="agreement"))
    modes["forward"] = 0.0
    with pytest.raises(ValueError, match="mode 'forward': this checkpoint"):
        plain.plan(observations[0], planner=ModelCEM())


@pytest.mark.parametrize(
    ("planner", "changes", "said"),
    [(BestOfN, {"n": 0}, "best_of_n.n: expected at least 1"), (BestOfN, {"score": "luck"}, "unknown 'luck'"),
     (BestOfN, {"aggregate": "max"}, "best_of_n.aggregate: unknown 'max'"),
     (BestOfN, {"dynamics": program("inverse", 1)}, "best_of_n.dynamics: expected mode forward, got 'inverse'"),
     (BestOfN, {"proposals": program("forward", 1)}, "best_of_n.proposals: expected mode policy or joint"),
     (ModelCEM, {"start": "goal"}, "cem.start: unknown 'goal'"),
     (ModelCEM, {"dynamics": program("joint", 1)}, "cem: expected dynamics of mode forward")],
)  # fmt: skip
def test_bad_planners(planner, changes, said):
    with pytest.raises(ValueError, match=said):
        planner(**changes)
    assert hash(planner()) == hash(dataclasses.replace(planner()))


def test_planning_in_a_session_sees_its_past_and_carries_it_on():
    """Where chunks see earlier ones, a planner is given them and remembers its own, as `infer` does."""
    policy = small_policy(small_config(**CONFIG, chunks=2, latent_frames=5))
    opening, later = small_observation(policy, 0), small_observation(policy, 1, frames=2)
    one = BestOfN(n=1, futures=1)
    own, memory = policy.infer(opening)
    planned, same, _ = policy.plan(opening, planner=one)
    np.testing.assert_allclose(planned.actions, own.actions, atol=1e-5)
    own, _ = policy.infer(later, memory)
    planned, _, _ = policy.plan(later, same, planner=one)
    np.testing.assert_allclose(planned.actions, own.actions, atol=1e-5)
    alone, _, _ = policy.plan({**later, "images": {c: i[-1] for c, i in later["images"].items()}}, planner=one)
    assert np.abs(alone.actions - planned.actions).max() > 1e-3
    value, other = (policy.value(later, past, actions=own.actions) for past in (same, memory))
    assert value == pytest.approx(other, abs=1e-5)
