"""Frozen prefixes in training: what enters clean, what no loss counts, and that the rest of the chunk reads it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import random_model, small_batch, small_config, small_tokenizer
from wam.config import ObjectiveConfig
from wam.diffusion import losses, modes
from wam.models.streams import Noisy, observe
from wam.training.state import split

CONFIG = small_config()  # 8 steps in 4 tokens
KEY = jax.random.key(3)
EXPERTS = np.arange(0, 18, 3)  # rows of `small_batch` that may be copied
LATENTS = (2, CONFIG.latent_frames, CONFIG.patches, CONFIG.latent_channels)


def objective(prefix_tokens: int, mode: str = "joint") -> ObjectiveConfig:
    return ObjectiveConfig(modes={mode: 1.0}, policy_draws=2, prefix_tokens=prefix_tokens)


@pytest.fixture(scope="module")
def batch():
    return {name: jnp.asarray(value[EXPERTS]) for name, value in small_batch(CONFIG, 18).items()}


def draw(batch, prefix_tokens, mode="joint"):
    return modes.draw(KEY, batch, CONFIG, objective(prefix_tokens, mode))


def test_off_has_no_prefix_and_on_changes_no_other_draw(batch):
    off, on = draw(batch, 0), draw(batch, 3)
    assert off.prefix is off.policy_prefix is None
    jax.tree.map(np.testing.assert_array_equal, off, on._replace(prefix=None, policy_prefix=None))
    noisy = losses.noisy_inputs(batch, jnp.zeros((6, *LATENTS)), off, CONFIG)
    assert noisy.prefix is noisy.prefix_draws is None


def test_every_length_is_equally_likely_in_imitating_modes_alone():
    many = small_batch(CONFIG, 3000)
    many["action_mask"][3, :, 5:] = False  # its third token is half real
    many["action_mask"][6, :, 0] = False  # as is the first of this one
    weights = {"joint": 1.0, "policy": 1.0, "forward": 1.0, "inverse": 1.0}
    made = jax.jit(lambda b: modes.draw(KEY, b, CONFIG, ObjectiveConfig(modes=weights, prefix_tokens=3)))(many)
    imitates = np.asarray(losses.loss_flags(made.mode)[2])
    prefix, policy = np.asarray(made.prefix), np.asarray(made.policy_prefix)
    assert (prefix[~imitates] == 0).all()
    for lengths in (prefix[imitates], policy[::3]):
        share = np.bincount(lengths.ravel(), minlength=4) / lengths.size
        np.testing.assert_allclose(share, 0.25, atol=0.06)
    assert (policy[:, :, 0] != policy[:, :, 1]).any(), "the draws of a chunk have prefixes of their own"
    assert policy[3].max() <= 2
    assert prefix[6].max() == policy[6].max() == 0


def test_a_prefix_enters_clean_and_no_loss_counts_it(batch):
    off, on = draw(batch, 0), draw(batch, 3)
    latents = jnp.zeros((6, *LATENTS))
    plain, frozen = (losses.noisy_inputs(batch, latents, d, CONFIG) for d in (off, on))
    k, A = CONFIG.steps_per_token, CONFIG.action_dim
    lengths = {"action": on.prefix, "draws": on.policy_prefix}
    assert all(np.asarray(n).max() > 0 for n in lengths.values())
    for name, prefix in lengths.items():
        given = np.arange(CONFIG.action_horizon) < np.asarray(prefix)[..., None] * k
        clean = np.broadcast_to(batch["action"] if name == "action" else batch["action"][:, :, None],
                                getattr(frozen, name).shape)  # fmt: skip
        np.testing.assert_array_equal(getattr(frozen, name)[given], clean[given])
        np.testing.assert_array_equal(getattr(frozen, name)[~given], getattr(plain, name)[~given])
    before, after = (losses.targets(batch, latents, d, CONFIG) for d in (off, on))
    for name, prefix in (("action", on.prefix), ("policy", on.policy_prefix)):
        left_out = np.asarray(prefix).reshape(6, -1).sum(-1) * k * A
        np.testing.assert_array_equal(before[name].counts() - after[name].counts(), left_out)
    for name in ("video", "inverse"):
        np.testing.assert_array_equal(before[name].counts(), after[name].counts())


def test_the_noise_of_a_prefix_reaches_neither_loss_nor_gradient(batch):
    apply, params = split(random_model(CONFIG))
    latents = small_tokenizer(CONFIG).encode(batch["video"], batch["camera"])

    @jax.jit
    def loss_and_grads(draws):
        def loss(params):
            terms = losses.loss_terms(apply.model(params), batch, latents, draws)
            return sum(term.mean() for term in terms.values())

        return jax.value_and_grad(loss)(params)

    draws = draw(batch, 3)
    frozen = losses.frozen_steps(draws.prefix, CONFIG)[..., None]
    policy = losses.frozen_steps(draws.policy_prefix, CONFIG)[..., None]
    other = draws._replace(noise_action=jnp.where(frozen, 1e3, draws.noise_action),
                           policy_noise=jnp.where(policy, -1e3, draws.policy_noise))  # fmt: skip
    first, second = loss_and_grads(draws), loss_and_grads(other)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    beyond = draws._replace(noise_action=jnp.where(frozen, draws.noise_action, 2.0))
    assert loss_and_grads(beyond)[0] != first[0], "the rest of the chunk must be noised"


def test_the_rest_of_a_chunk_reads_its_prefix_alike_in_both_streams(batch):
    """Actions that do not see the video and a draw of equal numbers are one computation, prefix included."""
    model = random_model(CONFIG)
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.standard_normal((6, *LATENTS)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((6, 1, CONFIG.action_horizon, CONFIG.action_dim)), jnp.float32)
    sigma = jnp.asarray(rng.uniform(0.2, 0.9, (6, 1)), jnp.float32)
    prefix = jnp.array([[0], [1], [2], [3], [1], [2]])

    @jax.jit
    def outputs(action, prefix):
        noisy = Noisy(
            video=None, sigma_video=jnp.ones((6, 1, CONFIG.frames_per_chunk)),
            frame_mask=jnp.ones((6, 1, CONFIG.frames_per_chunk), bool), action=action,
            action_mask=batch["action_mask"], sigma_action=sigma, action_sees_video=jnp.zeros(6),
            video_sees_action=jnp.zeros(6), prefix=prefix, draws=jnp.stack([action, x], 2),
            sigma_draws=jnp.stack([sigma] * 2, 2), prefix_draws=jnp.stack([prefix, jnp.zeros_like(prefix)], 2),
        )  # fmt: skip
        return model(observe(batch, latents, 1, CONFIG.frames_per_chunk), noisy)[1]

    out, unfrozen = outputs(x, prefix), outputs(x, jnp.zeros_like(prefix))
    np.testing.assert_allclose(out.action, out.draws[:, :, 0], atol=2e-5)
    last = np.s_[:, :, -CONFIG.steps_per_token :]
    changes = np.abs(np.asarray(out.action - unfrozen.action)[last]).max((1, 2, 3))
    assert changes[0] == 0
    assert changes[1:].min() > 1e-3, "sigma 0 of a prefix changes what follows it"
    moved = outputs(x.at[:, :, : CONFIG.steps_per_token].add(1.0), prefix)
    changes = np.abs(np.asarray(moved.action - out.action)[last]).max((1, 2, 3))
    assert changes[1:].min() > 1e-3, "what a prefix holds changes what follows it"
    np.testing.assert_array_equal(moved.draws[:, :, 1], out.draws[:, :, 1])  # draws do not see each other


def test_a_prefix_leaves_something_to_predict(batch):
    for bad in (-1, 4):
        with pytest.raises(ValueError, match=rf"objective.prefix_tokens is {bad}; expected 0 to 3"):
            draw(batch, bad)
