"""A field whose every solution is known: data N(MEAN, SPREAD^2), independent in every element."""

import jax.numpy as jnp

from wam.diffusion import sampler
from wam.diffusion.sampler import Held, Sample

MEAN, SPREAD = 0.7, 0.4


def rows_of(sigma, like):
    """[B] against a stream."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


def variance(sigma):
    return (1 - sigma) ** 2 * SPREAD**2 + sigma**2


def exact(eps, sigma):
    """Where the flow from eps stands at sigma: its mean, and its spread times eps."""
    return (1 - sigma) * MEAN + variance(sigma) ** 0.5 * eps


def output(x, sigma, prediction):
    """What a perfect network says: E[x_0 | x_sigma], or E[eps - x_0 | x_sigma]."""
    sigma = rows_of(sigma, x)
    off = (x - (1 - sigma) * MEAN) / variance(sigma)
    if prediction == "x":
        return MEAN + (1 - sigma) * SPREAD**2 * off
    return -MEAN + (sigma - (1 - sigma) * SPREAD**2) * off


def network(video_prediction):
    """Both streams, each by its own sigma."""

    def predict(x, sigma_video, sigma_action):
        video = None if x.video is None else output(x.video, sigma_video, video_prediction)
        return Sample(video, None if x.action is None else output(x.action, sigma_action, "velocity"))

    return predict


def along(programs, start, predict, *, held=None, video_prediction="x"):
    """Samples every row along its program."""
    levels, first = sampler.schedule(programs), programs[0]
    return sampler.sample(predict, start, levels, held or Held(), video_prediction=video_prediction,
                          solver=first.solver, reuse=first.reuse)  # fmt: skip


def noise(rows):
    return Sample(
        jnp.linspace(-2, 2, rows * 30).reshape(rows, 1, 2, 1, 3, 5),
        jnp.linspace(2, -2, rows * 24).reshape(rows, 1, 8, 3),
    )
