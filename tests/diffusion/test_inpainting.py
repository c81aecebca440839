"""Guidance of real-time chunking, against the paper's formulas in its own convention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import small_config
from wam.diffusion import flow, inpainting
from wam.diffusion.sampler import Sample

CONFIG = small_config()  # 8 steps in 4 tokens
K, A = CONFIG.action_horizon, CONFIG.action_dim

# ------------------------------------------------------- the reference: numpy, t = 1 is data, velocity = data - noise


def reference_weights(frozen: int, overlap: int) -> np.ndarray:
    weights = np.zeros(K)
    for i in range(min(K, overlap)):
        c = 1.0 if i < frozen else (overlap - i) / (overlap - frozen + 1)
        weights[i] = c * (np.exp(c) - 1) / (np.e - 1)
    return weights


class Network:
    """v(x, t) = (1 + t) tanh(W x) + b over whole chunks, with its Jacobian by hand; steps and dims are mixed."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.W = rng.standard_normal((K * A, K * A)) / np.sqrt(K * A)
        self.b = rng.standard_normal(K * A)

    def __call__(self, x: np.ndarray, t: float) -> np.ndarray:
        return (1 + t) * np.tanh(self.W @ x) + self.b

    def jacobian(self, x: np.ndarray, t: float) -> np.ndarray:
        return (1 + t) * (1 - np.tanh(self.W @ x) ** 2)[:, None] * self.W

    def ours(self, x: Sample, _: jax.Array, sigma: jax.Array) -> Sample:
        """The same network where sigma = 1 is noise and velocity = noise - data."""
        flat = x.action.reshape(len(x.action), -1)
        v = (2 - sigma)[:, None] * jnp.tanh(flat @ self.W.T) + self.b
        return Sample(None, -v.reshape(x.action.shape))


def reference_rollout(network, noise, target, weights, steps, beta):
    """Euler from t = 0 to 1 with x1 = x + (1 - t) v and v + min(beta, (1-t)/t (t^2+(1-t)^2)/(1-t)^2) J^T e."""
    x, per_element = noise.copy(), np.repeat(weights, A)
    for n in range(steps):
        t = n / steps
        v = network(x, t)
        error = per_element * (target - (x + (1 - t) * v))
        transposed = np.eye(K * A) + (1 - t) * network.jacobian(x, t).T
        weight = beta if t == 0 else min(beta, (1 - t) / t * (t**2 + (1 - t) ** 2) / (1 - t) ** 2)
        x = x + (v + weight * transposed @ error) / steps
    return x


@pytest.mark.parametrize(("frozen", "overlap"), [(0, 0), (0, 8), (2, 6), (3, 3), (8, 8), (5, 4)])
def test_weights_are_one_then_fall_then_zero(frozen, overlap):
    got = np.asarray(inpainting.overlap_weights(jnp.array([frozen]), jnp.array([overlap]), K))[0]
    np.testing.assert_allclose(got, reference_weights(frozen, overlap), atol=1e-6)
    assert (np.diff(got) <= 0).all()
    np.testing.assert_allclose(got[: min(frozen, overlap)], 1, atol=1e-6)
    assert (got[overlap:] == 0).all()
    between = got[frozen:overlap]
    assert ((between > 0) & (between < 1)).all()


def test_strength_is_the_papers_with_time_reversed():
    t = np.linspace(0.05, 0.95, 7)
    expected = (1 - t) / (t * ((1 - t) ** 2 / (t**2 + (1 - t) ** 2)))
    assert expected.min() < 3 < expected.max()
    got = inpainting.strength(jnp.asarray(1 - t), 3.0)
    np.testing.assert_allclose(got, np.minimum(3.0, expected), rtol=1e-5)
    np.testing.assert_array_equal(inpainting.strength(jnp.array([0.0, 1.0]), 3.0), 3.0)


@pytest.mark.parametrize("beta", [5.0, 1.5])
def test_guidance_equals_the_reference_through_a_whole_rollout(beta):
    rng = np.random.default_rng(1)
    network, steps, frozen, overlap = Network(), 5, 2, 6
    noise, target = rng.standard_normal((2, 3, K * A))
    weights = inpainting.overlap_weights(jnp.array(frozen), jnp.array(overlap), K)
    old = jnp.asarray(target.reshape(3, 1, K, A), jnp.float32)
    predict = jax.jit(inpainting.guided(network.ours, old, weights[:, None], limit=beta))

    def rollout(predict):
        x = jnp.asarray(noise.reshape(3, 1, K, A), jnp.float32)
        for n in range(steps):
            sigma, after = jnp.full(3, 1 - n / steps), jnp.full(3, 1 - (n + 1) / steps)
            x = flow.step(x, predict(Sample(None, x), sigma, sigma).action, sigma, after, "velocity")
        return np.asarray(x).reshape(3, K * A)

    expected = np.stack([reference_rollout(network, n, old_chunk, reference_weights(frozen, overlap), steps, beta)
                         for n, old_chunk in zip(noise, target, strict=True)])  # fmt: skip
    np.testing.assert_allclose(rollout(predict), expected, atol=2e-4)
    free = np.stack([reference_rollout(network, n, n, np.zeros(K), steps, beta) for n in noise])
    np.testing.assert_allclose(rollout(network.ours), free, atol=2e-4)
    early = np.s_[:, : frozen * A]
    assert np.abs(expected - target)[early].mean() < 0.5 * np.abs(free - target)[early].mean()
    # What passes for it in other code: a Jacobian taken as the identity.
    blunt = Network()
    blunt.jacobian = lambda *_: np.zeros((K * A, K * A))
    short = reference_rollout(blunt, noise[0], target[0], reference_weights(frozen, overlap), steps, beta)
    assert np.abs(short - expected[0]).max() > 0.05


def test_rows_are_guided_on_their_own_and_weight_zero_is_no_guidance():
    network, rng = Network(), np.random.default_rng(2)
    x = Sample(None, jnp.asarray(rng.standard_normal((2, 1, K, A)), jnp.float32))
    sigma = jnp.array([0.7, 0.4])
    weights = jnp.stack([jnp.zeros(K), inpainting.overlap_weights(jnp.array(2), jnp.array(6), K)])[:, None, :, None]
    guided = inpainting.guided(network.ours, jnp.ones((2, 1, K, A)), weights)
    plain, out = (predict(x, sigma, sigma).action for predict in (network.ours, guided))
    np.testing.assert_array_equal(out[0], plain[0])
    assert np.abs(out[1] - plain[1]).max() > 1e-2
