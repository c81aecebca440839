"""The data bench: files that both sides read alike, equality before timing, blocks, memory and statistics."""

import contextlib
import itertools

import numpy as np
import pytest

from data_pipelines.sources.lerobot import LeRobot
from tools.bench import data, data_files, data_ours, data_side
from tools.bench.worker import WorkerError


class Counting:
    note = "counts"

    def __init__(self):
        self.started, self.left, self.given = [], 0, 0

    @contextlib.contextmanager
    def batches(self, cores):
        self.started.append(cores)
        yield self.forever()
        self.left += 1

    def forever(self):
        for i in itertools.count():
            self.given += 1
            yield i

    def clip(self, window, resized):
        return np.full((2, 1, 1, 3), window + 100 * resized, np.uint8)


@pytest.mark.parametrize("train", [False, True])
def test_a_block_counts_whole_rounds_after_all_workers_have_delivered(train):
    loader = Counting()
    got = data_side.block(loader, batch=4, cores=2, seconds=0.0, train=train)
    assert loader.started == [2]
    assert loader.left == 1
    assert loader.given == 2 * 2 + 2 * 2  # the warm-up, then two rounds
    assert got["rate"] == pytest.approx(4 / got["step"])
    assert 0 <= got["waited"] <= 1
    assert (got["alone"] > 0) == train
    assert got["bytes"] > 2**20


def test_cpu_seconds_count_what_children_use():
    import subprocess
    import sys

    code = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()"
    before = data_side.cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as child:
        child.stdout.readline()
        used = data_side.cpu_seconds() - before
        child.communicate("\n")
    assert 0.2 < used < 3


def test_memory_is_looked_at_after_so_many_windows():
    loader = Counting()
    held = data_side.memory_after(loader, batch=4, cores=1, windows=[8, 40])
    assert len(held) == 2
    assert loader.given == 10


def test_requests_are_answered(tmp_path):
    path = tmp_path / "clips.npy"
    request = {"do": "clips", "windows": [3, 5], "resized": True, "path": str(path)}
    assert data_side.answers(Counting(), 4, request) == {}
    assert np.load(path)[:, 0, 0, 0, 0].tolist() == [103, 105]


def test_frames_that_differ_are_never_timed():
    ours = np.full((2, 3, 8, 8, 3), 100, np.uint8)
    assert "at most 3" in data.frames_agree(
        ours, ours + np.uint8(3) * (np.arange(8) == 0)[:, None, None].astype(np.uint8)
    )
    with pytest.raises(WorkerError, match="not the same frames, so nothing was timed"):
        data.frames_agree(ours, ours + np.uint8(5))
    with pytest.raises(WorkerError, match=r"are \[2, 3, 8, 8, 3\] here and \[2, 2, 8, 8, 3\] in the peer"):
        data.frames_agree(ours, ours[:, :2])
    assert "within 48.1 dB" in data.signal(ours + np.uint8(1), ours)
    other = ours.copy()
    other[1] += np.uint8(20)  # one window of two
    with pytest.raises(WorkerError, match=r"has 22\.1 dB to its source"):
        data.signal(other, ours)


def test_the_rows_of_a_comparison_and_of_our_side_alone():
    one = {"rate": 10.0, "cpu": 0.05, "step": 0.4, "waited": 0.5, "bytes": 2**30, "alone": 0.2}
    comparison = data.COMPARISONS[0]
    blocks = {(side, cores, train): [one if side == "store" else one | {"rate": 2.0, "cpu": 0.5}]
              for side in ("store", "lerobot peer") for cores in (1, 2) for train in (False, True)}  # fmt: skip
    notes = {"store": "ours", "lerobot peer": "theirs"}
    rows = {row["case"]: row for row in data.table(data.CASES[0], comparison, blocks, {"store": "equal"}, notes)}
    rate, cpu = (rows[f"224 px, our store, 1 core: {what}"] for what in ("rate", "CPU time a window"))
    assert (rate["ratio"], cpu["ratio"]) == (5.0, 10.0)
    assert rate["peer"] == "lerobot"
    assert all(word in rate["note"] for word in ("equal", "ours", "theirs", "a keyframe every 250 frames"))
    assert rows["224 px, our store, 2 cores: step while training"]["ours"]["median"] == 400
    assert rows["224 px, our store, 2 cores: waiting for data while training"]["ours"]["median"] == 50
    alone = data.table(data.CASES[0], comparison, blocks, {}, {"store": "ours"})
    assert len(alone) == len(rows)
    assert not any("peer" in row for row in alone)


def test_both_sides_read_the_same_files(shared_samples, tmp_path, monkeypatch):
    """The published packets in v3.0 decode to the published frames, wherever an episode lies in the joint video."""
    sample, out = shared_samples / "lerobot_v2_groot_gr1_sim", tmp_path / "lerobot"
    data_files.write_lerobot(sample, out, recorded=False)
    before, after = data_files.open_sample(sample), LeRobot(out)
    assert after.problems == []
    assert len(after) == len(before) == 5
    for i, frame in ((0, 3), (4, before.about(4).frames - 1)):
        ours, theirs = after.about(i), before.about(i)
        assert (ours.frames, ours.instruction) == (theirs.frames, theirs.instruction)
        np.testing.assert_array_equal(after.lowdim(i).action, before.lowdim(i).action)
        np.testing.assert_array_equal(
            after.frames(i, data_files.FEATURE, [frame]), before.frames(i, data_files.CAMERA, [frame])
        )
    spec = {"kind": "lerobot", "path": str(out), "fps": 20, "frames": 3, "horizon": 4, "batch": 2, "size": 32}
    loader = data_ours.loader(spec)
    with loader.batches(1) as batches:
        batch = next(batches)
    assert {name: array.shape for name, array in batch.items()} == {
        "video": (2, 3, 32, 32, 3), "state": (2, 44), "action": (2, 4, 44), "action_mask": (2, 4),
    }  # fmt: skip
    last = int(loader.ends[0]) - 1  # of the first episode: its last frame repeats, its actions end
    clip = loader.clip(last, resized=False)
    np.testing.assert_array_equal(clip, before.frames(0, data_files.CAMERA, [last] * 3))
    assert loader._make([last])["action_mask"].tolist() == [[True, False, False, False]]


def test_the_store_is_read_by_the_mixture(tmp_path):
    """The long store has every step once, and its statistics are read without a frame."""
    store = data_files.write_long_store(tmp_path, 1200)
    spec = {"path": str(store), "fps": 20, "horizon": 24}
    note, answer = data_ours.statistics(spec)
    got = answer({})
    assert note == {"note": ""}
    assert got["windows"] == 1500  # whole episodes of 500
    assert got["rows"] == 3 * sum(min(24, 500 - t) for t in range(500))
    assert 0 < got["opened"] <= got["seconds"]


def test_dry_run_names_the_cases(capsys):
    data.main(["--dry_run"])
    out = capsys.readouterr().out
    assert all(case.name in out for case in data.CASES)
    with pytest.raises(SystemExit, match="no case holds"):
        data.main(["--only", "gigantic", "--dry_run"])
    with pytest.raises(SystemExit, match="no dataset at"):
        data.main(["--busy", "--sample", "/nowhere"])
