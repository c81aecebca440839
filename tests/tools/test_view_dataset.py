"""A window's way to the model and back, beside the store's own numbers; and the pages."""

import dataclasses
import types

import numpy as np
import pytest

from data_pipelines.stats import fit_statistics
from data_pipelines.transforms import ToSample
from data_pipelines.windows import Windows
from tests.data_pipelines.conftest import CAMERAS, make_episode
from tests.data_pipelines.lint_faults import broken, episodes_of
from tools import view_dataset
from wam.batch import BatchSpec
from wam.config import TokenizerConfig
from wam.embodiment import EmbodimentSpec, Gripper, Rotation
from wam.tokenizers import patch_pca

NAMES = ("rx", "ry", "rz", "grip")
TURNED = EmbodimentSpec(
    name="turned",
    action_kinds=("relative", "relative", "relative", "gripper"),
    state_names=NAMES,
    action_names=NAMES,
    control_hz=80.0,
    state_rotations=(Rotation("wrist", NAMES[:3], "euler_xyz_extrinsic"),),
    action_rotations=(Rotation("wrist", NAMES[:3], "euler_xyz_extrinsic"),),
    action_grippers=(Gripper("grip", 1.0, 0.0),),
)


def data_of(store, config, robot, action_hz):
    """What a run knows of one store, without a run."""
    windows = Windows(store, config(action_hz=action_hz), robot)
    statistics = fit_statistics([windows])
    name, fitted = windows.embodiment.name, windows.embodiment
    spec = BatchSpec(2, 3, 16, 16, 1, 16, fitted.model_action_dim + 2, fitted.model_state_dim + 1, 4, 8)
    text = np.ones((4, 8), np.float32), np.arange(4) < 3
    clips = np.concatenate([windows[i]["frames"] for i in range(0, len(windows), 4)])
    tokenizer = patch_pca.fit(
        TokenizerConfig(patch=8, frames_per_latent=2, channels=8), clips, np.zeros(len(clips), int), 3
    )
    to_sample = ToSample(spec, {"store": windows}, {name: statistics.normalizers(name)}, ("none", name), lambda _: text)
    fitted = types.SimpleNamespace(tokenizer=tokenizer, cameras=(*CAMERAS, "ego"))
    return types.SimpleNamespace(train={"store": windows}, to_sample=to_sample, fitted=fitted)


@pytest.fixture
def store(write_store):
    return write_store([make_episode(f"e{i}", 100, size=16, seed=i) for i in range(2)])


@pytest.mark.parametrize("action_hz", [80.0, 40.0])
@pytest.mark.parametrize("robot", [None, TURNED], ids=["deltas", "relative rotation"])
def test_every_window_comes_back_as_it_was_stored(store, config, robot, action_hz):
    data = data_of(store, config, robot, action_hz)
    windows = data.train["store"]
    for i in (0, 5, len(windows) - 1):
        trip = view_dataset.round_trip(data, "store", i)
        if robot is None:
            assert max(trip.errors.values()) < 1e-5, trip.errors
        else:  # Euler angles are kept up to their other name for the same rotation: they were drawn within +-pi / 2
            assert trip.errors["action, normalised and back"] < 1e-5
            assert trip.errors["action, all the way back to the store"] < 1e-4, trip.errors


def test_the_error_is_that_of_real_steps_against_the_store(store, config):
    data = data_of(store, config, None, 80.0)
    windows = data.train["store"]
    last = len(windows) - 1
    clip, anchor = windows.locate(last)
    raw = store.low_dim(clip)[1][anchor:]
    trip = view_dataset.round_trip(data, "store", last)
    assert 0 < len(raw) < 16  # the window reaches past the end
    np.testing.assert_array_equal(trip.stored_action[0, : len(raw)], raw)
    whole = "action, all the way back to the store"
    off = np.zeros_like(trip.restored_action)
    off[0, len(raw) :] = 9
    assert dataclasses.replace(trip, restored_action=trip.restored_action + off).errors[whole] < 1e-5
    off[0, 0, 2] = 0.5
    assert dataclasses.replace(trip, restored_action=trip.restored_action + off).errors[whole] == pytest.approx(0.5)


def test_the_page_of_a_window_shows_every_stage(store, config):
    data = data_of(store, config, TURNED, 80.0)
    page = view_dataset.window_page(data, "store", len(data.train["store"]) - 2)
    for said in ("1. Stored", "2. Encoded", "3. Normalised", "steps are masked, and dimensions 7 to 8 are padding",
                 "3 of 4 text tokens are real", "past the end and masked", "View 1, camera wrist", "largest absolute",
                 "action_mask"):  # fmt: skip
        assert said in page, said
    with pytest.raises(IndexError, match=r"has the windows 0 to \d+, not 9999"):
        view_dataset.window_page(data, "store", 9999)


def test_the_page_of_an_episode_shows_its_frames_and_rows():
    page = view_dataset.episode_page(episodes_of(broken(lambda _: None)), 3)
    assert "angle (absolute)" not in page  # text of the figures is drawn, not written
    for said in ("60 at 10 Hz, 6.00 s", "push the block", "front, wrist", "gripper_opening"):
        assert said in page, said
    assert page.count("data:image/webp") == 1
    assert page.count("data:image/svg") == 2


def test_bad_usage_is_one_sentence(capsys, store, tmp_path):
    where = str(store.directory)
    for arguments, said in (
        (["--store", where, "--index", "9"], "has the episodes 0 to 1, not 9"),
        (["--store", where, "--workdir", str(tmp_path)], "is no run: it has no config.json"),
        (["--store", where, "--config", "nowhere.py"], "there is no recipe nowhere.py"),
        (["--dataset", "video"], "needs --path"),
    ):
        assert view_dataset.main([*arguments, "--out", str(tmp_path / "page.html")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
