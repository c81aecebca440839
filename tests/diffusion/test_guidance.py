"""Guidance of the video alone: the formula, its interval, what it costs, and a network that does not hear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.diffusion.fields import along, network, noise
from tests.helpers import random_model, small_batch, small_config, small_tokenizer
from wam.diffusion import sampler
from wam.diffusion.guidance import guided
from wam.diffusion.sampler import Guidance, Sample
from wam.inference import line_up, observed, predictor, row_keys, sampled
from wam.inference import noise as starting_noise


def constant(video, action, seen):
    def predict(x, *_):
        jax.debug.callback(lambda: seen.append(1))
        return Sample(jnp.full_like(x.video, video), jnp.full_like(x.action, action))

    return predict


@pytest.mark.parametrize(
    ("guidance", "rows", "calls"),
    [
        (Guidance(3.0), [7, 7], 1),
        (Guidance(3.0, 0.96), [3, 7], 1),
        (Guidance(0.0, 0.0, 0.5), [1, 3], 1),
        (Guidance(3.0, 0.6, 0.9), [3, 3], 0),
        (Guidance(1.0), [3, 3], 0),
    ],
)
def test_the_video_moves_away_from_the_silent_one_within_the_interval(guidance, rows, calls):
    """1 without an instruction, 3 with it: 7 at scale 3. Rows at sigma 0.5 and 1."""
    loud, silent = [], []
    predict = guided(constant(3.0, 5.0, loud), constant(1.0, -9.0, silent), guidance)
    out = jax.jit(predict)(noise(2), jnp.array([0.5, 1.0]), jnp.array([0.5, 0.5]))
    jax.effects_barrier()
    np.testing.assert_array_equal(out.video, jnp.asarray(rows, jnp.float32).reshape(2, 1, 1, 1, 1, 1) + 0 * out.video)
    np.testing.assert_array_equal(out.action, np.full(out.action.shape, 5.0))
    assert (len(loud), len(silent)) == (1, calls)


def test_steps_outside_the_interval_cost_nothing():
    silent = []
    guidance = Guidance(3.0, 0.6)
    predict = guided(network("x"), constant(0.0, 0.0, silent), guidance)
    out = along([sampler.program("joint", 5)], noise(1), predict)
    jax.effects_barrier()
    assert int(out.evaluations) == 5
    assert len(silent) == 3  # sigma 1, 0.8, 0.6


def test_it_means_the_same_for_a_predicted_x_and_a_velocity():
    """x_hat of the guided velocity is the guided x_hat."""
    results = []
    for prediction in ("x", "velocity"):
        there = network(prediction)

        def elsewhere(x, sigma, _, prediction=prediction):
            sigma = sigma.reshape(-1, 1, 1, 1, 1, 1)
            return Sample(jnp.zeros_like(x.video) if prediction == "x" else x.video / sigma, x.action)

        predict = guided(there, elsewhere, Guidance(2.0))
        out = along([sampler.program("video", 4)], noise(1), predict, video_prediction=prediction)
        results.append(out.video)
    np.testing.assert_allclose(*results, atol=1e-4)


def test_a_network_without_its_instruction():
    """The silent branch does not hear, a guided video moves away from it, and the actions of the step stay."""
    config = small_config(depth=1)
    graph, params, fixed = nnx.split(random_model(config), nnx.Param, ...)
    tokenizer, batch, ids = small_tokenizer(config), small_batch(config, 3), jnp.zeros((3, 2), jnp.uint32)

    def three(params, batch):
        model = nnx.merge(graph, params, fixed)
        context, _ = observed(model, tokenizer, batch, text=False)
        out = []
        for scale in (1.0, 4.0):
            way, rows = line_up([sampler.program("joint", 1, video_guidance=Guidance(scale))] * 3)
            out.append(sampled(model, tokenizer, way, batch, ids, rows)[0])
        start = starting_noise(row_keys(ids), config)
        return predictor(model, context, batch, rows.schedule)(start, jnp.ones(3), jnp.ones(3)), *out

    run = jax.jit(three)
    (silent, plain, strong), (again, heard, _) = run(params, batch), run(params, {**batch, "text": batch["text"] + 1})
    np.testing.assert_array_equal(again.video, silent.video)
    assert float(jnp.abs(heard.video - plain.video).max()) > 1e-2
    np.testing.assert_allclose(strong.action, plain.action, atol=1e-5)
    assert float(jnp.abs(strong.video - plain.video).max()) > 1e-2
    # One step ends on the x_hat that the network predicted.
    np.testing.assert_allclose(strong.video, silent.video + 4 * (plain.video - silent.video), atol=1e-3)
