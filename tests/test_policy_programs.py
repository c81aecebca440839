"""Programs through the public API."""

import dataclasses

import numpy as np
import pytest

from tests.helpers import small_config, small_observation, small_policy
from wam.diffusion.reuse import Reuse
from wam.diffusion.sampler import Guidance, program


@pytest.fixture(scope="module")
def policy():
    return small_policy(small_config(depth=1), drop_text=0.0)


def test_reuse_is_off_at_threshold_one(policy):
    """Where nothing is ever skipped the answer stays, up to what a compiler rounds otherwise around a condition."""
    observation, plain = small_observation(policy), program("joint", 5, solver="unipc")
    off, never = (
        policy.infer(observation, program=dataclasses.replace(plain, reuse=reuse))[0] for reuse in (None, Reuse(1.0, 3))
    )
    np.testing.assert_allclose(never.actions, off.actions, atol=1e-5)
    for camera, frames in off.video.items():
        assert np.abs(never.video[camera].astype(int) - frames).max() <= 1
    assert off.evaluations == never.evaluations == 5


def test_guidance_needs_a_checkpoint_that_knows_silence(policy):
    guided = program("joint", 1, video_guidance=Guidance(3.0))
    with pytest.raises(ValueError, match=r"video_guidance: this checkpoint was trained with objective.drop_text 0"):
        policy.infer(small_observation(policy), program=guided)
