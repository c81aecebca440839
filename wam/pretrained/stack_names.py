"""What each family calls the parts of the transformer stack that all encoders share (names of `transformers`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from wam.encoders.config import StackConfig
from wam.pretrained.mapping import KERNEL, SAME, Entry, Layout

_CLIP = {
    "attention_norm": "layer_norm1",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
_T5 = {
    "attention_norm": "layer.0.layer_norm",
    "attention.q": "layer.0.SelfAttention.q",
    "attention.k": "layer.0.SelfAttention.k",
    "attention.v": "layer.0.SelfAttention.v",
    "attention.out": "layer.0.SelfAttention.o",
    "relative_bias": "layer.0.SelfAttention.relative_attention_bias.weight",
    "mlp_norm": "layer.1.layer_norm",
    "mlp.up": "layer.1.DenseReluDense.wi",
    "mlp.down": "layer.1.DenseReluDense.wo",
}
_BERT = {
    "attention.q": "attention.attention.query",
    "attention.k": "attention.attention.key",
    "attention.v": "attention.attention.value",
    "attention.out": "attention.output.dense",
}
NAMES: dict[str, tuple[str, dict[str, str]]] = {
    "clip": ("encoder.layers", _CLIP),
    "siglip": ("encoder.layers", _CLIP),
    "t5": ("block", _T5),
    "umt5": ("block", _T5),
    "dinov2": (
        "encoder.layer",
        _BERT
        | {
            "attention_norm": "norm1",
            "attention_scale": "layer_scale1.lambda1",
            "mlp_norm": "norm2",
            "mlp.up": "mlp.fc1",
            "mlp.down": "mlp.fc2",
            "mlp_scale": "layer_scale2.lambda1",
        },
    ),
    "mae": (
        "encoder.layer",
        _BERT
        | {
            "attention_norm": "layernorm_before",
            "mlp_norm": "layernorm_after",
            "mlp.up": "intermediate.dense",
            "mlp.down": "output.dense",
        },
    ),
    "vjepa2": (
        "layer",
        {
            "attention_norm": "norm1",
            "attention.q": "attention.query",
            "attention.k": "attention.key",
            "attention.v": "attention.value",
            "attention.out": "attention.proj",
            "mlp_norm": "norm2",
            "mlp.up": "mlp.fc1",
            "mlp.down": "mlp.fc2",
        },
    ),
}
"""family -> (the list of its layers, {our part of a layer: theirs})."""

GATED = {
    "t5": {"mlp.gate": "layer.1.DenseReluDense.wi_0", "mlp.up": "layer.1.DenseReluDense.wi_1"},
    "umt5": {"mlp.gate": "layer.1.DenseReluDense.wi_0", "mlp.up": "layer.1.DenseReluDense.wi_1"},
    "dinov2": {"mlp.up": "mlp.weights_in", "mlp.down": "mlp.weights_out"},
}
"""What is called differently where the MLP is gated."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def activation(name: str) -> str:
    """Our name of an activation; ValueError for one we do not have."""
    if name not in ACTIVATIONS:
        raise ValueError(f"config.json asks for the activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Released(NamedTuple):
    """How a released file holds an encoder."""

    entries: list[Entry]
    set_aside: frozenset[str]
    """Its tensors that belong to another part of the release (a decoder, the other modality, a classifier)."""


def prefix_in(names: Iterable[str], landmark: str, prefixes: tuple[str, ...]) -> str:
    """The prefix under which `landmark` is among the names; the first one if it is under none."""
    names = set(names)
    return next((prefix for prefix in prefixes if f"{prefix}{landmark}" in names), prefixes[0])


def linear(theirs: str, ours: str, *, bias: bool = True, layer: int | None = None, kernel: Layout = KERNEL
           ) -> list[Entry]:  # fmt: skip
    entries = [Entry(f"{theirs}.weight", f"{ours}.kernel", kernel, layer)]
    return entries + ([Entry(f"{theirs}.bias", f"{ours}.bias", SAME, layer)] if bias else [])


def norm(theirs: str, ours: str, config: StackConfig, layer: int | None = None) -> list[Entry]:
    entries = [Entry(f"{theirs}.weight", f"{ours}.scale", SAME, layer)]
    return entries + ([Entry(f"{theirs}.bias", f"{ours}.bias", SAME, layer)] if config.norm == "layer" else [])


def stack(config: StackConfig, family: str, prefix: str, ours: str = "stack") -> list[Entry]:
    """Entries of all layers; `prefix` stands before the family's names."""
    place, names = NAMES[family]
    names = names | (GATED[family] if config.gated != "none" else {})
    entries: list[Entry] = []
    for i in range(config.depth):
        for part, name in names.items():
            theirs, path = f"{prefix}{place}.{i}.{name}", f"{ours}.layers.{part}"
            if part.endswith("_norm"):
                entries += norm(theirs, path, config, i)
            elif part == "relative_bias":
                if config.relative_bias == "layer":
                    entries.append(Entry(theirs, path, SAME, i))
                elif i == 0:
                    entries.append(Entry(theirs, f"{ours}.relative_bias"))
            elif part.endswith("_scale"):
                entries.append(Entry(theirs, path, SAME, i))
            else:
                bias = config.qkv_bias if part in ("attention.q", "attention.k", "attention.v") else config.bias
                entries += linear(theirs, path, bias=bias, layer=i)
    return entries
