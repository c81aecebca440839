"""How actions are sampled, from flags: `--program flash --steps 2 --solver heun --reuse 0.95 --guidance 3`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from wam.diffusion.sampler import Program

_PROGRAM = flags.DEFINE_enum(
    "program", None, ["policy", "joint", "flash", "async"],
    "Sampler program of the actions; by default that of --mode. flash: clean actions beside a noisy video. async: "
    "actions that are clean before the video is.",
)  # fmt: skip
_SIGMA_VIDEO = flags.DEFINE_float("sigma_video", None, "Noise level at which flash leaves the video; by default 0.7.")
_ACTION_STEPS = flags.DEFINE_integer("action_steps", None, "Steps after which the actions of async are clean.")
_SOLVER = flags.DEFINE_enum(
    "solver", "euler", ["euler", "heun", "unipc"], "euler and unipc call the network once a step, heun twice."
)
_REUSE = flags.DEFINE_float(
    "reuse", None, "Skip the network where the cosine of its last two velocities is above this, e.g. 0.95."
)
_MAX_SKIPS = flags.DEFINE_integer("max_skips", 3, "Most calls in a row that --reuse skips.", lower_bound=1)
_GUIDANCE = flags.DEFINE_float(
    "guidance", 1.0, "Scale of the video's guidance by the instruction, e.g. 3; 1: none. Of checkpoints trained with "
    "objective.drop_text.",
)  # fmt: skip
_GUIDANCE_FROM = flags.DEFINE_float("guidance_from", 0.0, "Lowest noise level of the video that is guided, e.g. 0.96.")

_ALL = (_PROGRAM, _SIGMA_VIDEO, _ACTION_STEPS, _SOLVER, _REUSE, _MAX_SKIPS, _GUIDANCE, _GUIDANCE_FROM)


def program_flags() -> list[str]:
    """Names of this module's flags that were given."""
    return [holder.name for holder in _ALL if holder.present]


def program_from_flags(mode: str | None, steps: Mapping[str, int]) -> Program:
    """The program of a run.

    Args:
      mode: what --mode says, None where it was not given.
      steps: of each mode.

    Raises ValueError naming the flag, or the program's field, that does not go with the others.
    """
    from wam.diffusion.reuse import Reuse
    from wam.diffusion.sampler import Guidance, program

    name = _PROGRAM.value or mode or "policy"
    of = "joint" if name in ("flash", "async") else name
    if mode not in (None, of):
        raise ValueError(f"--program {name} is a way to sample mode {of}, not --mode {mode}")
    if _REUSE.value is None and _MAX_SKIPS.present:
        raise ValueError("--max_skips is of --reuse, which is not given")
    if _GUIDANCE.value == 1 and _GUIDANCE_FROM.present:
        raise ValueError("--guidance_from is of --guidance, which is not given")
    return program(
        name,
        steps[of],
        sigma_video=_SIGMA_VIDEO.value,
        action_steps=_ACTION_STEPS.value,
        solver=_SOLVER.value,
        reuse=None if _REUSE.value is None else Reuse(_REUSE.value, _MAX_SKIPS.value),
        video_guidance=Guidance(_GUIDANCE.value, low=_GUIDANCE_FROM.value),
    )
