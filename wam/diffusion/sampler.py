"""One engine for every way of sampling: a program is a list of (sigma_video, sigma_action) pairs.

A mode at inference is a program plus what is given: joint imagination, policy without imagination, forward dynamics
(actions given), inverse dynamics (video given), video alone. The compiled loop reads programs as arrays with a row per
sample (`Schedule`), so that rows of one batch may follow different programs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wam.diffusion import flow, solvers
from wam.diffusion.reuse import Calls, Reuse, call_or_reuse, no_calls

SOLVERS = ("euler", "heun", "unipc")


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of the video (`wam.diffusion.guidance`), where low <= sigma_video <= high."""

    scale: float = 1.0
    """1: none"""
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"video_guidance: low and high must be in order within [0, 1], got {self.low} and {self.high}"
            )


NO_GUIDANCE = Guidance()


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
    solver: str = "euler"
    reuse: Reuse | None = None
    video_guidance: Guidance = NO_GUIDANCE

    def __post_init__(self):
        if len(self.sigma_video) != len(self.sigma_action) or len(self.sigma_video) < 2:
            raise ValueError(f"program {self.name!r} needs two sigma lists of one length, at least 2")
        for name, sigmas in (("video", self.sigma_video), ("action", self.sigma_action)):
            rising = any(b > a for a, b in itertools.pairwise(sigmas))
            if rising or min(sigmas) < 0 or max(sigmas) > 1:
                raise ValueError(f"program {self.name!r}: {name} sigmas must fall within [0, 1], got {sigmas}")
        if self.solver not in SOLVERS:
            raise ValueError(f"program {self.name!r}: unknown solver {self.solver!r}; choose from {', '.join(SOLVERS)}")
        if (self.video, self.action) not in _MODES:
            raise ValueError(f"program {self.name!r}: video {self.video!r} with action {self.action!r} is no mode")
        if self.video != "generated" and self.video_guidance.scale != 1:
            raise ValueError(f"program {self.name!r}: video_guidance, but no video is generated")

    @property
    def steps(self) -> int:
        return len(self.sigma_video) - 1

    @property
    def mode(self) -> str:
        """What it does: joint, policy, forward, inverse or video."""
        return _MODES[self.video, self.action]

    @property
    def imagines(self) -> bool:
        """Whether its video comes out clean; a flash program leaves it noisy."""
        return self.video == "generated" and self.sigma_video[-1] == 0


_MODES = {
    ("generated", "generated"): "joint",
    ("absent", "generated"): "policy",
    ("generated", "given"): "forward",
    ("given", "generated"): "inverse",
    ("generated", "absent"): "video",
}


def grid(steps: int, shift: float = 1.0) -> tuple[float, ...]:
    """steps + 1 levels from 1 to 0, evenly spaced and then shifted."""
    if steps < 1:
        raise ValueError(f"a sampler needs at least one step, got {steps}")
    return tuple(float(s) for s in flow.shift(np.linspace(1.0, 0.0, steps + 1), shift))


def program(name: str, steps: int, shift: float = 1.0, *, sigma_video: float | None = None,
            action_steps: int | None = None, solver: str = "euler", reuse: Reuse | None = None,
            video_guidance: Guidance = NO_GUIDANCE) -> Program:  # fmt: skip
    """A program by its name: the standard one of a mode, or another way to do `joint`.

    Args:
      name: a mode (joint, policy, forward, inverse, video), `flash` or `async`. In flash the actions come out clean
        while the video, which they see, is still noisy (DreamZero-Flash, arXiv:2602.15922; for checkpoints trained
        with mode `async`). In async the actions are clean early and the video goes on, knowing them.
      steps: of the whole.
      shift: of the levels, see `flow.shift`.
      sigma_video: where flash leaves the video, by default 0.7.
      action_steps: after how many steps of async the actions are clean.
      solver: one of `SOLVERS`.
      reuse: when outputs are reused.
      video_guidance: of programs that generate video.

    Raises ValueError naming the field that is wrong, or that the program does not have.
    """
    if sigma_video is not None and name != "flash":
        raise ValueError(f"sigma_video is of program 'flash'; {name!r} has none")
    if action_steps is not None and name != "async":
        raise ValueError(f"action_steps is of program 'async'; {name!r} has none")
    if name == "async" and not (action_steps and 1 <= action_steps < steps):
        raise ValueError(f"action_steps: async needs at least 1 and fewer than its {steps} steps, got {action_steps}")
    low, early = (0.7 if sigma_video is None else sigma_video), action_steps or steps
    if not 0 < low <= 1:
        raise ValueError(f"sigma_video: expected a noise level above 0 and up to 1, got {low}")
    down, zeros, ones = grid(steps, shift), (0.0,) * (steps + 1), (1.0,) * (steps + 1)
    both = {"action_sees_video": True, "video_sees_action": True}
    programs: dict[str, tuple[tuple[float, ...], tuple[float, ...], dict[str, Any]]] = {
        "joint": (down, down, both),
        "flash": (tuple(low + (1 - low) * sigma for sigma in down), down, both),
        "async": (down, (*grid(early, shift), *(0.0,) * (steps - early)), both),
        "policy": (ones, down, {"video": "absent"}),
        "forward": (down, zeros, {"action": "given", "video_sees_action": True}),
        "inverse": (zeros, down, {"video": "given", "action_sees_video": True}),
        "video": (down, ones, {"action": "absent"}),
    }
    if name not in programs:
        raise ValueError(f"unknown program {name!r}; choose from {', '.join(programs)}")
    of_video, of_action, relation = programs[name]
    return Program(name, of_video, of_action, **relation, solver=solver, reuse=reuse, video_guidance=video_guidance)


class Schedule(NamedTuple):
    """Programs as the compiled loop reads them, a row per sample: other numbers do not compile anew."""

    sigma_video: Array  # [n + 1, B]
    sigma_action: Array  # [n + 1, B]
    action_sees_video: Array  # [B] 0 or 1
    video_sees_action: Array  # [B] 0 or 1


def schedule(programs: Sequence[Program]) -> Schedule:
    """One program a row. Shorter ones end with steps of no length, so their rows stay where they are.

    Raises ValueError where they differ in what one loop has in common: solver, reuse or guidance.
    """
    if not programs:
        raise ValueError("a schedule needs at least one program")
    for name in ("solver", "reuse", "video_guidance"):
        if len(found := {getattr(p, name) for p in programs}) > 1:
            raise ValueError(f"programs of one batch must have one {name}, got {', '.join(sorted(map(str, found)))}")
    levels = max(len(p.sigma_video) for p in programs)

    def stack(rows: list[tuple[float, ...]]) -> Array:
        return jnp.asarray([(*row, *(row[-1:] * (levels - len(row)))) for row in rows], jnp.float32).T

    return Schedule(
        stack([p.sigma_video for p in programs]),
        stack([p.sigma_action for p in programs]),
        jnp.asarray([p.action_sees_video for p in programs], jnp.float32),
        jnp.asarray([p.video_sees_action for p in programs], jnp.float32),
    )


class Sample(NamedTuple):
    video: Array | None  # [B, M, f, v, P, C]
    action: Array | None  # [B, M, K, A]


class Held(NamedTuple):
    """What must come back bit-identical: bool, broadcast to the streams; None: nothing.

    For parts of a stream, such as a frozen prefix. Where a whole row is given its sigma never moves, which is enough.
    """

    video: Array | None = None
    action: Array | None = None


class Sampled(NamedTuple):
    video: Array | None  # [B, M, f, v, P, C]
    action: Array | None  # [B, M, K, A]
    evaluations: Array  # [] int32: calls of `predict` that really ran; a guided one is one


Predict = Callable[[Sample, Array, Array], Sample]
"""(noisy sample, sigma_video [B], sigma_action [B]) -> network outputs of the present streams."""


def sample(predict: Predict, start: Sample, schedule: Schedule, held: Held, *, video_prediction: str,
           solver: str = "euler", reuse: Reuse | None = None) -> Sampled:  # fmt: skip
    """Integrates `start` along the schedule in one compiled loop. A step of no length leaves its row as it is.

    Args:
      predict: the network; actions are predicted as velocity.
      start: noise, with what is given in its place.
      schedule: sigmas of every row.
      held: elements that stay as in `start`.
      video_prediction: `x` or `velocity`.
      solver: `euler`, `heun` (two calls a step, but for steps to sigma 0) or `unipc`; see `wam.diffusion.solvers`.
      reuse: when outputs are reused, so that fewer calls run.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; choose from {', '.join(SOLVERS)}")

    def present(video: Any, action: Any) -> Sample:
        return Sample(None if start.video is None else video, None if start.action is None else action)

    each = jax.tree.map  # stream
    levels, predictions = present(schedule.sigma_video, schedule.sigma_action), present(video_prediction, "velocity")

    def at(i: Array) -> Sample:
        return each(lambda sigma: sigma[jnp.maximum(i, 0)], levels)

    def keep(x: Sample, kept: Sample) -> Sample:
        """`x`, with what is held as in `kept`."""
        return Sample(_keep(x.video, kept.video, held.video), _keep(x.action, kept.action, held.action))

    def network(x: Sample, i: Array) -> Sample:
        return present(*predict(x, schedule.sigma_video[i], schedule.sigma_action[i]))

    def velocity(x: Sample, i: Array, outputs: Sample) -> Sample:
        v = each(flow.velocity, x, outputs, at(i), predictions)
        return keep(v, each(jnp.zeros_like, v))

    def call(calls: Calls, x: Sample, i: Array, moves: Sample) -> tuple[Sample, Calls]:
        return call_or_reuse(reuse, calls, functools.partial(network, x, i), functools.partial(velocity, x, i), moves)

    def body(i: Array, carry: tuple) -> tuple:
        x, past, calls = carry
        now, then = at(i), at(i + 1)
        outputs, calls = call(calls, x, i, each(lambda a, b: b < a, now, then))
        if solver == "unipc":
            sigmas = each(lambda *four: four, at(i - 2), at(i - 1), now, then)
            stepped = each(solvers.unipc, x, outputs, past, sigmas, predictions)
            moved, past = (each(lambda _, pair, k=k: pair[k], x, stepped) for k in (0, 1))
            return keep(moved, start), past, calls
        moved = keep(each(flow.step, x, outputs, now, then, predictions), start)
        if solver == "heun":
            wants = each(solvers.heun_corrects, now, then)

            def correct() -> tuple[Sample, Calls]:
                again, known = call(calls, moved, i + 1, wants)
                return keep(each(solvers.heun, x, outputs, moved, again, now, then, predictions), start), known

            wanted = jnp.stack(jax.tree.leaves(wants)).any()
            moved, calls = jax.lax.cond(wanted, correct, lambda: (moved, calls))
        return moved, past, calls

    first = jnp.int32(0)
    calls = no_calls(reuse, functools.partial(network, start, first), functools.partial(velocity, start, first))
    past = each(lambda x: solvers.Past(x, x, x), start) if solver == "unipc" else None
    x, _, calls = jax.lax.fori_loop(0, len(schedule.sigma_video) - 1, body, (start, past, calls))
    return Sampled(x.video, x.action, calls.run)


def _keep(x: Array | None, kept: Array | None, mask: Array | None) -> Array | None:
    return x if x is None or kept is None or mask is None else jnp.where(mask, kept, x)
