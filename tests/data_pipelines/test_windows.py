import dataclasses
import pickle

import numpy as np
import pytest

from data_pipelines.windows import Windows
from wam.embodiment import EmbodimentSpec


def reference(episode, anchor, config, stride=8, delta=(True, True, True, False), group=1):
    """The window at control step `anchor`, written out by hand from the whole episode (rates that divide evenly)."""
    hz, N = episode.meta["control_hz"], episode.steps
    frames, frame_mask = [], []
    for seconds in config.frame_seconds:
        step = anchor + round(seconds * hz)
        frames.append(min(step // stride, len(episode.frame_step) - 1))
        frame_mask.append(step <= episode.frame_step[-1])
    out = {"frame_mask": np.array(frame_mask)}
    out["frames"] = np.stack([episode.frames[view][frames] for view in config.views])
    per_chunk = (len(config.frame_seconds) - 1) // config.chunks
    keys = ("state", "state_mask", "action", "action_mask", "imitate")
    rows = {key: [] for key in keys}
    for m in range(config.chunks):
        start = anchor + round(config.frame_seconds[m * per_chunk] * hz)
        rows["state"].append(episode.state[min(start, N)])
        rows["state_mask"].append(start <= N)
        actions, mask, allowed = [], [], True
        for k in range(config.action_horizon):
            steps = range(start + k * group, start + (k + 1) * group)
            real = steps[-1] < N
            last = episode.action[min(steps[-1], N - 1)]
            total = sum(episode.action[s] for s in steps) if real else np.zeros(4)
            actions.append(np.where(delta, total, last))
            mask.append(real)
            allowed = allowed and (not real or all(episode.imitate[s] for s in steps))
        rows["action"].append(actions)
        rows["action_mask"].append(mask)
        rows["imitate"].append(any(mask) and allowed)
    return out | {key: np.array(value) for key, value in rows.items()}


def assert_windows_match(windows, episodes, stride=8, group=1):
    """Every anchor of every episode exactly once, each equal to the reference."""
    by_name, seen = {one.meta["episode"]: one for one in episodes}, []
    for i in range(len(windows)):
        meta, window = windows.meta(i), windows[i]
        seen.append((meta["episode"], meta["start_step"]))
        want = reference(by_name[meta["episode"]], meta["start_step"], windows.config, stride, group=group)
        for key, value in want.items():
            assert np.allclose(window[key], value, atol=1e-6), (key, meta)
        assert window["window"] == i
    anchors = [(n, s) for n, one in by_name.items() for s in one.frame_step.tolist() if s + group <= one.steps]
    assert sorted(seen) == sorted(anchors)


@pytest.mark.parametrize("seed", range(6))
def test_every_anchor_once_and_right_at_all_ends(episode, write_store, config, seed):
    rng = np.random.default_rng(seed)
    lengths = [8, *rng.integers(8, 300, 5), 16 * int(rng.integers(1, 12))]
    episodes = [episode(f"e{i}", int(n), imitate=rng.random(int(n)) < 0.98) for i, n in enumerate(lengths)]
    overlap = int(rng.integers(16, 40))
    store = write_store(episodes, clip_steps=overlap + int(rng.integers(1, 80)), overlap_steps=overlap)
    assert_windows_match(Windows(store, config()), episodes)


def test_two_chunks(episode, write_store, config):
    episodes = [episode("a", 100), episode("b", 37), episode("c", 24)]
    windows = Windows(
        write_store(episodes, overlap_steps=40),
        config(frame_seconds=(0.0, 0.1, 0.2, 0.3, 0.4), chunks=2),
    )
    assert_windows_match(windows, episodes)
    window = windows[0]
    assert window["state"].shape == (2, 4) and window["action"].shape == (2, 16, 4)
    assert np.array_equal(window["state"][1], episodes[0].state[16])  # chunk 1 starts at frame 2
    assert np.allclose(window["action_time"][:, 0], [0.0, 0.2])
    near_end = windows[len(windows) - 1]
    assert near_end["action_mask"].any(1).tolist() == [True, False]
    assert near_end["state_mask"].tolist() == [True, False] and near_end["imitate"].tolist() == [True, False]


def test_resampling_by_seconds(episode, write_store, config):
    """A store of 20 frames and 80 actions a second serves 10 frames and 20 actions a second."""
    stops = np.arange(21) < 20  # the last step, not to be copied, is no whole group: it decides nothing
    episodes = [episode("a", 90, stride=4), episode("b", 21, stride=4, imitate=stops)]
    windows = Windows(write_store(episodes), config(action_horizon=4, action_hz=20.0))
    assert_windows_match(windows, episodes, stride=4, group=4)
    assert np.allclose(windows[0]["action"][0, 1, :3], episodes[0].action[4:8, :3].sum(0))  # deltas add up
    assert windows[0]["action"][0, 1, 3] == episodes[0].action[7, 3]


def test_frames_between_grid_points_take_the_one_before(episode, write_store, config):
    one = episode("a", 80, stride=6)
    windows = Windows(write_store([one]), config())  # 0.1 s = 8 steps, frames at 0, 6, 12, ...
    assert np.array_equal(windows[0]["frames"][0], one.frames["corner"][[0, 1, 2]])  # steps 6 for 8 and 12 for 16


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"frame_seconds": (0.0, 0.04, 0.08)}, "too few for a frame at 0.04 s"),
        ({"action_hz": 30.0}, "no multiple of action_hz 30"),
        ({"action_horizon": 41}, "write it with more overlap"),
        ({"cameras": ("a",), "views": ("a",)}, "add its cameras"),
    ],
)
def test_rates_and_reach_the_store_cannot_serve(episode, write_store, config, changes, problem):
    store = write_store([episode("a", 200)])
    with pytest.raises(ValueError, match=problem):
        Windows(store, config(**changes))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"frame_seconds": (0.1, 0.2)}, "must start at 0 and increase"),
        ({"frame_seconds": (0.0, 0.2, 0.1)}, "must start at 0 and increase"),
        ({"chunks": 3}, "3 chunks of equal length"),
        ({"views": ("corner", "back")}, r"views \['back'\] are not in the run's camera table"),
        ({"views": ()}, "one view at least"),
        ({"action_horizon": 0}, "must be positive"),
    ],
)
def test_bad_configs_are_refused(config, changes, problem):
    with pytest.raises(ValueError, match=problem):
        config(**changes)


def test_action_free_video_is_masked(episode, write_store, config):
    one = episode("a", 20, stride=2, hz=20.0, free=True, cameras=("ego",))
    windows = Windows(write_store([one]), config())
    assert len(windows) == 10  # every frame but the last has a future
    window = windows[0]
    assert window["action"].shape == (1, 16, 0) and not window["action_mask"].any()
    assert not window["imitate"].any() and not window["state_mask"].any()
    assert window["view_mask"].tolist() == [True, False] and window["camera"][0] == 2
    assert np.array_equal(window["frames"][0], one.frames["ego"][:3]) and not window["frames"][1].any()
    last = windows[9]
    assert last["frame_mask"].tolist() == [True, True, False]
    assert np.array_equal(last["frames"][0, 2], one.frames["ego"][10])


def test_relative_actions_subtract_the_state_at_the_start_of_the_chunk(episode, write_store, config):
    kinds = ("relative", "absolute", "relative", "gripper")
    robot = EmbodimentSpec("arm", kinds, ("z", "x", "q", "y"), ("y", "x", "z", "g"), control_hz=80.0)
    one = episode("a", 24)
    window = Windows(write_store([one]), config(), robot)[2]  # anchor 16, steps 16..23 are real
    want = one.action[np.minimum(np.arange(16, 32), 23)].copy()
    want[:, 0] -= one.state[16, 3]
    want[:, 2] -= one.state[16, 0]
    assert np.array_equal(window["action"][0], want)
    assert window["action_mask"][0].tolist() == [True] * 8 + [False] * 8
    with pytest.raises(ValueError, match="need state dims of the same name"):
        Windows(write_store([one], "again"), config(), dataclasses.replace(robot, state_names=("a", "b", "c", "d")))


def test_low_dim_and_meta_never_touch_images(episode, write_store, config, monkeypatch):
    store = write_store([episode("a", 100)])
    monkeypatch.setattr(type(store), "_images", lambda *_: pytest.fail("an image was read"))
    windows = Windows(store, config())
    for i in range(len(windows)):
        windows.low_dim(i), windows.frame_state(i), windows.meta(i)


def test_pickles(episode, write_store, config):
    windows = Windows(write_store([episode("a", 100)]), config())
    copy = pickle.loads(pickle.dumps(windows))  # noqa: S301 (bytes of this very line)
    assert np.array_equal(copy[3]["frames"], windows[3]["frames"])


def test_unknown_embodiment(episode, write_store, config):
    with pytest.raises(ValueError, match="unknown embodiment 'robocop'"):
        Windows(write_store([episode("a", 40, embodiment="robocop")]), config())
    with pytest.raises(IndexError):
        _ = Windows(write_store([episode("a", 40)], "other"), config())[5]
