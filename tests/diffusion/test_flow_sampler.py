"""The sigma convention at both ends, programs, and whom the loop moves. What solvers are worth: test_solvers.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.fields import along, exact, network, noise, rows_of
from wam.diffusion import flow, sampler
from wam.diffusion.reuse import Reuse
from wam.diffusion.sampler import Guidance, Held, Program, Sample, Schedule


def test_sigma_zero_is_data_and_one_is_noise():
    x, eps = jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3)) * 9
    np.testing.assert_array_equal(flow.add_noise(x, eps, jnp.zeros(2)), x)
    np.testing.assert_array_equal(flow.add_noise(x, eps, jnp.ones(2)), eps)
    np.testing.assert_array_equal(flow.target(x, eps, "velocity"), eps - x)
    np.testing.assert_array_equal(flow.target(x, eps, "x"), x)
    assert flow.shift(jnp.array(0.5), 5.0) == pytest.approx(5 * 0.5 / (1 + 4 * 0.5))
    assert flow.shift(jnp.array(0.3), 1.0) == pytest.approx(0.3)


@pytest.mark.parametrize("prediction", ["velocity", "x"])
@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("solver", sampler.SOLVERS)
def test_straight_paths_are_followed_exactly(prediction, steps, solver):
    """With the true output for a single data point, any number of steps ends on it."""
    rng = np.random.default_rng(0)
    target, action = (jnp.asarray(rng.standard_normal(part.shape), jnp.float32) for part in noise(4))

    def predict(x, sigma_video, sigma_action):
        video = target if prediction == "x" else (x.video - target) / rows_of(sigma_video, target)
        return Sample(video, (x.action - action) / rows_of(sigma_action, action))

    program = dataclasses.replace(sampler.program("joint", steps), solver=solver)
    out = jax.jit(lambda: along([program] * 4, noise(4), predict, video_prediction=prediction))()
    assert int(out.evaluations) == (2 * steps - 1 if solver == "heun" else steps)
    np.testing.assert_allclose(out.video, target, atol=1e-5)
    np.testing.assert_allclose(out.action, action, atol=1e-5)


def wild(x, *_):
    """A field that changes whatever it may."""
    return Sample(*(None if part is None else part * 7 + 1 for part in x))


def test_given_streams_stay_bit_for_bit():
    video, action = jnp.full((1, 1, 1, 1, 2, 2), 3.25), jnp.full((1, 1, 4, 2), -1.5)
    forward = along([sampler.program("forward", 4)], Sample(video, action), wild)
    np.testing.assert_array_equal(forward.action, action)
    assert not np.array_equal(forward.video, video)
    inverse = along([sampler.program("inverse", 4)], Sample(video, action), wild)
    np.testing.assert_array_equal(inverse.video, video)
    assert not np.array_equal(inverse.action, action)


def test_rows_follow_their_own_programs():
    """Each as alone, whatever the others do and however much longer they take."""

    def pull(x, sigma_video, sigma_action):
        """Not linear in x and not in sigma, so that levels taken from another row would show."""
        sigma_video, sigma_action = rows_of(sigma_video, x.video), rows_of(sigma_action, x.action)
        return Sample(jnp.sin(3 * x.video) + sigma_video, jnp.cos(2 * x.action) * sigma_action - 1)

    programs = [sampler.program(*p) for p in (("joint", 4, 2.0), ("forward", 1), ("joint", 2), ("inverse", 3))]
    start = noise(4)
    together = along(programs, start, pull)
    for i, program in enumerate(programs):
        alone = along([program], Sample(*(part[i : i + 1] for part in start)), pull)
        np.testing.assert_array_equal(together.video[i], alone.video[0])
        np.testing.assert_array_equal(together.action[i], alone.action[0])


def test_another_schedule_does_not_compile_anew():
    calls = []

    @jax.jit
    def run(start, levels):
        calls.append(1)
        return sampler.sample(wild, start, levels, Held(), video_prediction="x")

    run(noise(2), sampler.schedule([sampler.program("joint", 3), sampler.program("forward", 2)]))
    run(noise(2), sampler.schedule([sampler.program("inverse", 3), sampler.program("joint", 1, 5.0)]))
    assert len(calls) == 1


def test_a_schedule_is_its_programs():
    forward, joint = sampler.program("forward", 1), sampler.program("joint", 2)
    levels = sampler.schedule([forward, joint])
    np.testing.assert_array_equal(levels.sigma_video, [[1, 1], [0, 0.5], [0, 0]])
    np.testing.assert_array_equal(levels.sigma_action, [[0, 1], [0, 0.5], [0, 0]])
    assert isinstance(levels, Schedule)
    assert levels.action_sees_video.tolist() == [0, 1]
    assert levels.video_sees_action.tolist() == [1, 1]


def test_a_program_knows_its_mode():
    for mode in ("joint", "policy", "forward", "inverse", "video"):
        assert sampler.program(mode, 1).mode == mode
        assert sampler.program(mode, 1).imagines == (mode in ("joint", "forward", "video"))


def test_flash_leaves_the_video_noisy_and_async_lets_it_go_on():
    flash = sampler.program("flash", 2, sigma_video=0.6)
    np.testing.assert_allclose(flash.sigma_video, [1, 0.8, 0.6])
    assert flash.sigma_action == (1, 0.5, 0)
    assert sampler.program("flash", 1).sigma_video == (1, 0.7)
    late = sampler.program("async", 4, action_steps=2)
    assert late.sigma_video == (1, 0.75, 0.5, 0.25, 0)
    assert late.sigma_action == (1, 0.5, 0, 0, 0)
    for program, imagines in ((flash, False), (late, True)):
        assert (program.mode, program.imagines) == ("joint", imagines)
        assert program.action_sees_video
    # The video stands where it was left, between data and noise, and the actions are clean.
    for program in (flash, late):
        out = along([program], noise(1), network("x"))
        np.testing.assert_allclose(out.video, exact(noise(1).video, program.sigma_video[-1]), atol=0.5)
        np.testing.assert_allclose(out.action, exact(noise(1).action, 0), atol=0.8)


def test_a_program_takes_solver_reuse_and_guidance():
    chosen = {"solver": "unipc", "reuse": Reuse(0.9, 3), "video_guidance": Guidance(3.0, 0.9)}
    for name in ("joint", "flash", "video", "forward"):
        program = sampler.program(name, 3, **chosen)
        assert {field: getattr(program, field) for field in chosen} == chosen
        assert hash(program) == hash(sampler.program(name, 3, **chosen))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("flash", {"sigma_video": 0.0}, "sigma_video: expected a noise level above 0 and up to 1, got 0.0"),
        ("joint", {"sigma_video": 0.7}, "sigma_video is of program 'flash'; 'joint' has none"),
        ("async", {}, "action_steps: async needs at least 1 and fewer than its 2 steps, got None"),
        ("async", {"action_steps": 2}, "action_steps: async needs at least 1 and fewer than its 2 steps, got 2"),
        ("flash", {"action_steps": 1}, "action_steps is of program 'async'; 'flash' has none"),
        ("policy", {"video_guidance": Guidance(2.0)}, "'policy': video_guidance, but no video is generated"),
        ("inverse", {"video_guidance": Guidance(2.0)}, "'inverse': video_guidance, but no video is generated"),
        ("dream", {}, "unknown program 'dream'; choose from joint, flash, async, policy"),
    ],
)
def test_fields_a_program_does_not_have_are_named(name, fields, message):
    with pytest.raises(ValueError, match=message):
        sampler.program(name, 2, **fields)


def test_bad_programs_are_named():
    with pytest.raises(ValueError, match="at least one step"):
        sampler.program("policy", 0)
    with pytest.raises(ValueError, match="one length"):
        Program("x", (1.0, 0.0), (1.0, 0.5, 0.0))
    with pytest.raises(ValueError, match=r"must fall within \[0, 1\]"):
        Program("x", (0.0, 1.0), (1.0, 0.0))
    with pytest.raises(ValueError, match="'x': unknown solver 'rk4'; choose from euler, heun, unipc"):
        Program("x", (1.0, 0.0), (1.0, 0.0), solver="rk4")
    with pytest.raises(ValueError, match="'x': video 'absent' with action 'given' is no mode"):
        Program("x", (1.0, 0.0), (1.0, 0.0), video="absent", action="given")
    with pytest.raises(ValueError, match=r"low and high must be in order within \[0, 1\], got 0.5 and 0.1"):
        Guidance(3.0, 0.5, 0.1)
    guided = Program("x", (1.0, 0.0), (1.0, 0.0), video_guidance=Guidance(3.0))
    with pytest.raises(ValueError, match="one video_guidance, got Guidance"):
        sampler.schedule([guided, sampler.program("joint", 1)])
    with pytest.raises(ValueError, match="at least one program"):
        sampler.schedule([])
