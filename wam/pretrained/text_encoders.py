"""Released text encoders in the format of `transformers`: what `config.json` says, and the map of names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from wam.encoders.config import TextEncoderConfig
from wam.pretrained.mapping import Entry
from wam.pretrained.stack_names import Released, activation, linear, norm, prefix_in, stack

_DEFAULTS = {
    "clip_text_model": {
        "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
        "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        "eos_token_id": 49407,
    },
    "siglip_text_model": {
        "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6, "eos_token_id": 49407,
    },
}  # fmt: skip
"""What files of a text and an image encoder together leave out."""


def config_from(released: Mapping[str, Any]) -> TextEncoderConfig:
    """Our configuration from the contents of `config.json`; ValueError names what it asks for and we do not have."""
    kind = released.get("model_type")
    if kind in ("t5", "umt5"):
        gate, _, act = released.get("feed_forward_proj", "relu").rpartition("-")
        return TextEncoderConfig(
            family=kind, vocabulary=released["vocab_size"], width=released["d_model"], depth=released["num_layers"],
            heads=released["num_heads"], head_dim=released["d_kv"], mlp=released["d_ff"], norm="rms",
            eps=released["layer_norm_epsilon"], gated="apart" if gate == "gated" else "none", bias=False,
            qkv_bias=False, scaled=False,
            # T5 says gelu where it means the tanh approximation, but only of gated MLPs.
            activation=activation("gelu_new" if (gate, act) == ("gated", "gelu") else act),
            relative_bias="layer" if kind == "umt5" else "shared",
            buckets=released["relative_attention_num_buckets"],
            max_distance=released.get("relative_attention_max_distance", 128),
        )  # fmt: skip
    if kind in ("clip", "siglip"):
        return config_from({"model_type": f"{kind}_text_model", **released["text_config"]})
    if kind not in ("clip_text_model", "siglip_text_model"):
        raise ValueError(f"config.json is of model_type {kind!r}; known text encoders: t5, umt5, clip, siglip")
    get = {**_DEFAULTS[kind], **released}.__getitem__
    width, clip = get("hidden_size"), kind == "clip_text_model"
    return TextEncoderConfig(
        family="clip" if clip else "siglip", vocabulary=get("vocab_size"), width=width, depth=get("num_hidden_layers"),
        heads=get("num_attention_heads"), head_dim=width // get("num_attention_heads"), mlp=get("intermediate_size"),
        eps=get("layer_norm_eps"), activation=activation(get("hidden_act")), causal=clip,
        positions=get("max_position_embeddings"), pooling="eos" if clip else "last",
        # Early CLIP files say 2 and mean the last word of the vocabulary.
        eos_id=(get("vocab_size") - 1 if get("eos_token_id") == 2 else get("eos_token_id")) if clip else 1,
        projection=0 if clip else released.get("projection_size") or width, projection_bias=not clip,
    )  # fmt: skip


def entries(config: TextEncoderConfig, prefix: str | None = None) -> list[Entry]:
    """The map of one encoder; `prefix` stands before its names (by default as the family is published)."""
    if config.family in ("t5", "umt5"):
        found = [Entry("shared.weight", "embedding"), *stack(config, config.family, "encoder.")]
        return found + norm("encoder.final_layer_norm", "final_norm", config)
    prefix = "text_model." if prefix is None else prefix
    found = [
        Entry(f"{prefix}embeddings.token_embedding.weight", "embedding"),
        Entry(f"{prefix}embeddings.position_embedding.weight", "positions"),
        *stack(config, config.family, prefix),
        *norm(f"{prefix}final_layer_norm", "final_norm", config),
    ]
    if config.projection:
        head = "text_projection" if config.family == "clip" else f"{prefix}head"
        found += linear(head, "project", bias=config.projection_bias)
    return found


def released(config: TextEncoderConfig, names: Collection[str]) -> Released:
    """The map for a file with these tensors, whichever prefix it uses, and what of it is another part's."""
    prefix = prefix_in(names, "embeddings.token_embedding.weight", ("text_model.", ""))
    known = entries(config, prefix)
    others: tuple[str, ...] = ("vision_model.", "logit_", "visual_projection.", "text_projection.")
    if config.family in ("t5", "umt5"):
        others = ("decoder.", "lm_head.", "encoder.embed_tokens.")
        if "shared.weight" not in names:  # the same tensor under the name of the module that reads it
            known = [e._replace(theirs="encoder.embed_tokens.weight") if e.ours == "embedding" else e for e in known]
    ours = {entry.theirs for entry in known}
    aside = {n for n in names if n.startswith(others) or n.endswith(".position_ids")}
    return Released(known, frozenset(aside - ours))
