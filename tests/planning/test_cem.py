"""CEM on problems whose solution is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.planning.cem import CPU, V_JEPA_2_AC, CemSettings, cem, final_energy

KEYS = jax.random.split(jax.random.key(0), 2)
GOAL = jnp.array([[0.9, -0.6], [-0.3, 1.2]])


def double(latent, action):
    return latent + 0.5 * action


@pytest.fixture(scope="module")
def search():
    """search(keys, goals, settings): three steps of `double` from zero to the goal, by squared distance."""

    @jax.jit
    def run(keys, goals):
        energy = final_energy(double_to_goal, lambda z: ((z[0] - z[1]) ** 2).sum(), (jnp.zeros_like(goals), goals))
        return cem(energy, jnp.zeros((len(goals), 3, 2)), keys, dataclasses.replace(V_JEPA_2_AC, samples=100))

    return run


def double_to_goal(pair, action):
    return double(pair[0], action), pair[1]


def reached(actions):
    return 0.5 * np.asarray(actions).sum(-2)


def test_finds_the_optimum(search):
    found = search(KEYS, GOAL)
    np.testing.assert_allclose(reached(found.action), GOAL, atol=0.03)
    assert (np.asarray(found.energy)[:, -1] < 1e-3).all()
    assert (np.asarray(found.energy)[:, 0] > 0.05).all()
    assert np.asarray(found.std).max() < 0.7  # closer than it began, as far as the optimum is one point


def test_equal_keys_give_equal_answers_and_rows_stand_alone(search):
    found = search(KEYS, GOAL)
    np.testing.assert_array_equal(found.action, search(KEYS, GOAL).action)
    assert not np.array_equal(found.action, search(KEYS[::-1], GOAL).action)
    alone = search(KEYS[1:], GOAL[1:])
    np.testing.assert_allclose(found.action[1:], alone.action, atol=1e-5)


def test_samples_are_clipped_per_dimension():
    settings = CemSettings(samples=64, elites=4, iterations=3, std=5.0, low=(-0.2, -1.0), high=(0.1, 2.0))
    low, high = np.float32(settings.low), np.float32(settings.high)

    def energy(actions):
        inside = ((actions >= low) & (actions <= high)).all()
        return jnp.where(inside, -actions.sum((-2, -1)), jnp.nan)  # of all samples, if one of them is outside

    found = jax.jit(lambda: cem(energy, jnp.full((1, 3, 2), 9.0), KEYS[:1], settings))()
    assert np.isfinite(found.best).all()
    np.testing.assert_allclose(found.action[0], np.broadcast_to(high, (3, 2)), atol=0.05)


def test_a_sample_that_is_not_a_number_is_never_elite():
    def energy(actions):
        total = actions.sum((-2, -1))
        return jnp.where(total < 0, jnp.nan, total)  # the least would be below zero

    found = cem(energy, jnp.zeros((2, 1, 1)), KEYS, CPU)
    assert np.isfinite(found.action).all() and (np.asarray(found.best) >= 0).all()


def test_momentum_keeps_its_share_of_the_old_mean():
    """Of one sample, the mean itself: mean and elites agree, and the deviation shrinks to its share."""
    settings = CemSettings(samples=1, elites=1, iterations=1, momentum_std=0.25, std=0.8)
    found = cem(lambda a: a.sum((-2, -1)), jnp.full((1, 2, 2), 0.5), KEYS[:1], settings)
    np.testing.assert_allclose(found.action, 0.5)
    np.testing.assert_allclose(found.std, 0.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"elites": 500}, "cem.elites: expected 1 to samples"), ({"iterations": 0}, "cem.iterations"),
     ({"momentum_std": 1.0}, "cem.momentum_std: expected a share"), ({"std": 0.0}, "cem.std"),
     ({"low": (0.0, 1.0), "high": 1.0}, "expected low < high")],
)  # fmt: skip
def test_bad_settings(changes, said):
    with pytest.raises(ValueError, match=said):
        CemSettings(**changes)
