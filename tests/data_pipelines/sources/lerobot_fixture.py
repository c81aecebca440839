"""Writes small LeRobot datasets in the layouts of v2.1 and v3.0: the tests' own copies of what the formats say."""

import json
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.sources.source import BadEpisode

CAMERA = "observation.images.front"
FPS = 10
LENGTHS = (13, 9, 17)
TASKS = ("pick up the cup", "open the drawer", "pick up the cup")
STATE, ACTION = 3, 2


def images(seed, count, h=48, w=64):
    """Moving gradients: every frame differs, and survives a codec."""
    t, y, x = np.arange(count)[:, None, None], np.arange(h)[:, None], np.arange(w)
    planes = [(x * 3 + 17 * t + 40 * seed), (y * 4 + 29 * t), (x + y + 5 * t * seed)]
    return np.stack([np.broadcast_to(plane, (count, h, w)) for plane in planes], -1).astype(np.uint8)


def write_video(path, frames, *, codec="libx264", gop=6, fps=FPS, faststart=False, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream(codec, rate=fps, options={"g": str(gop), **options})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        stream.codec_context.time_base = Fraction(1, fps)
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def decode(path):
    """Every frame in order, the plain way, on one thread."""
    with av.open(str(path)) as container:
        return np.stack([frame.reformat(format="rgb24", threads=1).to_ndarray() for frame in container.decode(video=0)])


def vectors(episode):
    rng = np.random.default_rng(episode)
    return rng.normal(size=(LENGTHS[episode], STATE)), rng.normal(size=(LENGTHS[episode], ACTION))


def table(episode, first=0):
    state, action = vectors(episode)
    N = LENGTHS[episode]
    return pa.table(
        {
            "observation.state": pa.array(state.astype(np.float32).tolist(), pa.list_(pa.float32())),
            "action": pa.array(action.astype(np.float32).tolist(), pa.list_(pa.float32())),
            "timestamp": pa.array(np.arange(N, dtype=np.float32) / FPS),
            "frame_index": pa.array(np.arange(N)),
            "episode_index": pa.array(np.full(N, episode)),
            "index": pa.array(first + np.arange(N)),
            "task_index": pa.array(np.full(N, list(dict.fromkeys(TASKS)).index(TASKS[episode]))),
        }
    )


def info(version, **changes):
    columns = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64"}
    features = {
        CAMERA: {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": [STATE], "names": None},
        "action": {"dtype": "float32", "shape": [ACTION], "names": None},
        **{name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in columns.items()},
        "task_index": {"dtype": "int64", "shape": [1], "names": None},
    }
    return {
        "codebase_version": version,
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": len(set(TASKS)),
        "chunks_size": 1000,
        "fps": FPS,
        "features": features,
        **changes,
    }


def write_json(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_v21(root, **changes):
    """One parquet file and one video an episode."""
    paths = {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "total_videos": len(LENGTHS),
    }
    write_json(root / "meta" / "info.json", info("v2.1", **paths | changes))
    write_lines(
        root / "meta" / "tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(dict.fromkeys(TASKS))]
    )
    rows = [{"episode_index": i, "tasks": [TASKS[i]], "length": n} for i, n in enumerate(LENGTHS)]
    write_lines(root / "meta" / "episodes.jsonl", rows)
    (root / "data" / "chunk-000").mkdir(parents=True)
    for i, n in enumerate(LENGTHS):
        pq.write_table(table(i), data_v21(root, i))
        write_video(video_v21(root, i), images(i, n))
    return root


def data_v21(root, i):
    return root / "data" / "chunk-000" / f"episode_{i:06d}.parquet"


def video_v21(root, i):
    return root / "videos" / "chunk-000" / CAMERA / f"episode_{i:06d}.mp4"


def write_v30(root, *, files=(0, 0, 1), **changes):
    """Episode i lies in data and video file `files[i]`; a group of pictures may span two episodes."""
    paths = {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    write_json(root / "meta" / "info.json", info("v3.0", **paths | changes))
    tasks = list(dict.fromkeys(TASKS))
    texts = pa.table({"task_index": pa.array(range(len(tasks))), "__index_level_0__": pa.array(tasks)})
    pq.write_table(texts, root / "meta" / "tasks.parquet")
    rows = []
    for file in sorted(set(files)):
        members = [i for i in range(len(LENGTHS)) if files[i] == file]
        data_v30(root, file).parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(data_v30(root, file), table(0).schema) as writer:
            for i in members:
                writer.write_table(table(i, first=sum(LENGTHS[:i])))
        write_video(video_v30(root, file), np.concatenate([images(i, LENGTHS[i]) for i in members]))
        at = 0
        for i in members:
            first = sum(LENGTHS[:i])
            rows.append(
                {
                    "episode_index": i,
                    "tasks": [TASKS[i]],
                    "length": LENGTHS[i],
                    "dataset_from_index": first,
                    "dataset_to_index": first + LENGTHS[i],
                    "data/chunk_index": 0,
                    "data/file_index": file,
                    f"videos/{CAMERA}/chunk_index": 0,
                    f"videos/{CAMERA}/file_index": file,
                    f"videos/{CAMERA}/from_timestamp": at / FPS,
                    f"videos/{CAMERA}/to_timestamp": (at + LENGTHS[i]) / FPS,
                    "stats/action/mean": [0.0] * ACTION,
                }
            )
            at += LENGTHS[i]
    write_episodes(root, rows)
    return root


def episodes_v30(root):
    return root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"


def write_episodes(root, rows):
    episodes_v30(root).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), episodes_v30(root))


def data_v30(root, file):
    return root / "data" / "chunk-000" / f"file-{file:03d}.parquet"


def video_v30(root, file):
    return root / "videos" / CAMERA / "chunk-000" / f"file-{file:03d}.mp4"


def snapshot(source, i):
    """All that an episode gives, or the reason why it gives nothing."""
    try:
        about, lowdim = source.about(i), source.lowdim(i)
        return (
            about,
            lowdim.state.tobytes(),
            lowdim.action.tobytes(),
            source.frames(i, CAMERA, range(about.frames)).tobytes(),
        )
    except BadEpisode as error:
        return str(error)


def edit(path, change):
    """Rewrites a parquet file through `change(table) -> table`."""
    pq.write_table(change(pq.read_table(path)), path)


def replace(table, name, values):
    return table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))
