"""Shapes of Wan's video autoencoders, the two released ones by name, and how they are run."""

from __future__ import annotations

import dataclasses
from typing import Any

from wam.tokenizers.causal_conv import BACKENDS


@dataclasses.dataclass(frozen=True)
class WanVAEConfig:
    """The network (as released), and from `patch` on how a run uses it."""

    channels: int = 16
    """Of a latent cell."""
    encoder_width: int = 96
    decoder_width: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Of the width, a stage each; between stages the image is halved."""
    blocks: int = 2
    """Residual blocks of an encoder stage; a decoder stage has one more."""
    halve_time: tuple[bool, ...] = (False, True, True)
    """After which encoder stages time is halved too."""
    residual: bool = False
    """Stages have a parameter-free shortcut around them (Wan 2.2)."""
    pixel_patch: int = 1
    """Pixels of a patch that is folded into channels before the first convolution (Wan 2.2: 2)."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    """Of every latent channel, published with the weights; latents are normalised with them."""

    patch: int = 2
    """Cells of a token, patch x patch: those of the trunk's patch embedding."""
    convolution: str = "taps"
    """Backend of `causal_conv`."""
    dtype: str = "float32"
    """Compute dtype; weights, norms, softmax and the normalisation of latents stay float32."""
    chunk: int = 0
    """Latent frames that are computed at a time, after the first; 0: the whole clip at once."""
    tile: int = 0
    """Cells of a square tile, for images too large to be computed in one piece; 0: always in one piece."""
    tile_overlap: int = 0
    """Cells that neighbouring tiles share at least."""

    def __post_init__(self):
        if len(self.halve_time) != len(self.multipliers) - 1:
            raise ValueError(
                f"halve_time has {len(self.halve_time)} entries; {len(self.multipliers)} stages need "
                f"{len(self.multipliers) - 1}"
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {self.channels} latent channels")
        for name, allowed in (("convolution", BACKENDS), ("dtype", ("float32", "bfloat16"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose from {', '.join(allowed)}")

    @property
    def cell(self) -> int:
        """Pixels of a latent cell, along either side."""
        return self.pixel_patch * 2 ** (len(self.multipliers) - 1)

    @property
    def frames_per_latent(self) -> int:
        return 2 ** sum(self.halve_time)


WAN_VAES: dict[str, dict[str, Any]] = {
    "wan2.1": {
        "mean": (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
                 0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
        "std": (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
                3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    },
    "wan2.2": {
        "channels": 48,
        "encoder_width": 160,
        "decoder_width": 256,
        "residual": True,
        "pixel_patch": 2,
        "mean": (-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
                 -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
                 -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
                 -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
                 -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
                 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
        "std": (0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
                0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
                0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
                0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
                0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
                0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
    },
}  # fmt: skip
"""Keyword arguments of `WanVAEConfig` for the released autoencoders."""
