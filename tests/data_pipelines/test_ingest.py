import json
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import ingest as ingest_module
from data_pipelines import ingest_plan
from data_pipelines.ingest import ingest
from data_pipelines.ingest_plan import IngestConfig
from data_pipelines.store import ClipStore
from data_pipelines.windows import WindowConfig, Windows
from tests.data_pipelines.ingest_fixture import clips, contents, toy_config
from tests.data_pipelines.sources import lerobot_fixture as made
from tests.data_pipelines.sources.video_writer import numbers_of, write_video


@pytest.fixture
def toy(tmp_path):
    """toy(**changes) -> config of an ingest of three episodes, one a shard."""
    made.write_v21(tmp_path / "set")
    return lambda **changes: toy_config(tmp_path, tmp_path / "set", **changes)


def run(root, config, **options):
    return ingest(root, "toy", config, progress=False, **options)


def test_what_comes_out_is_what_went_in(tmp_path, toy):
    result = run(tmp_path / "out", toy())
    store = ClipStore(tmp_path / "out" / "train" / "toy")
    store.verify()
    assert result["quarantined"] == [] and result["made"] == 3
    manifest = store.manifest
    assert (manifest["episodes"], manifest["steps"], manifest["frames"]) == (3, 39, 39)
    assert (manifest["codec"], manifest["encoder"]["gop"], manifest["control_hz"]) == ("h264", 4, 10.0)
    assert manifest["meta"]["dataset"].endswith("toy.py:toy") and manifest["embodiment_spec"]["name"] == "toy"
    for i in range(len(store)):
        k = int(store.index.meta[i]["episode"][-1])
        state, action = made.vectors(k)
        start, steps = store.index.start[i], store.index.steps[i]
        assert np.array_equal(store.index.action[i], action[start : start + steps].astype(np.float32))
        assert np.array_equal(store.index.state[i][:steps], state[start : start + steps].astype(np.float32))
        frames = store[i].frames["front"]
        original = made.decode(made.video_v21(tmp_path / "set", k))[start : start + len(frames)]
        coarse = original[:, ::12, ::16].mean((1, 2)) - frames[:, ::8, ::8].mean((1, 2))
        assert np.abs(coarse).max() < 30
        assert store.index.meta[i]["instruction"] == made.TASKS[k]


def test_equal_bytes_again_on_more_processes_and_in_other_shards(tmp_path, toy):
    run(tmp_path / "one", toy())
    run(tmp_path / "two", toy(), processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    run(tmp_path / "joined", toy(shard_frames=1000))
    stores = [tmp_path / name / "train" / "toy" for name in ("one", "joined")]
    assert clips(stores[0]) == clips(stores[1])
    assert len(list(stores[1].glob("*.index"))) == 1


def test_killed_in_mid_write_it_goes_on(tmp_path, toy, request):
    """The second shard dies with a record written: nothing of it is seen, and the same command ends as it should."""
    run(tmp_path / "whole", toy())
    program = """
import os, sys
from data_pipelines import ingest as module
from data_pipelines.shards import ShardWriter
from tests.data_pipelines.ingest_fixture import toy_config
import pathlib
write = ShardWriter.write
def dying(self, clips):
    write(self, clips)
    if self._name == "00001":
        os._exit(9)
ShardWriter.write = dying
tmp = pathlib.Path(sys.argv[1])
module.ingest(tmp / "killed", "toy", toy_config(tmp, tmp / "set"), progress=False)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(command, cwd=request.config.rootpath, check=False).returncode == 9
    store = tmp_path / "killed" / "train" / "toy"
    assert [path.name for path in sorted(store.glob("[!.]*.array_record"))] == ["00000.array_record"]
    assert not (store / "manifest.json").exists()
    result = run(tmp_path / "killed", toy())
    assert (result["made"], result["found"]) == (2, 1)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert run(tmp_path / "killed", toy())["made"] == 0
    (store / "jobs" / "00002.json").unlink()  # killed after its shard, before it said so
    assert run(tmp_path / "killed", toy())["made"] == 1
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_other_settings_and_other_directories_are_refused(tmp_path, toy):
    run(tmp_path / "out", toy())
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=r"begun with other settings: crf was 18, now it is 20; choose another name"):
        run(tmp_path / "out", toy(crf=20))
    (tmp_path / "mine" / "train" / "toy").mkdir(parents=True)
    (tmp_path / "mine" / "train" / "toy" / "thesis.txt").write_text("words")
    with pytest.raises(ValueError, match="neither empty nor an ingest"):
        run(tmp_path / "mine", toy())
    with pytest.raises(ValueError, match="would lie inside its source"):
        run(tmp_path / "set" / "out", toy())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        run(tmp_path / "file", toy())
    extra = [{"episode_index": i, "tasks": [made.TASKS[i % 3]], "length": 9} for i in range(4)]
    made.write_lines(tmp_path / "set" / "meta" / "episodes.jsonl", extra)
    (tmp_path / "set" / "data" / "chunk-000" / "episode_000003.parquet").write_bytes(
        made.data_v21(tmp_path / "set", 1).read_bytes()
    )
    ingest_plan._opened.cache_clear()
    with pytest.raises(ValueError, match="has 4 episodes, 3 when this ingest was planned"):
        run(tmp_path / "out", toy())
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fit": "tile"}, "fit must be one of"),
        ({"fps": 0.0}, "fps must be positive"),
        ({"validation": 1.5}, "validation must be a share"),
        ({"overlap_seconds": 0.8}, "below clip_seconds"),
        ({"min_steps": 0}, "min_steps must be at least 1"),
        ({"codec": "gif"}, "codec must be h264 or png"),
        ({"validation": ("nobody",)}, "has no readable episode 'nobody' for validation; it has set/episode_000000"),
        ({"min_steps": 100}, "nothing to ingest of 3 episodes; most often: shorter than 100 steps"),
        ({"success_only": True}, "nothing to ingest of 3 episodes; most often: nobody says that it succeeded"),
    ],
)
def test_bad_settings_are_refused(tmp_path, toy, changes, said):
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "out", toy(**changes))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="even height and width, got 33x32"):
        IngestConfig("video", ".", (33, 32))


def test_ranges_idle_and_fps(tmp_path, toy):
    keep = {"set/episode_000000": [[2, 5], [9, 13]], "set/episode_000002": [[0, 1]]}
    (tmp_path / "keep.json").write_text(json.dumps(keep))
    result = run(tmp_path / "out", toy(keep=str(tmp_path / "keep.json")))
    assert result["skipped"] == {f"no range of it in {tmp_path / 'keep.json'}": 1}
    config = WindowConfig((0.0, 0.2), 2, 10.0, ("front",), ("front",))
    windows = Windows(ClipStore(tmp_path / "out" / "train" / "toy"), config)
    starts = [(m["episode"][-1], m["start_step"]) for m in map(windows.meta, range(len(windows)))]
    assert starts == [("0", n) for n in (2, 3, 4, 9, 10, 11, 12)] + [("2", 0)]
    with pytest.raises(ingest_module.IngestError, match="nothing could be kept of 3 episodes"):
        run(tmp_path / "idle", toy(drop_idle=100.0))
    run(tmp_path / "slow", toy(fps=5.0, codec="png"))
    slow = ClipStore(tmp_path / "slow" / "train" / "toy")
    assert (slow.manifest["fps"], slow.manifest["control_hz"], slow.manifest["codec"]) == (5.0, 10.0, "png")
    assert slow.index.frame_step[0].tolist() == [0, 2, 4, 6, 8]


def test_equal_episodes_lie_on_the_same_side(tmp_path):
    videos = tmp_path / "videos"
    for k in range(12):
        write_video(videos / f"{k}.mp4", 4 + k % 6)  # six of them twice
    config = IngestConfig("video", str(videos), (16, 16), validation=0.4)
    result = ingest(tmp_path / "out", "v", config, progress=False)
    sides = {
        row["number"]: row["split"]
        for path in (tmp_path / "out/train/v/jobs").iterdir()
        for row in json.loads(path.read_text())["episodes"]
    }
    assert len(sides) == 12 and set(sides.values()) == {"train", "validation"} == set(result["stores"])
    assert all(sides[k] == sides[k + 6] for k in range(6))
    digests = [
        {meta["digest"] for meta in ClipStore(tmp_path / "out" / s / "v").index.meta} for s in ("train", "validation")
    ]
    assert not digests[0] & digests[1] and sum(map(len, digests)) == 6


def test_video_of_several_rates_goes_into_one_store(tmp_path):
    for k, fps in enumerate((10, 20, 5)):
        write_video(tmp_path / "videos" / f"{k}.mp4", 8, fps=fps)
    config = IngestConfig("video", str(tmp_path / "videos"), (32, 48), fps=10, validation=0.0, crf=4)
    ingest(tmp_path / "out", "v", config, progress=False)
    store = ClipStore(tmp_path / "out" / "train" / "v")
    assert [step.tolist() for step in store.index.frame_step] == [[*range(8)], [0, 1, 2, 3], [*range(0, 16, 2)]]
    assert numbers_of(store[1].frames["ego"]) == [0, 2, 4, 6]
    config = IngestConfig("video", str(tmp_path / "videos"), (32, 48), validation=0.0)
    result = ingest(tmp_path / "plain", "v", config, progress=False, max_bad=0.7)
    reasons = [row["reason"] for row in result["quarantined"]]
    assert reasons == [f"has {r} steps a second, the store 10: give fps, and video of any rate fits" for r in (20, 5)]


@pytest.mark.parametrize("name", ["gr1", "bridge", "video"])
def test_real_samples(tmp_path, shared_samples, name):
    folder = {"gr1": "lerobot_v2_groot_gr1_sim", "bridge": "bridge_octo_debug/1.0.0", "video": "dreamzero_droid"}[name]
    held_out = {"gr1": ("lerobot_v2_groot_gr1_sim/episode_000004",)}.get(name, 0.0)
    config = IngestConfig(name, str(shared_samples / folder), (32, 32), fps=5.0, validation=held_out)
    result = ingest(tmp_path, name, config, progress=False)
    store = ClipStore(tmp_path / "train" / name)
    episodes, frames = {"gr1": (4, 443), "bridge": (25, 250), "video": (3, 420)}[name]
    assert (store.manifest["episodes"], store.manifest["frames"]) == (episodes, frames)
    assert store.manifest["fps"] == 5.0 and result["quarantined"] == []
    clip = store[0]
    for images in clip.frames.values():
        assert images.shape[1:] == (32, 32, 3)
        if name != "bridge" or images.any():  # some of Bridge's cameras are black
            assert images.std() > 20


def test_the_digest_finds_episodes_that_two_splits_share(tmp_path, shared_samples):
    """The sample of Bridge calls its episodes train and val, but they are the same 25, in another order."""
    digests = []
    for split, validation in (("train", 0.0), ("val", 1.0)):
        path = str(shared_samples / "bridge_octo_debug/1.0.0")
        config = IngestConfig("bridge", path, (16, 16), {"split": split}, validation=validation)
        (manifest,) = ingest(tmp_path, "bridge", config, progress=False)["stores"].values()
        store = ClipStore(tmp_path / manifest["meta"]["split"] / "bridge")
        digests.append([meta["digest"] for meta in store.index.meta])
    assert digests[0] != digests[1] and sorted(digests[0]) == sorted(digests[1])
