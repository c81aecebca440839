import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.episode import check_episode
from data_pipelines.sources.lerobot import LeRobot
from data_pipelines.sources.source import BadEpisode, read_episode
from tests.data_pipelines.sources import lerobot_fixture as made
from tests.data_pipelines.sources.lerobot_fixture import CAMERA, FPS, LENGTHS, TASKS, edit, replace, snapshot

GR1_LENGTHS = [416, 470, 470, 412, 328]


@pytest.fixture(params=["v2.1", "v3.0"])
def dataset(request, tmp_path):
    return made.write_v21(tmp_path / "set") if request.param == "v2.1" else made.write_v30(tmp_path / "set")


def expected_frames(root, i):
    if made.video_v21(root, i).exists():
        return made.decode(made.video_v21(root, i))
    frames = made.decode(made.video_v30(root, 0 if i < 2 else 1))
    first = (0, LENGTHS[0], 0)[i]
    return frames[first : first + LENGTHS[i]]


def test_both_layouts_give_what_was_written(dataset):
    source = pickle.loads(pickle.dumps(LeRobot(dataset)))  # noqa: S301 (our own bytes)
    assert len(source) == 3 and source.name == "set" and source.problems == []
    for i, length in enumerate(LENGTHS):
        about, lowdim, (state, action) = source.about(i), source.lowdim(i), made.vectors(i)
        assert (about.episode, about.frames, about.fps) == (f"set/episode_{i:06d}", length, FPS)
        assert (about.instruction, about.task, about.success) == (TASKS[i], TASKS[i], None)
        assert about.cameras == {CAMERA: (48, 64)}
        np.testing.assert_array_equal(lowdim.state, state.astype(np.float32))
        np.testing.assert_array_equal(lowdim.action, action.astype(np.float32))
        expected = expected_frames(dataset, i)
        for which in (range(length), [length - 1], [0], [5, 2, 5]):
            np.testing.assert_array_equal(source.frames(i, CAMERA, which), expected[list(which)])
    assert source.problems == []


def test_an_episode_is_ready_for_the_store(dataset):
    episode = read_episode(LeRobot(dataset), 1, embodiment="arm")
    check_episode(episode)
    assert episode.steps == 9 and episode.imitate.all() and episode.meta["control_hz"] == FPS
    np.testing.assert_array_equal(episode.state[-1], episode.state[-2])
    np.testing.assert_array_equal(episode.frames[CAMERA], expected_frames(dataset, 1))
    video = read_episode(LeRobot(dataset), 1)
    check_episode(video)
    assert video.action is None and not video.imitate.any()
    with pytest.raises(BadEpisode, match="has no camera"):
        read_episode(LeRobot(dataset), 1, ["wrist"])


def test_the_gr1_sample(shared_samples):
    root = shared_samples / "lerobot_v2_groot_gr1_sim"
    source = LeRobot(root)
    assert [source.about(i).frames for i in range(len(source))] == GR1_LENGTHS
    assert source.state_parts["right_arm"] == source.action_parts["right_arm"] == slice(22, 29)
    arms = LeRobot(root, state=["right_arm", "left_arm"], action=["waist"], instruction="human.action.task_description")
    rng = np.random.default_rng(0)
    for i, length in enumerate(GR1_LENGTHS):
        about, lowdim = source.about(i), source.lowdim(i)
        assert about.cameras == {"ego_view": (256, 256)} and about.fps == 20
        assert about.instruction.startswith("pick the ") and about.extra["annotations"]["human.validity"] == "valid"
        assert arms.about(i).instruction == about.instruction
        rows = pq.read_table(root / "data" / "chunk-000" / f"episode_{i:06d}.parquet")
        for what, column in ((lowdim.state, "observation.state"), (lowdim.action, "action")):
            assert what.dtype == np.float32
            np.testing.assert_array_equal(what, np.array(rows[column].to_pylist(), np.float32))
        some = arms.lowdim(i)
        np.testing.assert_array_equal(some.state, np.concatenate([lowdim.state[:, 22:29], lowdim.state[:, :7]], 1))
        np.testing.assert_array_equal(some.action, lowdim.action[:, 41:])
        video = root / "videos" / "chunk-000" / "observation.images.ego_view" / f"episode_{i:06d}.mp4"
        if i in (0, 4):  # a plain decode of all five takes longer than all other tests here
            expected = made.decode(video)
            assert len(expected) == length
            for which in ([0], [length - 1], [int(rng.integers(length))], [int(rng.integers(length)), 3]):
                np.testing.assert_array_equal(source.frames(i, "ego_view", which), expected[which])
    assert source.problems == [
        "meta/info.json declares the video 'observation.images.egoview', of which there is no file",
        "meta/info.json says total_videos 2, there are 5",
        "timestamp does not begin at 0 (5 episodes)",
        "meta/tasks.jsonl lists 'valid', a label of the annotation 'human.validity', as a task (5 episodes)",
    ]


def test_metadata_that_lies_is_reported_and_the_files_are_trusted(tmp_path):
    root = made.write_v21(tmp_path / "set")
    honest = [snapshot(LeRobot(root), i) for i in range(3)]
    path = root / "meta" / "info.json"
    lies = {"total_episodes": 100, "total_frames": 7, "total_tasks": 9, "total_videos": 1, "fps": 30}
    made.write_json(path, json.loads(path.read_text()) | lies)
    path = root / "meta" / "episodes.jsonl"
    made.write_lines(path, [{"episode_index": i, "length": n} for i, n in ((0, 13), (1, 99), (7, 5))])
    for i in range(3):
        edit(made.data_v21(root, i), lambda table: table.drop_columns(["frame_index"]))
    edit(made.data_v21(root, 2), lambda table: replace(table, "episode_index", [5] * LENGTHS[2]))
    source = LeRobot(root)
    assert [snapshot(source, i) for i in range(3)] == honest  # fps included: videos and timestamps agree on 10
    assert sorted(source.problems) == sorted(
        [
            "meta/episodes.jsonl lists 1 episodes that have no parquet file",
            "meta/episodes.jsonl lacks 1 episodes that have a parquet file",
            "meta/info.json says total_videos 1, there are 3",
            "meta/info.json says total_episodes 100, there are 3",
            "meta/info.json says total_tasks 9, there are 2",
            "the metadata gives another length than the parquet file has (1 episodes)",
            "episode_index is not the number in the name of the parquet file (1 episodes)",
            "meta/info.json says 30 fps, videos and timestamps say 10 (3 episodes)",
        ]
    )


def test_modality_names_slices_columns_cameras_and_language(tmp_path):
    root = made.write_v21(tmp_path / "set")
    info = json.loads((root / "meta" / "info.json").read_text())
    for column in ("annotation.what", "annotation.validity", "speech"):
        info["features"][column] = {"dtype": "int64", "shape": [1]}
    made.write_json(root / "meta" / "info.json", info)
    tasks = ["lift", "valid", "push"]
    made.write_lines(root / "meta" / "tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(tasks)])
    for i, n in enumerate(LENGTHS):
        what = [0] * 4 + [2] * (n - 4) if i == 1 else [2] * n
        added = {"annotation.what": what, "annotation.validity": [1] * n, "speech": ["gib mir das Glas"] * n}
        edit(
            made.data_v21(root, i),
            lambda table, added=added: pa.table(dict(zip(table.column_names, table.columns, strict=True)) | added),
        )
    modality = {
        "state": {
            "grip": {"start": 2, "end": 3},
            "xy": {"start": 0, "end": 2},
            "last": {"start": 1, "end": 2, "original_key": "action"},
        },
        "action": {"x": {"start": 0, "end": 1}},
        "video": {"front": {"original_key": CAMERA}},
        "annotation": {"what": {}, "validity": {}, "spoken": {"original_key": "speech"}},
    }
    made.write_json(root / "meta" / "modality.json", modality)
    source = LeRobot(root, instruction="what")
    state, action = (array.astype(np.float32) for array in made.vectors(0))
    np.testing.assert_array_equal(source.lowdim(0).state, np.c_[state[:, 2], state[:, :2], action[:, 1]])
    np.testing.assert_array_equal(source.lowdim(0).action, action[:, :1])
    assert source.state_parts == {"grip": slice(0, 1), "xy": slice(1, 3), "last": slice(3, 4)}
    about = source.about(0)
    assert list(about.cameras) == ["front"] and about.instruction == "push"
    assert about.extra["annotations"] == {"what": "push", "validity": "valid", "spoken": "gib mir das Glas"}
    changing = source.about(1)
    assert changing.instruction == "lift" and changing.extra["instructions"] == [[0, "lift"], [4, "push"]]
    assert any(problem.startswith("an instruction that changes") for problem in source.problems)
    assert LeRobot(root, instruction="spoken").about(0).instruction == "gib mir das Glas"
    assert LeRobot(root, instruction=None).about(0).instruction == ""
    with pytest.raises(BadEpisode, match="is a validity label"):
        LeRobot(root, instruction="validity").about(0)
    assert LeRobot(root, state=(), action=["action"]).lowdim(0).state is None
    for entry, problem in [
        ({"state": {"a": {"start": 0, "end": 4}}}, "modality.json: state 'a' must have start and end within the 3 dim"),
        ({"state": {"a": {"start": 0, "end": 1, "original_key": "b"}}}, "'a' is cut from 'b', which meta/info.json"),
        ({"video": {"wrist": {}}}, "the video 'wrist' is 'wrist', of which there is no file"),
        ({"action": {"a": [0, 1]}}, "modality.json: action must map names to objects"),
    ]:
        made.write_json(root / "meta" / "modality.json", entry)
        with pytest.raises(ValueError, match=problem):
            LeRobot(root)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"codebase_version": "v1.6"}, "codebase_version is 'v1.6', readable are v2.0, v2.1, v3.0"),
        ({"fps": 0}, "fps must be a positive number, is 0"),
        ({"features": None}, "info.json lacks features"),
        ({"features": {"action": {"dtype": "float32"}}}, "the feature 'action' must have a dtype and a shape"),
        (
            {
                "features": {
                    "cam": {"dtype": "image", "shape": [8, 8, 3]},
                    "task_index": {"dtype": "int64", "shape": [1]},
                }
            },
            "the camera 'cam' is kept as images in the parquet files, only videos are read",
        ),
        ({"chunks_size": None}, "chunks_size must be a positive number, is None"),
        ({"data_path": None}, "info.json lacks data_path"),
        ({"data_path": "data/{shard}.parquet"}, "must have no other fields than"),
        ({"data_path": "rows/{episode_index}.parquet"}, "has no episode at"),
        ({"video_path": "videos/{camera}.mp4"}, "must have no other fields than"),
    ],
)
def test_a_dataset_that_cannot_be_used(tmp_path, changes, problem):
    root = made.write_v21(tmp_path / "set", **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=problem):
        LeRobot(root).about(0)


def test_requests_that_name_nothing(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no LeRobot dataset: it has no meta/info\.json"):
        LeRobot(tmp_path)
    with pytest.raises(ValueError, match="there is no state 'arm', known are action, "):
        LeRobot(dataset, state=["arm"])
    with pytest.raises(ValueError, match="named twice"):
        LeRobot(dataset, action=["action", "action"])
    with pytest.raises(ValueError, match="declares no column 'language' for the instruction"):
        LeRobot(dataset, instruction="language")
    with pytest.raises(ValueError, match=r"set has no camera 'wrist', only observation\.images\.front"):
        LeRobot(dataset).frames(0, "wrist", [0])
    (dataset / "meta" / "info.json").write_text("{")
    with pytest.raises(ValueError, match=r"info\.json is not JSON"):
        LeRobot(dataset)


def test_a_table_of_episodes_that_is_incomplete(tmp_path):
    root = made.write_v30(tmp_path / "set")
    rows = pq.read_table(made.episodes_v30(root)).to_pylist()
    for changed, problem in [
        ([rows[0], rows[0]], "lists an episode twice"),
        ([{**rows[0], "data/file_index": None}, rows[1]], "an episode has no value of data/file_index"),
        (
            [{k: v for k, v in row.items() if k != "data/chunk_index"} for row in rows],
            "lacks the column 'data/chunk_index'",
        ),
    ]:
        made.write_episodes(root, changed)
        with pytest.raises(ValueError, match=problem):
            LeRobot(root)
    made.episodes_v30(root).write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"file-000\.parquet is damaged"):
        LeRobot(root)
    made.episodes_v30(root).unlink()
    with pytest.raises(FileNotFoundError, match="which says where the episodes lie"):
        LeRobot(root)
