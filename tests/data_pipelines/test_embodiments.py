"""Robots that travel with their stores: windows and statistics of rotations, grippers and relative targets."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation as Scipy

from data_pipelines.embodiments import EMBODIMENTS, agree, embodiment_of_store
from data_pipelines.episode import Episode
from data_pipelines.lead import fit_lead
from data_pipelines.stats import fit_statistics, sampled
from data_pipelines.store import finish_store
from data_pipelines.windows import Windows
from wam.embodiment import EmbodimentSpec, Gripper, Rotation

QUATERNION = ("qx", "qy", "qz", "qw")
ARM = EmbodimentSpec(
    name="test_arm",
    action_kinds=("relative", *["relative"] * 3, "gripper", "delta"),
    action_names=("x", "r0", "r1", "r2", "grip", "step"),
    state_names=("x", *QUATERNION, "width"),
    control_hz=80.0,
    state_rotations=(Rotation("wrist", QUATERNION, "quaternion_xyzw"),),
    action_rotations=(Rotation("wrist", ("r0", "r1", "r2"), "rotation_vector"),),
    action_grippers=(Gripper("grip", open=1.0, closed=0.0),),
)


@pytest.fixture
def arm_episode(episode):
    """Targets are the next state, with noise in the gripper; a walk in position and orientation."""

    def make(name, steps, **meta):
        rng = np.random.default_rng([7, *name.encode()])
        turn = Scipy.from_rotvec(rng.normal(0, 2, 3))
        turns = [turn := turn * Scipy.from_rotvec(rng.normal(0, 0.1, 3)) for _ in range(steps + 1)]
        x = np.cumsum(rng.normal(0, 0.1, steps + 1))
        quaternions = np.stack([turn.as_quat() for turn in turns]) * rng.choice([-1, 1], (steps + 1, 1))
        state = np.column_stack([x, quaternions, rng.random(steps + 1)]).astype(np.float32)
        vectors = np.stack([turn.as_rotvec() for turn in turns[1:]])
        action = np.column_stack([x[1:], vectors, rng.integers(0, 2, steps), rng.normal(size=steps)]).astype(np.float32)
        blank = episode(name, steps, embodiment="test_arm", **meta)
        return Episode(blank.frames, blank.frame_step, state, action, blank.imitate, blank.meta)

    return make


def expected(episode, anchor, config, group):
    """state [M, S'], action [M, K, A'], mask [M, K], by loops over the whole episode."""
    N, hz = episode.steps, 80
    states, actions, masks = [], [], []
    for m in range(config.chunks):
        start = min(anchor + round(config.observation_seconds[m] * hz), N)
        hand = Scipy.from_quat(episode.state[start, 1:5]).as_matrix()
        states.append([episode.state[start, 0], *hand[:, 0], *hand[:, 1], episode.state[start, 5]])
        first = anchor + round(config.observation_seconds[m] * hz)
        for k in range(config.action_horizon):
            steps = range(first + k * group, first + (k + 1) * group)
            real = steps[-1] < N
            last = episode.action[min(steps[-1], N - 1)]
            turn = hand.T @ Scipy.from_rotvec(last[1:4]).as_matrix()
            step = sum(episode.action[s, 5] for s in steps) if real else 0
            actions.append([last[0] - episode.state[start, 0], *turn[:, 0], *turn[:, 1], 1 - 2 * last[4], step])
            masks.append(real)
    shape = (config.chunks, config.action_horizon)
    return np.array(states), np.array(actions).reshape(*shape, 9), np.array(masks).reshape(shape)


@pytest.mark.parametrize(
    ("changes", "group"),
    [
        ({}, 1),
        ({"action_horizon": 4, "action_hz": 20.0}, 4),
        ({"frame_seconds": (0.0, 0.1, 0.2, 0.3, 0.4), "chunks": 2, "action_horizon": 8, "action_hz": 40.0}, 2),
    ],
)
def test_windows_and_statistics_equal_brute_force(arm_episode, write_store, config, changes, group):
    episodes = [arm_episode(f"e{i}", steps) for i, steps in enumerate((9, 40, 77, 130))]
    windows = Windows(write_store(episodes, embodiment=ARM, overlap_steps=40), config(**changes))
    by_name = {one.meta["episode"]: one for one in episodes}
    everything = {"state": [], "action": []}
    ends = 0
    for i in range(len(windows)):
        meta, low_dim = windows.meta(i), windows.low_dim(i)
        state, action, mask = expected(by_name[meta["episode"]], meta["start_step"], windows.config, group)
        assert np.array_equal(low_dim["action_mask"], mask)
        assert np.allclose(low_dim["state"], state, atol=1e-5) and np.allclose(low_dim["action"], action, atol=1e-5)
        ends += not mask.all()
        everything["state"].append(low_dim["state"][low_dim["state_mask"]])
        everything["action"].append(low_dim["action"][mask])
        raw = ARM.decode_action(low_dim["action"], ARM.decode_state(low_dim["state"]))
        if group == 1 and windows.config.chunks == 1:
            truth = by_name[meta["episode"]].action[meta["start_step"] :][: mask.sum()]
            assert np.allclose(raw[0, : mask.sum()][:, [0, 4, 5]], truth[:, [0, 4, 5]], atol=1e-5)
            turns = (Scipy.from_rotvec(raw[0, : mask.sum(), 1:4]).inv() * Scipy.from_rotvec(truth[:, 1:4])).magnitude()
            assert turns.max() < 1e-3
    assert ends > 3

    statistics = fit_statistics([windows], normalization="min_max")
    for what, fitted in (("state", statistics.state["test_arm"]), ("action", statistics.action["test_arm"])):
        rows = np.concatenate(everything[what])
        assert fitted.count == len(rows)
        assert np.array_equal(fitted.min, rows.min(0)) and np.array_equal(fitted.max, rows.max(0))
        assert np.allclose(fitted.mean, rows.mean(0, np.float64)) and np.allclose(fitted.std, rows.std(0, np.float64))
        assert np.allclose(fitted.q01, np.quantile(rows, 0.01, axis=0))
    state, action = statistics.normalizers("test_arm")
    assert np.array_equal(action.low[1:8], -np.ones(7)) and np.array_equal(action.high[1:8], np.ones(7))
    assert np.allclose(action.low[[0, 8]], np.concatenate(everything["action"]).min(0)[[0, 8]])
    assert np.array_equal(state.scale[1:7], np.ones(6))


def test_all_windows_of_a_clip_at_once(arm_episode, write_store, config):
    windows = Windows(write_store([arm_episode("a", 150), arm_episode("b", 50)], embodiment=ARM), config())
    for stride in (1, 3):
        numbers = iter(range(0, len(windows), stride))
        for _, clip, anchors in (
            sampled([windows], 10**9)
            if stride == 1
            else ((windows, clip, windows.anchors(clip, stride)) for clip in range(len(windows.store)))
        ):
            many, (state, real) = windows.low_dim_of(clip, anchors), windows.frame_state_of(clip, anchors)
            for row, anchor in enumerate(anchors):
                i = next(numbers)
                assert windows.locate(i) == (clip, anchor)
                assert all(np.array_equal(many[key][row], one) for key, one in windows.low_dim(i).items())
                assert np.array_equal(state[row], windows.frame_state(i)[0])
                assert np.array_equal(real[row], windows.frame_state(i)[1])
        assert next(numbers, None) is None


def test_kinds_of_normalisation(arm_episode, write_store, config):
    windows = Windows(write_store([arm_episode("a", 150)], embodiment=ARM), config())
    mean_std = fit_statistics([windows], overrides={"test_arm": "mean_std"})
    fitted, (_, action) = mean_std.action["test_arm"], mean_std.normalizers("test_arm")
    assert np.allclose(action.center[0], fitted.mean[0]) and np.allclose(action.scale[0], fitted.std[0])
    quantile = fit_statistics([windows]).normalizers("test_arm")[1]
    assert np.allclose(quantile.low[0], fitted.q01[0]) and not np.allclose(quantile.low[0], action.low[0])
    with pytest.raises(ValueError, match="unknown normalization 'z-score' of 'test_arm'; choose from quantile"):
        fit_statistics([windows], normalization="z-score")
    with pytest.raises(ValueError, match="given for 'leg', but the data has"):
        fit_statistics([windows], overrides={"leg": "min_max"})


def test_a_sample_of_windows_has_nearly_the_quantiles_of_all(write_store, episode, config):
    """Heavy tails, a sixteenth of the actions: the estimated 1 % quantile has a rank within the stated error of 1 %."""
    rng = np.random.default_rng(5)
    episodes = []
    for i in range(30):
        one = episode(f"e{i}", 640, size=2)
        wild = rng.standard_t(2, (640, 4)).astype(np.float32)
        episodes.append(dataclasses.replace(one, action=wild))
    windows = Windows(write_store(episodes, clip_steps=640, overlap_steps=16), config(action_horizon=16))
    every = fit_statistics([windows]).action["sawyer_metaworld"]
    few = fit_statistics([windows], max_rows=every.count // 16).action["sawyer_metaworld"]
    assert every.count / 18 < few.count < every.count / 15
    rows = np.concatenate([one.action for one in episodes])
    for q, value in ((0.01, few.q01), (0.99, few.q99)):
        error = np.abs((rows < value).mean(0) - q)
        assert error.max() < 4 * np.sqrt(0.01 * 0.99 / few.count)


def test_where_rotations_lead(arm_episode, write_store, config):
    """Relative targets of position and orientation say where the arm will be."""
    windows = Windows(write_store([arm_episode(f"e{i}", 200) for i in range(4)], embodiment=ARM), config())
    lead, r2 = fit_lead([windows], fit_statistics([windows]), 9, 8)
    assert lead.shape == (2, 10, 8) and r2[:, 0].min() > 0.99  # the x of the last action before the frame


def test_a_robot_travels_with_its_store(arm_episode, write_store, tmp_path):
    store = write_store([arm_episode("a", 40)], embodiment=ARM)
    assert json.loads((store.directory / "manifest.json").read_text())["embodiment_spec"]["name"] == "test_arm"
    assert embodiment_of_store(store.manifest) == ARM and "test_arm" not in EMBODIMENTS
    with pytest.raises(ValueError, match="is of the embodiment 'test_arm', not 'other'"):
        finish_store(store.directory, embodiment=dataclasses.replace(ARM, name="other"))
    wide = dataclasses.replace(ARM, state_names=(*ARM.state_names, "more"))
    with pytest.raises(ValueError, match="has state_dim 6, its embodiment 'test_arm' declares 7"):
        finish_store(store.directory, embodiment=wide)
    assert json.loads((store.directory / "manifest.json").read_text()) == store.manifest  # nothing was overwritten


def test_one_name_means_one_robot(arm_episode, write_store, config):
    other = dataclasses.replace(ARM, action_grippers=(Gripper("grip", open=0.0, closed=1.0),))
    mine = Windows(write_store([arm_episode("a", 80)], "mine", embodiment=ARM), config())
    theirs = Windows(write_store([arm_episode("b", 80)], "theirs", embodiment=other), config())
    with pytest.raises(ValueError, match="'mine' and 'theirs' declare the embodiment 'test_arm' differently: its"):
        fit_statistics([mine, theirs])
    assert agree([("a", ARM), ("b", ARM)]) == {"test_arm": ARM}
    changed = Windows(mine.store, config(), other)
    with pytest.raises(ValueError, match="declares its embodiment 'test_arm' differently than when"):
        fit_statistics([mine]).check_fitted_on([changed])
    assert changed.facts != mine.facts
