"""Programs through the public API, on a real (tiny) checkpoint."""

import dataclasses

import numpy as np
import pytest

from wam.diffusion.reuse import Reuse
from wam.diffusion.sampler import Guidance, program
from wam.policy import load_policy

pytestmark = pytest.mark.requires_sim


@pytest.fixture(scope="module")
def policy(debug_run):
    return load_policy(debug_run, unroll=False)


def test_reuse_is_off_at_threshold_one(policy):
    """The network of the checkpoint gives the same bits where nothing is ever skipped."""
    observation, plain = policy.example_observation(), program("joint", 5, solver="unipc")
    off, never = (
        policy.infer(observation, program=dataclasses.replace(plain, reuse=reuse))[0] for reuse in (None, Reuse(1.0, 3))
    )
    np.testing.assert_array_equal(never.actions, off.actions)
    for camera, frames in off.video.items():
        np.testing.assert_array_equal(never.video[camera], frames)
    assert off.evaluations == never.evaluations == 5


def test_guidance_needs_a_checkpoint_that_knows_silence(policy):
    guided = program("joint", 1, video_guidance=Guidance(3.0))
    with pytest.raises(ValueError, match=r"video_guidance: this checkpoint was trained with objective.drop_text 0"):
        policy.infer(policy.example_observation(), program=guided)
