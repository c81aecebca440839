"""Files: what `diffusers` writes is read, sharded, and what we write `diffusers` reads, bit for bit."""

import json

import jax
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from jax.sharding import NamedSharding, PartitionSpec

from tests.pretrained.wan_reference import CASES, reference
from tools import export_weights, import_weights
from wam.config import MeshConfig
from wam.models.joint_dit import create
from wam.pretrained import imported, wan_trunk
from wam.pretrained.mapping import flatten
from wam.pretrained.released import trunk_shapes
from wam.pretrained.tensor_files import TensorFiles
from wam.training import sharding
from wam.training.state import logical_axes, split

CONFIG = CASES["i2v"]


def import_release(model, tmp_path, **save):
    model.save_pretrained(tmp_path / "release", **save)
    import_weights.main(["--from", "wan", "--src", str(tmp_path / "release"), "--out", str(tmp_path / "imported")])
    return tmp_path / "release", tmp_path / "imported"


def bits(directory) -> dict[str, bytes]:
    tensors = TensorFiles(directory)
    return {name: tensors.info[name].dtype.name.encode() + x.tobytes() for name, x in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_import_and_export_keep_every_bit_and_the_reference_computes_the_same(tmp_path, monkeypatch, dtype):
    model = reference(CONFIG).to(dtype)
    release, weights = import_release(model, tmp_path, max_shard_size="30KB")
    assert len(list(release.glob("*.safetensors"))) > 2
    mesh = sharding.make_mesh(MeshConfig(fsdp=4, tensor=2))
    config = wan_trunk.model_config(imported.trunk_config(weights))
    shapes = jax.eval_shape(lambda: split(create(config))[1])
    placed = sharding.param_shardings(logical_axes(config), shapes, mesh)
    own = {path: x.shape for path, x in flatten(shapes).items()}
    params = imported.load_trunk(weights, own, flatten(placed))
    kernel = params["blocks.video.up.kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 8, 20)}
    assert all(x.dtype == np.float32 for x in params.values())

    entries = wan_trunk.entries(CONFIG)
    dtypes = imported.source_dtypes(weights, entries)
    assert {str(d) for d in dtypes.values()} == {str(dtype).removeprefix("torch.")}
    imported.export_trunk(CONFIG, params, tmp_path / "exported", dtypes, shard_bytes=30_000)
    assert bits(tmp_path / "exported") == bits(release)
    export_weights.main(["--from", str(weights), "--out", str(tmp_path / "again")])
    assert bits(tmp_path / "again") == bits(release), "straight from the files"
    # In float32 there is nothing to keep in float32; otherwise the reference asks for one more package.
    monkeypatch.setattr(WanTransformer3DModel, "_keep_in_fp32_modules", None)
    theirs = WanTransformer3DModel.from_pretrained(release, torch_dtype=torch.float32)
    back = WanTransformer3DModel.from_pretrained(tmp_path / "exported", torch_dtype=torch.float32)
    assert {k: v for k, v in back.config.items() if k[0] != "_"} == {
        k: v for k, v in theirs.config.items() if k[0] != "_"
    }
    rng = torch.manual_seed(0)
    given = (torch.randn(1, 9, 2, 4, 6, generator=rng), torch.tensor([300.0]),
             torch.randn(1, 512, 12, generator=rng), torch.randn(1, 5, 10, generator=rng))  # fmt: skip
    with torch.no_grad():
        assert torch.equal(theirs(*given).sample, back(*given).sample)
    print(f"parity wan files {dtype}: {len(entries)} tensors equal bit for bit, outputs equal")


def test_weights_of_pytorch_are_read_by_its_weights_only_loader(tmp_path):
    model = reference(CONFIG).to(torch.bfloat16)
    release = tmp_path / "release"
    release.mkdir()
    torch.save(model.state_dict(), release / "model.pth")
    (release / "config.json").write_text(json.dumps(wan_trunk.to_json(CONFIG)))
    import_weights.main(["--from", "wan", "--src", str(release), "--out", str(tmp_path / "out")])
    shapes = trunk_shapes(CONFIG)
    here = dict.fromkeys(shapes, NamedSharding(sharding.make_mesh(MeshConfig()), PartitionSpec()))
    params = imported.load_trunk(tmp_path / "out", shapes, here)
    wanted = model.state_dict()["blocks.1.ffn.net.2.weight"].float().numpy()
    assert np.array_equal(params["blocks.video.down.kernel"][1], wanted.T)
    torch.save({"weights": [1]}, release / "model.pth")
    with pytest.raises(SystemExit, match=r"model\.pth is no dictionary of tensors"):
        import_weights.main(["--from", "wan", "--src", str(release), "--out", str(tmp_path / "again")])
    (release / "model.pth").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(SystemExit, match="is no file of weights that can be read safely"):
        import_weights.main(["--from", "wan", "--src", str(release), "--out", str(tmp_path / "again")])
