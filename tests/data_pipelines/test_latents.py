"""Latents beside a store: what is read is what was encoded, and nothing else is ever taken for it."""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pickle
import shutil
import signal

import numpy as np
import pytest

from data_pipelines.latent_writer import make_jobs, open_windows, write_shard
from data_pipelines.latents import FOLDER, LatentStore, Plan, TokenizerFacts, find_latents, finish
from data_pipelines.store import ClipStore
from data_pipelines.windows import Windows

TOKENIZER = TokenizerFacts("halves", "ab" * 32)


def encode(video, camera):
    """[n, V', F, P=2, C=3]: the mean colours of the upper and the lower half of every frame; depends on the camera."""
    n, V, T, h, w, _ = video.shape
    # Sums of integers: no order of summing, hence no neighbour in the batch, changes a bit.
    halves = video.reshape(n, V, T, 2, h // 2, w, 3).sum((4, 5), dtype=np.int64) / (255 * h * w / 2)
    return (halves + camera[:, :, None, None, None]).astype(np.float32)


def plan_of(windows, **changes):
    facts = (windows.store.hash, TOKENIZER, windows.pixel_facts, (len(windows.config.frame_seconds), 2, 3))
    return Plan(*facts, **{"dtype": "float32", "batch_size": 4, "shard_windows": 10} | changes)


def write(windows, using=encode, **changes):
    jobs = make_jobs(windows, plan_of(windows, **changes))
    for job in jobs:
        write_shard(job, open_windows(job), using)
    finish(windows.store.directory / FOLDER / plan_of(windows).key, [job.name for job in jobs])
    return find_latents(windows.store.directory, windows.store.hash, TOKENIZER, windows.pixel_facts)


@pytest.fixture
def windows(episode, write_store, config):
    return Windows(write_store([episode("a", 150), episode("b", 90)]), config())


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("every", [1, 3])
def test_windows_read_as_latents_are_those_of_their_pixels(windows, every):
    read = windows.with_latents(write(windows, every=every))
    assert len(read) == -(-len(windows) // every) and len(read.latents.manifest["shards"]) > 1
    for i in range(len(read)):
        seen, pixels = read[i], windows[i * every]
        np.testing.assert_array_equal(seen["latents"], encode(pixels["frames"][None], pixels["camera"][None])[0])
        assert "frames" not in seen and seen["window"] == i
        assert read.meta(i) == windows.meta(i * every)
        for name in set(pixels) - {"frames", "window"}:
            np.testing.assert_array_equal(seen[name], pixels[name], err_msg=name)
    assert read.facts != windows.facts


def test_masked_views_take_no_room_and_are_black(episode, write_store, config):
    free = Windows(write_store([episode("a", 100, cameras=("ego",), free=True)]), config())
    latents = write(free)
    assert latents[0].shape == (1, 3, 2, 3)
    seen = free.with_latents(latents)[2]
    assert seen["view_mask"].tolist() == [True, False]
    assert (seen["latents"][0] >= 2).all()  # the camera's place in the table
    pixels = free[2]  # its masked view is black, and seen by camera 0
    np.testing.assert_array_equal(seen["latents"], encode(pixels["frames"][None], pixels["camera"][None])[0])


def test_another_action_rate_and_horizon_read_the_same_latents(windows, config):
    latents = write(windows)
    other = Windows(windows.store, config(action_hz=20.0, action_horizon=4)).with_latents(latents)
    full = Windows(windows.store, config(action_hz=20.0, action_horizon=4))
    assert 0 < len(other) == len(full)
    for i in range(len(other)):
        frames, camera = full.pixels(i)
        np.testing.assert_array_equal(other[i]["latents"], encode(frames[None], camera[None])[0])


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_dtypes_round_once_and_float32_travels(windows, dtype, bound):
    read, exact = windows.with_latents(write(windows, dtype=dtype))[3]["latents"], windows[3]
    exact = encode(exact["frames"][None], exact["camera"][None])[0]
    assert read.dtype == np.float32
    assert (np.abs(read - exact) <= bound * np.abs(exact)).all()


def test_what_does_not_fit_the_dtype_is_refused(windows):
    with pytest.raises(ValueError, match=r"latents of window 0 of .* are not finite as float16"):
        write(windows, lambda video, camera: 1e6 * (1 + encode(video, camera)), dtype="float16")
    assert not list(windows.store.directory.glob(f"{FOLDER}/*/*array_record*"))


def _write_and_die(jobs):
    calls = 0

    def dying(video, camera):
        nonlocal calls
        calls += 1
        if calls == 6:  # in the middle of the second shard
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(video, camera)

    for job in jobs:
        write_shard(job, open_windows(job), dying)


def test_killed_in_mid_shard_and_continued_gives_the_same_bytes(windows, tmp_path):
    shutil.copytree(windows.store.directory, tmp_path / "other")
    whole = files(write(Windows(ClipStore(tmp_path / "other"), windows.config)).directory)
    jobs = make_jobs(windows, plan_of(windows))
    child = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(jobs,))
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert [job.finished for job in jobs] == [True] + [False] * (len(jobs) - 1)
    with pytest.raises(FileNotFoundError, match="holds no finished latents"):
        find_latents(windows.store.directory, windows.store.hash, TOKENIZER, windows.pixel_facts)
    with pytest.raises(ValueError, match=f"lacks the shard '{jobs[1].name}'"):
        finish(windows.store.directory / FOLDER / plan_of(windows).key, [job.name for job in jobs])
    assert files(write(windows).directory) == whole
    before = {path: path.stat().st_mtime_ns for path in write(windows).directory.glob("*record")}
    assert before == {path: path.stat().st_mtime_ns for path in write(windows).directory.glob("*record")}


def test_a_directory_begun_otherwise_is_left_alone(windows):
    write(windows)
    with pytest.raises(ValueError, match=r"made otherwise \(every: 1 there, 2 here\): keep to that, or delete it"):
        write(windows, every=2)


def test_latents_of_anything_else_are_refused(episode, write_store, windows, config):
    store = windows.store
    with pytest.raises(FileNotFoundError, match=r"has no latents: write them with python -m experiments.latents"):
        find_latents(store.directory, store.hash, TOKENIZER, windows.pixel_facts)
    latents = write(windows)
    wider = Windows(store, config(frame_seconds=(0.0, 0.1, 0.2, 0.3)))
    said = r"belong to other windows \(frame_seconds: \[0.0, 0.1, 0.2\] there, \[0.0, 0.1, 0.2, 0.3\] here\)"
    with pytest.raises(ValueError, match=said):
        find_latents(store.directory, store.hash, TOKENIZER, wider.pixel_facts)
    with pytest.raises(ValueError, match="made of other windows than those asked for"):
        wider.with_latents(latents)
    with pytest.raises(ValueError, match="has latents of halves abababab, not of the run's tokenizer halves cdcdcdcd"):
        find_latents(store.directory, store.hash, TokenizerFacts("halves", "cd" * 32), windows.pixel_facts)
    with pytest.raises(ValueError, match=r"number cameras otherwise \(cameras: \[\] there, \['corner'\] here\)"):
        find_latents(
            store.directory, store.hash, dataclasses.replace(TOKENIZER, cameras=("corner",)), windows.pixel_facts
        )
    other = Windows(write_store([episode("c", 150)], "other"), config())
    with pytest.raises(ValueError, match="made of other windows than those asked for"):
        other.with_latents(latents)
    shutil.copytree(store.directory / FOLDER, other.store.directory / FOLDER)
    with pytest.raises(ValueError, match="were made of another content of the store"):
        find_latents(other.store.directory, other.store.hash, TOKENIZER, other.pixel_facts)


def test_damage_is_named(windows):
    directory = write(windows).directory
    shard = sorted(directory.glob("*.array_record"))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-7])
    with pytest.raises(ValueError, match=rf"{shard.name} is truncated or altered: {len(data) - 7} bytes"):
        LatentStore(directory)
    place = data.index(windows.with_latents(write_again(shard, data, directory)).latents[10].tobytes()[:16])
    shard.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(ValueError, match=rf"{shard.name} is altered: its hash is not the manifest's"):
        LatentStore(directory).verify()
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"format_version": 7}))
    with pytest.raises(ValueError, match="has format version 7, this code reads 1"):
        LatentStore(directory)
    (directory / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is damaged: it is no JSON object"):
        LatentStore(directory)


def write_again(shard, data, directory):
    shard.write_bytes(data)
    return LatentStore(directory)


def test_read_by_threads_and_after_pickling(windows):
    read = windows.with_latents(write(windows))
    want = [read[i]["latents"] for i in range(len(read))]
    again = pickle.loads(pickle.dumps(read))  # noqa: S301 (our own)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for i, got in enumerate(pool.map(lambda i: again[i % len(read)]["latents"], range(4 * len(read)))):
            np.testing.assert_array_equal(got, want[i % len(read)])
