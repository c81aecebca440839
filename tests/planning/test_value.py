"""The value query: what it sees, that nobody sees it, and its loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import random_model, small_batch, small_config
from wam.config import ObjectiveConfig
from wam.diffusion import losses, modes
from wam.diffusion.value import ValueTarget, expectation, two_hot
from wam.models.joint_dit import create
from wam.models.streams import Noisy, observe
from wam.training.state import split

M, f, BINS = 2, 2, 9
CONFIG = small_config(chunks=M, latent_frames=1 + M * f, value_bins=BINS)
KEY = jax.random.key(3)


def noisy_inputs(batch, **changes) -> Noisy:
    rng = np.random.default_rng(0)
    B, K, A = 4, CONFIG.action_horizon, CONFIG.action_dim
    fields = {
        "video": rng.standard_normal((B, M, f, 1, 4, 8)).astype(np.float32),
        "sigma_video": np.zeros((B, M, f), np.float32),
        "frame_mask": np.ones((B, M, f), bool),
        "action": rng.standard_normal((B, M, K, A)).astype(np.float32),
        "action_mask": batch["action_mask"],
        "sigma_action": np.zeros((B, M), np.float32),
        "action_sees_video": np.zeros(B, np.float32),
        "video_sees_action": np.zeros(B, np.float32),
        "value_sees_video": np.array([1, 0, 1, 0], np.float32),
    }
    return jax.tree.map(jnp.asarray, Noisy(**{**fields, **changes}))


@pytest.fixture(scope="module")
def case():
    batch = small_batch(CONFIG, 4)
    batch["embodiment"][:], batch["state_mask"][:], batch["action_mask"][:] = 1, True, True
    latents = np.random.default_rng(1).standard_normal((4, 2, 1 + M * f, 4, 8)).astype(np.float32)
    return random_model(CONFIG), batch, jnp.asarray(latents)


def test_its_presence_changes_no_other_output(case):
    model, batch, latents = case
    bits = jnp.ones(4)
    noisy = noisy_inputs(batch, sigma_video=np.full((4, M, f), 0.4, np.float32), action_sees_video=bits,
                         video_sees_action=bits)  # fmt: skip
    run = jax.jit(lambda n: model(observe(batch, latents, M, f), n)[1])
    apart = jax.jit(lambda n: model.denoise(model.context(observe(batch, latents, M, f)), n))
    with_query, without = run(noisy), run(noisy._replace(value_sees_video=None))
    assert with_query.value.shape == (4, M, BINS)
    assert np.abs(with_query.value).max() > 0.1
    assert without.value is None
    for name in ("video", "action"):
        np.testing.assert_allclose(getattr(with_query, name), getattr(without, name), atol=2e-6, rtol=3e-6)
    # In one pass, as in training, and after the context, as in inference.
    np.testing.assert_allclose(apart(noisy).value, with_query.value, atol=3e-6, rtol=3e-6)


def test_gradients_follow_the_bits(case):
    """V(s') reads the video and no action, Q(s, a) state and actions and no future video, of their own chunk."""
    model, batch, latents = case

    def chunk_value(inputs, chunk):
        video, action, state, seen = inputs
        noisy = noisy_inputs(batch)._replace(video=video, action=action)
        context = model.context(observe({**batch, "state": state}, seen, M, f))
        return (model.denoise(context, noisy).value[:, chunk] * jnp.arange(1, BINS + 1)).sum()

    made = noisy_inputs(batch)
    inputs = (made.video, made.action, jnp.asarray(batch["state"]), latents)
    gradient = jax.jit(jax.grad(chunk_value))
    sees_video = np.asarray(made.value_sees_video) > 0
    for chunk in range(M):
        video, action, state, seen = (np.abs(g).reshape(4, -1, *g.shape[2:]) for g in gradient(inputs, chunk))
        own, other = chunk, 1 - chunk
        assert (video[sees_video, own].max((1, 2, 3, 4)) > 0).all()
        assert video[~sees_video].max() == 0
        assert (action[~sees_video, own].max((1, 2)) > 0).all()
        assert (state[~sees_video, own].max(1) > 0).all()
        # Nothing of other chunks, and of the clean video only what lies before this one.
        assert max(video[:, other].max(), action[:, other].max(), state[:, other].max()) == 0
        assert (seen[:, :, 1 + chunk * f :].max() if chunk < M - 1 else 0) == 0
        assert seen.max() > 0
        # The video's own tokens look at the state, so it reaches V(s') through them; the actions never do.
        assert action[sees_video].max() == 0


def test_without_bins_nothing_is_added():
    """Parameters of a network with the query are those of one without, in name and value, and the query's own."""
    plain = split(create(dataclasses.replace(CONFIG, value_bins=0)))[1]
    queried = split(create(CONFIG))[1]
    assert set(queried) - set(plain) == {"value"}
    assert set(jax.tree.leaves(jax.tree.map(np.shape, queried["value"]["head"]["linear"]))) == {32 // 2, BINS}
    jax.tree.map(np.testing.assert_array_equal, plain, {n: p for n, p in queried.items() if n != "value"})
    with pytest.raises(ValueError, match=r"model\.value_bins is 1; it needs two at least"):
        create(dataclasses.replace(CONFIG, value_bins=1))


def test_two_hot_keeps_the_mean():
    values = jnp.array([0.0, 0.03, 0.125, 0.5, 0.99, 1.0])
    weights = two_hot(values, BINS)
    assert ((weights > 0).sum(-1) <= 2).all()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(expectation(jnp.log(weights + 1e-20)), values, atol=1e-5)
    assert two_hot(jnp.array([0.5]), 3).tolist() == [[0.0, 1.0, 0.0]]


def test_cross_entropy_is_least_at_the_target_and_masked():
    target = ValueTarget(jnp.array([[0.3, 0.9]]), jnp.array([[True, False]]))
    right = jnp.log(two_hot(target.value, BINS) + 1e-9)
    least = float(target.error(right)[0])
    weights = np.array([0.3 * 8 - 2, 3 - 0.3 * 8])
    assert least == pytest.approx(-(weights * np.log(weights)).sum(), abs=1e-4)
    assert float(target.error(right.at[:, 0].add(jax.random.normal(KEY, (BINS,))))[0]) > least + 0.01
    assert float(target.error(right.at[:, 1].set(jnp.nan))[0]) == pytest.approx(least)
    assert target.counts().tolist() == [1.0]


@pytest.fixture(scope="module")
def known():
    """Rows expert, action-free, play and again; the outcome of the first three is known."""
    batch = small_batch(CONFIG, 6)
    batch["value_mask"][:3] = True
    return batch


def drawn(batch, name, **changes):
    objective = ObjectiveConfig(modes={name: 1.0}, policy_draws=0, drop_text=0.0, drop_state=0.0, **changes)
    return objective, modes.draw(KEY, batch, CONFIG, objective)


def test_only_known_outcomes_are_drawn_for_the_value_mode(known):
    _, draws = drawn(known, "value")
    names = [modes.MODE_NAMES[i] for i in np.asarray(draws.mode)]
    assert names == ["value"] * 3 + ["video"] * 3
    assert float(draws.value_sees_video[1]) == 1  # there is no action to read
    none = modes.draw(KEY, known, dataclasses.replace(CONFIG, value_bins=0), drawn(known, "value")[0])
    assert (np.asarray(none.mode) == modes.MODE_NAMES.index("video")).all()
    batch = small_batch(CONFIG, 600)
    batch["value_mask"][:] = True
    bits = np.asarray(drawn(batch, "value")[1].value_sees_video)[np.arange(600) % 3 != 1]
    assert 0.4 < bits.mean() < 0.6


@pytest.mark.parametrize(
    ("mode", "with_video", "counted"),
    [("value", True, [1, 1, 1]), ("forward", True, [1, 0, 1]), ("inverse", True, [1, 0, 1]), ("joint", True, [0] * 3),
     ("value", False, [1, 0, 1]), ("inverse", False, [0] * 3)],
)  # fmt: skip
def test_the_loss_counts_where_the_outcome_is_known_and_the_input_clean(known, mode, with_video, counted):
    objective, draws = drawn(known, mode, with_video=with_video)
    latents = jnp.zeros((6, 2, 1 + M * f, 4, 8))
    target = losses.targets(known, latents, draws, CONFIG, with_video=with_video)["value"]
    assert (target.counts() / M).tolist() == [*counted, 0, 0, 0]
    assert objective.value_weight == 0.1


def test_the_value_mode_trains_the_value_and_nothing_else(case, known):
    objective, draws = drawn(known, "value")
    apply, params = split(random_model(CONFIG))
    latents = jax.random.normal(KEY, (6, 2, 1 + M * f, 4, 8))

    @jax.jit
    def gradient(params, batch):
        def loss(params):
            terms = losses.loss_terms(apply.model(params), batch, latents, draws)
            counted = {name: term for name, term in terms.items() if name in ("value", "action", "video")}
            rows = jnp.arange(6) < 3
            counted = {n: losses.Term(t.error * rows, t.count * rows) for n, t in counted.items()}
            of = losses.denominators({name: term.count for name, term in counted.items()})
            return losses.total_loss(counted, of, objective), counted

        return jax.grad(loss, has_aux=True)(params)

    grads, terms = gradient(params, known)
    assert float(terms["action"].count.sum()) == float(terms["video"].count.sum()) == 0
    assert float(terms["value"].count.sum()) == 3 * M
    norm = lambda tree: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))  # noqa: E731
    assert norm(grads["value"]) > 1e-3
    assert norm([grads["video_head"], grads["action_out"]]) == 0
    assert norm([grads["video_in"], grads["action_in"]]) > 0  # it teaches the trunk


def test_asking_for_a_value_without_a_query_is_an_error(case):
    _, batch, latents = case
    model = create(dataclasses.replace(CONFIG, value_bins=0))
    with pytest.raises(AssertionError, match="no value query"):
        jax.eval_shape(lambda: model(observe(batch, latents, M, f), noisy_inputs(batch))[1])
