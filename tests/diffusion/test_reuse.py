"""Reuse of network outputs: never at threshold 1, where it can elsewhere, and counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.fields import along, exact, network, noise
from wam.diffusion import sampler
from wam.diffusion.reuse import Reuse, cosine
from wam.diffusion.sampler import Held, Sample


def run(program, reuse, predict, start, held=None):
    """The result, and how often the network was really called."""
    seen = []

    def counted(x, *sigmas):
        jax.debug.callback(lambda: seen.append(1))
        return predict(x, *sigmas)

    programs = [dataclasses.replace(program, reuse=reuse)] * len(start.action)
    out = jax.jit(lambda: along(programs, start, counted, held=held))()
    jax.effects_barrier()
    assert int(out.evaluations) == len(seen)
    return out


def toward(target):
    """A single data point: the velocity is constant along the path."""

    def predict(x, _, sigma):
        return Sample(jnp.full_like(x.video, target), (x.action - target) / sigma[:, None, None, None])

    return predict


def wild(x, sigma_video, _):
    """Actions of the last row turn round at each of nine levels; all else goes straight."""
    sign = jnp.where(jnp.arange(len(sigma_video)) == 1, jnp.cos(8 * jnp.pi * sigma_video), 1.0)
    return Sample(jnp.full_like(x.video, 0.5), sign[:, None, None, None] * jnp.ones_like(x.action))


@pytest.mark.parametrize("solver", sampler.SOLVERS)
def test_threshold_one_is_off_bit_for_bit(solver):
    """Even where velocities are equal, which rounding must not lift above 1."""
    program = dataclasses.replace(sampler.program("joint", 6), solver=solver)
    for field in (network("x"), toward(0.5)):

        def predict(x, *sigmas, field=field):
            """Ends in matrix products, as networks do: what comes after is then not compiled into one with it."""
            video, action = field(x, *sigmas)
            return Sample(video @ jnp.eye(5), action @ jnp.eye(3))

        off, on = (run(program, reuse, predict, noise(2)) for reuse in (None, Reuse(1.0, 3)))
        np.testing.assert_array_equal(on.video, off.video)
        np.testing.assert_array_equal(on.action, off.action)
        assert int(on.evaluations) == int(off.evaluations) == (11 if solver == "heun" else 6)


@pytest.mark.parametrize(("max_skips", "warmup", "calls"), [(1, 2, 6), (3, 2, 4), (99, 2, 2), (3, 5, 6), (99, 9, 9)])
def test_a_straight_path_needs_few_calls_and_ends_where_it_should(max_skips, warmup, calls):
    out = run(sampler.program("joint", 10), Reuse(0.99, max_skips, warmup), toward(0.5), noise(2))
    assert int(out.evaluations) == calls
    np.testing.assert_allclose(out.video, np.full(out.video.shape, 0.5), atol=1e-5)
    np.testing.assert_allclose(out.action, np.full(out.action.shape, 0.5), atol=1e-5)


@pytest.mark.parametrize(("solver", "most"), [("euler", 10), ("heun", 20), ("unipc", 10)])
def test_an_easy_field_skips_and_stays_near(solver, most):
    program = dataclasses.replace(sampler.program("joint", 20), solver=solver)
    start = noise(2)
    out = run(program, Reuse(0.9, 2), network("x"), start)
    assert 2 <= int(out.evaluations) <= most
    np.testing.assert_allclose(out.video, exact(start.video, 0), atol=0.3)
    np.testing.assert_allclose(out.action, exact(start.action, 0), atol=0.3)


def test_all_rows_have_to_agree():
    """One decision for the batch: a row that turns keeps its neighbour from skipping."""
    start, program, reuse = noise(2), sampler.program("joint", 8), Reuse(0.99, 99)
    assert int(run(program, reuse, wild, Sample(*(part[:1] for part in start))).evaluations) == 2
    assert int(run(program, reuse, wild, start).evaluations) == 8


def test_what_does_not_move_has_no_say():
    """Given actions, and held ones, whatever the network says of them."""
    joint, reuse = sampler.program("joint", 8), Reuse(0.99, 99)
    assert int(run(sampler.program("forward", 8), reuse, wild, noise(2)).evaluations) == 2

    def last_is_calm(x, *sigmas):
        out = wild(x, *sigmas)
        return out._replace(action=out.action.at[:, :, 7].set(1.0))

    held = Held(action=jnp.arange(8)[:, None] < 7)
    assert int(run(joint, reuse, last_is_calm, noise(2)).evaluations) == 8
    assert int(run(joint, reuse, last_is_calm, noise(2), held).evaluations) == 2


def test_cosine_is_of_rows_and_never_above_one():
    a = jax.random.normal(jax.random.key(0), (64, 3, 7))
    assert float(cosine(a, a).max()) <= 1
    np.testing.assert_allclose(cosine(a, -2 * a), -1, rtol=1e-6)
    np.testing.assert_allclose(
        cosine(jnp.array([[1.0, 0], [1, 1]]), jnp.array([[0.0, 2], [3, 0]])), [0, 0.5**0.5], atol=1e-6
    )
    assert float(cosine(a[:1], jnp.zeros((1, 3, 7)))[0]) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((1.5, 3), r"reuse.threshold: expected a cosine within \[-1, 1\], got 1.5"),
        ((0.9, 0), "reuse.max_skips: expected at least 1, got 0"),
        ((0.9, 3, 1), "reuse.warmup: two velocities are compared, so expected at least 2, got 1"),
    ],
)
def test_bad_rules_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Reuse(*fields)
