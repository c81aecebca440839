"""The named sizes against the reference's models of full size: every name, every shape, parameters to the digit.

Neither side allocates anything: ours is built by shape, the reference's on torch's meta device.
"""

import math

import numpy as np
import pytest

from wam.encoders.config import TEXT, VISION, vjepa2_predictor
from wam.encoders.text import TextTransformer
from wam.encoders.transformer import structure
from wam.encoders.vit import MaskedPredictor, ViT
from wam.pretrained import text_encoders, vision_encoders
from wam.pretrained.mapping import check_complete, flatten

T5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}


def sizes(width, depth, heads, mlp):
    return {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "intermediate_size": mlp}


def clip(width, depth, heads, mlp, **more):
    return {**sizes(width, depth, heads, mlp), **more}


def vjepa2(width, depth, heads, ratio):
    shape = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "mlp_ratio": ratio}
    return "VJEPA2Model", "VJEPA2Config", shape


def dinov2(width, depth, heads, swiglu=False):
    shape = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "image_size": 518}
    return "Dinov2Model", "Dinov2Config", {**shape, "use_swiglu_ffn": swiglu}


REFERENCES = {
    ("text", "umt5-xxl"): ("UMT5EncoderModel", "UMT5Config", {**T5, "vocab_size": 256384}),
    ("text", "t5-xxl"): ("T5EncoderModel", "T5Config", {**T5, "feed_forward_proj": "gated-gelu"}),
    ("text", "clip-vit-b/32"): ("CLIPTextModel", "CLIPTextConfig", clip(512, 12, 8, 2048)),
    ("text", "clip-vit-l/14"): ("CLIPTextModel", "CLIPTextConfig", clip(768, 12, 12, 3072)),
    ("text", "clip-vit-h/14"): ("CLIPTextModel", "CLIPTextConfig", clip(1024, 24, 16, 4096, hidden_act="gelu")),
    ("text", "siglip-so400m/14-384"): ("SiglipTextModel", "SiglipTextConfig", SO400M),
    ("vision", "clip-vit-b/32"): ("CLIPVisionModel", "CLIPVisionConfig", clip(768, 12, 12, 3072)),
    ("vision", "clip-vit-l/14"): ("CLIPVisionModel", "CLIPVisionConfig", clip(1024, 24, 16, 4096, patch_size=14)),
    ("vision", "clip-vit-h/14"): (
        "CLIPVisionModel", "CLIPVisionConfig", clip(1280, 32, 16, 5120, patch_size=14, hidden_act="gelu"),
    ),
    ("vision", "siglip-so400m/14"): (
        "SiglipVisionModel", "SiglipVisionConfig", {**SO400M, "patch_size": 14, "image_size": 224},
    ),
    ("vision", "siglip-so400m/14-384"): (
        "SiglipVisionModel", "SiglipVisionConfig", {**SO400M, "patch_size": 14, "image_size": 384},
    ),
    ("vision", "dinov2-b"): dinov2(768, 12, 12),
    ("vision", "dinov2-l"): dinov2(1024, 24, 16),
    ("vision", "dinov2-g"): dinov2(1536, 40, 24, swiglu=True),
    ("vision", "vjepa2-vitl"): vjepa2(1024, 24, 16, 4.0),
    ("vision", "vjepa2-vith"): vjepa2(1280, 32, 16, 4.0),
    ("vision", "vjepa2-vitg"): vjepa2(1408, 40, 22, 48 / 11),
    ("vision", "vit-mae-b"): ("ViTMAEModel", "ViTMAEConfig", {}),
}  # fmt: skip

PUBLISHED = {
    ("text", "umt5-xxl"): 5_680_910_336,
    ("text", "t5-xxl"): 4_762_310_656,
    ("vision", "clip-vit-l/14"): 303_179_776,
    ("vision", "clip-vit-h/14"): 630_766_080,
    ("vision", "dinov2-b"): 86_580_480,
    ("vision", "vit-mae-b"): 85_798_656,
}
"""Parameters of the encoders that releases and papers quote."""


def test_every_named_size_has_a_reference():
    assert set(REFERENCES) == {("text", name) for name in TEXT} | {("vision", name) for name in VISION}


def theirs(kind, config_kind, fields):
    """(facts of config.json, {name in the file: shape}) of the reference, on the meta device."""
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    config = getattr(transformers, config_kind)(**fields)
    with torch.device("meta"):
        model = getattr(transformers, kind)(config)
    state = revert_weight_conversion(model, model.state_dict())
    for alias in model._tied_weights_keys or {}:
        state.pop(alias, None)
    return config.to_dict(), {name: tuple(x.shape) for name, x in state.items()}


def check(entries, kind, config, shapes):
    """Every tensor of the file fits the parameter it is mapped to; returns the number of parameters."""
    _, tree = structure(kind, config)
    ours = {path: x.shape for path, x in flatten(tree).items()}
    check_complete(entries, shapes, ours)
    for entry in entries:
        shape = ours[entry.ours] if entry.layer is None else ours[entry.ours][1:]
        assert entry.layout.theirs(np.broadcast_to(np.float32(0), shape)).shape == shapes[entry.theirs], entry
    count = sum(math.prod(shape) for shape in ours.values())
    assert count == sum(math.prod(shape) for shape in shapes.values())
    return count


@pytest.mark.parametrize("which", REFERENCES, ids=" ".join)
def test_full_size_parity(which):
    modality, name = which
    facts, shapes = theirs(*REFERENCES[which])
    if modality == "text":
        config, module, kind = TEXT[name], text_encoders, TextTransformer
    else:
        config, module, kind = VISION[name], vision_encoders, ViT
    read = module.config_from(facts)
    assert read == config or name == "clip-vit-h/14"  # which says, beyond the file, what Wan reads from it
    entries, aside = module.released(config, shapes)
    count = check(entries, kind, config, {e.theirs: shapes[e.theirs] for e in entries})
    beside = {name: shapes[name] for name in aside}
    if beside:
        predictor = vjepa2_predictor(config)
        assert vision_encoders.predictor_config_from(facts) == predictor
        beside_count = check(vision_encoders.predictor_entries(predictor), MaskedPredictor, predictor, beside)
        print(f"parity {name}: predictor {beside_count:,} parameters")
    print(f"parity {name} ({modality}): {len(entries)} tensors, {count:,} parameters, equal")
    assert PUBLISHED.get(which, count) == count
