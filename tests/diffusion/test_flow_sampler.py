"""The sigma convention at both ends, and the sampler against fields whose solution is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.diffusion import flow, sampler
from wam.diffusion.sampler import Program, Sample


def test_sigma_zero_is_data_and_one_is_noise():
    x, eps = jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3)) * 9
    np.testing.assert_array_equal(flow.add_noise(x, eps, jnp.zeros(2)), x)
    np.testing.assert_array_equal(flow.add_noise(x, eps, jnp.ones(2)), eps)
    np.testing.assert_array_equal(flow.target(x, eps, "velocity"), eps - x)
    np.testing.assert_array_equal(flow.target(x, eps, "x"), x)
    assert flow.shift(jnp.array(0.5), 5.0) == pytest.approx(5 * 0.5 / (1 + 4 * 0.5))
    assert flow.shift(jnp.array(0.3), 1.0) == pytest.approx(0.3)


@pytest.mark.parametrize("prediction", ["velocity", "x"])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_straight_paths_are_followed_exactly(prediction, steps):
    """With the true output for a single data point, any number of steps ends on it."""
    rng = np.random.default_rng(0)
    target, noise = (jnp.asarray(rng.standard_normal((4, 1, 2, 1, 3, 5)), jnp.float32) for _ in range(2))
    action, action_noise = (jnp.asarray(rng.standard_normal((4, 1, 8, 3)), jnp.float32) for _ in range(2))

    def predict(x, sigma_video, sigma_action):
        video = target if prediction == "x" else (x.video - target) / sigma_video
        return Sample(video, (x.action - action) / sigma_action)

    out = jax.jit(
        lambda: sampler.sample(predict, Sample(noise, action_noise), sampler.program("joint", steps), prediction)
    )()
    np.testing.assert_allclose(out.video, target, atol=1e-5)
    np.testing.assert_allclose(out.action, action, atol=1e-5)


def test_euler_converges_with_first_order_on_a_gaussian():
    """Data N(0, s^2): v = x (sigma - (1 - sigma) s^2) / ((1 - sigma)^2 s^2 + sigma^2); the flow maps eps to s eps."""
    s, eps = 0.4, jnp.linspace(-2, 2, 9).reshape(1, 1, 9, 1)

    def predict(x, _, sigma):
        return Sample(None, x.action * (sigma - (1 - sigma) * s**2) / ((1 - sigma) ** 2 * s**2 + sigma**2))

    def error(steps):
        out = sampler.sample(predict, Sample(None, eps), sampler.program("policy", steps), "x")
        return float(jnp.abs(out.action - s * eps).max())

    errors = [error(n) for n in (20, 40, 80)]
    assert errors[0] < 0.1
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2.0, rel=0.15)


def test_given_streams_stay_bit_for_bit():
    video, action = jnp.full((1, 1, 1, 1, 2, 2), 3.25), jnp.full((1, 1, 4, 2), -1.5)

    def predict(x, *_):
        return Sample(x.video * 7 + 1, x.action * 7 + 1)

    forward = sampler.sample(predict, Sample(video, action), sampler.program("forward", 4), "x")
    np.testing.assert_array_equal(forward.action, action)
    assert not np.array_equal(forward.video, video)
    inverse = sampler.sample(predict, Sample(video, action), sampler.program("inverse", 4), "x")
    np.testing.assert_array_equal(inverse.video, video)
    assert not np.array_equal(inverse.action, action)


def test_bad_programs_are_named():
    with pytest.raises(ValueError, match="unknown mode 'dream'"):
        sampler.program("dream", 5)
    with pytest.raises(ValueError, match="at least one step"):
        sampler.program("policy", 0)
    with pytest.raises(ValueError, match="one length"):
        Program("x", (1.0, 0.0), (1.0, 0.5, 0.0))
    with pytest.raises(ValueError, match=r"must fall within \[0, 1\]"):
        Program("x", (0.0, 1.0), (1.0, 0.0))
