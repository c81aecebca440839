"""Chunks that continue what is executed: a frozen prefix comes back bit for bit, guidance comes near the old chunk."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import (
    random_model,
    small_batch,
    small_config,
    small_observation,
    small_policy,
    small_tokenizer,
)
from wam.diffusion import sampler
from wam.inference import line_up, sampled
from wam.serving.background import Request, ThreadInference
from wam.serving.continuation import Continuation
from wam.serving.executor import ChunkExecutor
from wam.serving.limits import Limits
from wam.training.state import split


@pytest.mark.parametrize("solver", sampler.SOLVERS)
def test_a_frozen_prefix_comes_back_bit_for_bit_whatever_the_solver(solver):
    config = small_config()
    model, tokenizer = random_model(config), small_tokenizer(config)
    batch = jax.tree.map(jnp.asarray, small_batch(config, 4))
    batch["action_mask"] = jnp.ones_like(batch["action_mask"])
    prefix = np.array([[0], [1], [2], [3]], np.int32)
    way, rows = line_up([dataclasses.replace(sampler.program("policy", 3), solver=solver)] * 4)
    ids = jnp.arange(12, dtype=jnp.uint32).reshape(4, 3)
    apply, params = split(model)

    @jax.jit
    def run(action, prefix):
        given = batch | {"action": action, "prefix": prefix}
        return sampled(apply.model(params), tokenizer, way, given, ids, rows)[0].action

    out = np.asarray(run(batch["action"], prefix))
    frozen = np.broadcast_to(np.arange(config.action_horizon) < 2 * prefix[..., None], out.shape[:3])
    np.testing.assert_array_equal(out[frozen], np.asarray(batch["action"])[frozen])
    assert (out[~frozen] != np.asarray(batch["action"])[~frozen]).all()
    # What is behind a prefix follows from what it holds, and from that alone.
    moved = np.asarray(run(batch["action"] + 0.5, prefix))
    changes = np.abs(moved - out)[:, 0, -2:].max((1, 2))
    assert changes[0] == 0
    assert changes[1:].min() > 1e-3


@pytest.fixture(scope="module")
def policy():
    return small_policy(small_config(), prefix_tokens=2)  # chunks of 8 steps in 4 tokens, at 20 Hz


def requests_of(policy, planned, frozen):
    return [Request(small_observation(policy), p, f) for p, f in zip(planned, frozen, strict=True)]


def test_a_policy_returns_the_callers_own_numbers(policy):
    continuation = Continuation(policy, "frozen_prefix")
    config = continuation.config("test_robot")
    assert (config.control_hz, config.horizon, config.steps_per_token, config.longest_prefix) == (20.0, 8, 2, 4)
    planned = np.random.default_rng(0).uniform(-1, 1, (2, 6, 4)).astype(np.float32)
    ids = np.array([[1, 2, 3]] * 3, np.uint32)
    requests = requests_of(policy, [planned[0], planned[0], planned[1]], [0, 4, 4])
    free, first, second = continuation.answer(requests, ids, batch_size=4)
    np.testing.assert_array_equal(first[:4], planned[0, :4])
    np.testing.assert_array_equal(second[:4], planned[1, :4])
    assert np.abs(free[:4] - planned[0, :4]).min() > 0
    for one, other in ((free, first), (first, second)):
        assert np.abs(one[4:] - other[4:]).max() > 1e-3


def test_guidance_comes_near_the_old_chunk_and_is_off_without_one(policy):
    program = sampler.program("policy", 5)
    planned = np.random.default_rng(1).uniform(-0.5, 0.5, (6, 4)).astype(np.float32)
    ids = np.array([[1, 2, 3]] * 2, np.uint32)
    requests = requests_of(policy, [planned[:0], planned], [0, 4])
    free = Continuation(policy, "async", program).answer(requests, ids)[0]
    alone, pulled = Continuation(policy, "guided", program).answer(requests, ids)
    np.testing.assert_allclose(alone, free, atol=1e-4)
    error = {name: np.abs(actions[:4] - planned[:4]).mean() for name, actions in (("free", free), ("guided", pulled))}
    assert error["guided"] < 0.5 * error["free"]
    with pytest.raises(ValueError, match="planned: expected finite"):
        Continuation(policy, "guided", program).answer(requests_of(policy, [planned * np.nan], [0]), ids[:1])


def test_a_policy_behind_an_executor(policy):
    continuation = Continuation(policy, "frozen_prefix")
    inference = ThreadInference(continuation.infer)
    config = continuation.config("test_robot", execute=1)
    executor = ChunkExecutor(inference, config, Limits.of(4, -1, 1), np.zeros(4), [True, True, True, False])
    observation = small_observation(policy)
    while executor.report()["answers"] < 3:
        action = executor.step(observation)
        assert (np.abs(action) <= 1).all()
        assert executor.stopped is None
        time.sleep(0.002)  # the robot's own pace
    executor.close()


def test_what_a_checkpoint_cannot_do_is_named(policy):
    with pytest.raises(ValueError, match="frozen_prefix: this checkpoint was trained without prefixes"):
        Continuation(small_policy(small_config()), "frozen_prefix")
    with pytest.raises(ValueError, match="program 'video' makes no actions to execute"):
        Continuation(policy, "async", sampler.program("video", 1))
    with pytest.raises(ValueError, match="unknown strategy 'fast'; choose from naive, async"):
        Continuation(policy, "fast")
    with pytest.raises(ValueError, match="chunks of this checkpoint see earlier ones"):
        Continuation(small_policy(small_config(chunks=2, latent_frames=5)), "async")
