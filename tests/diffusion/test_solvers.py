"""Solvers against a field whose solution is known: what they end on, how fast they get there, and who is left alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.fields import along, exact, network, noise
from wam.diffusion import sampler
from wam.diffusion.sampler import Held, Program, Sample, Schedule


def error(solver, prediction, steps, start=1.0, end=0.0, shift=1.0):
    """f64, of a stream taken from `start` to `end`."""
    with jax.enable_x64(True):
        eps = jnp.linspace(-2, 2, 9, dtype=jnp.float64).reshape(1, 1, 1, 1, 9, 1)
        sigma = jnp.asarray(end + (start - end) * np.array(sampler.grid(steps, shift)))[:, None]
        levels = Schedule(sigma, sigma, jnp.ones(1), jnp.ones(1))
        out = sampler.sample(network(prediction), Sample(exact(eps, start), None), levels, Held(),
                             video_prediction=prediction, solver=solver)  # fmt: skip
        assert out.video.dtype == np.float64
        return float(jnp.abs(out.video - exact(eps, end)).max())


@pytest.mark.parametrize("prediction", ["x", "velocity"])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("unipc", 2)])
def test_order_of_convergence(solver, order, prediction):
    """From noise to data, where the last step is Euler's whatever the solver."""
    steps = (40, 80, 160)
    errors = [error(solver, prediction, n) for n in steps]
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("prediction", ["x", "velocity"])
def test_unipc_gains_an_order_between_the_ends(prediction):
    """The corrector's: UniPC-p is of order p + 1 where lambda is finite (Zhao et al., section 3)."""
    steps = (40, 80, 160)
    errors = [error("unipc", prediction, n, start=0.9, end=0.2) for n in steps]
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(3, abs=0.25)


def test_second_order_pays_with_few_calls():
    """At the calls of ten Euler steps."""
    euler = error("euler", "velocity", 10)
    assert error("heun", "velocity", 5) < 0.9 * euler  # 9 calls
    assert error("unipc", "velocity", 10) < 0.1 * euler


def with_solver(solver, *programs):
    return [dataclasses.replace(program, solver=solver) for program in programs]


@pytest.mark.parametrize(("solver", "calls"), [("euler", 12), ("heun", 23), ("unipc", 12)])
def test_streams_and_rows_keep_to_their_own_grids(solver, calls):
    """One stream waits, the other is done early, rows differ: each as if it were alone, and near where it belongs."""
    down, ones = sampler.grid(8), (1.0,) * 4
    late = Program("late", (*ones, *down), (*sampler.grid(9, 2.0), *(0.0,) * 3))
    pause = Program("pause", (*down[:5], *down[4:], *(0.0,) * 3), sampler.grid(12))
    programs = with_solver(solver, late, pause, sampler.program("joint", 8), sampler.program("forward", 5))
    start = noise(4)
    together = along(programs, start, network("x"))
    assert int(together.evaluations) == calls
    for i in (0, 1, 2):
        np.testing.assert_allclose(together.video[i], exact(start.video[i], 0), atol=0.25)
        np.testing.assert_allclose(together.action[i], exact(start.action[i], 0), atol=0.25)
    np.testing.assert_array_equal(together.action[3], start.action[3])
    for i, program in enumerate(programs):
        alone = along([program], Sample(*(part[i : i + 1] for part in start)), network("x"))
        for ours, theirs in zip(together[:2], alone[:2], strict=True):
            np.testing.assert_allclose(ours[i], theirs[0], atol=1e-6)
    # What does not read the other stream does not notice how long that one waits.
    plain = along(with_solver(solver, sampler.program("joint", 8)), Sample(*(p[:1] for p in start)), network("x"))
    np.testing.assert_allclose(together.video[0], plain.video[0], atol=1e-6)


@pytest.mark.parametrize("solver", sampler.SOLVERS)
def test_held_elements_stay_bit_for_bit(solver):
    start = noise(2)
    prefix = jnp.arange(8)[:, None] < jnp.array([3, 0])[:, None, None, None]  # [B, 1, K, 1]
    first_frame = (jnp.arange(2) < 1)[:, None, None, None]
    (program,) = with_solver(solver, sampler.program("joint", 3))
    seen = []

    def predict(x, *sigmas):
        jax.debug.callback(lambda action: seen.append(np.asarray(action[0, :, :3])), x.action)
        return network("x")(x, *sigmas)

    out = along([program] * 2, start, predict, held=Held(first_frame, prefix))
    np.testing.assert_array_equal(out.action[0, :, :3], start.action[0, :, :3])
    np.testing.assert_array_equal(out.video[:, :, :1], start.video[:, :, :1])
    moved = out.action != start.action
    assert moved[0, :, 3:].all()
    assert moved[1].all()
    assert (out.video != start.video)[:, :, 1:].all()
    jax.effects_barrier()
    assert len(seen) == int(out.evaluations)
    assert all((action == start.action[0, :, :3]).all() for action in seen)


@pytest.mark.parametrize("solver", sampler.SOLVERS)
def test_gradients_pass_and_are_finite(solver):
    """Of what comes out by the noise that went in, at sigmas 1 and 0, where logarithms are infinite."""
    (program,) = with_solver(solver, sampler.program("joint", 3))

    def total(start):
        out = along([program], start, network("x"))
        return out.video.sum() + out.action.sum()

    gradient = jax.grad(total)(noise(1))
    assert all(np.isfinite(g).all() and (np.abs(g) > 0.01).all() for g in gradient)


@pytest.mark.parametrize("solver", sampler.SOLVERS)
def test_one_step_is_the_same_for_all(solver):
    """A step to sigma 0 ends on x_hat."""
    start = noise(1)
    out = along(with_solver(solver, sampler.program("joint", 1)), start, network("x"))
    assert int(out.evaluations) == 1
    np.testing.assert_allclose(out.video, np.full(start.video.shape, 0.7), atol=1e-6)
