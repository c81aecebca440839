"""Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) of the video alone.

    out = unconditional + scale (conditional - unconditional)

The unconditional branch does not hear the instruction. Actions are those of the conditional branch, as in DreamZero
(arXiv:2602.15922): guided ones would leave the range of the data. For a predicted x_hat the formula means the same as
for a velocity, which is linear in it. Only a checkpoint trained with `objective.drop_text` above 0 knows this branch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from wam.diffusion.flow import expand
from wam.diffusion.sampler import Guidance, Predict, Sample
from wam.models.streams import Observation


def guided(conditional: Predict, unconditional: Predict, guidance: Guidance) -> Predict:
    """`conditional`, its video guided where sigma_video lies in the interval of the guidance.

    The second call runs only where some row of the batch needs it. A guided call still counts as one evaluation.
    """
    if guidance.scale == 1:
        return conditional

    def predict(x: Sample, sigma_video: Array, sigma_action: Array) -> Sample:
        with_text = conditional(x, sigma_video, sigma_action)
        if with_text.video is None:
            return with_text
        video, inside = with_text.video, (sigma_video >= guidance.low) & (sigma_video <= guidance.high)

        def guide() -> Array:
            without = unconditional(x, sigma_video, sigma_action).video
            assert without is not None  # as `Predict` promises
            return jnp.where(expand(inside, video), without + guidance.scale * (video - without), video)

        return with_text._replace(video=jax.lax.cond(inside.any(), guide, lambda: video))

    return predict


def without_text(observation: Observation) -> Observation:
    """The same observation, its instruction replaced by the learned null."""
    return observation._replace(drop_text=jnp.ones_like(observation.drop_text))
