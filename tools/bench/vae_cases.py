"""The cases of `tools.bench.tokenizer`: released autoencoders, a direction, a clip's shape, per device."""

from __future__ import annotations

import dataclasses
from typing import Any

from wam.tokenizers.wan_vae_config import WAN_VAES, WanVAEConfig

CHECKED_STEPS = 2
"""Calls before anything is timed; the first compiles, and its result is compared."""


@dataclasses.dataclass(frozen=True)
class Case:
    vae: str
    """A key of `WAN_VAES`."""
    direction: str
    """`encode` or `decode`."""
    frames: int
    height: int
    width: int
    batch: int = 1
    dtype: str = "float32"
    convolution: str = "taps"
    """Our backend."""
    steps: int = 1
    """Calls of a timed block."""
    quick: bool = False
    """Also with `--quick`."""

    @property
    def name(self) -> str:
        backend = "" if self.convolution == "taps" else f", {self.convolution}"
        clip = f"{self.frames} frames {self.height}x{self.width} x batch {self.batch}"
        return f"{self.vae} {self.direction}, {clip}, {self.dtype}{backend}"

    @property
    def config(self) -> WanVAEConfig:
        return WanVAEConfig(**WAN_VAES[self.vae], dtype=self.dtype, convolution=self.convolution)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of pixels [B, T, h, w, 3], or of latents [B, F, rows, columns, C]."""
        if self.direction == "encode":
            return (self.batch, self.frames, self.height, self.width, 3)
        config = self.config
        latent_frames = 1 + (self.frames - 1) // config.frames_per_latent
        return (self.batch, latent_frames, self.height // config.cell, self.width // config.cell, config.channels)

    def spec(self, device: str) -> dict[str, Any]:
        """What every side's process is told, JSON-able; the bench adds paths."""
        return {"case": dataclasses.asdict(self), "checked_steps": CHECKED_STEPS, "device": device, "seed": 0}


CPU = (
    Case("wan2.1", "encode", 5, 128, 128, quick=True),
    Case("wan2.1", "decode", 5, 128, 128, quick=True),
    Case("wan2.1", "encode", 1, 256, 256),
    Case("wan2.2", "encode", 5, 128, 128),
    Case("wan2.2", "decode", 5, 128, 128),
)

GPU = tuple(
    Case(vae, direction, 17, 480, 832, dtype="bfloat16", convolution=convolution, steps=3, quick=vae == "wan2.1")
    for vae in WAN_VAES
    for direction in ("encode", "decode")
    for convolution in ("taps", "conv3d")
)
