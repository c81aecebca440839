"""Modes and losses: who counts, and what must not change a gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import random_model, small_batch, small_config, small_tokenizer
from wam.config import ObjectiveConfig
from wam.diffusion import losses, modes
from wam.models.joint_dit import create
from wam.training.state import split

CONFIG = small_config()
OBJECTIVE = ObjectiveConfig(policy_draws=2, drop_text=0.2, drop_state=0.2)
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def model():
    return split(random_model(CONFIG))


def only(name: str) -> ObjectiveConfig:
    return ObjectiveConfig(modes={name: 1.0}, policy_draws=2, inverse_weight=0.0, drop_text=0.0, drop_state=0.0)


@functools.cache
def compiled(config, with_draws: bool):
    """One compilation a config and shape, whatever the objective's weights: they are an argument."""
    apply, _ = split(random_model(config))
    tokenizer = small_tokenizer(config)

    @jax.jit
    def run(params, batch, draws, weights):
        def loss(params):
            latents = tokenizer.encode(batch["video"], batch["camera"])
            terms = losses.loss_terms(apply.model(params), batch, latents, draws)
            return sum(weights[name] * t.mean() for name, t in terms.items()), terms

        return jax.value_and_grad(loss, has_aux=True)(params)

    return run


def loss_and_grads(model, batch, draws, objective=OBJECTIVE):
    apply, params = model
    run = compiled(apply.model(params).config, bool(objective.policy_draws))
    (value, terms), grads = run(params, batch, draws, losses.weights(objective))
    return value, terms, grads


ACTION_WEIGHTS = ("action_in", "action_out", "action_norm", "action_embedding", "state_in", "inverse_path")


def largest(grads, names) -> float:
    flat = jax.tree_util.tree_flatten_with_path(grads)[0]
    return max(float(jnp.abs(g).max()) for path, g in flat if path[0].key in names)


@pytest.mark.parametrize("mode", [name for name in modes.MODE_NAMES if name != "value"])  # see planning/test_value.py
def test_mode_matrix(model, mode):
    """Each row of the table: the losses that count, and those that do not."""
    batch = small_batch(CONFIG, 6)
    draws = jax.jit(lambda b: modes.draw(KEY, b, CONFIG, only(mode)))(batch)
    kind = np.arange(6) % 3  # 0 expert, 1 action-free, 2 play
    row = modes.mode_named(mode)
    chosen = np.asarray(draws.mode)
    expected = {0: mode, 1: "video", 2: "video" if row.imitates else mode}
    assert [modes.MODE_NAMES[m] for m in chosen] == [expected[k] for k in kind]
    _, terms, _ = loss_and_grads(model, batch, draws, only(mode))
    for i, k in enumerate(kind):
        actual = modes.mode_named(expected[k])
        assert (float(terms["video"].count[i]) > 0) == actual.video_loss
        assert (float(terms["action"].count[i]) > 0) == (actual.action_loss and k != 1)
    if mode == "forward":
        assert np.asarray(draws.sigma_action)[kind != 1].max() == 0
    if mode == "inverse":
        assert np.asarray(draws.sigma_video)[kind != 1].max() == 0
    if mode == "policy":
        assert np.asarray(draws.sigma_video)[kind == 0].min() == 1
        assert np.asarray(draws.action_sees_video)[kind == 0].max() == 0


def test_action_free_samples_leave_action_weights_alone(model):
    batch = small_batch(CONFIG, 6)
    rows = np.array([1, 4, 1, 4, 1, 4])
    free = {name: value[rows] for name, value in batch.items()}
    draws = modes.draw(KEY, free, CONFIG, OBJECTIVE)
    value, _, grads = loss_and_grads(model, free, draws)
    assert value > 0
    assert largest(grads, ACTION_WEIGHTS) == 0
    assert float(jnp.abs(jax.tree.leaves(grads["blocks"]["action"])[0]).max()) == 0
    assert largest(grads, ("video_in", "video_head", "history_in")) > 0


def test_play_is_never_imitated(model):
    batch = small_batch(CONFIG, 6)
    play = {name: value[np.array([2, 5, 2, 5, 2, 5])] for name, value in batch.items()}
    draws = modes.draw(KEY, play, CONFIG, ObjectiveConfig(policy_draws=2))
    _, terms, _ = loss_and_grads(model, play, draws)
    assert float(terms["policy"].count.sum()) == 0
    imitating = [m.imitates for m in modes.MODES]
    assert not np.asarray(imitating)[np.asarray(draws.mode)].any()


def test_adding_action_free_samples_does_not_change_the_action_loss(model):
    batch = small_batch(CONFIG, 9)
    robot = {name: value[np.arange(9) % 3 != 1] for name, value in batch.items()}
    assert len(robot["source"]) == 6
    results = []
    for data in (batch, robot):
        draws = modes.draw(KEY, data, CONFIG, OBJECTIVE)
        weights = ObjectiveConfig(policy_draws=2, video_weight=0.0)
        results.append(loss_and_grads(model, data, draws, weights))
    for name in ("action", "policy", "inverse"):
        np.testing.assert_allclose(results[0][1][name].mean(), results[1][1][name].mean(), rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-4), results[0][2], results[1][2])


def test_padding_the_action_and_state_dimensions_changes_nothing(model):
    """Same weights, wider arrays: the extra dimensions are masked; loss and gradients of the real part stay."""
    batch = small_batch(CONFIG, 6)
    wide = small_config(action_dim=CONFIG.action_dim + 3, state_dim=CONFIG.state_dim + 2)
    padded = dict(batch)
    for name, extra in (("action", 3), ("action_mask", 3), ("state", 2), ("state_mask", 2)):
        padded[name] = np.pad(batch[name], [(0, 0)] * (batch[name].ndim - 1) + [(0, extra)])
    # Garbage behind the mask must not matter.
    padded["action"][..., -3:] = 5.0
    padded["state"][..., -2:] = -7.0
    objective = ObjectiveConfig(policy_draws=2, drop_state=0.0, drop_text=0.0)
    small_draws = modes.draw(KEY, batch, CONFIG, objective)
    wide_draws = modes.draw(KEY, padded, wide, objective)
    np.testing.assert_array_equal(small_draws.noise_action, wide_draws.noise_action[..., : CONFIG.action_dim])
    np.testing.assert_array_equal(small_draws.policy_noise, wide_draws.policy_noise[..., : CONFIG.action_dim])

    apply, params = model
    wide_apply, wide_params = split(random_model(wide))
    A, k = CONFIG.action_dim, CONFIG.steps_per_token

    def widen(path, small, big):
        """The small weights in the corner of the wide ones; what multiplies padding keeps random values."""
        names = [p.key for p in path]
        if small.shape == big.shape:
            return small
        if names[0] in ("action_in", "action_out") or names[:2] == ["inverse_path", "to_tokens"]:
            axis = {"action_in": 1, "action_out": small.ndim - 1, "inverse_path": 0}[names[0]]
            big = jnp.moveaxis(big, axis, -1)
            big = big.reshape(*big.shape[:-1], k, A + 3)
            small = jnp.moveaxis(small, axis, -1)
            big = big.at[..., :A].set(small.reshape(*small.shape[:-1], k, A))
            return jnp.moveaxis(big.reshape(*big.shape[:-2], -1), -1, axis)
        if names[:2] == ["inverse_path", "direct"]:
            shape = (*small.shape[:-1], CONFIG.action_horizon)
            big = big.reshape(*shape, A + 3).at[..., :A].set(small.reshape(*shape, A))
            return big.reshape(*big.shape[:-2], -1)
        return big.at[tuple(slice(0, n) for n in small.shape)].set(small)

    skipped = ("forward_path",)  # its features are concatenated: a wider input permutes them, so it is left out here
    params = {**params, "forward_path": jax.tree.map(jnp.zeros_like, params["forward_path"])}
    wide_params = {**wide_params, "forward_path": jax.tree.map(jnp.zeros_like, wide_params["forward_path"])}
    grown = {
        name: value if name in skipped else jax.tree_util.tree_map_with_path(
            lambda path, s, b, name=name: widen((jax.tree_util.DictKey(name), *path), s, b), params[name], value
        )
        for name, value in wide_params.items()
    }  # fmt: skip
    small = loss_and_grads((apply, params), batch, small_draws, objective)
    large = loss_and_grads((wide_apply, grown), padded, wide_draws, objective)
    for name in small[1]:
        np.testing.assert_allclose(small[1][name].count, large[1][name].count)
        np.testing.assert_allclose(small[1][name].mean(), large[1][name].mean(), rtol=2e-5)
    for name in ("history_in", "video_head", "text_in", "action_norm", "action_embedding"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6, rtol=1e-3), small[2][name], large[2][name]
        )


def test_dropped_inputs_do_not_blow_up_gradients(model):
    """Nulls replace text, state and history; at zero they would sit where a norm's derivative is 1 / sqrt(eps)."""
    apply, params = model
    fresh = split(create(CONFIG, 0))[1]
    batch, always = small_batch(CONFIG, 6), jnp.ones(6, bool)
    draws = modes.draw(KEY, batch, CONFIG, OBJECTIVE)
    draws = draws._replace(drop_text=always, drop_state=always, drop_history=always)

    def norm(change):
        nulls = {name: change(value) for name, value in fresh.items() if name.startswith("null_")}
        # Output heads start at zero; only behind others do gradients reach the nulls.
        heads = {name: params[name] for name in ("video_head", "action_out")}
        _, _, grads = loss_and_grads((apply, {**fresh, **heads, **nulls}), batch, draws)
        return float(optax.tree.norm(grads))

    assert norm(lambda null: null) < 0.2 * norm(jnp.zeros_like)


def test_draws_depend_on_the_sample_and_not_on_its_place():
    batch = small_batch(CONFIG, 6)
    order = np.array([3, 1, 5])
    some = {name: value[order] for name, value in batch.items()}
    all_draws, some_draws = (modes.draw(KEY, b, CONFIG, OBJECTIVE) for b in (batch, some))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[order], b), all_draws, some_draws)
    again = modes.draw(jax.random.key(4), batch, CONFIG, OBJECTIVE)
    assert not np.array_equal(again.noise_video, all_draws.noise_video)


def test_mode_shares_and_sigma_ranges():
    config = small_config()
    batch = small_batch(config, 3000)
    objective = ObjectiveConfig(modes={"joint": 0.5, "async": 0.2, "forward": 0.2, "inverse": 0.1}, policy_draws=4)
    draws = jax.jit(lambda b: modes.draw(KEY, b, config, objective))(batch)
    kind = np.arange(3000) % 3
    share = np.bincount(np.asarray(draws.mode)[kind == 0], minlength=len(modes.MODES)) / 1000
    for name, expected in objective.modes.items():
        assert share[modes.MODE_NAMES.index(name)] == pytest.approx(expected, abs=0.05)
    chosen = np.asarray(draws.mode) == modes.MODE_NAMES.index("async")
    assert np.asarray(draws.sigma_video)[chosen].mean() == pytest.approx(7 / 8, abs=0.03)  # Beta(7, 1)
    joint = np.asarray(draws.mode) == modes.MODE_NAMES.index("joint")
    np.testing.assert_array_equal(np.asarray(draws.sigma_video)[joint][..., 0], np.asarray(draws.sigma_action)[joint])
    strata = np.sort(np.asarray(draws.policy_sigma)[:, 0], axis=-1)
    assert (np.floor(strata * 4) == np.arange(4)).all()


def test_masked_non_finite_values_stay_out():
    output = jnp.array([[1.0, jnp.nan], [jnp.inf, 2.0]])
    for mask, mean in (([[True, False], [False, True]], 2.5), ([[False], [False]], 0.0)):
        target = losses.Target(jnp.zeros((2, 2)), jnp.array(mask))
        assert float(losses.Term(target.error(output), target.counts()).mean()) == pytest.approx(mean)


def test_unknown_mode_is_named():
    with pytest.raises(ValueError, match="unknown mode 'jiont'; choose from joint"):
        modes.draw(KEY, small_batch(CONFIG, 3), CONFIG, ObjectiveConfig(modes={"jiont": 1.0}))
