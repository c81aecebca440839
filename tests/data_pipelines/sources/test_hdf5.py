"""robomimic and LIBERO, on files in their exact layouts."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from data_pipelines.episode import check_episode
from data_pipelines.sources.hdf5 import Hdf5Demos, Hdf5Layout
from data_pipelines.sources.source import BadEpisode, read_episode

ROWS = 5


def write_robomimic(path, demos=(0, 1, 2), change=None):
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}})
        data.attrs["total"] = ROWS * len(demos)
        for k in demos:
            group = data.create_group(f"demo_{k}")
            group.attrs["num_samples"], group.attrs["model_file"] = ROWS, "<mujoco/>"
            group["actions"] = rng.uniform(-1, 1, (ROWS, 7))
            group["rewards"], group["dones"] = np.eye(ROWS)[-1], np.eye(ROWS)[-1].astype(np.int64)
            group["states"] = rng.standard_normal((ROWS, 32))
            for side in ("obs", "next_obs"):
                for name in ("agentview_image", "robot0_eye_in_hand_image"):
                    group[f"{side}/{name}"] = rng.integers(0, 256, (ROWS, 6, 8, 3), dtype=np.uint8)
                for name, dims in (("eef_pos", 3), ("eef_quat", 4), ("gripper_qpos", 2)):
                    group[f"{side}/robot0_{name}"] = rng.standard_normal((ROWS, dims))
        file["mask/train"] = np.array([f"demo_{k}" for k in demos[:-1]], "S")
        if change:
            change(file)
    return path


def write_libero(path):
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Libero_Kitchen", "env_kwargs": {"control_freq": 20}})
        data.attrs["problem_info"] = json.dumps({"language_instruction": "turn on the stove"})
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["num_demos"] = 11
        for k in range(11):
            group = data.create_group(f"demo_{k}")
            group.attrs["num_samples"] = str(ROWS)
            group["actions"] = np.repeat(np.arange(ROWS)[:, None] + 100.0 * k, 7, 1)
            group["obs/ee_states"] = rng.standard_normal((ROWS, 6))
            group["obs/gripper_states"] = rng.standard_normal((ROWS, 2))
            for name in ("agentview_rgb", "eye_in_hand_rgb"):
                group[f"obs/{name}"] = rng.integers(0, 256, (ROWS, 6, 8, 3), dtype=np.uint8)
    return path


def contents(source, i):
    lowdim = source.lowdim(i)
    frames = [source.frames(i, camera, range(source.about(i).frames)).tobytes() for camera in source.layout.cameras]
    return source.about(i), lowdim.state.tobytes(), lowdim.action.tobytes(), frames


def test_robomimic(tmp_path):
    path = write_robomimic(tmp_path / "lift.hdf5")
    source = Hdf5Demos(path, "robomimic", instruction="lift the cube")
    about, lowdim = source.about(1), source.lowdim(1)
    assert len(source) == 3 and source.problems == []
    assert (about.episode, about.frames, about.fps, about.success) == ("lift/demo_1", ROWS, 20.0, True)
    assert about.instruction == about.task == "lift the cube"
    assert about.cameras == {"agentview_image": (6, 8), "robot0_eye_in_hand_image": (6, 8)}
    assert Hdf5Demos(path, "robomimic").about(0).task == "Lift"
    with h5py.File(path) as file:
        group = file["data/demo_1"]
        assert np.array_equal(lowdim.action, group["actions"][()].astype(np.float32))
        assert np.array_equal(lowdim.state[:, 3:7], group["obs/robot0_eef_quat"][()].astype(np.float32))
        images = group["obs/agentview_image"][()]
    for which in ([4, 0, 4], [1, 2, 3], []):
        assert np.array_equal(source.frames(1, "agentview_image", which), images[which])
    check_episode(read_episode(source, 1, embodiment="panda"))


def test_masks_choose_demonstrations(tmp_path):
    path = write_robomimic(tmp_path / "lift.hdf5")
    assert [Hdf5Demos(path, "robomimic", mask="train").about(i).episode for i in (0, 1)] == [
        "lift/demo_0",
        "lift/demo_1",
    ]
    with pytest.raises(ValueError, match="has no array '/mask/test'"):
        Hdf5Demos(path, "robomimic", mask="test")
    with h5py.File(path, "a") as file:
        del file["data/demo_1"]
    source = Hdf5Demos(path, "robomimic", mask="train")
    assert len(source) == 1 and source.problems == ["lift.hdf5: mask/train names 1 demonstrations that are gone"]


def test_libero_shows_what_was_seen_after_an_action(tmp_path):
    """So frame t belongs to the action of row t + 1; images are stored bottom row first."""
    path = write_libero(tmp_path / "stove_demo.hdf5")
    source = Hdf5Demos(tmp_path, "libero")
    assert [source.about(i).episode for i in (2, 10)] == ["stove_demo/demo_2", "stove_demo/demo_10"]
    about, lowdim = source.about(2), source.lowdim(2)
    assert about.instruction == "turn on the stove" and about.frames == ROWS - 1 and about.success is None
    assert lowdim.action[:, 0].tolist() == [201, 202, 203, 204]
    with h5py.File(path) as file:
        assert np.array_equal(lowdim.state[:, :6], file["data/demo_2/obs/ee_states"][:-1].astype(np.float32))
        images = file["data/demo_2/obs/agentview_rgb"][()]
    assert np.array_equal(source.frames(2, "agentview_rgb", [3, 1]), images[[3, 1], ::-1])


def test_pickles_and_serves_threads(tmp_path):
    write_robomimic(tmp_path / "a" / "lift.hdf5")
    write_robomimic(tmp_path / "b" / "lift.hdf5", demos=(0,))
    source = Hdf5Demos(tmp_path, "robomimic")
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 (bytes of this very line)
    assert [source.about(i).episode for i in (0, 3)] == ["a/lift/demo_0", "b/lift/demo_0"]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: contents(copy, i % 4), range(12))) == [
            contents(source, i % 4) for i in range(12)
        ]


def replace(name, value):
    def change(file):
        del file[f"data/demo_1/{name}"]
        if value is not None:
            file[f"data/demo_1/{name}"] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replace("actions", None), "has no array '/data/demo_1/actions'"),
        (replace("obs/agentview_image", None), "has no array '/data/demo_1/obs/agentview_image'"),
        (replace("obs/robot0_eef_pos", np.zeros((ROWS - 1, 3))), r"robot0_eef_pos.* is \[4, 3\] for 5 actions"),
        (replace("obs/agentview_image", np.zeros((ROWS, 6, 8, 3), np.float32)), "must be uint8"),
        (replace("obs/robot0_eef_pos", np.array(["a"] * ROWS, "S")), "does not hold numbers"),
        (
            replace("actions", np.where(np.arange(ROWS)[:, None] == 3, np.nan, np.ones(7))),
            "action is not finite at frame 3",
        ),
        (replace("actions", np.zeros((0, 7))), "0 rows of actions in .* leave no frame"),
    ],
)
def test_a_bad_episode_is_named_and_the_others_are_untouched(tmp_path, change, said):
    good = Hdf5Demos(write_robomimic(tmp_path / "good" / "lift.hdf5"), "robomimic")
    source = Hdf5Demos(write_robomimic(tmp_path / "bad" / "lift.hdf5", change=change), "robomimic")
    with pytest.raises(BadEpisode, match=r"lift/demo_1.*" + said):
        contents(source, 1)
    assert [contents(source, i) for i in (0, 2)] == [contents(good, i) for i in (0, 2)]


def test_a_damaged_file_is_one_bad_episode(tmp_path):
    write_robomimic(tmp_path / "a.hdf5")
    path = write_robomimic(tmp_path / "b.hdf5")
    path.write_bytes(path.read_bytes()[:3000])
    source = Hdf5Demos(tmp_path, "robomimic")
    assert len(source) == 4
    with pytest.raises(BadEpisode, match=r"b\.hdf5 cannot be read"):
        source.lowdim(3)
    with pytest.raises(ValueError, match=r"b\.hdf5 cannot be read"):
        Hdf5Demos(path, "robomimic")


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"problem_info": np.bytes_(b'{"language_instruction": "a \xff"}')}, "'problem_info' .* is not UTF-8 text"),
        ({"problem_info": "turn on"}, "'problem_info' .* is not a JSON object"),
        ({"env_args": "{}"}, "gives no control rate"),
    ],
)
def test_attributes_that_mislead_are_refused(tmp_path, attributes, said):
    path = write_robomimic(tmp_path / "a.hdf5", change=lambda file: file["data"].attrs.update(attributes))
    with pytest.raises(ValueError, match=said):
        Hdf5Demos(path, "robomimic")


def test_wrong_counts_are_reported_and_not_believed(tmp_path):
    path = write_robomimic(tmp_path / "a.hdf5", change=lambda file: file["data/demo_0"].attrs.update(num_samples=9))
    source = Hdf5Demos(path, "robomimic")
    for _ in range(2):
        assert source.about(0).frames == ROWS
    assert source.problems == ["a/demo_0: num_samples is 9, there are 5 actions"]


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Hdf5Demos(tmp_path / "nowhere", "robomimic")
    with pytest.raises(FileNotFoundError, match=r"holds no \.hdf5 file"):
        Hdf5Demos(tmp_path, "robomimic")
    path = write_robomimic(tmp_path / "a.hdf5")
    with pytest.raises(ValueError, match="there is no HDF5 layout 'aloha'"):
        Hdf5Demos(path, "aloha")
    with pytest.raises(ValueError, match="has no camera 'top'"):
        Hdf5Demos(path, "robomimic").frames(0, "top", [0])
    with pytest.raises(BadEpisode, match=r"has the frames 0 to 4, not \[5\]"):
        Hdf5Demos(path, "robomimic").frames(0, "agentview_image", [5])
    video = Hdf5Demos(path, Hdf5Layout(("agentview_image",), ()))
    assert video.lowdim(0).state is None
