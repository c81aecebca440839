"""The cases of `tools.bench.train`: sizes of `wam.config`, token counts and batches, per device."""

from __future__ import annotations

import dataclasses
from typing import Any

from wam.config import NAMED_SIZES, ModelConfig, ObjectiveConfig, OptimizerConfig, to_dict
from wam.models.flops import train_step_flops

JOINT = ObjectiveConfig(modes={"joint": 0.4, "forward": 0.3, "inverse": 0.3}, policy_draws=4)
"""Every stream, both visibility bits, all four loss terms."""
VIDEO = ObjectiveConfig(modes={"video": 1.0}, policy_draws=0)
OPTIMIZER = OptimizerConfig(learning_rate=1e-4, warmup_steps=2, weight_decay=0.1)
TEXT_TOKENS = 16
CHECKED_STEPS = 3
"""Consecutive optimizer steps whose losses are compared before anything is timed; the first of them compiles."""


@dataclasses.dataclass(frozen=True)
class Case:
    size: str
    """A key of `NAMED_SIZES`."""
    grid: tuple[int, int]
    """Patches of a latent frame."""
    frames: int
    """Latent frames, the observed first one included: rows * columns * frames video tokens a sample."""
    batch: int
    network: str = "joint"
    """`joint`: `JointDiT` with two experts against the same in PyTorch; `wan`: one expert, video alone, against Wan."""
    dtype: str = "float32"
    remat: str = "none"
    """What our backward pass recomputes; PyTorch's keeps the inputs of every operation and recomputes none."""
    steps: int = 1
    """Steps of a timed block."""
    quick: bool = False
    """With `--quick`, the case whose compiled peer is measured too: compiling PyTorch takes minutes."""
    isolate: bool = False
    """Each block in a fresh process: where two sides do not fit into the device's memory together."""

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] * self.frames

    @property
    def name(self) -> str:
        what = "" if self.network == "joint" else "-video"
        return f"{self.size}{what}, {self.tokens:,} video tokens x batch {self.batch}, {self.dtype}"

    def model(self, attention: str) -> ModelConfig:
        """Our network; `attention` is its backend."""
        common: dict[str, Any] = {"grid": self.grid, "latent_frames": self.frames, "views": 1, "latent_channels": 64,
                                  "video_prediction": "velocity", "attention": attention, "dtype": self.dtype,
                                  "remat": self.remat, "state_dim": 8, "action_dim": 7}  # fmt: skip
        size: dict[str, Any] = dict(NAMED_SIZES[self.size])
        if self.network == "wan":
            size |= {"action_width": size["video_width"], "action_mlp": size["video_mlp"], "topology": "shared"}
            common |= {"lead_width": 0, "inverse_width": 0, "action_horizon": 4, "steps_per_token": 4}
        else:
            # The path's weights grow with the patches: narrow, so that it does not outgrow the trunk.
            common |= {"lead_width": 16, "lead_fourier": 16, "action_horizon": 16, "steps_per_token": 1}
        return ModelConfig(**size, **common)

    @property
    def objective(self) -> ObjectiveConfig:
        return JOINT if self.network == "joint" else VIDEO

    @property
    def flops(self) -> int:
        """Of one training step of our network."""
        return train_step_flops(self.model("xla"), self.objective, self.batch, text_tokens=TEXT_TOKENS)

    def spec(self, attention: str, device: str) -> dict[str, Any]:
        """What every side's process is told, JSON-able; the bench adds paths and what differs between sides."""
        return {
            "model": to_dict(self.model(attention)),
            "objective": to_dict(self.objective),
            "optimizer": to_dict(OPTIMIZER),
            "batch_size": self.batch,
            "text_tokens": TEXT_TOKENS,
            "seed": 0,
            "steps": 1000,
            "checked_steps": CHECKED_STEPS,
            "device": device,
            "compile": None,
        }


CPU = (
    Case("tiny", (8, 8), 5, 12, remat="dots", steps=3),
    Case("small", (6, 6), 5, 3, remat="dots", quick=True),
    Case("small", (6, 6), 5, 3, "wan", remat="dots"),
)
"""`dots`, since residuals of elementwise operations fill the memory: `tiny` 486 MiB of temporaries, and 208 with it."""

GPU = tuple(
    Case(size, grid, frames, batch, network, "bfloat16", steps=20, isolate=size == "base")
    for network in ("joint", "wan")
    for size, batches in (("small", (8, 4, 2)), ("base", (8, 2, 1)))
    for (grid, frames), batch in zip((((16, 16), 4), ((32, 32), 4), ((32, 32), 8)), batches, strict=True)
)
"""1k, 4k and 8k tokens: a batch of one at 1,024 tokens would time the optimizer."""
