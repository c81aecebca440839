"""Entries of datasets against the files: the real Bridge and GR-1 samples, and sources that are wrong in one thing."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.datasets import DATASETS, Dataset, get_dataset
from data_pipelines.embodiments import get_embodiment
from data_pipelines.episode import check_episode
from data_pipelines.sources.rlds_layouts import LAYOUTS
from data_pipelines.sources.source import About, BadEpisode, LowDim
from tests.data_pipelines.sources.test_egodex import write_pair
from tests.data_pipelines.sources.test_hdf5 import write_libero, write_robomimic
from wam.embodiment import NONE_EMBODIMENT, Gripper


@pytest.mark.parametrize(
    ("name", "path", "robot", "episodes"),
    [
        ("bridge", "bridge_octo_debug/1.0.0", "widowx_bridge", 25),
        ("gr1", "lerobot_v2_groot_gr1_sim", "gr1", 5),
        ("gr1_relative", "lerobot_v2_groot_gr1_sim", "gr1_relative", 5),
        ("video", "dreamzero_droid", "none", 3),
    ],
)
def test_entries_fit_the_real_files(shared_samples, name, path, robot, episodes):
    dataset = get_dataset(name)
    source = dataset.open(shared_samples / path)
    assert (dataset.embodiment, len(source)) == (robot, episodes)
    assert dataset.check(source) == []


def test_real_numbers_are_what_the_entries_say(shared_samples):
    """The conventions themselves: which way the grippers go, what adds up, what is a target."""
    bridge = get_dataset("bridge")
    source = bridge.open(shared_samples / "bridge_octo_debug" / "1.0.0")
    low = [source.lowdim(i) for i in range(len(source))]
    moved = np.concatenate([np.diff(one.state, axis=0) for one in low])
    action = np.concatenate([one.action[:-1] for one in low])
    for dim in range(6):  # increments of the state's own dims
        assert np.corrcoef(moved[:, dim], action[:, dim])[0, 1] > 0.7
    width = np.concatenate([one.state[1:, 6] for one in low])
    assert np.corrcoef(width, action[:, 6])[0, 1] > 0.8  # 1 is open for both
    encoded = bridge.robot.encode_action(low[0].action, low[0].state[0])
    assert encoded[:, 6].min() >= -1 - 1e-6 and np.allclose(encoded[:, 6], 1 - 2 * low[0].action[:, 6])

    gr1 = get_dataset("gr1_relative")
    source = gr1.open(shared_samples / "lerobot_v2_groot_gr1_sim")
    one = source.lowdim(0)
    arm = [i for i, kind in enumerate(gr1.robot.action_kinds) if kind == "relative"]
    assert len(arm) == 14
    error = np.abs(one.action[:-1, arm] - one.state[1:, arm]).mean()
    assert error < 0.5 * np.abs(one.state[:, arm] - one.state[:1, arm]).mean()  # targets, not increments
    encoded = gr1.robot.encode_action(one.action[:16], one.state[0])
    assert np.allclose(encoded[:, arm], one.action[:16, arm] - one.state[0, arm])
    assert np.allclose(gr1.robot.decode_action(encoded, one.state[0]), one.action[:16], atol=1e-6)


def test_a_gripper_with_another_range(shared_samples):
    bridge = get_dataset("bridge")
    robot = dataclasses.replace(bridge.robot, action_grippers=(Gripper("gripper", open=-1.0, closed=0.04),))
    [problem] = dataclasses.replace(bridge, robot=robot).check(
        bridge.open(shared_samples / "bridge_octo_debug" / "1.0.0")
    )
    assert problem == (
        "bridge_dataset: action 'gripper' goes from 0 to 1, 'widowx_bridge' declares -1 for open and 0.04 for closed"
    )


def test_reading_by_our_camera_names(shared_samples):
    dataset = dataclasses.replace(get_dataset("bridge"), cameras={"front": "image_0"})
    episode = dataset.read(dataset.open(shared_samples / "bridge_octo_debug" / "1.0.0"), 3)
    check_episode(episode)
    assert list(episode.frames) == ["front"] and episode.meta["embodiment"] == "widowx_bridge"
    assert episode.state.shape == (11, 7) and episode.action.shape == (10, 7)


def test_written_files(tmp_path):
    def upright(file):
        for demo in file["data"].values():
            demo["obs/robot0_eef_quat"][...] = [0, 0, np.sqrt(0.5), -np.sqrt(0.5)]

    robomimic = get_dataset("robomimic")
    path = write_robomimic(tmp_path / "lift.hdf5", change=upright)
    assert robomimic.check(robomimic.open(path)) == []
    path = write_robomimic(tmp_path / "no_quaternion.hdf5")
    [problem] = robomimic.check(robomimic.open(path))
    assert "state 'hand' is no quaternion_xyzw (dims qx, qy, qz, qw)" in problem

    libero = get_dataset("libero")
    [problem] = libero.check(libero.open(write_libero(tmp_path / "libero.hdf5")))
    assert "action 'turn' is no rotation_vector (dims drx, dry, drz)" in problem

    write_pair(tmp_path / "egodex", 0)
    for name, robot in (("egodex", "none"), ("egodex_hands", "human_hands")):
        dataset = get_dataset(name)
        source = dataset.open(tmp_path / "egodex")
        assert dataset.check(source) == [] and dataset.embodiment == robot
        episode = dataset.read(source, 0)
        assert (episode.action is None) == (robot == "none")


class Memory:
    """A source of two episodes of the language table."""

    name, problems = "memory", ()

    def __init__(self, **changes):
        self.changes = {"fps": 10.0, "camera": "rgb", "instruction": "push", "state": 2, "action": 2} | changes

    def __len__(self):
        return 2

    def about(self, i):
        if self.changes.get("broken"):
            raise BadEpisode(f"episode {i} is broken")
        c = self.changes
        return About(f"e{i}", 4, c["fps"], {c["camera"]: (8, 8)}, c["instruction"], "push")

    def lowdim(self, i):
        state, action = (np.zeros((4, self.changes[what]), np.float32) for what in ("state", "action"))
        return LowDim(state, action)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"fps": 5.0}, "memory, episode 'e0': has 5 steps a second, 'xarm_language_table' declares 10"),
        ({"camera": "front"}, "has no camera 'rgb', which the entry 'language_table' calls 'rgb'; it has ['front']"),
        ({"instruction": " "}, "has no instruction, which the entry 'language_table' declares"),
        ({"state": 3}, "state has 3 dims, 'xarm_language_table' declares 2"),
        ({"action": 7}, "action has 7 dims, 'xarm_language_table' declares 2"),
        ({"broken": True}, "none of 2 episodes can be read, the first one: episode 0 is broken"),
    ],
)
def test_what_the_files_contradict(changes, problem):
    found = get_dataset("language_table").check(Memory(**changes))
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


def test_every_entry_fits_its_layout():
    assert set(LAYOUTS) - {"droid", "r2d2_faceblur", "bridge_dataset"} <= set(DATASETS)
    for name, dataset in DATASETS.items():
        assert dataset.name == name and dataset.robot in (get_embodiment(dataset.embodiment), NONE_EMBODIMENT)
    layout = LAYOUTS["droid"]
    assert [key.rpartition("/")[2] for key in layout.cameras] == list(DATASETS["droid"].cameras.values())
    with pytest.raises(ValueError, match="the wrist camera 'hand' is none of"):
        Dataset("mine", get_dataset("video").open, wrist=("hand",))


def test_your_own_entry(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from data_pipelines.datasets import Dataset, get_dataset\n"
        "mine = Dataset('mine', get_dataset('video').open)\nnumber = 3\n"
    )
    assert get_dataset(f"{path}:mine").name == "mine"
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_like_it\n")
    for name, problem in (
        (f"{path}:number", "has no Dataset 'number', only mine"),
        (f"{tmp_path / 'gone.py'}:mine", "there is no file"),
        (f"{broken}:mine", "cannot be run: ModuleNotFoundError"),
        ("bridgee", "unknown dataset 'bridgee': choose from .*bridge.* or name your own as FILE.py:NAME"),
    ):
        with pytest.raises(ValueError, match=problem):
            get_dataset(name)
