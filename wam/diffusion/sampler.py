"""One engine for every way of sampling: a program is a list of (sigma_video, sigma_action) pairs.

A mode at inference is a program plus what is given: joint imagination, policy without imagination, forward dynamics
(actions given), inverse dynamics (video given), video alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wam.diffusion import flow


@dataclasses.dataclass(frozen=True)
class Program:
    """Noise levels after 0, 1, ..., n steps, and how the streams relate.

    `video` and `action` are `given` (sigma 0, passed in), `generated` or `absent` (tokens not built).
    """

    name: str
    sigma_video: tuple[float, ...]
    sigma_action: tuple[float, ...]
    video: str = "generated"
    action: str = "generated"
    action_sees_video: bool = False
    video_sees_action: bool = False

    def __post_init__(self):
        if len(self.sigma_video) != len(self.sigma_action) or len(self.sigma_video) < 2:
            raise ValueError(f"program {self.name!r} needs two sigma lists of one length, at least 2")
        for name, sigmas in (("video", self.sigma_video), ("action", self.sigma_action)):
            rising = any(b > a for a, b in itertools.pairwise(sigmas))
            if rising or min(sigmas) < 0 or max(sigmas) > 1:
                raise ValueError(f"program {self.name!r}: {name} sigmas must fall within [0, 1], got {sigmas}")

    @property
    def steps(self) -> int:
        return len(self.sigma_video) - 1


def grid(steps: int, shift: float = 1.0) -> tuple[float, ...]:
    """steps + 1 levels from 1 to 0, evenly spaced and then shifted."""
    if steps < 1:
        raise ValueError(f"a sampler needs at least one step, got {steps}")
    return tuple(float(s) for s in flow.shift(np.linspace(1.0, 0.0, steps + 1), shift))


def program(mode: str, steps: int, shift: float = 1.0) -> Program:
    """The standard program of a mode: joint, policy, forward, inverse or video."""
    down, zeros, ones = grid(steps, shift), (0.0,) * (steps + 1), (1.0,) * (steps + 1)
    programs = {
        "joint": Program("joint", down, down, action_sees_video=True, video_sees_action=True),
        "policy": Program("policy", ones, down, video="absent"),
        "forward": Program("forward", down, zeros, action="given", video_sees_action=True),
        "inverse": Program("inverse", zeros, down, video="given", action_sees_video=True),
        "video": Program("video", down, ones, action="absent"),
    }
    if mode not in programs:
        raise ValueError(f"unknown mode {mode!r}; choose from {', '.join(programs)}")
    return programs[mode]


class Sample(NamedTuple):
    video: Array | None  # [B, M, f, v, P, C]
    action: Array | None  # [B, M, K, A]


Predict = Callable[[Sample, Array, Array], Sample]
"""(noisy sample, sigma_video [], sigma_action []) -> network outputs of the present streams."""


def sample(predict: Predict, start: Sample, program: Program, video_prediction: str) -> Sample:
    """Integrates `start` along the program in one compiled loop; streams at sigma 0 stay as given."""
    sigma_video = jnp.asarray(program.sigma_video, jnp.float32)
    sigma_action = jnp.asarray(program.sigma_action, jnp.float32)

    def body(i: Array, x: Sample) -> Sample:
        out = predict(x, sigma_video[i], sigma_action[i])
        video, action = x
        if video is not None and program.video == "generated":
            assert out.video is not None  # as `Predict` promises
            video = flow.step(video, out.video, sigma_video[i], sigma_video[i + 1], video_prediction)
        if action is not None and program.action == "generated":
            assert out.action is not None
            action = flow.step(action, out.action, sigma_action[i], sigma_action[i + 1], "velocity")
        return Sample(video, action)

    return jax.lax.fori_loop(0, program.steps, body, start)
