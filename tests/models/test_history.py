"""A session that remembers keys and values in a ring equals one long sequence that recomputes everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import random_model, small_batch, small_config
from wam.models import history
from wam.models.streams import Noisy, Observation, observe

M, f, W = 6, 2, 3
LONG = small_config(chunks=M, latent_frames=1 + M * f, history_chunks=W, latent_rate=7.0)
STEP = small_config(chunks=1, latent_frames=1 + f, history_chunks=W, latent_rate=7.0)
SPACING = 0.13  # seconds between latent frames


@pytest.fixture(scope="module")
def case():
    """Six chunks of one session of two samples, seen by a model whose window is three."""
    batch = small_batch(LONG, 2)
    batch["embodiment"][:], batch["state_mask"][:], batch["action_mask"][:] = 1, True, True
    batch["view_mask"][1, 1] = False
    batch["video_time"][:] = SPACING * np.arange(1 + M * f)
    steps = np.arange(LONG.action_horizon) * 0.03
    batch["action_time"][:] = SPACING * f * np.arange(M)[:, None] + steps
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 2, 1 + M * f, 4, 8)).astype(np.float32)
    noisy = Noisy(
        video=rng.standard_normal((2, M, f, 1, 4, 8)).astype(np.float32),
        sigma_video=rng.uniform(0.1, 0.9, (2, M, f)).astype(np.float32),
        frame_mask=np.ones((2, M, f), bool),
        action=rng.standard_normal(batch["action"].shape).astype(np.float32),
        action_mask=batch["action_mask"],
        sigma_action=rng.uniform(0.1, 0.9, (2, M)).astype(np.float32),
        action_sees_video=np.array([1.0, 0.0], np.float32),
        video_sees_action=np.array([0.0, 1.0], np.float32),
        prefix=rng.integers(0, 3, (2, M)).astype(np.int32),
    )
    long, step = random_model(LONG), random_model(STEP)
    for model in (long, step):
        model.context_gain[...] = jnp.asarray(np.linspace(0.5, 1.5, 16).reshape(2, 8), jnp.float32)

    @jax.jit
    def whole(latents):
        return long.denoise(long.context(observe(batch, latents, M, f)), noisy)

    @jax.jit
    def one(ring, obs, noisy):
        context = step.context(obs, ring)
        return step.denoise(context, noisy), history.remember(ring, context)

    return batch, latents, noisy, whole, one


def observation(batch, latents, chunk) -> Observation:
    """The observation of one chunk: clean frames of the chunk before it, times relative to their last."""
    first = chunk == 0
    frames = np.repeat(latents[:, :, :1], f, 2) if first else latents[:, :, 1 + (chunk - 1) * f : 1 + chunk * f]
    one = {name: batch[name][:, chunk : chunk + 1] for name in ("state", "state_mask")}
    one |= {name: batch[name] for name in ("view_mask", "camera", "text", "text_mask", "embodiment")}
    one |= {"video_time": batch["video_time"][:, : 1 + f], "action_time": batch["action_time"][:, :1]}
    seen = np.ones((2, f, 2), bool)
    seen[:, :-1] = not first
    obs = observe(one, jnp.asarray(latents[:, :, :1]), 1, f)
    return obs._replace(
        latents=jnp.asarray(frames), seen=jnp.asarray(seen), opens=jnp.full(2, first),
        seconds=jnp.tile(jnp.asarray(SPACING * np.arange(1 - f, 1), jnp.float32), (2, 1)),
    )  # fmt: skip


def part(noisy, chunk):
    """What one chunk has of its own; the bits are of the whole sample."""
    own = ("video", "sigma_video", "frame_mask", "action", "action_mask", "sigma_action", "prefix")
    return noisy._replace(**{name: getattr(noisy, name)[:, chunk : chunk + 1] for name in own})


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_session_equals_one_long_sequence(case, ahead):
    """Twice around the ring: the window passes over chunks that are no longer in it."""
    batch, latents, noisy, whole, one = case
    expected = whole(jnp.asarray(latents))
    assert np.abs(expected.video).max() > 0.1
    ring = history.empty(STEP, 2, ahead)
    assert ring.chunk.shape[1] == W - 1 + ahead
    for chunk in range(M):
        out, ring = one(ring, observation(batch, latents, chunk), part(noisy, chunk))
        np.testing.assert_allclose(out.video[:, 0], expected.video[:, chunk], atol=3e-5)
        np.testing.assert_allclose(out.action[:, 0], expected.action[:, chunk], atol=3e-5)
    # What lies behind the window is out of reach, also through the layers between, once it is three windows away.
    moved = latents.copy()
    moved[:, :, 0] += 1
    changed = whole(jnp.asarray(moved))
    difference = np.abs(changed.action - expected.action).max((0, 2, 3))
    assert difference[0] > 1e-3
    assert difference[-1] < difference[0]


def test_real_frames_overwrite_imagined_ones(case):
    """Imagining ahead and then seeing what came leaves the session as if nothing had been imagined."""
    batch, latents, noisy, _, one = case
    imagined = latents + 1
    ring = history.empty(STEP, 2, ahead=3)
    for chunk in range(4):
        _, ring = one(ring, observation(batch, latents, chunk), part(noisy, chunk))
    plain = ring
    for chunk in (4, 5):
        _, ring = one(ring, observation(batch, imagined, chunk), part(noisy, chunk))
    rewound = ring._replace(length=plain.length)
    assert not np.array_equal(rewound.k, plain.k)
    for chunk in (4, 5):
        expected, plain = one(plain, observation(batch, latents, chunk), part(noisy, chunk))
        out, rewound = one(rewound, observation(batch, latents, chunk), part(noisy, chunk))
        np.testing.assert_array_equal(out.video, expected.video)
        np.testing.assert_array_equal(out.action, expected.action)


def test_sessions_of_different_age_share_a_batch(case):
    batch, latents, noisy, _, one = case
    ring = history.empty(STEP, 2)
    rings, outs = [], []
    for chunk in range(3):
        rings.append(ring)
        out, ring = one(ring, observation(batch, latents, chunk), part(noisy, chunk))
        outs.append(out)

    def mixed(early, late):
        """Row 0 of one tree, row 1 of the other; the keys' batch axis is the second."""
        if isinstance(early, history.Ring):
            keys = [jnp.concatenate([a[:, :1], b[:, 1:]], 1) for a, b in zip(early[:2], late[:2], strict=True)]
            return history.Ring(*keys, *mixed(tuple(early[2:]), tuple(late[2:])))
        return jax.tree.map(lambda a, b: jnp.concatenate([a[:1], b[1:]]), early, late)

    observations = [observation(batch, latents, chunk) for chunk in (0, 2)]
    out, _ = one(mixed(rings[0], rings[2]), mixed(*observations), mixed(part(noisy, 0), part(noisy, 2)))
    np.testing.assert_allclose(out.action[0], outs[0].action[0], atol=3e-5)
    np.testing.assert_allclose(out.video[1], outs[2].video[1], atol=3e-5)
