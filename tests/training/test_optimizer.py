"""Schedule, decay mask and EMA."""

import jax.numpy as jnp
import pytest

from tests.helpers import small_config
from wam.config import OptimizerConfig
from wam.models.joint_dit import create
from wam.training import optimizer, state


def test_learning_rate_and_decay_mask():
    rate = lambda s: float(optimizer.learning_rate(OptimizerConfig(), jnp.int32(s), jnp.int32(1000)))  # noqa: E731
    assert rate(0) == pytest.approx(1e-5)
    assert rate(100) == pytest.approx(1e-3, rel=1e-3)
    assert rate(1000) == pytest.approx(2e-5, rel=1e-3)
    assert all(rate(a) > rate(b) for a, b in ((200, 400), (400, 800)))
    _, params = state.split(create(small_config(), 0))
    mask = optimizer.decay_mask(params)
    assert mask["blocks"]["video"]["up"] == {"kernel": True, "bias": False}
    assert mask["blocks"]["video"]["table"] is False
    assert mask["view_embedding"] is False


def test_ema_follows_the_ramp():
    ema = state.update_ema({"w": jnp.zeros(())}, {"w": jnp.ones(())}, jnp.int32(0), 0.995)
    assert float(ema["w"]) == pytest.approx(0.9)
    late = state.update_ema({"w": jnp.zeros(())}, {"w": jnp.ones(())}, jnp.int32(10**6), 0.995)
    assert float(late["w"]) == pytest.approx(0.005, rel=1e-3)
