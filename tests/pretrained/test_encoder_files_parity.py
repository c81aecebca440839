"""Releases as they lie on disk: files with several encoders, older names, duplicates; read whole, equal outputs."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.pretrained.encoder_reference import randomise, released_tensors, worst
from wam.encoders.text import TextTransformer
from wam.encoders.transformer import structure
from wam.encoders.vit import MaskedPredictor, ViT
from wam.pretrained import encoder_files
from wam.pretrained.imported import import_model

LIMIT = 1e-4
SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}


def opened(directory, modality, module):
    found = encoder_files.find(directory, modality)
    return found.config, nnx.merge(structure(module, found.config)[0], encoder_files.load(found))


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_text_and_images_of_one_file_parity(tmp_path, family):
    import torch
    import transformers

    text = {**SHAPE, "vocab_size": 60, "max_position_embeddings": 12, "eos_token_id": 59}
    vision = {**SHAPE, "image_size": 16, "patch_size": 8}
    if family == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=14)
        model = transformers.CLIPModel(config)
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
    randomise(model, seed=1).save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(1, 58, (2, 12))
    ids[:, -1] = 59
    x = np.random.default_rng(1).standard_normal((2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = {
            "text": model.get_text_features(torch.from_numpy(ids)).pooler_output,
            "vision": model.get_image_features(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).pooler_output,
        }
    (_, text_model), (_, image_model) = opened(tmp_path, "text", TextTransformer), opened(tmp_path, "vision", ViT)
    ours = {"text": text_model(jnp.asarray(ids)).pooled, "vision": image_model(x).pooled}
    error = worst({name: (ours[name], theirs[name]) for name in theirs})
    import_model(family, tmp_path, tmp_path / "imported")  # the encoder of images alone
    _, imported = opened(tmp_path / "imported", "vision", ViT)
    np.testing.assert_array_equal(imported(x).pooled, ours["vision"])
    print(f"parity {family}, both encoders of one file: max abs error {error:.1e}")
    assert error <= LIMIT


def test_encoder_and_predictor_of_one_file_parity(tmp_path):
    import torch
    import transformers

    config = transformers.VJEPA2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, crop_size=16, patch_size=8,
        pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=2, pred_num_mask_tokens=3,
    )  # fmt: skip
    model = randomise(transformers.VJEPA2Model(config), seed=1)
    model.save_pretrained(tmp_path)
    x = np.random.default_rng(1).standard_normal((2, 4, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(np.moveaxis(x, -1, 2).copy()))  # every patch is seen, every patch is predicted
    own, encoder = opened(tmp_path, "vision", ViT)
    _, predictor = opened(tmp_path, "predictor", MaskedPredictor)
    tokens, every = encoder(x).tokens, jnp.tile(jnp.arange(8), (2, 1))
    import_model("vjepa2-predictor", tmp_path, tmp_path / "imported")
    _, imported = opened(tmp_path / "imported", "predictor", MaskedPredictor)
    np.testing.assert_array_equal(imported(tokens, every, every, own.grid), predictor(tokens, every, every, own.grid))
    pairs = {
        "tokens": (tokens, theirs.last_hidden_state),
        "predicted": (predictor(tokens, every, every, own.grid), theirs.predictor_output.last_hidden_state),
    }
    error = worst(pairs)
    print(f"parity vjepa2, encoder and predictor of one file: max abs error {error:.1e}")
    assert error <= LIMIT


@pytest.mark.parametrize("kept", ["both", "shared.weight", "encoder.embed_tokens.weight"])
def test_the_embedding_may_have_either_name_parity(tmp_path, kept):
    """Files of T5 name it once or twice, and may hold a decoder."""
    import torch
    import transformers
    from safetensors.numpy import save_file

    shape = {"vocab_size": 60, "d_model": 24, "d_kv": 10, "d_ff": 36, "num_layers": 2, "num_heads": 2}
    model = randomise(transformers.UMT5EncoderModel(transformers.UMT5Config(**shape)), seed=1, scale=0.1)
    model.save_pretrained(tmp_path)
    tensors = released_tensors(model)
    tensors |= {"encoder.embed_tokens.weight": tensors["shared.weight"].copy(), "lm_head.weight": np.zeros((3, 2))}
    tensors |= {"decoder.block.0.layer.0.SelfAttention.q.weight": np.zeros((4, 4), np.float32)}
    for name in {"shared.weight", "encoder.embed_tokens.weight"} - ({kept} if kept != "both" else set(tensors)):
        del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ids = np.random.default_rng(0).integers(1, 58, (2, 9))
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids)).last_hidden_state
    _, ours = opened(tmp_path, "text", TextTransformer)
    error = worst({"tokens": (ours(jnp.asarray(ids)).tokens, theirs)})
    print(f"parity umt5, embedding as {kept}: max abs error {error:.1e}")
    assert error <= LIMIT
