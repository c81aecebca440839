"""EgoDex, on pairs of files in its exact layout."""

import pickle

import h5py
import numpy as np
import pytest

from data_pipelines.episode import check_episode
from data_pipelines.sources.egodex import EgoDex
from data_pipelines.sources.hands import HAND_NAMES, JOINTS
from data_pipelines.sources.source import BadEpisode, read_episode
from tests.data_pipelines.sources.video_writer import numbers_of, write_video

FRAMES = 6


def rigid(rng, frames=FRAMES):
    """Random rotations and positions, [N, 4, 4]."""
    poses = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
    q, r = np.linalg.qr(rng.standard_normal((frames, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]
    q[:, :, 0] *= np.linalg.det(q)[:, None]
    poses[:, :3, :3], poses[:, :3, 3] = q, rng.standard_normal((frames, 3))
    return poses


def write_pair(directory, number, *, frames=FRAMES, change=None, video=True):
    rng = np.random.default_rng(number)
    path = directory / "part1" / "fold_towel" / f"{number}.hdf5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["camera/intrinsic"] = np.array([[736.6339, 0, 960], [0, 736.6339, 540], [0, 0, 1]], np.float32)
        for joint in ("camera", *JOINTS, "hip", "leftThumbKnuckle"):
            file[f"transforms/{joint}"] = rigid(rng)
            if joint != "camera":
                file[f"confidences/{joint}"] = rng.uniform(0, 1, FRAMES).astype(np.float32)
        file.attrs["llm_type"], file.attrs["which_llm_description"] = "reversible", "2"
        file.attrs["llm_description"], file.attrs["llm_description2"] = "Unfold the towel.", "Fold the towel."
        if change:
            change(file)
    if video:
        write_video(path.with_suffix(".mp4"), frames, fps=30)
    return path


def contents(source, i):
    lowdim = source.lowdim(i)
    arrays = [lowdim.state, lowdim.action, *lowdim.extra.values()]
    return source.about(i), [a.tobytes() for a in arrays], source.frames(i, "ego", range(FRAMES)).tobytes()


def test_as_video_without_actions(tmp_path):
    for number in (0, 2, 10):
        write_pair(tmp_path, number)
    source = EgoDex(tmp_path)
    assert [source.about(i).episode for i in range(3)] == [f"part1/fold_towel/{k}" for k in (0, 2, 10)]
    about, lowdim = source.about(1), source.lowdim(1)
    assert about.frames == FRAMES and about.fps == pytest.approx(30) and about.cameras == {"ego": (32, 48)}
    assert about.task == "fold_towel" and about.instruction == "Fold the towel."
    assert np.allclose(about.extra["intrinsic"][0], [736.6339, 0, 960])
    assert lowdim.state is None and lowdim.action is None
    with h5py.File(tmp_path / "part1/fold_towel/2.hdf5") as file:
        for joint in ("camera", *JOINTS):
            assert np.array_equal(lowdim.extra[f"transforms/{joint}"], file[f"transforms/{joint}"][()])
        assert np.array_equal(lowdim.extra["confidences/leftHand"], file["confidences/leftHand"][()])
    assert numbers_of(source.frames(1, "ego", [5, 0, 3])) == [5, 0, 3]
    check_episode(read_episode(source, 0))
    knuckle = EgoDex(tmp_path, joints=["leftThumbKnuckle"]).lowdim(0).extra
    assert sorted(knuckle) == ["confidences/leftThumbKnuckle", "transforms/camera", "transforms/leftThumbKnuckle"]


def test_as_hands(tmp_path):
    """State t and action t are in the camera of frame t; undone, they are the poses in the world at t and t + 1."""
    path = write_pair(tmp_path, 0)
    source = EgoDex(tmp_path, hands=True)
    lowdim = pickle.loads(pickle.dumps(source)).lowdim(0)  # noqa: S301 (bytes of this very line)
    assert len(HAND_NAMES) == len(set(HAND_NAMES)) == 48
    assert lowdim.state.shape == lowdim.action.shape == (FRAMES, 48)
    with h5py.File(path) as file:
        poses = {joint: file[f"transforms/{joint}"][()].astype(np.float64) for joint in ("camera", *JOINTS)}
    where = {name: k for k, name in enumerate(HAND_NAMES)}
    for rows, shift in ((lowdim.state, 0), (lowdim.action, 1)):
        for t in range(FRAMES):
            then = min(t + shift, FRAMES - 1)
            for joint in JOINTS:
                k = where[f"{joint}_x"]
                assert np.allclose(poses["camera"][t] @ [*rows[t, k : k + 3], 1], poses[joint][then][:, 3], atol=1e-5)
            k = where["rightHand_rot6d_0"]
            columns = rows[t, k : k + 6].reshape(2, 3).T
            assert np.allclose(poses["camera"][t][:3, :3] @ columns, poses["rightHand"][then][:3, :2], atol=1e-5)
    check_episode(read_episode(source, 0, embodiment="hands"))


@pytest.mark.parametrize(
    ("attributes", "instruction"),
    [
        ({}, "Fold the towel."),
        ({"which_llm_description": "1"}, "Unfold the towel."),
        ({"llm_type": "neutral"}, "Unfold the towel."),
    ],
)
def test_reversible_tasks_have_two_descriptions(tmp_path, attributes, instruction):
    write_pair(tmp_path, 0, change=lambda file: file.attrs.update(attributes))
    assert EgoDex(tmp_path).about(0).instruction == instruction


def edit(name, change):
    def apply(file):
        value = file[name][()]
        del file[name]
        value = change(value)
        if value is not None:
            file[name] = value

    return apply


def nan_at_two(array):
    array[2, 0, 3] = np.nan
    return array


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"video": False}, r"1\.hdf5 has no video .*1\.mp4"),
        ({"frames": FRAMES + 1}, r"has poses of 6 frames, 1\.mp4 has 7 frames"),
        ({"change": edit("transforms/camera", lambda _: None)}, "has no array '/transforms/camera'"),
        ({"change": edit("transforms/rightRingFingerTip", lambda _: None)}, "has no array '/transforms/rightRingFin"),
        ({"change": edit("transforms/leftHand", lambda a: a[:, :3])}, r"must be \[N, 4, 4\], got \[6, 3, 4\]"),
        ({"change": edit("transforms/leftHand", lambda a: a[:4])}, "transforms/leftHand has 4 rows for 6 frames"),
        ({"change": edit("transforms/leftHand", nan_at_two)}, "transforms/leftHand is not finite at frame 2"),
        (
            {"change": edit("transforms/leftHand", lambda a: a * 2)},
            "'transforms/leftHand' is not a rigid motion at frame 0",
        ),
        ({"change": edit("transforms/camera", lambda a: a[:0])}, "has no frames"),
        ({"change": edit("camera/intrinsic", lambda a: a[0])}, r"'camera/intrinsic' .* must be finite \[3, 3\]"),
        ({"change": lambda file: file.attrs.update(llm_description2=np.bytes_(b"f\xff"))}, "is not UTF-8 text"),
        ({"change": lambda file: file.attrs.__delitem__("llm_description2")}, "has no attribute 'llm_description2'"),
    ],
)
def test_a_bad_episode_is_named_and_the_others_are_untouched(tmp_path, options, said):
    for number in (0, 2):
        write_pair(tmp_path, number)
    before = [contents(EgoDex(tmp_path, hands=True), i) for i in (0, 1)]
    write_pair(tmp_path, 1, **options)
    source = EgoDex(tmp_path, hands=True)
    with pytest.raises(BadEpisode, match=r"part1/fold_towel/1'.*" + said):
        contents(source, 1)
    assert [contents(source, i) for i in (0, 2)] == before


def test_damaged_files_are_bad_episodes(tmp_path):
    paths = [write_pair(tmp_path, number) for number in range(3)]
    before = contents(EgoDex(tmp_path, hands=True), 0)
    video = paths[1].with_suffix(".mp4")
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    paths[2].write_bytes(paths[2].read_bytes()[:2000])
    source = EgoDex(tmp_path, hands=True)
    with pytest.raises(BadEpisode, match=r"1\.mp4"):
        source.about(1)
    with pytest.raises(BadEpisode, match=r"2\.hdf5 cannot be read"):
        source.about(2)
    assert contents(source, 0) == before


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no \.hdf5 file"):
        EgoDex(tmp_path)
    write_pair(tmp_path, 0)
    write_video(tmp_path / "part1" / "alone" / "7.mp4", 2)
    source = EgoDex(tmp_path)
    assert len(source) == 1 and "1 .mp4 files have no .hdf5 file, such as" in source.problems[0]
    with pytest.raises(ValueError, match="has no camera 'wrist', only 'ego'"):
        source.frames(0, "wrist", [0])
