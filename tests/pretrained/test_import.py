"""The import command: what it writes, and one sentence with the tensor's name for everything that is wrong."""

import json
import re
import shutil
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from tests.pretrained.files import CONFIG, pieces, random_trunk, release
from tools import import_weights
from wam.pretrained import imported, wan_trunk, writing
from wam.pretrained.provenance import read_provenance
from wam.pretrained.tensor_files import TensorFiles


def run(source, out, kind="wan"):
    import_weights.main(["--from", kind, "--src", str(source), "--out", str(out)])


def refused(source, out, kind="wan") -> str:
    """What the command says; it must write nothing and say one sentence."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(SystemExit) as exit_info:
        run(source, out, kind)
    assert sorted(out.parent.iterdir()) == before, "something was left behind"
    said = str(exit_info.value)
    assert said.startswith("import_weights: ")
    assert "\n" not in said
    return said


@pytest.mark.parametrize("naming", wan_trunk.NAMINGS)
def test_both_namings_and_shards_become_the_same_parameters(tmp_path, capsys, naming):
    source = release(tmp_path / "release", made=pieces(naming=naming), shard_bytes=20_000)
    assert len(list(source.glob("*.safetensors"))) > 2
    run(source, tmp_path / "out")
    assert re.search(r"\[2, 32\] +F32 -> video_head.table$", capsys.readouterr().out.replace("[1, 2, 32]", "[2, 32]"),
                     re.MULTILINE)  # fmt: skip
    wanted = random_trunk()
    here = dict.fromkeys(wanted, SingleDeviceSharding(jax.devices()[0]))
    shapes = {path: x.shape for path, x in wanted.items()}
    got = imported.load_trunk(tmp_path / "out", {**shapes, "action_in.kernel": (3,)}, here)
    assert got.keys() == wanted.keys()
    assert all(np.array_equal(got[path], x) for path, x in wanted.items())
    provenance = read_provenance(tmp_path / "out")
    assert provenance["files"].keys() == {f.name for f in source.glob("*.safetensors")}
    assert all(len(digest) == 64 for digest in provenance["files"].values())
    assert imported.trunk_config(tmp_path / "out") == CONFIG


def changed(name: str, **fields):
    """The release's tensors with one of them changed, to zeros."""

    def change(piece):
        new = piece._replace(**fields)
        return new._replace(make=lambda: np.zeros(new.shape, new.dtype))

    return [change(piece) if piece.name == name else piece for piece in pieces()]


UP = "blocks.1.ffn.net.0.proj.weight"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: pieces()[:-1], "the file lacks 'blocks.1.scale_shift_table'"),
        (lambda: [*pieces(), pieces()[0]._replace(name="surplus")], "beyond the map, 'surplus'"),
        (lambda: changed(UP, shape=(40, 31)), f"'{UP}' has shape [40, 31], expected [40, 32]"),
        (lambda: changed(UP, dtype=np.dtype(ml_dtypes.float8_e4m3fn)),
         f"'{UP}' is F8_E4M3, expected one of F32, BF16, F16"),
        (lambda: changed(UP, dtype=np.dtype(np.int8)), f"'{UP}' is I8, expected one of F32, BF16, F16"),
        (lambda: [p for p in pieces() if "time_embedder" not in p.name], "this is no Wan trunk: it has"),
        (lambda: pieces(naming="diffusers")[:-1] + pieces(naming="original")[-1:],
         "the file lacks 'blocks.1.scale_shift_table'"),
    ],
    ids=["missing", "too many", "shape", "fp8", "integers", "another model", "mixed namings"],
)  # fmt: skip
def test_a_tensor_that_is_wrong_is_named(tmp_path, made, said):
    assert said in refused(release(tmp_path / "release", made=made()), tmp_path / "out")


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def broken_header(path):
    path.write_bytes((9).to_bytes(8, "little") + b"{not json" + bytes(100))


def foreign_dtype(path):
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F4Z"', 1))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda s: cut(s, s.stat().st_size - 5), "model-00002-of-00003.safetensors is incomplete: "),
        (lambda s: cut(s, 100), "is incomplete: 100 bytes, not even its header"),
        (lambda s: cut(s, 3), "is no safetensors file"),
        (lambda s: s.write_bytes(b"<html>404 not found</html>"), "is no safetensors file"),
        (broken_header, "is no safetensors file: its header is not JSON"),
        (foreign_dtype, "as 'F4Z', which is not among F64, F32"),
        (lambda s: s.write_bytes(s.read_bytes() + b"12"), "is damaged: 2 bytes behind its last tensor"),
        (lambda s: s.unlink(), "lacks diffusion_pytorch_model-00002-of-00003.safetensors, which "),
        (lambda s: (s.parent / "config.json").write_text("{"), "config.json is no JSON object"),
        (lambda s: (s.parent / "config.json").unlink(), "has no config.json of diffusers: say which release it is"),
        (lambda s: (s.parent / "config.json").write_text('{"_class_name": "UNet"}'), "config.json is of 'UNet'"),
        (lambda s: (s.parent / "diffusion_pytorch_model.safetensors.index.json").write_text("[]"), "has no weight_map"),
        (lambda s: (s.parent / "diffusion_pytorch_model.safetensors.index.json").unlink(),
         "holds several models (diffusion_pytorch_model-00001-of-00003.safetensors, "),
    ],
)  # fmt: skip
def test_a_damaged_release_is_refused(tmp_path, damage, said):
    source = release(tmp_path / "release", shard_bytes=60_000)
    shards = sorted(source.glob("*.safetensors"))
    assert len(shards) == 3
    damage(shards[1])
    assert said in refused(source, tmp_path / "out")


def test_what_is_asked_for_must_be_there_and_nothing_is_overwritten(tmp_path, monkeypatch):
    source, out = release(tmp_path / "release"), tmp_path / "out"
    assert "config.json has num_attention_heads 2; the release asked for has 12" in refused(source, out, "wan2.1-1.3b")
    assert "has no config.json with action_head_cfg.config.diffusion_model_cfg.num_heads" in refused(
        source, out, "dreamzero"
    )
    assert "there is no nowhere" in refused("nowhere", out)
    assert "is no file of tensors" in refused(source / "config.json", out)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "install huggingface_hub (the extra `pretrained`)" in refused("someone/something/transformer", out)
    (tmp_path / "empty").mkdir()
    assert "empty holds no .safetensors file" in refused(tmp_path / "empty", out)
    out.mkdir()
    assert "exists already and is left as it is" in refused(source, out)
    with pytest.raises(SystemExit):
        run(source, out, "wan9.9")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    source, out = release(tmp_path / "release"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(writing.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10_000))
        assert "has 0.0 GB free, 0.0 GB are needed" in refused(source, out)
    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert "No space left on device" in refused(source, out)
    run(source, out)


def test_pickles_are_opened_by_the_weights_only_loader_or_not_at_all(tmp_path, monkeypatch):
    directory = tmp_path / "release"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(wan_trunk.to_json(CONFIG)))
    (directory / "model.pth").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    monkeypatch.setitem(sys.modules, "torch", None)
    said = refused(directory, tmp_path / "out")
    assert "model.pth is a pickle" in said
    assert "safetensors.torch.save_file(torch.load(FILE, weights_only=True)" in said


def test_views_read_what_is_asked_for(tmp_path):
    source = release(tmp_path / "release", made=pieces(dtype=ml_dtypes.bfloat16))
    tensors = TensorFiles(source)
    assert tensors[UP].dtype == ml_dtypes.bfloat16
    assert isinstance(tensors[UP], np.memmap)
    assert not tensors[UP].flags.writeable


def test_imported_weights_must_fit_the_model_and_be_whole(tmp_path):
    source, out = release(tmp_path / "release"), tmp_path / "out"
    run(source, out)
    shapes = {path: x.shape for path, x in random_trunk().items()} | {"video_in.kernel": (8, 31)}
    with pytest.raises(
        ValueError, match=r"out does not fit the model: 'video_in.kernel' has shape \[8, 32\], expected"
    ):
        imported.load_trunk(out, shapes, {})
    (out / "provenance.json").write_text("{}")
    with pytest.raises(ValueError, match=r"provenance\.json is damaged"):
        imported.trunk_config(out)
    with pytest.raises(FileNotFoundError, match="holds no imported weights: make it with"):
        imported.trunk_config(source)
