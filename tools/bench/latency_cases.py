"""The cases of `tools.bench.latency`: sizes of `wam.config`, what is observed, and what is asked, per device."""

from __future__ import annotations

import dataclasses
from typing import Any

from wam.config import NAMED_SIZES, ModelConfig, to_dict

FORI, UNROLLED, SCANNED, RECOMPUTED = "loop", "unrolled", "scanned", "recomputed"


@dataclasses.dataclass(frozen=True)
class Program:
    """What one answer is: which streams are denoised, in how many Euler steps."""

    mode: str
    """`policy`: actions without imagining; `joint`: actions and video; `forward`: video, given the actions."""
    steps: int
    form: str = FORI
    """Of our compiled program: `loop`, one loop over the steps and layers one after the other; and what it is compared
    with: `unrolled` (steps one after the other as well), `scanned` (a loop over the layers), `recomputed` (the context
    in every step instead of once)."""

    @property
    def name(self) -> str:
        return f"{self.mode}, {self.steps} step{'s' * (self.steps > 1)}" + (f", {self.form}" * (self.form != FORI))

    @classmethod
    def named(cls, name: str) -> Program:
        """The inverse of `name`."""
        mode, steps, *form = name.split(", ")
        return cls(mode, int(steps.split()[0]), *form)

    @property
    def with_video(self) -> bool:
        return self.mode != "policy"

    @property
    def sees(self) -> tuple[bool, bool]:
        """(actions see video, video sees actions)."""
        return self.mode == "joint", self.mode in ("joint", "forward")


PROGRAMS = (*(Program("policy", n) for n in (10, 4, 2, 1)), Program("joint", 10), Program("forward", 10))
QUICK = (Program("policy", 10), Program("policy", 2), Program("joint", 10), Program("forward", 10))
MAIN, JOINT = PROGRAMS[0], PROGRAMS[4]
FORMS = tuple(dataclasses.replace(MAIN, form=form) for form in (UNROLLED, SCANNED, RECOMPUTED))

STAGES = ("host to device", "tokenise", "context", "policy step", "joint step", "detokenise", "device to host")
"""Parts of an answer on their own; a JPEG is decoded before them, on the host."""


@dataclasses.dataclass(frozen=True)
class Case:
    size: str
    """A key of `NAMED_SIZES`."""
    model_fields: tuple[tuple[str, Any], ...]
    """What the size leaves open of `ModelConfig`."""
    text_tokens: int
    executed: int
    """Actions of a chunk that a robot executes before it asks again."""
    label: str = ""
    """Name, where it is not the size."""
    topology: str = "dual"
    dtype: str = "float32"
    patch: int = 16
    """Pixels of a token's side."""
    quick: bool = False
    """Also with `--quick`."""
    goals: tuple[tuple[str, float, str], ...] = ()
    """(program, milliseconds at most, where)."""
    through_policy: bool = False
    """`Policy.infer` is measured too."""
    programs: tuple[Program, ...] = PROGRAMS
    forms: tuple[Program, ...] = FORMS

    @property
    def name(self) -> str:
        shape = "" if self.topology == "dual" else f" {self.topology}"
        return f"{self.label or self.size}{shape}, {self.context_tokens:,} context tokens, {self.dtype}"

    @property
    def context_tokens(self) -> int:
        """Of the observed frames, and the state's."""
        model = self.model("xla")
        return model.views * model.patches + 1

    def model(self, attention: str) -> ModelConfig:
        """Our network; `attention` is its backend. Layers one after the other, as in serving."""
        size: dict[str, Any] = dict(NAMED_SIZES[self.size])
        if self.topology == "shared":
            size |= {"action_width": size["video_width"], "action_mlp": size["video_mlp"]}
        return ModelConfig(**size, **dict(self.model_fields), topology=self.topology, dtype=self.dtype,
                           attention=attention, scan_layers=False)  # fmt: skip

    @property
    def image_size(self) -> tuple[int, int]:
        rows, columns = self.model("xla").grid
        return rows * self.patch, columns * self.patch

    def goal(self, program: Program, chip: str) -> float | None:
        """Milliseconds that were aimed at on this chip."""
        return next((ms for name, ms, where in self.goals if name == program.name and where in chip.lower()), None)

    def spec(self, attention: str, device: str) -> dict[str, Any]:
        """What every side's process is told, JSON-able; the bench adds paths and what differs between sides."""
        return {
            "model": to_dict(self.model(attention)),
            "text_tokens": self.text_tokens,
            "patch": self.patch,
            "image_size": self.image_size,
            "seed": 0,
            "device": device,
            "through_policy": self.through_policy,
        }


def fields(**values: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(values.items())


DEMO = Case(
    "tiny",
    fields(grid=(4, 4), latent_channels=128, latent_frames=2, frames_per_latent=2, latent_rate=5.0, views=2,
           target_views=(0, 1), cameras=3, action_horizon=16, steps_per_token=4, action_dim=4, state_dim=4,
           embodiments=2, text_dim=64, text_attention=False, inverse_width=512, inverse_channels=16),
    text_tokens=6, executed=8, label="demo", quick=True, through_policy=True,
    goals=(("policy, 2 steps", 20.0, "cpu"),),
)  # fmt: skip
"""The shape of the demo's recipe."""

# The paths' weights grow with the patches: narrow, so that they do not outgrow the trunk.
THOUSAND = fields(grid=(32, 32), latent_channels=64, latent_frames=2, frames_per_latent=4, views=1, cameras=1,
                  action_horizon=32, steps_per_token=1, action_dim=7, state_dim=8, text_dim=64,
                  video_prediction="velocity", lead_width=16, lead_fourier=16)  # fmt: skip
"""One image of 512 x 512 pixels; a chunk of 32 actions, and where it is imagined one latent frame of 1,024 tokens."""

SMALL = Case("small", THOUSAND, text_tokens=16, executed=16)
CPU = (DEMO, dataclasses.replace(SMALL, programs=(PROGRAMS[0], PROGRAMS[3]), forms=()))
"""On two cores a thousand tokens take seconds: not a size for a CPU, and here to show it."""

H200 = tuple((f"policy, {n} step{'s' * (n > 1)}", ms, "h200") for n, ms in ((10, 20.0), (2, 10.0), (1, 10.0)))
GPU = (
    dataclasses.replace(SMALL, dtype="bfloat16", quick=True),
    *(dataclasses.replace(SMALL, size="base", topology=topology, dtype="bfloat16", quick=topology == "dual", goals=H200)
      for topology in ("dual", "shared")),
)  # fmt: skip
