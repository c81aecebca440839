"""Encoders and decoders that are small networks, and the state at the sigma of the actions.

That they compute what DreamZero does is tests/pretrained/test_dreamzero_parity.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import random_model, small_batch, small_config
from wam.models.streams import Noisy, observe

B, M, R, K, A = 3, 2, 2, 8, 4


def case(**changes):
    """(model, what it reads directly of a batch, noisy actions of which three tokens of the first sample are given)."""
    config = small_config(chunks=M, latent_frames=1 + M, inverse_width=0, lead_width=0, **changes)
    model, batch = random_model(config), small_batch(config, B)
    batch["action_mask"][:], batch["state_mask"][:], batch["embodiment"][:] = True, True, [0, 1, 1]
    latents = jax.random.normal(jax.random.key(0), (B, config.views, 1 + M, config.patches, config.latent_channels))
    rng = np.random.default_rng(0)
    noisy = Noisy(
        video=None, sigma_video=jnp.ones((B, M, 1)), frame_mask=jnp.ones((B, M, 1), bool),
        action=jnp.asarray(rng.normal(size=(B, M, K, A)), jnp.float32), action_mask=jnp.ones((B, M, K, A), bool),
        sigma_action=jnp.array([[0.3, 0.6]] * B), action_sees_video=jnp.zeros(B), video_sees_action=jnp.zeros(B),
        prefix=jnp.array([[3, 0]] + [[0, 0]] * (B - 1)),
    )  # fmt: skip
    return model, model._observed(observe(batch, latents, M, 1)), noisy


def test_given_actions_are_encoded_as_clean_and_draws_at_their_own_sigma():
    model, (given, _, _), noisy = case(codecs="mlp")
    whole = model._action_stream(given, noisy).x
    clean = model._action_stream(given, noisy._replace(sigma_action=jnp.zeros((B, M)))).x
    near = np.abs(np.asarray(whole - clean)).max(-1) < 1e-6  # [B, M, Ka]
    assert near[0, 0].tolist() == [True, True, True, False]
    assert not near[1:].any()
    draws = noisy._replace(
        draws=jnp.stack([noisy.action] * R, 2), sigma_draws=jnp.array([[[0.3, 0.0], [0.6, 0.0]]] * B)
    )
    drawn = np.asarray(model._draw_stream(given, draws).x).reshape(B, M, R, *whole.shape[2:])
    np.testing.assert_allclose(drawn[1:, :, 0], whole[1:], atol=1e-6)
    np.testing.assert_allclose(drawn[:, :, 1], clean, atol=1e-6)


def test_shared_codecs_do_not_ask_for_the_embodiment():
    for shared in (False, True):
        model, (given, streams, _), noisy = case(codecs="mlp", shared_codecs=shared)
        assert model.action_in.input.kernel.shape[0] == (1 if shared else 2)
        other = given._replace(observation=given.observation._replace(embodiment=jnp.array([1, 0, 0])))
        state = model._state_stream(other, jnp.zeros((B, 1, 1))).x
        assert np.array_equal(state, streams["state"].x) == shared
        actions = [model._action_stream(g, noisy).x for g in (given, other)]
        assert np.array_equal(*actions) == shared


def test_a_state_at_the_sigma_of_the_actions_is_denoised_and_not_observed():
    model, (given, observed, _), noisy = case(state_sigma="action", action_places="count")
    assert observed.keys() == {"history"}
    streams = model._noisy(given, noisy)
    assert streams.keys() == {"state", "action"}
    assert streams["state"].modulation.shape[:3] == (B, M, 1)
    # The condition of a chunk's actions, which is that of the noise; the places of both kinds count from 0.
    np.testing.assert_allclose(streams["state"].condition[1:], streams["action"].condition[1:, :, :1], atol=1e-6)
    np.testing.assert_allclose(streams["state"].angles[0, :, 0, 0], [0, 1])
    np.testing.assert_allclose(streams["action"].angles[0, ..., 0].ravel(), np.arange(8))
    with pytest.raises(ValueError, match=r"further draws do not have: set objective\.policy_draws to 0"):
        model._noisy(given, noisy._replace(draws=noisy.action[:, :, None], sigma_draws=jnp.ones((B, M, 1))))
