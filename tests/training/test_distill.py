"""Distillation: targets against ODEs solved by hand, what moves and what does not, teachers that do not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import random_model, small_batch, small_config, small_tokenizer
from wam.config import MeshConfig, ObjectiveConfig, OptimizerConfig
from wam.diffusion import losses
from wam.diffusion.modes import draw
from wam.pretrained.mapping import flatten
from wam.training import distill, sharding
from wam.training.distill import Teacher, distilling, level_of
from wam.training.distill_config import DistillConfig
from wam.training.finetune_config import FinetuneConfig
from wam.training.state import Networks, split
from wam.training.step import networks
from wam.training.trainer import Trainer

MODEL = small_config(target_views=(0, 1))
OBJECTIVE = ObjectiveConfig(policy_draws=2, video_shift=2.0, joint_video_sees_action=1.0)
ROWS = 24
DENOISED = ("video", "action", "policy")


def test_levels_are_the_program_and_its_edges():
    sigma = jnp.asarray([0.0, 0.01, 0.25, 0.26, 0.5, 0.51, 1.0])
    at = level_of(sigma, teacher_steps=4, steps=2)
    np.testing.assert_allclose(at.sigma, [0, 0.25, 0.25, 0.5, 0.5, 0.75, 1])
    np.testing.assert_allclose(at.below, [0, 0, 0, 0.25, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(at.edge, [0, 0, 0, 0, 0, 0.5, 0.5])
    assert not level_of(sigma, 4, 1).edge.any(), "one step ends at the data"
    shifted = level_of(jnp.asarray([0.7, 1.0]), 4, 2, shift=3.0)  # levels 0, 0.5, 0.75, 0.9, 1
    np.testing.assert_allclose(shifted, [[0.75, 1.0], [0.5, 0.9], [0.0, 0.75]], rtol=1e-6)
    drawn = level_of((jnp.arange(4000) + 0.5) / 4000, 4, 2).sigma
    assert [int((drawn == level).sum()) for level in (0.25, 0.5, 0.75, 1)] == [1000] * 4


# ---------------------------------------------------------------- networks that are formulas


@dataclasses.dataclass
class Formula:
    """A network whose streams all have the velocity `rate(x, sigma)`; `prediction` as in the model."""

    rate: object
    config: object

    def __call__(self, noisy):
        kind = self.config.video_prediction
        out = {"inverse": jnp.zeros_like(noisy.action)}
        for term, name in distill.STREAMS.items():
            x, sigma = getattr(noisy, name), getattr(noisy, f"sigma_{name}")
            sigma = sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim))
            velocity = self.rate(x, sigma)
            out[term] = x - sigma * velocity if (term, kind) == ("video", "x") else velocity
        return out


@pytest.fixture
def formulas(monkeypatch):
    monkeypatch.setattr(losses, "predictions", lambda network, *_: network(_[-1]))


def formula_errors(config, trained, average, teacher, *, prediction="x", objective=OBJECTIVE):
    """Mean error of every term over a batch of all modes; of formulas in place of networks."""
    model = dataclasses.replace(MODEL, video_prediction=prediction)
    batch = small_batch(MODEL, ROWS)
    latents = jax.random.normal(jax.random.key(3), (ROWS, MODEL.views, MODEL.latent_frames, MODEL.patches, 8))
    draws = draw(jax.random.key(1), batch, MODEL, objective)
    of = Networks(*(Formula(rate, model) for rate in (trained, average, teacher)))
    terms = distilling(config, objective)(of, batch, latents, draws)
    assert all(float(terms[name].count.sum()) > 0 for name in DENOISED)
    return {name: float(terms[name].mean()) for name in DENOISED}


def straight(end):
    """The ODE whose every path is a straight line to `end`."""
    return lambda x, sigma: (x - end) / jnp.maximum(sigma, 1e-9)


@pytest.mark.parametrize("prediction", ["x", "velocity"])
@pytest.mark.parametrize("steps", [1, 2])
def test_straight_paths_end_where_they_lead(formulas, steps, prediction):
    """The target of any student is the end of the teacher's line, whatever the level; the perfect student has no loss.

    One that is off by d has the loss d^2 where the step goes to the data.
    """
    config = DistillConfig("runs/teacher", teacher_steps=4, video_steps=steps, action_steps=steps)
    perfect = formula_errors(config, straight(0.7), straight(0.7), straight(0.7), prediction=prediction)
    assert perfect == pytest.approx(dict.fromkeys(DENOISED, 0.0), abs=1e-10)
    off = formula_errors(config, straight(0.4), straight(0.7), straight(0.7), prediction=prediction)
    if steps == 1:
        assert off == pytest.approx(dict.fromkeys(DENOISED, 0.09), rel=1e-4)
    else:
        assert all(0 < error < 0.09 for error in off.values()), "steps that end on the way are shorter"


@pytest.mark.parametrize("prediction", ["x", "velocity"])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_perfect_student_of_a_bent_path_has_no_loss(formulas, steps, prediction):
    """dx / dsigma = 0.9 x in Euler steps of the teacher: the student must land where all of them together do."""
    n, k, shift = 8, 0.9, OBJECTIVE.video_shift
    config = DistillConfig("runs/teacher", teacher_steps=n, video_steps=steps, action_steps=steps)
    objective = dataclasses.replace(OBJECTIVE, action_shift=shift)  # one table for all streams
    levels = np.array([shift * t / (1 + (shift - 1) * t) for t in np.arange(n + 1) / n])

    def shrunk(x, sigma):
        """Mean velocity from each level to its edge."""
        table = np.zeros(n + 1)
        for i in range(1, n + 1):
            edge = (i - 1) // (n // steps) * (n // steps)
            factor = np.prod([1 + k * (levels[j - 1] - levels[j]) for j in range(edge + 1, i + 1)])
            table[i] = (1 - factor) / (levels[i] - levels[edge])
        at = jnp.argmin(jnp.abs(sigma[..., None] - levels), -1)
        return x * jnp.asarray(table)[at]

    def teacher(x, sigma):
        return k * x

    errors = formula_errors(config, shrunk, shrunk, teacher, prediction=prediction, objective=objective)
    assert errors == pytest.approx(dict.fromkeys(DENOISED, 0.0), abs=1e-9)
    own = formula_errors(config, teacher, shrunk, teacher, prediction=prediction, objective=objective)
    assert all(error > 1e-5 for error in own.values()), "the teacher's own single step ends elsewhere"


def test_gradients_reach_the_student_alone(formulas):
    """Neither teacher nor moving average; and samples without actions train the video alone."""
    batch = jax.tree.map(np.array, small_batch(MODEL, ROWS))
    half = np.arange(ROWS) < ROWS // 2
    batch["action_mask"][half] = False
    latents = jnp.ones((ROWS, MODEL.views, MODEL.latent_frames, MODEL.patches, 8))
    draws = draw(jax.random.key(1), batch, MODEL, OBJECTIVE)

    def loss(trained, average, teacher):
        of = Networks(*(Formula(lambda x, _, k=k: k * x, MODEL) for k in (trained, average, teacher)))
        terms = distilling(DistillConfig("runs/teacher"), OBJECTIVE)(of, batch, latents, draws)
        return sum(terms[name].error.sum() for name in DENOISED), terms

    grads, terms = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(0.1, 0.2, 0.4)
    assert abs(grads[0]) > 1 and grads[1:] == (0.0, 0.0)
    for name in ("action", "policy"):
        assert not terms[name].count[half].any() and not terms[name].error[half].any()
        assert terms[name].error[~half].any()
    assert terms["video"].count[half].any()
    assert ((terms["video"].error > 0) == (terms["video"].count > 0)).all()


# ---------------------------------------------------------------- the real network


CONFIG = DistillConfig("runs/teacher", teacher_steps=2, video_steps=1, action_steps=1)


@pytest.fixture(scope="module")
def made() -> Trainer:
    """A trainer of students; `made.fixed.teacher` is their teacher."""
    _, params = split(random_model(MODEL, seed=5))
    return Trainer(
        MODEL, OBJECTIVE, OptimizerConfig(warmup_steps=1, learning_rate=1e-2), small_tokenizer(MODEL),
        sharding.make_mesh(MeshConfig(), jax.devices()[:1]), batch_size=ROWS, sources=3,
        teacher=Teacher(CONFIG, jax.device_get(params), None, {}, {}, {}),
    )  # fmt: skip


def test_a_student_starts_as_its_teacher_and_the_teacher_stays(made):
    before = jax.device_get(made.fixed.teacher)
    state = made.init(steps=10, seed=0)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get((state.params, state.ema)), (before, before))
    batch, losses_of = made.place(small_batch(MODEL, ROWS)), []
    for _ in range(5):
        state, metrics = made.step(state, batch)
        assert metrics["finite"]
        losses_of.append(sum(float(metrics["terms"][name]["all"][0]) for name in DENOISED))
    assert min(losses_of[3:]) < losses_of[0], "it learns"
    assert not np.array_equal(state.params["video_in"]["kernel"], before["video_in"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(made.fixed.teacher), before)
    for tree in (state.params, state.ema, *(s.mu for s in state.opt_state if hasattr(s, "mu"))):
        assert jax.tree.structure(tree) == jax.tree.structure(before), "the teacher is no part of the state"


def test_a_student_of_as_many_steps_as_its_teacher_has_nothing_to_learn(made):
    batch = jax.tree.map(jnp.asarray, small_batch(MODEL, ROWS))
    latents = jax.random.normal(jax.random.key(3), (ROWS, MODEL.views, MODEL.latent_frames, MODEL.patches, 8))
    draws = draw(jax.random.key(1), batch, MODEL, OBJECTIVE)
    config = dataclasses.replace(CONFIG, video_steps=2, action_steps=2)
    of = networks(made.apply, made.fixed.teacher, made.fixed.teacher, made.fixed)
    terms = jax.jit(lambda: distilling(config, OBJECTIVE)(of, batch, latents, draws))()
    assert all(float(terms[name].mean()) < 1e-9 for name in DENOISED)
    assert float(terms["inverse"].mean()) > 1e-2, "what is regressed is regressed on the data still"


def test_bad_settings_are_named(made):
    for changes, message in (
        ({"teacher_steps": 8, "action_steps": 3}, r"distill\.teacher_steps 8 is not a multiple of distill\.action_s"),
        ({"video_steps": 0}, r"distill\.video_steps is 0; it must be at least 1"),
        ({"checkpoint": -1}, r"distill\.checkpoint is -1; name a step, or 0"),
    ):
        with pytest.raises(ValueError, match=message):
            DistillConfig("runs/teacher", **changes)
    with pytest.raises(FileNotFoundError, match=r"distill\.teacher: /nowhere holds no checkpoint.*train the teacher"):
        distill.read_teacher(DistillConfig("/nowhere"))
    teacher = Teacher(CONFIG, made.fixed.teacher, None, {}, {}, {})
    shapes = {path: x.shape for path, x in flatten(made.fixed.teacher).items()}
    distill.check_teacher(teacher, shapes, FinetuneConfig())
    with pytest.raises(ValueError, match=r"runs/teacher is a network of another shape: blocks\.video\.q\..* is \[2, "):
        distill.check_teacher(teacher, shapes | {"blocks.video.q.kernel": (3, 32, 32)}, FinetuneConfig())
    with pytest.raises(ValueError, match=r"another shape: video_in\.kernel is .* there and missing here"):
        distill.check_teacher(teacher, {k: v for k, v in shapes.items() if k != "video_in.kernel"}, FinetuneConfig())
    with pytest.raises(ValueError, match="both say what the parameters start from"):
        distill.check_teacher(teacher, shapes, FinetuneConfig(trunk="weights/wan"))
