"""Names of Wan's video autoencoders in `diffusers`' format and in the files the authors released.

`AutoencoderKLWan` and `Wan2.1_VAE.pth` / `Wan2.2_VAE.pth` hold the same tensors under two sets of names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wam.pretrained.mapping import KERNEL, Entry, Layout
from wam.tokenizers.wan_vae_config import WanVAEConfig


def _pointwise(axes: int) -> Layout:
    """A convolution with a window of one, [out, in, 1, ...] of `axes` axes <-> a linear map [in, out]."""
    return Layout(lambda x: x.reshape(x.shape[:2]).T, lambda x: x.T.reshape(*x.shape[::-1], *[1] * (axes - 2)))


def _per_channel(axes: int) -> Layout:
    """[channels, 1, ...] of `axes` axes <-> [channels]."""
    return Layout(lambda x: x.reshape(-1), lambda x: x.reshape(-1, *[1] * (axes - 1)))


BLOCK = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6",
         "conv_shortcut": "shortcut"}  # fmt: skip
"""Parts of a residual block, `diffusers`' names and the authors'."""


class _Names:
    """Collects entries under the prefixes of either side."""

    def __init__(self, original: bool):
        self.original = original
        self.entries: list[Entry] = []

    def conv(self, theirs: str, ours: str, layout: Layout = KERNEL) -> None:
        self.entries += [Entry(f"{theirs}.weight", f"{ours}.kernel", layout), Entry(f"{theirs}.bias", f"{ours}.bias")]

    def norm(self, theirs: str, ours: str, axes: int = 4) -> None:
        self.entries.append(Entry(f"{theirs}.gamma", f"{ours}.scale", _per_channel(axes)))

    def block(self, theirs: str, ours: str, shortcut: bool) -> None:
        part = {name: f"{theirs}.{BLOCK[name] if self.original else name}" for name in BLOCK}
        for i in ("1", "2"):
            self.norm(part[f"norm{i}"], f"{ours}.norm{i}")
            self.conv(part[f"conv{i}"], f"{ours}.conv{i}")
        if shortcut:
            self.conv(part["conv_shortcut"], f"{ours}.shortcut", _pointwise(5))

    def middle(self, side: str) -> None:
        first, attention, second = (
            [f"{side}.middle.{i}" for i in range(3)]
            if self.original
            else [f"{side}.mid_block.{name}" for name in ("resnets.0", "attentions.0", "resnets.1")]
        )
        self.block(first, f"{side}.middle.block1", False)
        self.norm(f"{attention}.norm", f"{side}.middle.attention.norm", axes=3)
        self.conv(f"{attention}.to_qkv", f"{side}.middle.attention.qkv", _pointwise(4))
        self.conv(f"{attention}.proj", f"{side}.middle.attention.out", _pointwise(4))
        self.block(second, f"{side}.middle.block2", False)

    def ends(self, side: str) -> None:
        conv_in, norm, conv_out = (
            ("conv1", "head.0", "head.2") if self.original else ("conv_in", "norm_out", "conv_out")
        )
        self.conv(f"{side}.{conv_in}", f"{side}.conv_in")
        self.norm(f"{side}.{norm}", f"{side}.norm_out")
        self.conv(f"{side}.{conv_out}", f"{side}.conv_out")


def _stage_names(config: WanVAEConfig, side: str, original: bool) -> Iterator[tuple[list[str], str]]:
    """Of every stage: the names of its residual blocks and of its resampling (there or not)."""
    down = side == "encoder"
    blocks = config.blocks + (0 if down else 1)
    for stage in range(len(config.multipliers)):
        if original or (down and not config.residual):
            # The authors number blocks and resampling through, within a stage in 2.2 and over all stages in 2.1.
            word = ("downsamples" if down else "upsamples") if original else "down_blocks"
            stem = f"{side}.{word}.{stage}.{word}" if config.residual else f"{side}.{word}"
            start = 0 if config.residual else stage * (blocks + 1)
            yield [f"{stem}.{start + i}" for i in range(blocks)], f"{stem}.{start + blocks}"
        else:
            stem = f"{side}.{'down' if down else 'up'}_blocks.{stage}"
            resample = "downsampler" if down else "upsampler" if config.residual else "upsamplers.0"
            yield [f"{stem}.resnets.{i}" for i in range(blocks)], f"{stem}.{resample}"


def entries(config: WanVAEConfig, *, original: bool = False) -> list[Entry]:
    """Every tensor of the autoencoder; `original`: by the authors' names rather than `diffusers`'."""
    names = _Names(original)
    multipliers, last = config.multipliers, len(config.multipliers) - 1
    encoder = [config.encoder_width * m for m in (1, *multipliers)]
    decoder = [config.decoder_width * m for m in (multipliers[-1], *multipliers[::-1])]
    for side, widths in (("encoder", encoder), ("decoder", decoder)):
        down = side == "encoder"
        names.ends(side)
        names.middle(side)
        for stage, (blocks, resample) in enumerate(_stage_names(config, side, original)):
            halved = not down and stage > 0 and not config.residual  # by the upsampling before
            shortcut = widths[stage] // (2 if halved else 1) != widths[stage + 1]
            for i, block in enumerate(blocks):
                names.block(block, f"{side}.stages.{stage}.blocks.{i}", i == 0 and shortcut)
            if stage < last:
                ours = f"{side}.stages.{stage}.resample"
                names.conv(f"{resample}.resample.1", f"{ours}.space")
                if config.halve_time[stage if down else last - 1 - stage]:
                    names.conv(f"{resample}.time_conv", f"{ours}.time")
    names.conv("conv1" if original else "quant_conv", "moments_out", _pointwise(5))
    names.conv("conv2" if original else "post_quant_conv", "latents_in", _pointwise(5))
    return names.entries


def config_from_diffusers(about: Mapping[str, Any], **run: Any) -> WanVAEConfig:
    """The configuration of a released autoencoder from its `config.json`; `run`: how it is run, see `WanVAEConfig`.

    ValueError where the file asks for what the network does not have.
    """
    needed = ("base_dim", "z_dim", "dim_mult", "num_res_blocks", "temperal_downsample", "latents_mean", "latents_std")
    if missing := [name for name in needed if name not in about]:
        raise ValueError(f"config.json: it lacks {missing[0]!r}, so it is not that of an AutoencoderKLWan")
    config = WanVAEConfig(
        channels=about["z_dim"],
        encoder_width=about["base_dim"],
        decoder_width=about.get("decoder_base_dim") or about["base_dim"],
        multipliers=tuple(about["dim_mult"]),
        blocks=about["num_res_blocks"],
        halve_time=tuple(about["temperal_downsample"]),
        residual=about.get("is_residual", False),
        pixel_patch=about.get("patch_size") or 1,
        mean=tuple(about["latents_mean"]),
        std=tuple(about["latents_std"]),
        **run,
    )
    pixels = 3 * config.pixel_patch**2
    for name, expected in {
        "attn_scales": [],
        "in_channels": pixels,
        "out_channels": pixels,
        "scale_factor_spatial": config.cell,
        "scale_factor_temporal": config.frames_per_latent,
    }.items():
        found = about.get(name, expected)
        if (list(found) if isinstance(expected, list) else found) != expected:
            raise ValueError(f"config.json: {name} is {found!r}; this autoencoder has {expected!r}")
    return config


def diffusers_config(config: WanVAEConfig) -> dict[str, Any]:
    """The inverse of `config_from_diffusers`: the arguments of `AutoencoderKLWan`, for its `config.json`."""
    pixels = 3 * config.pixel_patch**2
    return {
        "base_dim": config.encoder_width,
        "decoder_base_dim": config.decoder_width,
        "z_dim": config.channels,
        "dim_mult": list(config.multipliers),
        "num_res_blocks": config.blocks,
        "attn_scales": [],
        "temperal_downsample": list(config.halve_time),
        "dropout": 0.0,
        "latents_mean": list(config.mean),
        "latents_std": list(config.std),
        "is_residual": config.residual,
        "in_channels": pixels,
        "out_channels": pixels,
        "patch_size": config.pixel_patch if config.pixel_patch > 1 else None,
        "scale_factor_temporal": config.frames_per_latent,
        "scale_factor_spatial": config.cell,
    }
