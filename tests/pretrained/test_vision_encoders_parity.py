"""Our vision transformer against the models of `transformers`, with random weights, forwards and backwards."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.pretrained.encoder_reference import fill, gradient_pairs, randomise, released_tensors, worst
from wam.encoders.transformer import structure
from wam.encoders.vit import MaskedPredictor, ViT
from wam.pretrained import mapping, vision_encoders

LIMIT = 1e-4
SHAPE = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}


def reference(name):
    """(model, pixel sizes to try, call) of a family in one of its settings."""
    import transformers

    heads3 = {**SHAPE, "num_attention_heads": 3}
    dino = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "mlp_ratio": 2}
    models = {
        "clip": lambda: transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(**SHAPE, image_size=24, patch_size=8)
        ),
        "clip-gelu-projected": lambda: transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**heads3, image_size=24, patch_size=8, hidden_act="gelu", projection_dim=10)
        ),
        "siglip": lambda: transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**SHAPE, image_size=24, patch_size=8)
        ),
        "siglip-headless": lambda: transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**SHAPE, image_size=24, patch_size=8, vision_use_head=False)
        ),
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**dino)),
        "dinov2-swiglu": lambda: transformers.Dinov2Model(
            transformers.Dinov2Config(**dino, use_swiglu_ffn=True, use_mask_token=False, qkv_bias=False)
        ),
        "dinov2-registers": lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**dino, patch_size=14, num_register_tokens=3)
        ),
        "mae": lambda: transformers.ViTMAEModel(
            transformers.ViTMAEConfig(**SHAPE, image_size=32, patch_size=8, mask_ratio=0.0)
        ),
    }
    return randomise(models[name](), seed=1)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ours_of(model, projection=0):
    """Our config, map, graph and parameters from what the reference writes."""
    config = vision_encoders.config_from(model.config.to_dict())
    config = dataclasses.replace(config, projection=projection)
    tensors = released_tensors(model)
    entries, aside = vision_encoders.released(config, tensors)
    assert not aside
    graph, params = fill(ViT, config, entries, tensors)
    return config, entries, graph, params


def call(model, x_BhwC, **more):
    import torch

    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x_BhwC, -1, 1)))
    return model(x, output_hidden_states=True, **more)


NAMES = [
    "clip",
    "clip-gelu-projected",
    "siglip",
    "siglip-headless",
    "dinov2",
    "dinov2-swiglu",
    "dinov2-registers",
    "mae",
]


@pytest.mark.parametrize("name", NAMES)
def test_images_parity(name):
    import torch

    model = reference(name)
    projection = 10 if name == "clip-gelu-projected" else 0
    config, _, graph, params = ours_of(model, projection)
    side = config.image_size
    errors = {}
    # The size of the training images; another grid, not square; sizes that are no multiple of the patch.
    for height, width in ((side, side), (side + config.patch, side), (side + 3, side + 2 * config.patch + 1)):
        x = pixels(2, height, width, 3)
        more = {} if name.startswith("dinov2") else {"interpolate_pos_encoding": True}
        if name == "mae":
            patches = (height // config.patch) * (width // config.patch)
            more["noise"] = torch.arange(patches, dtype=torch.float32)[None].repeat(2, 1)
        with torch.no_grad():
            theirs = call(model, x, **more)
        run = jax.jit(lambda p, x: nnx.merge(graph, p)(x))
        out = run(params, x)
        last = theirs.last_hidden_state
        pairs = {"tokens": (out.tokens, last)}
        if name == "clip-gelu-projected":
            pairs["pooled"] = (out.pooled, theirs.image_embeds)
        elif name == "mae":
            pairs["pooled"] = (out.pooled, last[:, 0])
        elif name != "siglip-headless":
            pairs["pooled"] = (out.pooled, theirs.pooler_output)
        assert (out.pooled is None) == (name == "siglip-headless")
        errors[height, width] = worst(pairs)
    print(f"parity {name}: {params_count(params)} parameters, max abs error {max(errors.values()):.1e}")
    assert max(errors.values()) <= LIMIT, errors


def params_count(params):
    return sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2-swiglu", "dinov2-registers", "mae"])
def test_gradients_parity(name):
    import torch

    model = reference(name)
    config, entries, graph, params = ours_of(model)
    x = pixels(2, config.image_size, config.image_size + config.patch, 3)
    more = {} if name.startswith("dinov2") else {"interpolate_pos_encoding": True}
    if name == "mae":
        patches = (config.image_size // config.patch) * (config.image_size // config.patch + 1)
        more["noise"] = torch.arange(patches, dtype=torch.float32)[None].repeat(2, 1)
    theirs = call(model, x, **more)
    weight = pixels(*theirs.last_hidden_state.shape, seed=3) / 10
    pooled = None if name == "mae" else theirs.pooler_output
    total = (theirs.last_hidden_state * torch.from_numpy(weight)).sum()
    (total if pooled is None else total + pooled.sum()).backward()

    def loss(params):
        out = nnx.merge(graph, params)(x)
        return (out.tokens * weight).sum() + (0 if pooled is None else out.pooled.sum())

    pairs = gradient_pairs(jax.jit(jax.grad(loss))(params), entries, model)
    still = {"mask_token"} | ({"positions"} if name == "mae" else set())  # not looked at; fixed
    for unused in still & pairs.keys():
        assert not np.any(pairs.pop(unused)[0])
    error = worst(pairs)
    print(f"parity {name}, gradients of {len(pairs)} tensors: max abs error {error:.1e}")
    assert error <= LIMIT


@pytest.mark.parametrize("scan", [True, False])
def test_hidden_states_parity(scan):
    """The tokens before every layer; Wan I2V reads the last but one of CLIP."""
    import torch

    model = reference("clip")
    config, _, _, params = ours_of(model)
    config = dataclasses.replace(config, scan_layers=scan, remat=scan)
    graph, _ = structure(ViT, config)
    x = pixels(2, config.image_size, config.image_size, 3)
    with torch.no_grad():
        theirs = call(model, x).hidden_states
    ours = [nnx.merge(graph, params).hidden(x, depth) for depth in range(config.depth + 1)]
    error = worst({f"after {i} layers": pair for i, pair in enumerate(zip(ours, theirs, strict=True))})
    print(f"parity clip, hidden states of {config.depth} layers: max abs error {error:.1e}")
    assert error <= LIMIT


def test_masked_patches_parity():
    """DINOv2's mask token, and the patches that MAE leaves, in the order of the reference's shuffle."""
    import torch

    dino = reference("dinov2")
    _, _, graph, params = ours_of(dino)
    x = pixels(2, 28, 28, 3)
    hidden = np.array([[True, False, False, True], [False, True, False, False]])
    with torch.no_grad():
        theirs = call(dino, x, bool_masked_pos=torch.from_numpy(hidden)).last_hidden_state
    masked = worst({"tokens": (nnx.merge(graph, params)(x, masked_BL=jnp.asarray(hidden)).tokens, theirs)})

    mae = reference("mae")
    mae.config.mask_ratio = 0.6
    _, _, graph, params = ours_of(mae)
    noise = np.random.default_rng(5).random((2, 16)).astype(np.float32)
    keep = np.argsort(noise, axis=1)[:, : int(16 * (1 - 0.6))]
    x = pixels(2, 32, 32, 3)
    with torch.no_grad():
        out = call(mae, x, noise=torch.from_numpy(noise))
    kept = worst({"tokens": (nnx.merge(graph, params)(x, keep_BK=jnp.asarray(keep)).tokens, out.last_hidden_state)})
    seen = np.argsort(out.ids_restore.numpy(), axis=1)[:, : keep.shape[1]]
    np.testing.assert_array_equal(seen, keep)
    print(f"parity dinov2 masked: max abs error {masked:.1e}; mae with 6 of 16 patches: {kept:.1e}")
    assert max(masked, kept) <= LIMIT


def vjepa2(**changes):
    import transformers

    shape = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2.5, "crop_size": 24,
        "patch_size": 8, "tubelet_size": 2, "frames_per_clip": 4, "pred_hidden_size": 30, "pred_num_attention_heads": 3,
        "pred_num_hidden_layers": 2, "pred_num_mask_tokens": 3, "pred_zero_init_mask_tokens": False,
    }  # fmt: skip
    return randomise(transformers.VJEPA2Model(transformers.VJEPA2Config(**{**shape, **changes})), seed=2)


def split_vjepa2(model):
    """(config, map, graph, params) of the encoder and of the predictor, which share the file without a rest."""
    tensors, facts = released_tensors(model), model.config.to_dict()
    config, predictor = vision_encoders.config_from(facts), vision_encoders.predictor_config_from(facts)
    known, aside = vision_encoders.released(config, tensors)
    theirs, others = vision_encoders.predictor_released(predictor, tensors)
    assert {e.theirs for e in theirs} == aside and others == {e.theirs for e in known}
    parts = (known, ViT, config), (theirs, MaskedPredictor, predictor)
    return config, *((e, *fill(kind, own, e, {n.theirs: tensors[n.theirs] for n in e})) for e, kind, own in parts)


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_vjepa2_parity(frames):
    import torch

    model = vjepa2(qkv_bias=frames != 2)
    _, (entries, graph, params), _ = split_vjepa2(model)
    x = pixels(2, frames, 24, 24, 3)
    out = model(torch.from_numpy(np.moveaxis(x, -1, 2).copy()), skip_predictor=True, output_hidden_states=True)
    weight = pixels(*out.last_hidden_state.shape, seed=3) / 10
    (out.last_hidden_state * torch.from_numpy(weight)).sum().backward()

    def loss(params):
        tokens = nnx.merge(graph, params)(x).tokens
        return (tokens * weight).sum(), tokens

    (_, tokens), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    forward = worst({"tokens": (tokens, out.last_hidden_state.detach())})
    backward = worst(gradient_pairs(gradients, entries, model))
    print(f"parity vjepa2, {frames} frames: max abs error {forward:.1e}, gradients {backward:.1e}")
    assert max(forward, backward) <= LIMIT


def test_vjepa2_predictor_parity():
    import torch

    model = vjepa2()
    config, (_, graph, params), (entries, predictor_graph, predictor_params) = split_vjepa2(model)
    x = pixels(2, 4, 24, 24, 3)
    rng = np.random.default_rng(6)
    order = np.stack([rng.permutation(18) for _ in range(2)])
    context, target = order[:, :7], order[:, 7:12]
    out = model(
        torch.from_numpy(np.moveaxis(x, -1, 2).copy()), context_mask=[torch.from_numpy(context)],
        target_mask=[torch.from_numpy(target)],
    )  # fmt: skip
    theirs = out.predictor_output.last_hidden_state
    weight = pixels(*theirs.shape, seed=3) / 10
    (theirs * torch.from_numpy(weight)).sum().backward()
    tokens = jax.jit(lambda p: nnx.merge(graph, p)(x).tokens)(params)

    def loss(params):
        predicted = nnx.merge(predictor_graph, params)(tokens, jnp.asarray(context), jnp.asarray(target), config.grid)
        return (predicted * weight).sum(), predicted

    (_, predicted), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(predictor_params)
    forward = worst({"predicted": (predicted, theirs.detach())})
    backward = worst(gradient_pairs(gradients, entries, model))
    print(f"parity vjepa2 predictor: max abs error {forward:.1e}, gradients {backward:.1e}")
    assert max(forward, backward) <= LIMIT


def test_exported_weights_load_into_the_reference(tmp_path):
    """Import, export, and the reference's own loader: identical outputs."""
    import torch
    import transformers
    from safetensors.numpy import save_file

    kinds = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel", "dinov2-swiglu": "Dinov2Model",
             "mae": "ViTMAEModel"}  # fmt: skip
    for name, kind in kinds.items():
        model = reference(name)
        config, _, _, params = ours_of(model)
        model.save_pretrained(tmp_path / name)
        exported = mapping.to_theirs(vision_encoders.entries(config), params)  # under the published prefix
        save_file(exported, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        again = getattr(transformers, kind).from_pretrained(tmp_path / name).eval()
        x = pixels(2, config.image_size, config.image_size, 3)
        more = {"noise": torch.rand(2, 16)} if name == "mae" else {}
        with torch.no_grad():
            pair = [call(m, x, **more).last_hidden_state.numpy() for m in (model, again)]
        np.testing.assert_array_equal(*pair, err_msg=name)
