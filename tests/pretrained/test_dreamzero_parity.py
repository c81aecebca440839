"""`JointDiT` with DreamZero's switches against its network under teacher forcing, and checkpoints both ways.

Verified against `dreamzero_reference`, a replica written from the public source, not against that source itself, which
is no package, and not on released weights. It covers the training pass; see `wam.pretrained.dreamzero` for sampling.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import SingleDeviceSharding
from safetensors.torch import save_file

from tests.pretrained.dreamzero_reference import CASES, IMAGE, PREFIX, TINY, ActionHeadModel, checkpoint, reference
from tests.pretrained.test_import import refused
from tests.pretrained.test_wan_trunk_parity import largest, report
from tests.pretrained.wan_reference import arrays, gradients
from tools import export_weights, import_weights
from wam.models.joint_dit import create
from wam.models.streams import Noisy, Observation
from wam.pretrained import dreamzero, imported, released, wan_trunk
from wam.pretrained.loading import foreign_shape
from wam.pretrained.mapping import flatten, to_ours, to_theirs, unflatten
from wam.pretrained.tensor_files import TensorFiles
from wam.pretrained.wan_forward import patches
from wam.training.state import split

B, M, f, K, GRID, TEXT = 2, 2, 2, 3, (2, 3), 7
FRAMES = 1 + M * f
FIELDS = {"grid": GRID, "latent_frames": FRAMES, "frames_per_latent": 1, "latent_rate": 1.0, "views": 1, "chunks": M,
          "action_horizon": K, "image_tokens": IMAGE}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_velocities_and_gradients_equal_the_reference(name):
    config = CASES[name]
    model = reference(config)
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    p, q = config.patch_size[1:]
    shape = (B, FRAMES, GRID[0] * p, GRID[1] * q)
    extra = config.in_channels - config.out_channels
    noisy, clean, guide = (normal(*shape, c) for c in (config.out_channels, config.out_channels, extra))
    sigma_video = np.repeat(rng.integers(1, 64, (B, M)) / 64, f, axis=1).astype(np.float32)
    sigma_action = (rng.integers(1, 64, (B, M)) / 64).astype(np.float32)
    action, state = normal(B, M, K, config.action_dim), normal(B, M, config.state_dim)
    which = np.arange(B) % config.embodiments
    text, lengths = normal(B, TEXT, config.text_dim), np.array([5, 2])
    text_mask = np.arange(TEXT) < lengths[:, None]
    image = normal(B, IMAGE, config.image_dim) if config.image_dim else None

    t = torch.from_numpy
    canvas = lambda x: t(np.ascontiguousarray(np.moveaxis(np.concatenate([x, guide], -1), -1, 1)))  # noqa: E731
    time = np.concatenate([np.full((B, 1), 0.5, np.float32), sigma_video], 1)  # the first noisy frame is seen by none
    video, velocity = model(
        canvas(noisy), canvas(clean), t(1000 * time), t(action.reshape(B, M * K, -1)),
        t(1000 * np.repeat(sigma_action, K, axis=1)), t(state), t(which), t(text * text_mask[..., None]),
        None if image is None else t(image), chunks=M,
    )  # fmt: skip
    wanted = [video[:, 1:].unflatten(1, (M, f))[:, :, :, None], velocity.unflatten(1, (M, K))]
    cotangents = [normal(*x.shape) / np.sqrt(x.numel()) for x in wanted]
    sum((x * t(c)).sum() for x, c in zip(wanted, cotangents, strict=True)).backward()

    apply, params = split(create(wan_trunk.model_config(config, **FIELDS)))
    own, entries = flatten(params), dreamzero.entries(config)
    theirs = {PREFIX + name: x for name, x in arrays(model).items()}
    mapped = flatten(to_ours(entries, theirs))
    assert {path for path in own if path.startswith(config.fills)} == set(mapped)
    assert {path.split(".")[0] for path in own.keys() - mapped.keys()} == {"null_text", "null_state", "null_history"}
    params = unflatten({**own, **mapped})
    cut = lambda x: jnp.asarray(patches(x, config.patch_size))[:, None]  # noqa: E731
    never = jnp.zeros(B, bool)
    cfg = apply.model(params).config
    seen = Observation(
        latents=cut(clean)[:, :, : FRAMES - f], view_mask=jnp.ones((B, 1), bool), camera=jnp.zeros((B, 1), int),
        video_time=jnp.tile(jnp.arange(FRAMES, dtype=jnp.float32), (B, 1)),
        action_time=jnp.zeros((B, M, K)), state=state, state_mask=jnp.ones((B, M, cfg.state_dim), bool), text=text,
        text_mask=text_mask, embodiment=which, drop_text=never, drop_state=never, drop_history=never,
        guide=cut(guide) if guide.size else None, image=image,
    )  # fmt: skip
    given = Noisy(
        video=cut(noisy)[:, 0, 1:].reshape(B, M, f, 1, cfg.patches, -1), sigma_video=sigma_video.reshape(B, M, f),
        frame_mask=jnp.ones((B, M, f), bool), action=action, action_mask=jnp.ones(action.shape, bool),
        sigma_action=sigma_action, action_sees_video=jnp.ones(B), video_sees_action=jnp.ones(B),
    )  # fmt: skip

    @jax.jit
    def forward(params):
        out = apply.model(params)(seen, given)[1]
        return sum(jnp.sum(x * c) for x, c in zip(out[:2], cotangents, strict=True)), out[:2]

    (_, got), grads = jax.value_and_grad(forward, has_aux=True)(params)
    for what, x, y in zip(("video", "actions"), got, wanted, strict=True):
        assert float(np.abs(np.asarray(x)).max()) > 0.1
        report(f"dreamzero, {name}, {what}", largest([x], [y.detach()]))
    back, expected = to_theirs(entries, grads), gradients(model)
    report(f"dreamzero, {name}, gradients", largest([back[PREFIX + n] for n in expected], expected.values()))

    @jax.jit
    def in_two_parts(params):
        dit = apply.model(params)
        context = dit.context(seen)
        assert context.keys.streams.keys() == {"history"}
        return dit.denoise(context, given)[:2]

    report(f"dreamzero, {name}, kept keys", largest(in_two_parts(params), got))


def release(directory, tensors, heads=TINY.num_attention_heads):
    directory.mkdir(parents=True)
    save_file(tensors, directory / "model.safetensors")
    model = {"action_head_cfg": {"config": {"diffusion_model_cfg": {"num_heads": heads}}}}
    (directory / "config.json").write_text(json.dumps(model))
    return directory


def run(source, out):
    import_weights.main(["--from", "dreamzero", "--src", str(source), "--out", str(out)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_import_and_export_keep_every_bit(tmp_path, capsys, dtype):
    tensors = {name: x.to(dtype) for name, x in checkpoint(reference(TINY)).items()}
    source, out = release(tmp_path / "release", tensors), tmp_path / "out"
    run(source, out)
    said = capsys.readouterr().out
    assert "4 tensors left out, of action_head.image_encoder, action_head.text_encoder, action_head.vae" in said
    assert imported.trunk_config(out) == TINY
    shapes = {path: x.shape for path, x in flatten(split(create(wan_trunk.model_config(TINY)))[1]).items()}
    params = imported.load_trunk(out, shapes, dict.fromkeys(shapes, SingleDeviceSharding(jax.devices()[0])))
    assert "action_in.hidden.kernel" in params
    dtypes = imported.source_dtypes(out, dreamzero.entries(TINY))
    imported.export_trunk(TINY, params, tmp_path / "again", dtypes)
    export_weights.main(["--from", str(out), "--out", str(tmp_path / "files")])
    kept = {name for name in tensors if name.startswith(PREFIX)}
    for directory in ("again", "files"):
        back, first = TensorFiles(tmp_path / directory), TensorFiles(source)
        assert set(back) == kept
        for name in kept:
            assert back[name].dtype == first[name].dtype
            assert back[name].tobytes() == first[name].tobytes(), name
    print(f"parity dreamzero files {dtype}: {len(kept)} tensors equal bit for bit")


W2 = f"{PREFIX}action_encoder.W2.W"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({f"{PREFIX}action_encoder.W2.b": None}, "the file lacks 'action_head.model.action_encoder.W2.b'"),
        ({f"{PREFIX}state_encoder.layer1.W": None},
         "this is no checkpoint of DreamZero: it lacks 'action_head.model.state_encoder.layer1.W'"),
        ({W2: torch.ones(3, 80, 40)}, f"'{W2}' has shape [3, 80, 40], expected [1, 80, 40]"),
        ({f"{PREFIX}action_encoder.W1.W": torch.ones(5, 40)},
         "'action_head.model.action_encoder.W1.W' has shape [5, 40], expected 3 axes"),
        ({f"{PREFIX}registers": torch.ones(3)}, "has, beyond the map, 'action_head.model.registers'"),
        ({"action_head.mask_token": torch.ones(3)}, "has, beyond the map, 'action_head.mask_token'"),
        ({f"{PREFIX}blocks.0.self_attn.q.lora_A.default.weight": torch.ones(3)}, "merge them into the weights first"),
    ],
    ids=["missing", "missing size", "embodiments", "axes", "unknown of the model", "unknown beside it", "adapters"],
)  # fmt: skip
def test_a_checkpoint_that_is_not_as_expected_is_refused(tmp_path, change, said):
    tensors = {name: x for name, x in (checkpoint(reference(TINY)) | change).items() if x is not None}
    source = release(tmp_path / "release", tensors)
    assert said in refused(source, tmp_path / "out", "dreamzero")


def test_another_release_than_the_one_asked_for_is_refused(tmp_path):
    source = release(tmp_path / "release", checkpoint(reference(TINY)))
    said = refused(source, tmp_path / "out", "dreamzero-14b")
    assert "the checkpoint has num_layers 2; the release asked for has 40" in said
    (source / "config.json").unlink()
    assert "say which release it is, as --from dreamzero-14b" in refused(source, tmp_path / "out", "dreamzero")


def test_a_model_with_other_embodiments_refuses_the_checkpoint(tmp_path):
    source, out = release(tmp_path / "release", checkpoint(reference(TINY))), tmp_path / "out"
    run(source, out)
    other = dataclasses.replace(TINY, embodiments=3)
    with pytest.raises(ValueError, match=r"fit the model: 'state_in.hidden.kernel' has shape \[1, .*expected \[3, "):
        imported.load_trunk(out, released.trunk_shapes(other), {})


@pytest.mark.parametrize("name", dreamzero.RELEASED)
def test_full_size_shapes_are_those_of_the_reference(name):
    config = dreamzero.RELEASED[name]
    with torch.device("meta"):
        theirs = {PREFIX + n: tuple(x.shape) for n, x in ActionHeadModel(config).named_parameters()}
    shapes = released.trunk_shapes(config)
    assert {e.theirs: foreign_shape(e, shapes) for e in dreamzero.entries(config)} == theirs
    print(f"parity dreamzero {name}: {len(theirs)} tensors, {sum(map(np.prod, theirs.values())):,} parameters")
