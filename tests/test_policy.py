"""The public API on a real (tiny) checkpoint."""

import jax
import numpy as np
import pytest

from wam.diffusion.sampler import program
from wam.policy import load_policy
from wam.session import Memory

pytestmark = pytest.mark.requires_sim


@pytest.fixture(scope="module")
def policy(debug_run):
    return load_policy(debug_run, unroll=False)


@pytest.fixture
def observation(policy):
    rng = np.random.default_rng(0)
    example = policy.example_observation()
    example["images"] = {c: rng.integers(0, 256, i.shape, dtype=np.uint8) for c, i in example["images"].items()}
    return {**example, "state": np.array([0.0, 0.6, 0.2, 1.0], np.float32), "instruction": "open the faucet"}


def test_every_mode_of_one_checkpoint(policy, observation):
    chunk, memory = policy.infer(observation)
    assert chunk.actions.shape == (16, 4)
    assert chunk.video is None
    assert memory == Memory(1)
    joint, _ = policy.infer(observation, memory, mode="joint")
    assert joint.actions.shape == (16, 4)
    assert set(joint.video) == set(policy.imagined) == {"corner2", "topview"}
    assert {(v.shape, v.dtype.name) for v in joint.video.values()} == {((4, 32, 32, 3), "uint8")}
    assert not np.array_equal(joint.video["corner2"], joint.video["topview"])
    np.testing.assert_allclose(joint.video_seconds, [0.05, 0.1, 0.15, 0.2], rtol=1e-6)
    forward, _ = policy.infer(observation, mode="forward", actions=chunk.actions)
    assert forward.actions is None
    assert forward.video["topview"].shape == (4, 32, 32, 3)
    video, _ = policy.infer(observation, mode="video")
    assert video.actions is None
    assert policy.embodiments == ("sawyer_metaworld",)
    assert policy.action_names == ("dx", "dy", "dz", "gripper")


def test_equal_calls_give_equal_answers_and_keys_change_them(policy, observation):
    first, memory = policy.infer(observation)
    again, _ = policy.infer(observation)
    np.testing.assert_array_equal(first.actions, again.actions)
    later, _ = policy.infer(observation, memory)
    other, _ = policy.infer(observation, key=jax.random.key(1))
    assert not np.array_equal(first.actions, later.actions)
    assert not np.array_equal(first.actions, other.actions)


def test_an_answer_does_not_depend_on_its_neighbours(policy, observation):
    """Noise is keyed by what is sampled; the static batch keeps the arithmetic of a row the same."""
    others = [{**observation, "state": observation["state"] + 0.01 * i} for i in range(3)]
    ids = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint32)
    whole, _ = policy.infer_many(others, ids, batch_size=4)
    alone, _ = policy.infer_many(others[1:2], ids[1:2], batch_size=4)
    swapped, _ = policy.infer_many(others[::-1], ids[::-1], batch_size=4)
    np.testing.assert_array_equal(whole[1].actions, alone[0].actions)
    np.testing.assert_array_equal(whole[2].actions, swapped[0].actions)


def test_unrolled_layers_give_the_same_actions(policy, observation, debug_run):
    unrolled = load_policy(debug_run)
    np.testing.assert_allclose(unrolled.infer(observation)[0].actions, policy.infer(observation)[0].actions, atol=1e-5)


def test_actions_are_in_the_robots_units(policy, observation):
    """Sampling ends near the data: with the normaliser inverted, expert-like magnitudes, not unit noise in metres."""
    robot = policy.embodiment("sawyer_metaworld")
    x = np.random.default_rng(0).uniform(-1, 1, (16, 4)).astype(np.float32)
    np.testing.assert_allclose(robot.action.denormalize(robot.action.normalize(x)), x, atol=1e-6)
    sample = policy.raw_actions(np.zeros((16, 4), np.float32), observation)
    np.testing.assert_allclose(sample, np.tile(robot.action.center, (16, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {}}, "lacks the camera 'corner2'"),
        ({"state": np.zeros(3, np.float32)}, "observation.state: expected 4 finite numbers"),
        ({"state": np.array([0, np.nan, 0, 0], np.float32)}, "observation.state: expected 4 finite numbers"),
        ({"embodiment": "octopus"}, "unknown embodiment 'octopus'; the checkpoint knows sawyer_metaworld"),
    ],
)
def test_bad_observations_are_named(policy, observation, change, message):
    with pytest.raises(ValueError, match=message):
        policy.infer({**observation, **change})


def test_bad_requests_are_named(policy, observation, tmp_path):
    images = {c: i.astype(np.float32) for c, i in observation["images"].items()}
    with pytest.raises(ValueError, match=r"expected uint8 \[32, 32, 3\], got float32"):
        policy.infer({**observation, "images": images})
    with pytest.raises(ValueError, match="lacks 'instruction'"):
        policy.infer({k: v for k, v in observation.items() if k != "instruction"})
    with pytest.raises(ValueError, match="unknown mode 'dream'"):
        policy.infer(observation, mode="dream")
    with pytest.raises(ValueError, match="needs `actions`"):
        policy.infer(observation, mode="forward")
    with pytest.raises(ValueError, match=r"actions: expected finite \[16, 4\]"):
        policy.infer(observation, mode="forward", actions=np.zeros((3, 4)))
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load_policy(tmp_path)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises((FileNotFoundError, ValueError), match="checkpoint"):
        load_policy(tmp_path)


def test_the_given_stream_comes_back_unchanged(policy, observation):
    from wam.evaluation.world_model import same_task_shuffle

    row = policy.observations.row(observation)
    policy.observations.fill(row, np.zeros((16, 4), np.float32), observation)
    batch = {k: v[None] for k, v in row.items()}
    out = policy.generate(batch, np.zeros((1, 3), np.uint32), program("forward", 2))
    np.testing.assert_array_equal(out.action, batch["action"])
    order = same_task_shuffle(["a", "b", "a", "a", "b"])
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert all(order[i] != i for i in range(5))
    assert set(order[[0, 2, 3]]) == {0, 2, 3}
