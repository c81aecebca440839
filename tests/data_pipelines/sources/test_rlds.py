"""RLDS: Bridge's real records, and datasets written in the layouts of DROID and Open X-Embodiment."""

import dataclasses
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from data_pipelines.episode import check_episode
from data_pipelines.sources.record_files import TFRecordFile
from data_pipelines.sources.rlds import Rlds
from data_pipelines.sources.rlds_layouts import LAYOUTS, RldsLayout
from data_pipelines.sources.source import BadEpisode, read_episode
from tests.data_pipelines.sources.rlds_writer import example, png, write_tfds

LAYOUT = RldsLayout(
    5, ("observation/image", "observation/wrist"), ("observation/state",), ("action",), ("text", "text_2")
)


def episode(seed, steps=4, size=(6, 8)):
    rng = np.random.default_rng(seed)

    def images():
        return [png(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(steps)]

    return {
        "steps/observation/image": images(),
        "steps/observation/wrist": images(),
        "steps/observation/state": rng.standard_normal((steps, 3)).astype(np.float32),
        "steps/action": rng.standard_normal((steps, 2)).astype(np.float32),
        "steps/text": [f"put {seed} away".encode()] * steps,
        "steps/text_2": [b""] * steps,
        "steps/is_last": np.zeros(steps, np.int64),
        "episode_metadata/file_path": [f"/data/{seed}".encode()],
        "episode_metadata/has_image": np.array([0]),
    }


def write(directory, shards, **options):
    return write_tfds(
        directory, "toy", [[example(e) for e in shard] for shard in shards], described=episode(0), **options
    )


def contents(source, i):
    """Everything of an episode, comparable."""
    about, lowdim = source.about(i), source.lowdim(i)
    frames = [source.frames(i, camera, range(about.frames)).tobytes() for camera in about.cameras]
    return dataclasses.asdict(about), [a.tobytes() for a in (lowdim.state, lowdim.action)], frames


@pytest.fixture
def bridge(shared_samples):
    return shared_samples / "bridge_octo_debug" / "1.0.0"


@pytest.fixture(scope="module")
def tfds_builder():
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory


def test_bridge_is_read_as_it_is(bridge):
    source = Rlds(bridge)
    assert (len(source), source.name, source.problems) == (25, "bridge_dataset", [])
    about = source.about(0)
    assert about.frames == 10 and about.fps == 5 and about.success is None
    assert about.cameras == {f"image_{k}": (64, 64) for k in range(4)}
    assert about.instruction == "put cup from counter or drying rack into sink"
    assert about.episode == "bridge_dataset/train-00000/0"
    lowdim = source.lowdim(0)
    assert lowdim.state.shape == lowdim.action.shape == (10, 7)
    gripper = np.concatenate([source.lowdim(i).action[:, 6] for i in range(25)])
    assert gripper.min() >= 0 and gripper.max() == 1
    whole = source.frames(0, "image_0", range(10))
    assert np.array_equal(source.frames(0, "image_0", [7, 2, 7]), whole[[7, 2, 7]])
    check_episode(read_episode(source, 3, ["image_0"], embodiment="widowx"))


def test_flags_of_bridge_are_counted_and_not_believed(bridge):
    source = Rlds(bridge)
    assert {source.about(i).frames for i in range(25)} == {10}
    assert source.about(0).extra["episode_metadata"]["has_image_0"] == 0
    assert source.frames(0, "image_0", [0]).std() > 20
    assert "has_image_0 is false where there are images (25 episodes)" in source.problems
    assert "is_last is not set at the last step (25 episodes)" in source.problems


def test_both_splits_of_bridge_hold_the_same_records(bridge):
    """In another order: whoever holds episodes of this sample out must tell them apart by their records."""
    digests = {}
    for split in ("train", "val"):
        source = Rlds(bridge, split)
        digests[split] = [source.digest(i) for i in range(len(source))]
        for i in range(len(source)):
            source.frames(i, "image_0", [0])  # compares the checksum that another program wrote
    assert digests["train"] != digests["val"] and len(set(digests["train"])) == 25
    assert sorted(digests["train"]) == sorted(digests["val"])


def test_array_record_gives_the_same_as_tfrecord_and_as_tfds(bridge, tmp_path, tfds_builder):
    ours = Rlds(bridge, "val")
    converted = tmp_path / "bridge_dataset" / "1.0.0"
    converted.mkdir(parents=True)
    file = TFRecordFile(bridge / "bridge_dataset-val.tfrecord-00000-of-00001")
    writer = ArrayRecordWriter(str(converted / "bridge_dataset-val.array_record-00000-of-00001"), "group_size:1")
    for i in range(len(file)):
        writer.write(bytes(file.read(i)))
    writer.close()
    shutil.copyfile(bridge / "features.json", converted / "features.json")
    info = json.loads((bridge / "dataset_info.json").read_text())
    info["fileFormat"], info["splits"] = "array_record", info["splits"][1:]
    (converted / "dataset_info.json").write_text(json.dumps(info))

    again = Rlds(converted, "val")
    theirs = tfds_builder(converted).as_data_source("val")
    for i in range(0, 25, 6):
        assert contents(again, i) == contents(ours, i)
        steps = list(theirs[i]["steps"])
        lowdim, frames = (
            again.lowdim(i),
            {camera: again.frames(i, camera, range(10)) for camera in again.about(i).cameras},
        )
        assert len(steps) == 10
        for t, step in enumerate(steps):
            assert step["language_instruction"].decode() == again.about(i).instruction
            assert np.array_equal(step["action"], lowdim.action[t])
            assert np.array_equal(step["observation"]["state"], lowdim.state[t])
            assert all(np.array_equal(step["observation"][camera], frames[camera][t]) for camera in frames)


def test_droid_names(tmp_path):
    rng, steps = np.random.default_rng(0), 3
    layout = LAYOUTS["droid"]
    values = {f"steps/{key}": [png(np.full((4, 6, 3), t, np.uint8)) for t in range(steps)] for key in layout.cameras}
    values |= {f"steps/{key}": [b"", b"", b""] for key in layout.instructions}
    values["steps/language_instruction_2"] = [b"close the drawer"] * steps
    values["steps/language_instruction_3"] = [b"shut it"] * steps
    for group in ("observation", "action_dict"):
        values[f"steps/{group}/joint_position"] = rng.standard_normal((steps, 7)).astype(np.float32)
        values[f"steps/{group}/gripper_position"] = rng.uniform(0, 1, (steps, 1)).astype(np.float32)
    good = values | {"episode_metadata/file_path": [b"gs://droid/lab/success/2023-01-01/trajectory.h5"]}
    bad = values | {"episode_metadata/file_path": [b"gs://droid/lab/failure/2023-01-01/trajectory.h5"]}
    source = Rlds(write_tfds(tmp_path, "r2d2_faceblur", [[example(good), example(bad)]], described=good))
    about, lowdim = source.about(0), source.lowdim(0)
    assert list(about.cameras) == ["exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"]
    assert about.fps == 15 and [source.about(i).success for i in (0, 1)] == [True, False]
    assert about.instruction == "close the drawer" and about.extra["paraphrases"] == ["shut it"]
    assert np.array_equal(lowdim.action[:, :7], values["steps/action_dict/joint_position"])
    assert np.array_equal(lowdim.state[:, 7:], values["steps/observation/gripper_position"])


def test_open_x_embodiment_names(tmp_path):
    """Actions in parts, scalar features, an instruction as code points, one that changes."""
    steps = 3
    codes = np.zeros((steps, 16), np.int64)
    codes[:, :4] = [112, 117, 228, 104]
    table = {
        "steps/observation/rgb": [png(np.zeros((4, 4, 3), np.uint8))] * steps,
        "steps/observation/effector_translation": np.ones((steps, 2), np.float32),
        "steps/observation/instruction": codes,
        "steps/action": np.zeros((steps, 2), np.float32),
    }
    source = Rlds(write_tfds(tmp_path / "a", "language_table", [[example(table)]], described=table))
    assert source.about(0).instruction == "puäh"
    rt1 = {
        "steps/observation/image": [png(np.zeros((4, 4, 3), np.uint8))] * steps,
        "steps/observation/base_pose_tool_reached": np.zeros((steps, 7), np.float32),
        "steps/observation/gripper_closed": np.ones(steps, np.float32),
        "steps/observation/natural_language_instruction": [b"pick", b"pick", b"place"],
        "steps/action/world_vector": np.full((steps, 3), 1, np.float32),
        "steps/action/rotation_delta": np.full((steps, 3), 2, np.float32),
        "steps/action/gripper_closedness_action": np.full(steps, -1),
    }
    source = Rlds(write_tfds(tmp_path / "b", "fractal20220817_data", [[example(rt1)]], described=rt1))
    assert source.lowdim(0).action.tolist() == [[1, 1, 1, 2, 2, 2, -1]] * steps
    assert source.lowdim(0).state.shape == (steps, 8)
    assert source.about(0).extra["instruction_from"] == [[0, "pick"], [2, "place"]]


def test_episodes_are_numbered_over_shards_and_survive_pickling(tmp_path):
    directory = write(tmp_path, [[episode(0)], [], [episode(1), episode(2, steps=1)]])
    source = Rlds(directory, layout=LAYOUT)
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 (bytes of this very line)
    assert len(source) == 3 and source.problems == []
    assert [source.about(i).episode for i in range(3)] == [
        "toy/train-00000/0",
        "toy/train-00002/0",
        "toy/train-00002/1",
    ]
    assert [contents(copy, i) for i in range(3)] == [contents(source, i) for i in range(3)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: contents(source, i % 3), range(12))) == [
            contents(copy, i % 3) for i in range(12)
        ]
    with pytest.raises(IndexError, match="episode 3 of 3"):
        source.about(3)


def test_what_the_metadata_says_wrongly_is_reported_and_not_believed(tmp_path):
    directory = write(tmp_path, [[episode(0)], [episode(1), episode(2)]], lengths=[1, 9])
    source = Rlds(directory, layout=LAYOUT)
    assert len(source) == 3
    assert source.problems == ["toy-train.tfrecord-00001-of-00002 has 2 episodes, dataset_info.json says 9"]
    (directory / "toy-train.tfrecord-00000-of-00002").unlink()
    source = Rlds(directory, layout=LAYOUT)
    assert len(source) == 2 and source.problems[0] == "1 of the 2 files of 'train' are there"
    assert source.about(0).episode == "toy/train-00001/0"


def drop(key):
    return lambda e: {k: v for k, v in e.items() if k != key}


def put(key, change):
    return lambda e: e | {key: change(e[key])}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop("steps/action"), "lacks the feature 'steps/action'"),
        (drop("steps/observation/wrist"), "lacks the feature 'steps/observation/wrist'"),
        (
            put("steps/action", lambda a: np.where(np.arange(4)[:, None] == 2, np.nan, a)),
            "action is not finite at frame 2",
        ),
        (put("steps/action", lambda a: a.ravel()[:7]), "has 7 numbers in 'steps/action', 4 steps of 2 need 8"),
        (put("steps/action", lambda a: a[:, :1]), "has 4 numbers in 'steps/action', 4 steps of 2 need 8"),
        (put("steps/action", lambda _: [b"x"]), "holds bytes, not numbers"),
        (put("steps/text", lambda _: [b"pick \xff up"] * 4), "'steps/text' is not UTF-8 text"),
        (put("steps/text", lambda t: t[:2]), "has 2 texts in 'steps/text' for 4 steps"),
        (put("steps/observation/wrist", lambda x: x[:3]), "3 images in 'steps/observation/wrist' for 4 steps"),
        (put("steps/observation/wrist", lambda x: [*x[:2], x[2][:60], x[3]]), "cannot be decoded at step 2"),
        (put("steps/observation/image", lambda x: [b"GIF", *x[1:]]), "no JPEG or PNG image at step 0"),
        (put("steps/observation/image", lambda x: [*x[:3], png(np.zeros((4, 4, 3), np.uint8))]), "changes its size"),
        (
            put("steps/observation/image", lambda x: [*x[:3], png(np.zeros((6, 8), np.uint8))]),
            "not RGB but L at step 3",
        ),
        (lambda _: episode(9, steps=0), "has no steps"),
    ],
)
def test_a_bad_episode_is_named_and_the_others_are_untouched(tmp_path, change, said):
    good = [episode(k) for k in range(3)]
    before = Rlds(write(tmp_path / "good", [good]), layout=LAYOUT)
    source = Rlds(write(tmp_path / "bad", [[good[0], change(good[1]), good[2]]]), layout=LAYOUT)
    with pytest.raises(BadEpisode, match=r"toy/train-00000/1.*" + said.replace("(", r"\(")):
        contents(source, 1)
    assert [contents(source, i) for i in (0, 2)] == [contents(before, i) for i in (0, 2)]


@pytest.mark.parametrize(
    ("damage", "said", "left"),
    [
        (lambda data, spans: data[: spans[2][0] + 40], "the file ends within it", [0, 1]),
        (lambda data, spans: data[: spans[2][0] - 5], "the file ends within it", [0, 1]),
        (lambda data, spans: flip(data, spans[1][0] + spans[1][1] // 2), "its checksum is wrong", [0, 2]),
        (lambda data, spans: flip(data, spans[1][0] - 12), "the checksum of its length is wrong", [0]),
    ],
)
def test_damaged_bytes_are_found(tmp_path, damage, said, left):
    directory = write(tmp_path, [[episode(k) for k in range(3)]])
    before = [contents(Rlds(directory, layout=LAYOUT), i) for i in range(3)]
    path = directory / "toy-train.tfrecord-00000-of-00001"
    path.write_bytes(damage(path.read_bytes(), TFRecordFile(path)._spans.tolist()))
    source = Rlds(directory, layout=LAYOUT)
    assert bool(source.problems) == (len(source) < 3)
    bad = next(i for i in range(3) if i not in left)
    with pytest.raises(BadEpisode, match=said):
        source.frames(bad, "image", [0])
    assert [contents(source, i) for i in left] == [before[i] for i in left]


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("left", [0, 1000, 66_000])
def test_a_damaged_array_record_is_found(tmp_path, left):
    directory = write(tmp_path, [[episode(0), episode(1)], [episode(2)]], kind="array_record")
    before = contents(Rlds(directory, layout=LAYOUT), 2)
    path = directory / "toy-train.array_record-00000-of-00002"
    path.write_bytes(path.read_bytes()[:left])
    source = Rlds(directory, layout=LAYOUT)
    assert len(source) == 2 and "has 1 episodes, dataset_info.json says 2" in source.problems[0]
    with pytest.raises(BadEpisode, match="is damaged or no ArrayRecord file"):
        source.about(0)
    assert contents(source, 1) == before


def test_datasets_that_cannot_be_read_are_refused(tmp_path):
    directory = write(tmp_path / "1.0.0", [[episode(0)]])
    with pytest.raises(FileNotFoundError, match=r"dataset_info\.json is not there: open the folder of a version"):
        Rlds(tmp_path)
    with pytest.raises(ValueError, match="no layout is known for 'toy'"):
        Rlds(directory)
    with pytest.raises(ValueError, match="needs a camera and a control rate"):
        dataclasses.replace(LAYOUT, cameras=())
    with pytest.raises(ValueError, match="has no split 'test', only"):
        Rlds(directory, "test", LAYOUT)
    with pytest.raises(ValueError, match="has no feature 'steps/observation/depth'"):
        Rlds(directory, layout=dataclasses.replace(LAYOUT, cameras=("observation/depth",)))
    with pytest.raises(ValueError, match="'steps/observation/state' is not an image"):
        Rlds(directory, layout=dataclasses.replace(LAYOUT, cameras=("observation/state",)))
    with pytest.raises(ValueError, match=r"toy has no camera 'top', only \['image', 'wrist'\]"):
        Rlds(directory, layout=LAYOUT).frames(0, "top", [0])
    with pytest.raises(BadEpisode, match=r"has the frames 0 to 3, not \[4\]"):
        Rlds(directory, layout=LAYOUT).frames(0, "image", [4])
    info = json.loads((directory / "dataset_info.json").read_text())
    (directory / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "riegeli"}))
    with pytest.raises(ValueError, match="in the format 'riegeli'"):
        Rlds(directory, layout=LAYOUT)
    (directory / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        Rlds(directory, layout=LAYOUT)


def test_every_layout_names_its_cameras_apart():
    for name, layout in LAYOUTS.items():
        cameras = [key.rpartition("/")[2] for key in layout.cameras]
        assert len(set(cameras)) == len(cameras) > 0 and layout.fps > 0 and layout.instructions, name


def test_jpeg_is_read_too(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    values = episode(0) | {"steps/observation/image": [path.read_bytes()] * 4}
    source = Rlds(write(tmp_path / "set", [[values]]), layout=LAYOUT)
    with Image.open(path) as image:
        assert np.array_equal(source.frames(0, "image", [1])[0], np.asarray(image))
