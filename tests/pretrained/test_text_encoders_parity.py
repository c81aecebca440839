"""Our text encoder against the models of `transformers`, with random weights, forwards and backwards."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from tests.pretrained.encoder_reference import fill, gradient_pairs, randomise, released_tensors, worst
from wam.encoders.text import TextTransformer
from wam.encoders.transformer import distance_buckets, structure
from wam.pretrained import mapping, text_encoders

LIMIT = 1e-4
T5 = {"vocab_size": 60, "d_model": 24, "d_kv": 10, "d_ff": 36, "num_layers": 3, "num_heads": 2}
CLIP = {"vocab_size": 60, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2,
        "max_position_embeddings": 20}  # fmt: skip


def reference(name):
    import transformers

    special = {"bos_token_id": 1, "eos_token_id": 59, "pad_token_id": 59}
    models = {
        # Few buckets and a short reach: distances of every kind, up to far beyond the last bucket.
        "umt5": lambda: transformers.UMT5EncoderModel(
            transformers.UMT5Config(**T5, relative_attention_num_buckets=16, relative_attention_max_distance=12)
        ),
        "t5-gated": lambda: transformers.T5EncoderModel(
            transformers.T5Config(**T5, feed_forward_proj="gated-gelu", relative_attention_num_buckets=8)
        ),
        "t5-relu": lambda: transformers.T5EncoderModel(transformers.T5Config(**T5)),
        "clip": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP, **special)),
        "clip-projected": lambda: transformers.CLIPTextModelWithProjection(
            transformers.CLIPTextConfig(**CLIP, **{**special, "eos_token_id": 2}, projection_dim=10, hidden_act="gelu")
        ),
        "siglip": lambda: transformers.SiglipTextModel(
            transformers.SiglipTextConfig(**CLIP, **special, projection_size=14)
        ),
    }
    # T5 does not divide its logits: smaller weights keep the softmax from choosing one token alone.
    return randomise(models[name](), seed=1, scale=0.1 if "t5" in name else 0.2)


def ours_of(model, **changes):
    config = text_encoders.config_from(model.config.to_dict())
    config = dataclasses.replace(config, **changes)
    tensors = released_tensors(model)
    entries, aside = text_encoders.released(config, tensors)
    assert not aside
    return config, entries, *fill(TextTransformer, config, entries, tensors)


def texts(length=19, seed=0):
    """(ids, mask) of a text that fills its row, one of a single word, one in between; each ends with its last id."""
    rng = np.random.default_rng(seed)
    ids, mask = rng.integers(3, 58, (3, length)), np.zeros((3, length), bool)
    for row, n in enumerate((length, 2, length // 2)):
        ids[row, n - 1 :], mask[row, :n] = 59, True
    return ids.astype(np.int32), mask


def call(model, ids, mask):
    import torch

    mask = None if mask is None else torch.from_numpy(mask.astype(np.int64))
    return model(torch.from_numpy(ids.astype(np.int64)), attention_mask=mask, output_hidden_states=True)


def pooled_of(name, out):
    return {"clip-projected": "text_embeds", "clip": "pooler_output", "siglip": "pooler_output"}.get(name, "")


@pytest.mark.parametrize("name", ["umt5", "t5-gated", "t5-relu", "clip", "clip-projected", "siglip"])
def test_text_parity(name):
    """Tokens, pooled vector and gradients, with and without a padding mask."""
    import torch

    model = reference(name)
    changes = {"projection": 10} if name == "clip-projected" else {}
    _, entries, graph, params = ours_of(model, **changes)
    ids, mask = texts()
    forward = backward = 0.0
    for given in (None, mask):
        model.zero_grad()
        theirs = call(model, ids, given)
        rng = np.random.default_rng(3)
        weight = (rng.standard_normal(theirs.last_hidden_state.shape) / 10).astype(np.float32)
        field = pooled_of(name, theirs)
        pooled = getattr(theirs, field) if field else None
        total = (theirs.last_hidden_state * torch.from_numpy(weight)).sum()
        (total if pooled is None else total + pooled.sum()).backward()

        def loss(params, given=given, weight=weight, pooled=pooled):
            out = nnx.merge(graph, params)(ids, given)
            return (out.tokens * weight).sum() + (0 if pooled is None else out.pooled.sum()), out

        (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        pairs = {"tokens": (out.tokens, theirs.last_hidden_state.detach())}
        if pooled is not None:
            pairs["pooled"] = (out.pooled, pooled.detach())
        forward = max(forward, worst(pairs))
        backward = max(backward, worst(gradient_pairs(gradients, entries, model)))
    print(f"parity {name}: max abs error {forward:.1e}, gradients of {len(entries)} tensors {backward:.1e}")
    assert max(forward, backward) <= LIMIT


@pytest.mark.parametrize(("name", "scan"), [("umt5", True), ("t5-gated", False), ("clip", False)])
def test_hidden_states_parity(name, scan):
    import torch

    model = reference(name)
    config, _, _, params = ours_of(model)
    config = dataclasses.replace(config, scan_layers=scan)
    graph, _ = structure(TextTransformer, config)
    ids, mask = texts()
    with torch.no_grad():
        theirs = call(model, ids, mask).hidden_states
    ours = [nnx.merge(graph, params).hidden(ids, depth, mask) for depth in range(config.depth + 1)]
    if name != "clip":  # T5 shows the last layer's tokens behind the norm, where the parity of the outputs sees them
        ours, theirs = ours[:-1], theirs[:-1]
    error = worst({f"after {i} layers": pair for i, pair in enumerate(zip(ours, theirs, strict=True))})
    print(f"parity {name}, hidden states of {len(ours)} depths: max abs error {error:.1e}")
    assert error <= LIMIT


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (16, 12), (8, 128), (32, 20)])
def test_distance_buckets_parity(buckets, max_distance):
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(300)[None, :] - torch.arange(300)[:, None]
    theirs = T5Attention._relative_position_bucket(distance, True, buckets, max_distance)
    different = int((theirs.numpy() != distance_buckets(300, buckets, max_distance)).sum())
    print(f"parity buckets {buckets}, {max_distance}: {different} of 90000 differ")
    assert different == 0


def test_exported_weights_load_into_the_reference(tmp_path):
    """Import, export, and the reference's own loader: identical outputs."""
    import torch
    import transformers
    from safetensors.numpy import save_file

    kinds = {
        "umt5": "UMT5EncoderModel",
        "t5-relu": "T5EncoderModel",
        "clip": "CLIPTextModel",
        "siglip": "SiglipTextModel",
    }
    for name, kind in kinds.items():
        model = reference(name)
        config, _, _, params = ours_of(model)
        model.save_pretrained(tmp_path / name)
        exported = mapping.to_theirs(text_encoders.entries(config), params)  # under the published prefix
        save_file(exported, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        again = getattr(transformers, kind).from_pretrained(tmp_path / name).eval()
        ids, mask = texts()
        with torch.no_grad():
            pair = [call(m, ids, mask).last_hidden_state.numpy() for m in (model, again)]
        np.testing.assert_array_equal(*pair, err_msg=name)
