import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data_pipelines.sources.lerobot import LeRobot
from data_pipelines.sources.source import BadEpisode
from tests.data_pipelines.sources import lerobot_fixture as made
from tests.data_pipelines.sources.lerobot_fixture import CAMERA, LENGTHS, TASKS, edit, replace, snapshot


def nan_action(table):
    rows = table["action"].to_pylist()
    rows[4][1] = float("nan")
    return replace(table, "action", rows)


def ragged(table):
    return replace(table, "action", [[0.0], *table["action"].to_pylist()[1:]])


def not_utf8(text):
    return pa.array([text], pa.binary()).view(pa.string())


DAMAGE_V21 = {
    "truncated mp4": (
        lambda root: made.video_v21(root, 1).write_bytes(made.video_v21(root, 1).read_bytes()[:900]),
        r"episode_000001\.mp4 is damaged: Invalid data found",
    ),
    "wrong parquet length": (
        lambda root: edit(made.data_v21(root, 1), lambda table: table[:-2]),
        r"episode_000001\.mp4 has 9 frames, .*episode_000001\.parquet has 7 rows",
    ),
    "missing column": (
        lambda root: edit(made.data_v21(root, 1), lambda table: table.drop_columns(["action"])),
        r"episode_000001\.parquet lacks the column 'action'",
    ),
    "NaN action": (
        lambda root: edit(made.data_v21(root, 1), nan_action),
        r"'set/episode_000001': action is not finite at frame 4",
    ),
    "ragged action": (
        lambda root: edit(made.data_v21(root, 1), ragged),
        r"'action' has rows of \[1, 2\] numbers, meta/info.json says 2",
    ),
    "null state": (
        lambda root: edit(made.data_v21(root, 1), lambda t: replace(t, "observation.state", [None] * len(t))),
        r"'observation.state' lacks a value in some row",
    ),
    "non-UTF-8 instruction": (
        lambda root: (root / "meta" / "tasks.jsonl").write_bytes(
            b'{"task_index": 0, "task": "pick up the cup"}\n{"task_index": 1, "task": "open \xff\xfe"}\n'
        ),
        r"tasks\.jsonl, task 1, is not UTF-8",
    ),
    "unknown task": (
        lambda root: made.write_lines(root / "meta" / "tasks.jsonl", [{"task_index": 0, "task": TASKS[0]}]),
        r"'task_index' names the task 1, which .*tasks\.jsonl lacks",
    ),
    "zero-length episode": (
        lambda root: edit(made.data_v21(root, 1), lambda table: table[:0]),
        r"episode_000001\.parquet has no row of set/episode_000001",
    ),
    "missing video": (lambda root: made.video_v21(root, 1).unlink(), r"episode_000001\.mp4 does not exist"),
    "parquet of garbage": (
        lambda root: made.data_v21(root, 1).write_bytes(b"PAR1 not at all PAR1"),
        r"episode_000001\.parquet is damaged",
    ),
    "rows out of order": (
        lambda root: edit(made.data_v21(root, 1), lambda table: table.take(list(range(8, -1, -1)))),
        r"frame_index of set/episode_000001 does not count its rows from 0",
    ),
}


def episode_rows(root, change):
    rows = pq.read_table(made.episodes_v30(root)).to_pylist()
    change(rows[1])
    made.write_episodes(root, rows)


def only_episode_1(change):
    """A change of a shared data file that leaves the rows of the other episodes as they are."""

    def apply(table):
        mine = pc.equal(table["episode_index"], 1)
        return pa.concat_tables([table.filter(pc.invert(mine)), change(table.filter(mine))])

    return lambda root: edit(made.data_v30(root, 0), apply)


DAMAGE_V30 = {
    "NaN action": (only_episode_1(nan_action), r"'set/episode_000001': action is not finite at frame 4"),
    "wrong parquet length": (
        only_episode_1(lambda table: table[:-2]),
        r"file-000\.mp4 has 9 frames from 1\.3 s until 2\.2 s, .*file-000\.parquet has 7 rows",
    ),
    "zero-length episode": (
        only_episode_1(lambda table: table[:0]),
        r"file-000\.parquet has no row of set/episode_000001",
    ),
    "missing video": (
        lambda root: episode_rows(root, lambda row: row.update({f"videos/{CAMERA}/file_index": 5})),
        r"file-005\.mp4 does not exist",
    ),
    "missing data": (
        lambda root: episode_rows(root, lambda row: row.update({"data/file_index": 5})),
        r"file-005\.parquet does not exist",
    ),
    "rows elsewhere": (
        lambda root: episode_rows(root, lambda row: row.update({"data/file_index": 1})),
        r"file-001\.parquet has no row of set/episode_000001",
    ),
    "span past the end": (
        lambda root: episode_rows(root, lambda row: row.update({f"videos/{CAMERA}/to_timestamp": 1.9})),
        r"file-000\.mp4 has 6 frames from 1\.3 s until 1\.9 s",
    ),
    "no span": (
        lambda root: episode_rows(root, lambda row: row.update({f"videos/{CAMERA}/from_timestamp": float("nan")})),
        r"episode 1 cannot last from nan s until 2\.2 s",
    ),
    "non-UTF-8 instruction": (
        lambda root: edit(
            root / "meta" / "tasks.parquet",
            lambda table: pa.concat_tables([table[:1], pa.table([[1], not_utf8(b"open \xff")], table.column_names)]),
        ),
        r"tasks\.parquet, task 1, is not UTF-8",
    ),
}


@pytest.mark.parametrize(
    ("write", "damage"),
    [(made.write_v21, damage) for damage in DAMAGE_V21.values()]
    + [(made.write_v30, damage) for damage in DAMAGE_V30.values()],
    ids=[f"v2.1 {name}" for name in DAMAGE_V21] + [f"v3.0 {name}" for name in DAMAGE_V30],
)
def test_damage_costs_one_episode(tmp_path, write, damage):
    root, (harm, reason) = write(tmp_path / "set"), damage
    before = [snapshot(LeRobot(root), i) for i in range(3)]
    harm(root)
    source = LeRobot(root)
    after = [snapshot(source, i) for i in range(len(source))]
    assert not isinstance(before[1], str)
    assert (after[0], after[2]) == (before[0], before[2])
    with pytest.raises(BadEpisode, match=reason):
        raise BadEpisode(after[1])


def test_a_truncated_shared_video_costs_the_episodes_past_the_cut(tmp_path):
    root = made.write_v30(tmp_path / "set")
    frames = np.concatenate([made.images(i, LENGTHS[i]) for i in (0, 1)])
    made.write_video(made.video_v30(root, 0), frames, faststart=True)
    before = [snapshot(LeRobot(root), i) for i in range(3)]
    data = made.video_v30(root, 0).read_bytes()
    made.video_v30(root, 0).write_bytes(data[: int(len(data) * 0.85)])
    after = [snapshot(LeRobot(root), i) for i in range(3)]
    assert (after[0], after[2]) == (before[0], before[2])
    assert isinstance(after[1], str) and "file-000.mp4" in after[1]
