"""The sigma convention at both ends, and the sampler against fields whose solution is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.diffusion import flow, sampler
from wam.diffusion.sampler import Guidance, Held, Program, Sample, Schedule


def sample(predict, start, *programs, held=None, video_prediction="x"):
    """Every row along its program, or all along one."""
    rows = len(start.action if start.video is None else start.video)
    levels = sampler.schedule(programs if len(programs) > 1 else programs * rows)
    return sampler.sample(predict, start, levels, held or Held(), video_prediction=video_prediction,
                          solver=programs[0].solver)  # fmt: skip


def rows_of(sigma, like):
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


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
def test_straight_paths_are_followed_exactly(prediction, steps):
    """With the true output for a single data point, any number of steps ends on it."""
    rng = np.random.default_rng(0)
    target, noise = (jnp.asarray(rng.standard_normal((4, 1, 2, 1, 3, 5)), jnp.float32) for _ in range(2))
    action, action_noise = (jnp.asarray(rng.standard_normal((4, 1, 8, 3)), jnp.float32) for _ in range(2))

    def predict(x, sigma_video, sigma_action):
        video = target if prediction == "x" else (x.video - target) / rows_of(sigma_video, target)
        return Sample(video, (x.action - action) / rows_of(sigma_action, action))

    program = sampler.program("joint", steps)
    out = jax.jit(lambda: sample(predict, Sample(noise, action_noise), program, video_prediction=prediction))()
    assert int(out.evaluations) == steps
    np.testing.assert_allclose(out.video, target, atol=1e-5)
    np.testing.assert_allclose(out.action, action, atol=1e-5)


def test_euler_converges_with_first_order_on_a_gaussian():
    """Data N(0, s^2): v = x (sigma - (1 - sigma) s^2) / ((1 - sigma)^2 s^2 + sigma^2); the flow maps eps to s eps."""
    s, eps = 0.4, jnp.linspace(-2, 2, 9).reshape(1, 1, 9, 1)

    def predict(x, _, sigma):
        sigma = rows_of(sigma, x.action)
        return Sample(None, x.action * (sigma - (1 - sigma) * s**2) / ((1 - sigma) ** 2 * s**2 + sigma**2))

    def error(steps):
        out = sample(predict, Sample(None, eps), sampler.program("policy", steps))
        return float(jnp.abs(out.action - s * eps).max())

    errors = [error(n) for n in (20, 40, 80)]
    assert errors[0] < 0.1
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2.0, rel=0.15)


def wild(x, *_):
    """A field that changes whatever it may."""
    return Sample(*(None if part is None else part * 7 + 1 for part in x))


def test_given_streams_stay_bit_for_bit():
    video, action = jnp.full((1, 1, 1, 1, 2, 2), 3.25), jnp.full((1, 1, 4, 2), -1.5)
    forward = sample(wild, Sample(video, action), sampler.program("forward", 4))
    np.testing.assert_array_equal(forward.action, action)
    assert not np.array_equal(forward.video, video)
    inverse = sample(wild, Sample(video, action), sampler.program("inverse", 4))
    np.testing.assert_array_equal(inverse.video, video)
    assert not np.array_equal(inverse.action, action)


def noise(rows):
    rng = np.random.default_rng(0)
    shapes = ((rows, 1, 2, 1, 3, 5), (rows, 1, 8, 3))
    return Sample(*(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes))


def test_held_elements_stay_bit_for_bit():
    start = noise(2)
    prefix = jnp.arange(8)[:, None] < jnp.array([3, 0])[:, None, None, None]  # [B, 1, K, 1]
    first_frame = (jnp.arange(2) < 1)[:, None, None, None]
    out = sample(wild, start, sampler.program("joint", 3), held=Held(first_frame, prefix))
    np.testing.assert_array_equal(out.action[0, :, :3], start.action[0, :, :3])
    np.testing.assert_array_equal(out.video[:, :, :1], start.video[:, :, :1])
    moved = out.action != start.action
    assert moved[0, :, 3:].all()
    assert moved[1].all()
    assert (out.video != start.video)[:, :, 1:].all()


def test_rows_follow_their_own_programs():
    """Each as alone, whatever the others do and however much longer they take."""

    def pull(x, sigma_video, sigma_action):
        """Not linear in x and not in sigma, so that levels taken from another row would show."""
        sigma_video, sigma_action = rows_of(sigma_video, x.video), rows_of(sigma_action, x.action)
        return Sample(jnp.sin(3 * x.video) + sigma_video, jnp.cos(2 * x.action) * sigma_action - 1)

    programs = [sampler.program(*p) for p in (("joint", 4, 2.0), ("forward", 1), ("joint", 2), ("inverse", 3))]
    start = noise(4)
    together = sample(pull, start, *programs)
    for i, program in enumerate(programs):
        alone = sample(pull, Sample(*(part[i : i + 1] for part in start)), program)
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


def test_bad_programs_are_named():
    with pytest.raises(ValueError, match="unknown mode 'dream'"):
        sampler.program("dream", 5)
    with pytest.raises(ValueError, match="at least one step"):
        sampler.program("policy", 0)
    with pytest.raises(ValueError, match="one length"):
        Program("x", (1.0, 0.0), (1.0, 0.5, 0.0))
    with pytest.raises(ValueError, match=r"must fall within \[0, 1\]"):
        Program("x", (0.0, 1.0), (1.0, 0.0))
    with pytest.raises(ValueError, match="'x': unknown solver 'rk4'; choose from euler"):
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
