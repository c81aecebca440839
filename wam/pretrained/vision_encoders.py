"""Released image and video encoders in the format of `transformers`: what `config.json` says, and the map of names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from wam.encoders.config import CLIP_MEAN, CLIP_STD, HALF, PredictorConfig, ViTConfig
from wam.pretrained.mapping import KERNEL, Entry, Layout, reshaped
from wam.pretrained.stack_names import Released, activation, linear, norm, prefix_in, stack

_DEFAULTS = {
    "clip_vision_model": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
    "siglip_vision_model": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
        "vision_use_head": True,
    },
}  # fmt: skip
"""What files of a text and an image encoder together leave out."""


def config_from(released: Mapping[str, Any]) -> ViTConfig:
    """Our configuration from the contents of `config.json`; ValueError names what it asks for and we do not have."""
    kind = released.get("model_type")
    if kind in ("clip", "siglip"):
        return config_from({"model_type": f"{kind}_vision_model", **released["vision_config"]})
    families: dict[str, Callable[..., ViTConfig]] = {
        "clip_vision_model": _clip, "siglip_vision_model": _siglip, "dinov2": _dinov2,
        "dinov2_with_registers": _dinov2, "vit_mae": _mae, "vjepa2": _vjepa2,
    }  # fmt: skip
    if kind not in families:
        raise ValueError(f"config.json is of model_type {kind!r}; known image encoders: {', '.join(families)}")
    given = {**_DEFAULTS.get(kind, {}), **released}
    heads = given["num_attention_heads"]
    common = {
        "width": given["hidden_size"], "depth": given["num_hidden_layers"], "heads": heads,
        "head_dim": given["hidden_size"] // heads, "eps": given["layer_norm_eps"],
        "activation": activation(given["hidden_act"]), "patch": _side(given, "patch_size"),
        "image_size": _side(given, "crop_size" if kind == "vjepa2" else "image_size"),
    }  # fmt: skip
    return families[kind](given, common)


def _side(given: Mapping[str, Any], name: str) -> int:
    """A size that may be written as two equal ones."""
    value = given[name]
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1:
        raise ValueError(f"config.json has {name} {value}; only squares are known")
    return sides.pop()


def _clip(given: Mapping[str, Any], common: dict[str, Any]) -> ViTConfig:
    return ViTConfig(
        family="clip", mlp=given["intermediate_size"], patch_bias=False, pre_norm=True, final_norm="pooled",
        pooling="class", mean=CLIP_MEAN, std=CLIP_STD, **common,
    )  # fmt: skip


def _siglip(given: Mapping[str, Any], common: dict[str, Any]) -> ViTConfig:
    return ViTConfig(
        family="siglip", mlp=given["intermediate_size"], class_token=False,
        pooling="attention" if given["vision_use_head"] else "none", mean=HALF, std=HALF, **common,
    )  # fmt: skip


def _dinov2(given: Mapping[str, Any], common: dict[str, Any]) -> ViTConfig:
    mlp, gated = int(common["width"] * given["mlp_ratio"]), given["use_swiglu_ffn"]
    if gated:  # two thirds of the width, so that the third matrix costs nothing, rounded up to a multiple of 8
        common, mlp = common | {"activation": "silu"}, -(-int(mlp * 2 / 3) // 8) * 8
    return ViTConfig(
        family="dinov2", mlp=mlp, gated="one" if gated else "none", qkv_bias=given["qkv_bias"], layer_scale=True,
        mask_token=given.get("use_mask_token", True), registers=given.get("num_register_tokens", 0),
        antialias="num_register_tokens" in given, pooling="class", **common,
    )  # fmt: skip


def _mae(given: Mapping[str, Any], common: dict[str, Any]) -> ViTConfig:
    return ViTConfig(
        family="mae", mlp=given["intermediate_size"], qkv_bias=given["qkv_bias"], positions="sincos", pooling="class",
        resize="bilinear", **common,
    )  # fmt: skip


def _vjepa2(given: Mapping[str, Any], common: dict[str, Any]) -> ViTConfig:
    return ViTConfig(
        family="vjepa2", mlp=int(common["width"] * given["mlp_ratio"]), tubelet=given["tubelet_size"],
        qkv_bias=given["qkv_bias"], class_token=False, positions="rotary", resize="bilinear", **common,
    )  # fmt: skip


def predictor_config_from(released: Mapping[str, Any]) -> PredictorConfig:
    """The predictor beside a V-JEPA 2 encoder, from the contents of the same `config.json`."""
    width, heads = released["pred_hidden_size"], released["pred_num_attention_heads"]
    return PredictorConfig(
        width=width, depth=released["pred_num_hidden_layers"], heads=heads, head_dim=width // heads,
        mlp=int(width * released["pred_mlp_ratio"]), eps=released["layer_norm_eps"], qkv_bias=released["qkv_bias"],
        activation=activation(released["hidden_act"]), encoder_width=released["hidden_size"],
        mask_tokens=released["pred_num_mask_tokens"],
    )  # fmt: skip


PREFIXES = {
    "clip": ("vision_model.", ""),
    "siglip": ("vision_model.", ""),
    "dinov2": ("", "dinov2.", "dinov2_with_registers."),
    "mae": ("vit.", ""),
    "vjepa2": ("encoder.", "vjepa2.encoder."),
}
"""What may stand before the names of a family; the first as its encoders are published."""

_OTHERS = {
    "clip": ("text_model.", "logit_", "visual_projection.", "text_projection."),
    "siglip": ("text_model.", "logit_"),
    "dinov2": ("classifier.",),
    "mae": ("decoder.",),
    "vjepa2": ("predictor.", "vjepa2.predictor.", "pooler.", "classifier."),
}
_PATCH = {
    "clip": "embeddings.patch_embedding",
    "siglip": "embeddings.patch_embedding",
    "dinov2": "embeddings.patch_embeddings.projection",
    "mae": "embeddings.patch_embeddings.projection",
    "vjepa2": "embeddings.patch_embeddings.proj",
}
_FINAL_NORM = {
    "clip": "post_layernorm", "siglip": "post_layernorm", "dinov2": "layernorm", "mae": "layernorm",
    "vjepa2": "layernorm",
}  # fmt: skip


def _patch_kernel(config: ViTConfig) -> Layout:
    """Convolution [D, 3, (t,) p, p] -> linear map [t p p 3, D] of a patch."""
    t, p, D = config.tubelet, config.patch, config.width
    window = (t, p, p) if config.positions == "rotary" else (p, p)
    return Layout(
        lambda x: np.moveaxis(x, (0, 1), (-1, -2)).reshape(-1, D),
        lambda x: np.moveaxis(x.reshape(*window, 3, D), (-1, -2), (0, 1)),
    )


def entries(config: ViTConfig, prefix: str | None = None) -> list[Entry]:
    """The map of one encoder; `prefix` stands before its names (by default as the family is published)."""
    family, D = config.family, config.width
    prefix = PREFIXES[family][0] if prefix is None else prefix
    at = f"{prefix}embeddings."
    found = linear(f"{prefix}{_PATCH[family]}", "patch", bias=config.patch_bias, kernel=_patch_kernel(config))
    found += stack(config, family, prefix) + norm(f"{prefix}{_FINAL_NORM[family]}", "final_norm", config)
    if family in ("clip", "siglip"):
        found.append(Entry(f"{at}position_embedding.weight", "positions"))
    elif family in ("dinov2", "mae"):
        tokens = config.class_token + config.grid[0] * config.grid[1]
        found.append(Entry(f"{at}position_embeddings", "positions", reshaped((tokens, D), (1, tokens, D))))
    if config.class_token:
        found.append(
            Entry(f"{at}class_embedding", "class_token") if family == "clip"
            else Entry(f"{at}cls_token", "class_token", reshaped((D,), (1, 1, D)))
        )  # fmt: skip
    if config.registers:
        n = config.registers
        found.append(Entry(f"{at}register_tokens", "registers", reshaped((n, D), (1, n, D))))
    if config.mask_token:
        found.append(Entry(f"{at}mask_token", "mask_token", reshaped((D,), (1, D))))
    if config.pre_norm:
        found += norm(f"{prefix}pre_layrnorm", "pre_norm", config)  # sic
    if config.pooling == "attention":
        found += _attention_pool(config, f"{prefix}head")
    if config.projection:
        found += linear("visual_projection", "project", bias=False)
    return found


def _attention_pool(config: ViTConfig, head: str) -> list[Entry]:
    found = [
        Entry(f"{head}.probe", "pool.query", reshaped((config.width,), (1, 1, config.width))),
        Entry(f"{head}.attention.in_proj_weight", "pool.attention.qkv.kernel", KERNEL),
        Entry(f"{head}.attention.in_proj_bias", "pool.attention.qkv.bias"),
    ]
    found += linear(f"{head}.attention.out_proj", "pool.attention.out")
    found += norm(f"{head}.layernorm", "pool.norm", config)
    return found + linear(f"{head}.mlp.fc1", "pool.mlp.up") + linear(f"{head}.mlp.fc2", "pool.mlp.down")


def predictor_entries(config: PredictorConfig, prefix: str = "predictor.") -> list[Entry]:
    """The map of the predictor in a file of V-JEPA 2."""
    n, D = config.mask_tokens, config.width
    return [
        *linear(f"{prefix}embeddings.predictor_embeddings", "embed"),
        Entry(f"{prefix}embeddings.mask_tokens", "mask_tokens", reshaped((n, D), (n, 1, 1, D))),
        *stack(config, "vjepa2", prefix),
        *norm(f"{prefix}layernorm", "final_norm", config),
        *linear(f"{prefix}proj", "out"),
    ]


def released(config: ViTConfig, names: Collection[str]) -> Released:
    """The map for a file with these tensors, whichever prefix it uses, and what of it is another part's."""
    prefix = prefix_in(names, f"{_PATCH[config.family]}.weight", PREFIXES[config.family])
    known = entries(config, prefix)
    ours = {entry.theirs for entry in known}
    aside = {n for n in names if n.startswith(_OTHERS[config.family]) or n.endswith(".position_ids")}
    return Released(known, frozenset(aside - ours))


def predictor_released(config: PredictorConfig, names: Collection[str]) -> Released:
    """As `released`, of the predictor."""
    prefix = prefix_in(names, "proj.weight", ("predictor.", "vjepa2.predictor."))
    return Released(predictor_entries(config, prefix), frozenset(n for n in names if not n.startswith(prefix)))
