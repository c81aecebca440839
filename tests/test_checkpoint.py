"""Checkpoints of a tiny state: retention, other meshes, damage and full disks. Whole runs are in tests/experiments."""

import json
import re
import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from wam.checkpoint import Checkpoints, read_inference
from wam.fingerprint import fingerprints, json_digest
from wam.training.state import TrainState

TOKENIZER = {"basis": np.arange(6, dtype=np.float32).reshape(2, 3)}
CONSTANTS = {"gain": np.ones(3, np.float32)}
ASSETS = {"model": {"depth": 2}, "views": ["front"]}


def make_state(step=1, devices=8, width=16):
    """(state, shardings): a kernel sharded over all devices, a bias on every one of them, Adam moments."""
    mesh = jax.make_mesh((devices,), ("fsdp",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
    everywhere, rows = (NamedSharding(mesh, PartitionSpec(*names)) for names in ((), ("fsdp",)))
    where = {"kernel": rows, "bias": everywhere}
    params = {"kernel": jax.random.normal(jax.random.key(step), (8, width)), "bias": jnp.full(width, 0.1)}
    optimizer = optax.scale_by_adam()
    moments = optimizer.init(params)._replace(mu=jax.tree.map(lambda x: x / 3, params))
    state = TrainState(
        jnp.int32(step), jnp.int32(100), jnp.uint32(0), params, jax.tree.map(jnp.square, params), moments
    )
    shardings = TrainState(everywhere, everywhere, everywhere, where, where,
                           optax.ScaleByAdamState(everywhere, where, where))  # fmt: skip
    return jax.device_put(state, shardings), shardings


def save(checkpoints, step, metrics=None, **shape):
    checkpoints.save(make_state(step, **shape)[0], {"next": step}, CONSTANTS, TOKENIZER, ASSETS, metrics)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run directory with checkpoints at steps 1 and 2, saved from eight devices. Copy before damaging it."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir)
    for step in (1, 2):
        save(checkpoints, step)
    checkpoints.close()
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def restore(workdir, **shape):
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.restore(*make_state(0, **shape))
    finally:
        checkpoints.close()


@pytest.mark.parametrize("devices", [8, 4, 1])
def test_a_checkpoint_restores_onto_other_devices(saved, devices):
    state, data, assets = restore(saved, devices=devices)
    wanted, _ = make_state(2)
    assert data == {"next": 2}
    assert assets["model"] == ASSETS["model"]
    assert len(state.params["kernel"].sharding.device_set) == devices
    assert state.params["kernel"].addressable_shards[0].data.shape == (8 // devices, 16)
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    for got, expected in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


def test_inference_reads_the_ema_alone(saved):
    found = read_inference(saved, step=1)
    assert found.step == 1
    np.testing.assert_array_equal(found.params["kernel"], make_state(1)[0].ema["kernel"])
    np.testing.assert_array_equal(found.tokenizer["basis"], TOKENIZER["basis"])
    assert found.assets["views"] == ["front"]
    with pytest.raises(FileNotFoundError, match="holds no finished checkpoint at 7"):
        read_inference(saved, step=7)


def test_the_newest_the_regular_and_the_best_stay(tmp_path):
    losses = {2: 3.0, 4: 1.0, 6: 2.0, 8: float("nan"), 10: 5.0, 12: None, 14: 4.0, 16: 9.0}
    checkpoints = Checkpoints(tmp_path, keep_latest=2, keep_every=6, best_metric="loss")
    assert checkpoints.latest() is None
    assert checkpoints.best() is None
    for step, loss in losses.items():
        save(checkpoints, step, None if loss is None else {"loss": loss, "video": 0.0})
    checkpoints.wait()
    assert checkpoints.steps() == [4, 6, 12, 14, 16]
    assert checkpoints.best() == 4
    checkpoints.close()
    # A resumed run still knows which one was best.
    checkpoints = Checkpoints(tmp_path, keep_latest=1, best_metric="loss")
    save(checkpoints, 18, {"loss": 8.0})
    checkpoints.wait()
    assert checkpoints.steps() == [4, 18]
    assert checkpoints.best() == 4
    checkpoints.close()


def test_a_fingerprint_sees_every_bit_and_no_sharding():
    x = jax.random.normal(jax.random.key(0), (16, 33))
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("fsdp")))
    original = fingerprints({"a": {"x": x}})
    assert original == fingerprints({"a": {"x": sharded}}) == fingerprints({"a": {"x": np.asarray(x)}})
    assert list(original) == ["a.x"]
    words = np.asarray(x).view(np.uint32)
    position = np.arange(words.size, dtype=np.uint32).reshape(words.shape)
    assert original["a.x"] == int((words * (2 * position + 1)).sum(dtype=np.uint32))
    for bit in range(32):
        changed = words.copy()
        changed[7, 5] ^= np.uint32(1 << bit)
        assert fingerprints({"a": {"x": changed.view(np.float32)}}) != original
    assert fingerprints({"a": {"x": x[::-1]}}) != original
    kinds = [np.array([True, False]), np.arange(5, dtype=np.uint8), jnp.arange(4, dtype=jnp.bfloat16), np.int32(-3)]
    assert len(set(fingerprints(dict(enumerate(kinds))).values())) == len(kinds)
    assert json_digest({"a": (1, 2), "b": 0.1}) == json_digest(json.loads('{"b": 0.1, "a": [1, 2]}'))


def test_silent_corruption_names_the_array_the_step_and_the_way_on(run):
    """One flipped bit in stored numbers: every reader of the format accepts the file."""
    step = run / "checkpoints" / "2"
    text = (step / "fingerprints" / "metadata").read_text()
    marks = json.loads(text)
    marks["arrays"]["params.kernel"] ^= 1
    (step / "fingerprints" / "metadata").write_text(json.dumps(marks))
    with pytest.raises(ValueError, match=r"step 2 of .* is damaged: params\.kernel is not what was saved; "
                                         r"delete .*checkpoints/2 to continue from step 1$"):  # fmt: skip
        restore(run)
    assert read_inference(run).step == 2  # reads the EMA, which is whole
    marks["arrays"]["ema.bias"] ^= 1
    (step / "fingerprints" / "metadata").write_text(json.dumps(marks))
    with pytest.raises(ValueError, match=r"ema\.bias is not what was saved"):
        read_inference(run)
    shutil.rmtree(step)
    assert int(restore(run)[0].step) == 1


@pytest.mark.parametrize("item", ["train_state", "params"])
def test_flipped_and_missing_bytes_are_damage(run, item):
    """Wherever a bit flips in the file of the arrays, and however short it becomes, nobody reads wrong numbers."""
    readers = [restore, read_inference] if item == "params" else [restore]
    path = max((run / "checkpoints" / "2" / item).glob("**/d/*"), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    flipped = [bytearray(content) for _ in range(9)]
    for changed, byte in zip(flipped, np.linspace(0, len(content) - 1, 9).astype(int), strict=True):
        changed[byte] ^= 1
    refused: list[str] = []
    for changed in (*flipped, content[: len(content) // 2], b""):
        path.write_bytes(changed)
        for reader in readers:
            try:
                found = reader(run)
            except ValueError as error:
                refused.append(str(error))
            else:  # the byte is in a part of the file that is not in use
                found = found.params if reader is read_inference else found[0].ema
                np.testing.assert_array_equal(found["kernel"], make_state(2)[0].ema["kernel"])
    sentence = r"step 2 of .* is damaged: .*checkpoints/2 to continue from step 1$"
    assert all(re.search(sentence, error) for error in refused), refused
    assert len(refused) > 5 * len(readers)
    shutil.rmtree(run / "checkpoints" / "2" / item)
    shutil.rmtree(run / "checkpoints" / "1")
    with pytest.raises(ValueError, match=r"is damaged: .* to start again, as there is no earlier one"):
        restore(run)


def test_damaged_json_is_named(run):
    for item in ("data", "assets"):
        path = run / "checkpoints" / "2" / item / "metadata"
        text = path.read_text()
        path.write_text(text.replace("2", "3"))
        with pytest.raises(ValueError, match=f"is damaged: {item} is not what was saved|has checkpoint format 3"):
            restore(run)
        path.write_text(text[:-2])
        with pytest.raises(ValueError, match=r"step 2 of .* is damaged"):
            restore(run)
        path.write_text(text)
    assert int(restore(run)[0].step) == 2


def test_another_architecture_names_the_first_parameter(saved):
    with pytest.raises(ValueError, match=r"step 2 of .* made with another architecture: params\.bias is float32\[16\] "
                                         r"there and float32\[24\] here; use a new --workdir"):  # fmt: skip
        restore(saved, width=24)


def test_killed_saves_and_deletions_do_no_harm(run):
    """A temporary directory of a save, and an old step deleted half way, as a kill leaves them."""
    folder = run / "checkpoints"
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    for path in (folder / "1").rglob("*"):
        if path.is_file():
            path.unlink()
    checkpoints = Checkpoints(run)
    assert checkpoints.latest() == 2
    assert int(checkpoints.restore(*make_state(0))[0].step) == 2
    save(checkpoints, 3)
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(tmp_path):
    """The limit on the size of a file stands for the disk; with keep_latest 1 the failed save was to replace step 1."""
    code = """
        import resource, sys, time
        from tests import test_checkpoint as here
        from wam.checkpoint import Checkpoints, SaveError
        checkpoints = Checkpoints(sys.argv[1], keep_latest=1)
        here.save(checkpoints, 1, width=4096)
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        try:
            here.save(checkpoints, 2, width=4096)
            for _ in range(600):
                time.sleep(0.1)
                checkpoints.check()  # raises once the background thread has failed
        except SaveError as error:
            checkpoints.close()
            sys.exit(str(error))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1, result.stderr
    assert "failed (File too large); the checkpoint at step 1 is intact: make room there" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    state, data, _ = restore(tmp_path, width=4096)
    assert data == {"next": 1}
    np.testing.assert_array_equal(state.params["kernel"], make_state(1, width=4096)[0].params["kernel"])
