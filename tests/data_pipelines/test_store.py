import dataclasses
import json
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from data_pipelines import episode as episode_module
from data_pipelines import records
from data_pipelines.store import ClipStore, ShardWriter, finish_store, finished_shards


def test_round_trip_is_bit_equal(episode, write_store):
    episodes = [episode("a", 40), episode("b", 61), episode("c", 8)]
    store = write_store(episodes)
    assert len(store) == 3
    for original, clip in zip(episodes, store, strict=True):
        assert clip.meta == original.meta
        assert clip.start == 0 and clip.is_last and clip.steps == original.steps
        for name in ("state", "action", "imitate", "frame_step"):
            got, want = getattr(clip, name), getattr(original, name)
            assert got.dtype == want.dtype and np.array_equal(got, want), name
        for camera, frames in original.frames.items():
            assert np.array_equal(clip.frames[camera], frames)


def test_manifest_counts(episode, write_store):
    store = write_store([episode("a", 200), episode("b", 40), episode("c", 33, kind="play")])
    manifest = store.manifest
    assert (manifest["episodes"], manifest["steps"], manifest["frames"]) == (3, 273, 26 + 6 + 5)
    assert manifest["records"] == len(store) == sum(shard["records"] for shard in manifest["shards"].values())
    assert (manifest["fps"], manifest["control_hz"], manifest["image_size"]) == (10.0, 80.0, [8, 8])
    assert manifest["kinds"] == ["expert", "play"] and manifest["embodiment"] == "sawyer_metaworld"
    assert manifest["meta"] == {"note": "synthetic"}


@pytest.mark.parametrize("steps", [1, 8, 63, 64, 65, 72, 96, 97, 128, 200, 331])
@pytest.mark.parametrize("stride", [1, 7, 8, 50])
def test_clips_cover_every_frame_once(episode, steps, stride):
    original = episode("a", max(steps, stride), stride=stride)
    owned = []
    for clip in episode_module.split(original, 64, 32):
        first, last = clip.anchors
        assert first == 0 and clip.frame_step[0] == 0
        owned += (clip.frame_step[first:last] + clip.start).tolist()
        assert np.array_equal(clip.action, original.action[clip.start : clip.start + clip.steps])
        assert np.array_equal(clip.state, original.state[clip.start : clip.start + clip.steps + 1])
        reach = clip.frame_step[last - 1] + 32
        assert clip.is_last or reach <= clip.steps
    assert owned == original.frame_step.tolist()
    assert clip.is_last


def test_writing_twice_gives_the_same_hash(episode, write_store):
    one, two = (write_store([episode("a", 100), episode("b", 40)], name) for name in ("one", "two"))
    other = write_store([episode("a", 100, seed=1), episode("b", 40)], "three")
    assert one.hash == two.hash != other.hash


def test_truncated_and_altered_shards_are_refused(episode, write_store):
    store = write_store([episode("a", 40)])
    store.verify()
    shard = next(store.directory.glob("*.array_record"))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="truncated or altered"):
        ClipStore(store.directory)
    flipped = bytearray(data)
    flipped[len(data) // 3] ^= 1
    shard.write_bytes(flipped)
    with pytest.raises(ValueError, match="altered: its hash"):
        ClipStore(store.directory).verify()
    shard.write_bytes(data)
    index = next(store.directory.glob("*.index"))
    flipped = bytearray(index.read_bytes())
    flipped[-1] ^= 1
    index.write_bytes(flipped)
    with pytest.raises(ValueError, match="altered"):
        _ = ClipStore(store.directory).index


def test_wrong_record_count_is_refused(episode, write_store):
    store = write_store([episode("a", 40)])
    manifest = json.loads((store.directory / "manifest.json").read_text())
    next(iter(manifest["shards"].values()))["records"] = 2
    (store.directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="1 records, the manifest says 2"):
        _ = ClipStore(store.directory)[0]


def test_wrist_cameras_are_those_that_are_there(episode, write_store):
    store = write_store([episode("a", 40)])
    assert "wrist" not in store.manifest
    camera = store.manifest["cameras"][0]
    assert finish_store(store.directory, wrist=("elsewhere", camera))["wrist"] == [camera]


def test_foreign_directories_are_refused(tmp_path, episode, write_store):
    with pytest.raises(FileNotFoundError, match="no store at"):
        ClipStore(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json"):
        ClipStore(tmp_path)
    with pytest.raises(ValueError, match="no finished shard"):
        finish_store(tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": "something else"}')
    with pytest.raises(ValueError, match="is not the manifest of a store"):
        ClipStore(tmp_path)
    store = write_store([episode("a", 40)])
    (store.directory / "manifest.json").write_text(json.dumps(store.manifest | {"format_version": 99}))
    with pytest.raises(ValueError, match="format version 99"):
        ClipStore(store.directory)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"frame_step": np.array([0, 8, 8, 24, 32, 40], np.int32)}, "frame_step must increase"),
        ({"state": np.full((41, 4), np.nan, np.float32)}, "state must be finite"),
        ({"action": np.zeros((39, 4), np.float32)}, r"action must be finite \[40, dim\]"),
        ({"action": None}, "both"),
        ({"action": None, "state": None}, "embodiment 'none'"),
        ({"frames": {"corner": np.zeros((6, 8, 8, 3), np.float32)}}, "'corner' must be uint8"),
        ({"meta": {"episode": "a"}}, "meta lacks"),
    ],
)
def test_bad_episodes_are_refused(episode, change, problem):
    with pytest.raises(ValueError, match=problem):
        episode_module.check_episode(dataclasses.replace(episode("a", 40), **change))


def test_failed_and_killed_writers_leave_nothing_visible(tmp_path, episode, request):
    with pytest.raises(KeyError), ShardWriter(tmp_path, "s0") as shard:  # noqa: PT012 (it fails after writing)
        shard.add(episode("a", 40))
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    killed = """
import os, sys
from tests.data_pipelines.conftest import make_episode
from data_pipelines.store import ShardWriter
with ShardWriter(sys.argv[1], "s0") as shard:
    shard.add(make_episode("a", 40))
    os._exit(9)
"""
    command = [sys.executable, "-c", killed, str(tmp_path)]
    assert subprocess.run(command, cwd=request.config.rootpath, check=False).returncode == 9
    assert finished_shards(tmp_path) == []
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    with ShardWriter(tmp_path, "s0") as shard:  # the restarted collection writes it again
        shard.add(episode("a", 40))
    assert finished_shards(tmp_path) == ["s0"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s0.array_record", "s0.index"]
    with pytest.raises(ValueError, match="is finished"):
        ShardWriter(tmp_path, "s0")


def test_episodes_that_do_not_belong_together_are_refused(tmp_path, episode):
    for name, hz in (("s0", 80.0), ("s1", 40.0)):
        with ShardWriter(tmp_path / "rates", name) as shard:
            shard.add(episode(name, 40, hz=hz))
        with ShardWriter(tmp_path / "twice", name) as shard:
            shard.add(episode("same", 40))
    with pytest.raises(ValueError, match="'s1' has control_hz 40"):
        finish_store(tmp_path / "rates")
    with pytest.raises(ValueError, match="'same' is stored twice"):
        finish_store(tmp_path / "twice")


def test_images_are_decoded_once_and_only_when_asked_for(episode, write_store, monkeypatch):
    decoded = []
    real = records.decode_png
    monkeypatch.setattr(records, "decode_png", lambda data: decoded.append(data) or real(data))
    store = write_store([episode("a", 40)])
    _ = store.index, store.low_dim(0)
    assert not decoded
    threads = [threading.Thread(target=store.frames, args=(0, ["corner"], [1, 2, 2])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 2
    with pytest.raises(ValueError, match=r"no cameras \['back'\]"):
        store.frames(0, ["back"], [1])
    _ = store[0], store[0]
    assert len(decoded) == 12  # 6 frames x 2 cameras


def test_cache_is_bounded(episode, write_store):
    store = write_store([episode(name, 40) for name in "abcdef"], cache_bytes=20_000)
    for _ in range(2):
        for i, clip in enumerate(store):
            assert np.array_equal(clip.frames["wrist"], episode("abcdef"[i], 40).frames["wrist"])
    assert 1 <= len(store._cache) < 6 and store._cached_bytes <= 20_000
    assert store._cached_bytes == sum(images.bytes for images in store._cache.values())


def test_pickles_without_its_cache(episode, write_store):
    store = write_store([episode("a", 40)])
    frames = store[0].frames["corner"]
    assert len(pickle.dumps(store)) < 10_000
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301 (bytes of this very line)
    assert np.array_equal(copy[0].frames["corner"], frames)
