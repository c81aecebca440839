"""UniPC-2 against the scheduler that released video models are sampled with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from wam.diffusion import sampler
from wam.diffusion.sampler import Held, Sample


def posterior_mean(x, sigma, xp):
    """x_hat of data that are -1 or 2 with equal weight: bends, and depends on sigma."""
    a, variance = 1 - sigma, sigma**2 + 0.01
    odds = xp.exp(((x + a) ** 2 - (x - 2 * a) ** 2) / (2 * variance))
    return 2 - 3 / (1 + odds)


@pytest.mark.parametrize("prediction", ["x", "velocity"])
@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (2, 1.0), (4, 3.0), (10, 5.0)])
def test_unipc_is_the_released_scheduler(prediction, steps, shift):
    """Step by step alike: orders of the first and the last step, the corrector, the weights of both."""
    noise = np.random.default_rng(0).standard_normal((2, 1, 2, 1, 3, 5)).astype(np.float32)

    def predict(x, sigma, _):
        sigma = sigma.reshape(-1, 1, 1, 1, 1, 1)
        clean = posterior_mean(x.video, sigma, jnp)
        return Sample(clean if prediction == "x" else (x.video - clean) / sigma, None)

    levels = sampler.schedule([sampler.program("video", steps, shift)] * 2)
    ours = jax.jit(lambda: sampler.sample(predict, Sample(jnp.asarray(noise), None), levels, Held(),
                                          video_prediction=prediction, solver="unipc"))()  # fmt: skip

    theirs = UniPCMultistepScheduler(
        solver_order=2, solver_type="bh2", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    theirs.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1])
    x = torch.from_numpy(noise)
    for i, t in enumerate(theirs.timesteps):
        sigma = levels.sigma_video[i, 0].item()
        x = theirs.step((x - posterior_mean(x, sigma, torch)) / sigma, t, x, return_dict=False)[0]
    np.testing.assert_allclose(ours.video, x.numpy(), atol=2e-5)
    assert int(ours.evaluations) == steps
