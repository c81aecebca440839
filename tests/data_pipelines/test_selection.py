import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.resize import LazyFrames, fit_image
from data_pipelines.selection import find_ranges, idle_steps, read_ranges, resample, slots
from data_pipelines.windows import Windows


@pytest.mark.parametrize(
    ("hz", "fps", "steps"),
    [(15, 5, [0, 3, 6, 9]), (20, 8, [0, 3, 5, 8, 10]), (10, 10, [*range(12)]), (5, 30, [*range(12)])],
)
def test_frames_are_thinned_by_time_and_never_invented(hz, fps, steps):
    keep, slot = slots(np.arange(12) / hz, fps)
    assert keep.tolist() == steps
    late = keep / hz - slot / fps
    assert (late > -1e-9).all() and (late < max(1 / hz, 1 / fps)).all()


def test_robots_keep_their_control_rate_and_video_takes_that_of_its_frames(episode):
    robot = episode("a", 60, stride=1, hz=20.0)
    thinned = resample(robot, robot.frame_step / 20, 5)
    assert thinned.frame_step.tolist() == list(range(0, 61, 4)) and thinned.meta["control_hz"] == 20
    assert np.array_equal(thinned.action, robot.action) and np.array_equal(thinned.state, robot.state)
    assert np.array_equal(thinned.frames["wrist"], robot.frames["wrist"][::4])
    video = dataclasses.replace(episode("b", 60, stride=1, free=True), meta=episode("b", 60, free=True).meta)
    thinned = resample(video, video.frame_step / 24, 10)
    assert thinned.meta["control_hz"] == 10 and thinned.steps == thinned.frame_step[-1] + 1 == 26
    assert np.array_equal(thinned.frames["wrist"][10], video.frames["wrist"][24])
    sparse = resample(video, video.frame_step / 4, 10)  # slower than asked for: slots stay empty
    assert sparse.frame_step[:4].tolist() == [0, 2, 5, 7] and len(sparse.frame_step) == 61


def test_idle_is_where_nothing_is_commanded_and_nothing_moves(episode):
    one = episode("a", 40, hz=10.0)
    action, state = np.zeros((40, 4), np.float32), np.zeros((41, 4), np.float32)
    action[5:8, 0] = 0.1  # a constant delta: it shows in the state
    state[:, 0] = np.concatenate([[0], np.cumsum(action[:, 0])])
    action[20:, 1] = 1.0  # a new target, not followed
    idle = idle_steps(dataclasses.replace(one, action=action, state=state), 1e-3, 0.5)
    assert np.flatnonzero(~idle).tolist() == [5, 6, 7, 8, 20]
    assert not idle_steps(dataclasses.replace(one, action=action, state=state), 1e-3, 2.0)[:20].any()


def test_windows_start_only_where_they_may(episode, write_store, config):
    """And run on past the range; every other window is as without ranges."""
    one, rng = episode("a", 300), np.random.default_rng(0)
    free = Windows(write_store([one], "free"), config())
    may_start = rng.random(len(one.frame_step)) < 0.4
    chosen = Windows(write_store([dataclasses.replace(one, may_start=may_start)], "chosen"), config())
    starts = [free.meta(i)["start_step"] for i in range(len(free))]
    want = [i for i, step in enumerate(starts) if may_start[step // 8]]
    assert 5 < len(chosen) == len(want) < len(free)
    for k, i in enumerate(want):
        assert chosen.meta(k)["start_step"] == starts[i]
        ours, theirs = chosen[k], free[i]
        assert all(np.array_equal(ours[key], theirs[key]) for key in ("frames", "action", "state", "action_mask"))
    by_clip = [chosen.anchors(clip) + chosen.store.index.start[clip] for clip in range(len(chosen.store))]
    assert np.concatenate(by_clip).tolist() == [starts[i] for i in want]
    with pytest.raises(ValueError, match=r"may_start must be bool \[38\]"):
        write_store([dataclasses.replace(one, may_start=may_start[1:])], "bad")


@pytest.mark.parametrize(
    ("content", "said"),
    [("[1]", "must be a JSON object"), ("{", "is not JSON"), ('{"a": [[3, 2]]}', "'a': must be a list of"),
     ('{"a": [[0, 1.5]]}', "'a': must be a list of"), ('{"a": 3}', "'a': must be a list of")],
)  # fmt: skip
def test_bad_ranges_are_refused(tmp_path, content, said):
    (tmp_path / "keep.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        read_ranges(tmp_path / "keep.json")


def test_ranges_are_found_by_name_or_as_droid_calls_it(tmp_path):
    (tmp_path / "keep.json").write_text(json.dumps({"a": [[0, 4], [8, 9]], "rec--file": [[1, 2]]}))
    ranges, _ = read_ranges(tmp_path / "keep.json")
    assert find_ranges(ranges, "a", {}) == ((0, 4), (8, 9))
    extra = {"recording_folderpath": "rec", "file_path": "file"}
    assert find_ranges(ranges, "b", extra) == ((1, 2),) and find_ranges(ranges, "b", {}) is None


def test_images_fit():
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, :40] = 200
    stretched, padded, cropped = (fit_image(wide, (20, 20), fit) for fit in ("stretch", "pad", "crop"))
    assert stretched[:, :8].min() > 190 and stretched[:, 12:].max() < 10
    assert padded[:4].max() == padded[16:].max() == 0 and padded[6:14, :8].min() > 190
    assert cropped[:, :8].min() > 190 and cropped[:, 12:].max() < 10
    assert fit_image(wide, (40, 80), "crop") is wide
    # Antialiased: a pattern finer than the pixels becomes grey instead of a pattern of its own.
    stripes = np.tile(np.array([0, 255], np.uint8)[None, :, None], (64, 32, 3))
    assert fit_image(stripes, (16, 16), "stretch")[:, 2:-2].std() < 3


def test_lazy_frames_are_decoded_in_blocks_and_equal_to_all_at_once(monkeypatch):
    import data_pipelines.resize as resize

    asked = []

    class Counting:
        def about(self, i):
            return dataclasses.make_dataclass("About", ["cameras"])({"front": (4, 4)})

        def frames(self, i, camera, which):
            asked.append(which)
            return np.stack([np.full((4, 4, 3), n, np.uint8) for n in which])

    monkeypatch.setattr(resize, "_KEPT_BYTES", 10 * 4 * 4 * 3)
    monkeypatch.setattr(resize, "_DECODED_BYTES", 5 * 4 * 4 * 3)
    lazy = LazyFrames(Counting(), 0, "front", np.arange(50), (4, 4), "stretch").take(np.arange(0, 50, 2))
    assert lazy.shape == (25, 4, 4, 3) and not asked
    assert lazy[3:7][:, 0, 0, 0].tolist() == [6, 8, 10, 12] and asked == [[0, 2, 4, 6, 8], [10, 12, 14, 16, 18]]
    assert lazy[8:12][:, 0, 0, 0].tolist() == [16, 18, 20, 22] and len(asked) == 4
    assert np.asarray(lazy)[:, 0, 0, 0].tolist() == list(range(0, 50, 2))
