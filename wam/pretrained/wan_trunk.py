"""Wan 2.1 and 2.2 video transformers as the video expert of `JointDiT`: shapes, switches and the map of their names.

Two namings are in circulation: that of the first release (`blocks.0.self_attn.q`) and that of `diffusers`
(`blocks.0.attn1.to_q`). Both are mapped; exports are in the latter.

A latent patch is one vector of (frame, row, column, channel) of the patch, the channels fastest, where the released
patch embedding is a convolution with its channels slowest. Image-to-video trunks take further channels, which are ours'
`guide`: a mask of four and the latents of the first frame; they stand behind the noisy ones in the file, and behind the
whole noisy patch here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from wam.config import ModelConfig
from wam.pretrained.mapping import KERNEL, SAME, Entry, Layout, reshaped

OURS = ("blocks.video", "sigma.video", "text_in.video", "image_in", "video_in", "video_head")
"""Everything of a `JointDiT` that a released trunk fills."""


@dataclasses.dataclass(frozen=True)
class WanConfig:
    """`config.json` of a released transformer, in its own words (`diffusers`)."""

    num_attention_heads: int
    num_layers: int
    ffn_dim: int
    in_channels: int = 16
    out_channels: int = 16
    attention_head_dim: int = 128
    patch_size: tuple[int, int, int] = (1, 2, 2)
    text_dim: int = 4096
    freq_dim: int = 256
    cross_attn_norm: bool = True
    qk_norm: str = "rms_norm_across_heads"
    eps: float = 1e-6
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    rope_max_seq_len: int = 1024
    pos_embed_seq_len: int | None = None

    fills: ClassVar[tuple[str, ...]] = OURS

    def __post_init__(self):
        width = self.num_attention_heads * self.attention_head_dim
        wanted = {"qk_norm": "rms_norm_across_heads", "eps": 1e-6, "pos_embed_seq_len": None,
                  "added_kv_proj_dim": width if self.image_dim else None}  # fmt: skip
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise ValueError(f"config.json of the trunk has {name} {getattr(self, name)!r}; known is {value!r}")
        if self.in_channels < self.out_channels:
            raise ValueError(
                f"config.json of the trunk has in_channels {self.in_channels}, fewer than its out_channels "
                f"{self.out_channels}"
            )

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def patch(self) -> int:
        """Numbers a channel has in one patch."""
        return math.prod(self.patch_size)

    def model_fields(self) -> dict[str, Any]:
        """Fields of `ModelConfig` with which our network is this one, given a latent of `latent_channels`."""
        return {
            "depth": self.num_layers,
            "heads": self.num_attention_heads,
            "head_dim": self.attention_head_dim,
            "video_width": self.width,
            "video_mlp": self.ffn_dim,
            "time_width": self.freq_dim,
            "text_dim": self.text_dim,
            "latent_channels": self.patch * self.out_channels,
            "guide_channels": self.patch * (self.in_channels - self.out_channels),
            "image_dim": self.image_dim or 0,
            "text_norm": self.cross_attn_norm,
            **SWITCHES,
        }


SWITCHES: dict[str, Any] = {"video_prediction": "velocity", "video_input": "one", "places": "rotary",
                            "pooled_text": False, "text_input": "mlp", "text_padding": "zeros"}  # fmt: skip
"""Where Wan does otherwise than our own defaults."""

RELEASED: dict[str, WanConfig] = {
    "wan2.1-1.3b": WanConfig(12, 30, 8960),
    "wan2.1-14b": WanConfig(40, 40, 13824),
    "wan2.1-14b-i2v": WanConfig(40, 40, 13824, in_channels=36, image_dim=1280, added_kv_proj_dim=5120),
    "wan2.2-5b": WanConfig(24, 30, 14336, in_channels=48, out_channels=48),
}


def parse(config: Mapping[str, Any]) -> WanConfig:
    """The config of a `config.json` of `diffusers`; ValueError if it is of another model, or has an unknown field."""
    kind = config.get("_class_name")
    if kind != "WanTransformer3DModel":
        raise ValueError(f"config.json is of {kind!r}, expected 'WanTransformer3DModel'")
    fields = {name: value for name, value in config.items() if not name.startswith("_")}
    known = {field.name for field in dataclasses.fields(WanConfig)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"config.json of the trunk has an unknown field {unknown[0]!r}")
    if missing := [name for name in ("num_attention_heads", "num_layers", "ffn_dim") if name not in fields]:
        raise ValueError(f"config.json of the trunk lacks {missing[0]!r}")
    return WanConfig(**{**fields, "patch_size": tuple(fields.get("patch_size", (1, 2, 2)))})


def to_json(config: WanConfig) -> dict[str, Any]:
    """The inverse of `parse`."""
    return {"_class_name": "WanTransformer3DModel", **dataclasses.asdict(config), "patch_size": [*config.patch_size]}


def model_config(config: WanConfig, **fields: Any) -> ModelConfig:
    """The smallest `ModelConfig` around a trunk: shapes of its parameters follow from it."""
    own = {"action_width": 8, "action_mlp": 8, "lead_width": 0, "inverse_width": 0}
    return ModelConfig(**{**own, **config.model_fields(), **fields})


# ------------------------------------------------------------------------------------------------------------- names

DIFFUSERS = {
    "time_in": "condition_embedder.time_embedder.linear_1",
    "time_hidden": "condition_embedder.time_embedder.linear_2",
    "time_project": "condition_embedder.time_proj",
    "text_in": "condition_embedder.text_embedder.linear_1",
    "text_out": "condition_embedder.text_embedder.linear_2",
    "image_norm_in": "condition_embedder.image_embedder.norm1",
    "image_in": "condition_embedder.image_embedder.ff.net.0.proj",
    "image_out": "condition_embedder.image_embedder.ff.net.2",
    "image_norm_out": "condition_embedder.image_embedder.norm2",
    "head": "proj_out",
    "head_table": "scale_shift_table",
    "self": "attn1",
    "cross": "attn2",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "image_k": "add_k_proj",
    "image_v": "add_v_proj",
    "image_k_norm": "norm_added_k",
    "cross_norm": "norm2",
    "up": "ffn.net.0.proj",
    "down": "ffn.net.2",
    "table": "scale_shift_table",
}
ORIGINAL = {
    "time_in": "time_embedding.0",
    "time_hidden": "time_embedding.2",
    "time_project": "time_projection.1",
    "text_in": "text_embedding.0",
    "text_out": "text_embedding.2",
    "image_norm_in": "img_emb.proj.0",
    "image_in": "img_emb.proj.1",
    "image_out": "img_emb.proj.3",
    "image_norm_out": "img_emb.proj.4",
    "head": "head.head",
    "head_table": "head.modulation",
    "self": "self_attn",
    "cross": "cross_attn",
    "q": "q",
    "k": "k",
    "v": "v",
    "o": "o",
    "image_k": "k_img",
    "image_v": "v_img",
    "image_k_norm": "norm_k_img",
    "cross_norm": "norm3",
    "up": "ffn.0",
    "down": "ffn.2",
    "table": "modulation",
}
NAMINGS = {"diffusers": DIFFUSERS, "original": ORIGINAL}


def naming_of(tensors: Mapping[str, Any]) -> str:
    """Which naming a file follows; ValueError if neither: its first tensor is named."""
    for naming, names in NAMINGS.items():
        if f"{names['time_in']}.weight" in tensors:
            return naming
    found = min(tensors, default="no tensor")
    raise ValueError(f"this is no Wan trunk: it has {found!r} and no {DIFFUSERS['time_in'] + '.weight'!r}")


def _patch_layout(config: WanConfig) -> Layout:
    """Convolution [D, channels, *patch] <-> [patch of noisy channels + patch of guide channels, D]."""
    noisy, shape = config.out_channels, (*config.patch_size, config.in_channels, config.width)

    def ours(x: np.ndarray) -> np.ndarray:
        last = np.moveaxis(x, (0, 1), (-1, -2))
        return np.concatenate([p.reshape(-1, config.width) for p in (last[..., :noisy, :], last[..., noisy:, :])])

    def theirs(x: np.ndarray) -> np.ndarray:
        parts = np.split(x, [config.patch * noisy])
        both = [part.reshape(*config.patch_size, -1, config.width) for part in parts]
        return np.moveaxis(np.concatenate(both, axis=-2).reshape(shape), (-1, -2), (0, 1))

    return Layout(ours, theirs)


def entries(config: WanConfig, naming: str = "diffusers") -> list[Entry]:
    """Every tensor of a released transformer, in one of `NAMINGS`."""
    names, width = NAMINGS[naming], config.width
    found: list[Entry] = []

    def linear(theirs: str, ours: str, layer: int | None = None) -> None:
        found.append(Entry(f"{theirs}.weight", f"{ours}.kernel", KERNEL, layer))
        found.append(Entry(f"{theirs}.bias", f"{ours}.bias", SAME, layer))

    def norm(theirs: str, ours: str, layer: int | None = None, *, bias: bool = False) -> None:
        found.append(Entry(f"{theirs}.weight", f"{ours}.scale", SAME, layer))
        if bias:
            found.append(Entry(f"{theirs}.bias", f"{ours}.bias", SAME, layer))

    found.append(Entry("patch_embedding.weight", "video_in.kernel", _patch_layout(config)))
    found.append(Entry("patch_embedding.bias", "video_in.bias"))
    linear(names["time_in"], "sigma.video.input")
    linear(names["time_hidden"], "sigma.video.hidden")
    linear(names["time_project"], "sigma.video.project")
    linear(names["text_in"], "text_in.video.input")
    linear(names["text_out"], "text_in.video.output")
    if config.image_dim:
        norm(names["image_norm_in"], "image_in.norm_in", bias=True)
        linear(names["image_in"], "image_in.input")
        linear(names["image_out"], "image_in.output")
        norm(names["image_norm_out"], "image_in.norm_out", bias=True)
    linear(names["head"], "video_head.linear")
    found.append(Entry(names["head_table"], "video_head.table", reshaped((2, width), (1, 2, width))))
    for i in range(config.num_layers):
        theirs, ours = f"blocks.{i}", "blocks.video"
        for attention, prefix in (("self", ""), ("cross", "text_")):
            for part, own in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out")):
                linear(f"{theirs}.{names[attention]}.{names[part]}", f"{ours}.{prefix}{own}", i)
            for part in ("q", "k"):
                norm(f"{theirs}.{names[attention]}.norm_{part}", f"{ours}.{prefix}{part}_norm", i)
        if config.cross_attn_norm:
            norm(f"{theirs}.{names['cross_norm']}", f"{ours}.text_norm", i, bias=True)
        if config.image_dim:
            for part in ("image_k", "image_v"):
                linear(f"{theirs}.{names['cross']}.{names[part]}", f"{ours}.{part}", i)
            norm(f"{theirs}.{names['cross']}.{names['image_k_norm']}", f"{ours}.image_k_norm", i)
        linear(f"{theirs}.{names['up']}", f"{ours}.up", i)
        linear(f"{theirs}.{names['down']}", f"{ours}.down", i)
        found.append(Entry(f"{theirs}.{names['table']}", f"{ours}.table", reshaped((6, width), (1, 6, width)), i))
    return found
