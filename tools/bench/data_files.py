"""The files that both sides of the data bench read, made from one LeRobot dataset (the GR-1 sample of v2.0).

`write_lerobot`: v3.0, all episodes in one parquet file and one video, as LeRobot's converter lays them out; the
published packets as they are (h264, a keyframe every 250 frames), or encoded anew as LeRobot's recorder does when told
vcodec=h264 (a keyframe every 2 frames, crf 30). `write_rlds`: what TFDS stores, JPEG frames, one record an episode.
`write_store`: ours.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_pipelines.datasets import get_dataset
from data_pipelines.embodiments import get_embodiment
from data_pipelines.episode import Episode
from data_pipelines.ingest import ingest
from data_pipelines.ingest_plan import IngestConfig
from data_pipelines.shards import ShardWriter
from data_pipelines.sources.source import Source
from data_pipelines.store import finish_store

DATASET, NAME, CAMERA = "gr1", "bench", "ego_view"
FEATURE = f"observation.images.{CAMERA}"
FPS = 20
JPEG_QUALITY = 95  # TFDS' own
RECORDER = {"g": "2", "crf": "30"}
_LONG = 500  # steps of an episode of `write_long_store`


def open_sample(path: Path) -> Source:
    return get_dataset(DATASET).open(path)


def write_lerobot(sample: Path, out: Path, *, recorded: bool) -> None:
    """A dataset of v3.0 in `out`; `recorded`: its video encoded anew, see above."""
    source = open_sample(sample)
    abouts = [source.about(i) for i in range(len(source))]
    tasks = list(dict.fromkeys(about.instruction for about in abouts))
    tables, rows, first = [], [], 0
    for i, about in enumerate(abouts):
        lowdim, N = source.lowdim(i), about.frames
        assert lowdim.state is not None
        assert lowdim.action is not None
        tables.append(pa.table({
            "observation.state": pa.array(list(lowdim.state), pa.list_(pa.float32())),
            "action": pa.array(list(lowdim.action), pa.list_(pa.float32())),
            "timestamp": pa.array(np.arange(N, dtype=np.float32) / FPS),
            "frame_index": pa.array(np.arange(N)),
            "episode_index": pa.array(np.full(N, i)),
            "index": pa.array(first + np.arange(N)),
            "task_index": pa.array(np.full(N, tasks.index(about.instruction))),
        }))  # fmt: skip
        rows.append({
            "episode_index": i, "tasks": [about.instruction], "length": N,
            "dataset_from_index": first, "dataset_to_index": first + N,
            "data/chunk_index": 0, "data/file_index": 0,
            f"videos/{FEATURE}/chunk_index": 0, f"videos/{FEATURE}/file_index": 0,
            f"videos/{FEATURE}/from_timestamp": first / FPS, f"videos/{FEATURE}/to_timestamp": (first + N) / FPS,
        })  # fmt: skip
        first += N
    size = abouts[0].cameras[CAMERA]
    _write_table(out / "data" / "chunk-000" / "file-000.parquet", pa.concat_tables(tables))
    _write_table(out / "meta" / "episodes" / "chunk-000" / "file-000.parquet", pa.Table.from_pylist(rows))
    _write_table(out / "meta" / "tasks.parquet", _task_table(tasks))
    dims = {"observation.state": tables[0]["observation.state"], "action": tables[0]["action"]}
    numbers = {
        "timestamp": "float32",
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64"),
    }
    info = {
        "codebase_version": "v3.0", "robot_type": "GR1", "fps": FPS, "chunks_size": 1000,
        "total_episodes": len(rows), "total_frames": first, "total_tasks": len(tasks), "splits": {},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            FEATURE: {"dtype": "video", "shape": [*size, 3], "names": ["height", "width", "channel"]},
            **{key: {"dtype": "float32", "shape": [len(column[0])], "names": None} for key, column in dims.items()},
            **{key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in numbers.items()},
        },
    }  # fmt: skip
    (out / "meta" / "info.json").write_text(json.dumps(info))
    video = out / "videos" / FEATURE / "chunk-000" / "file-000.mp4"
    video.parent.mkdir(parents=True)
    if recorded:
        _record(video, size, (source.frames(i, CAMERA, range(about.frames)) for i, about in enumerate(abouts)))
    else:
        _join(video, sorted((sample / "videos").glob(f"*/{FEATURE}/*.mp4")), [about.frames for about in abouts])


def _task_table(tasks: Sequence[str]) -> pa.Table:
    """LeRobot reads it with pandas, as a frame whose index are the texts: what Arrow keeps of one, without pandas."""
    index = "__index_level_0__"
    columns = [{"name": name, "field_name": field, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
               for name, field, kind, dtype in (("task_index", "task_index", "int64", "int64"),
                                                (None, index, "unicode", "object"))]  # fmt: skip
    pandas = {"index_columns": [index], "column_indexes": [], "columns": columns}
    table = pa.table({"task_index": pa.array(range(len(tasks))), index: pa.array(tasks)})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _join(out: Path, paths: Sequence[Path], frames: Sequence[int]) -> None:
    """The packets of all videos in one file, unchanged, one after the other."""
    offset = 0
    with av.open(str(out), "w") as container:
        stream = None
        for path, count in zip(paths, frames, strict=True):
            with av.open(str(path)) as part:
                own = part.streams.video[0]
                stream = stream or container.add_stream_from_template(own)
                assert own.time_base
                ticks = Fraction(1, FPS) / own.time_base
                assert ticks.denominator == 1
                for packet in part.demux(own):
                    if packet.size:
                        assert packet.pts is not None
                        assert packet.dts is not None
                        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                        packet.stream = stream
                        container.mux(packet)
            offset += count * int(ticks)


def _record(out: Path, size: tuple[int, int], episodes: Iterator[np.ndarray]) -> None:
    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=RECORDER)
        (stream.height, stream.width), stream.pix_fmt, count = size, "yuv420p", 0
        stream.codec_context.thread_count = 1
        for images in episodes:
            for image in images:
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = count, Fraction(1, FPS)
                count += 1
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_rlds(sample: Path, out: Path) -> dict[str, Any]:
    """What TFDS says of a dataset, in `out`, and arrays.npz, of which `peers.tf_data` writes the records.

    Returns:
        {"arrays": path, "episodes": frames of each, "state_dim", "action_dim"}.
    """
    source, arrays = open_sample(sample), {}
    lengths = []
    for i in range(len(source)):
        about, lowdim = source.about(i), source.lowdim(i)
        images = [_jpeg(image) for image in source.frames(i, CAMERA, range(about.frames))]
        arrays |= {
            f"images{i}": np.frombuffer(b"".join(images), np.uint8),
            f"sizes{i}": np.array([len(image) for image in images]),
            f"state{i}": lowdim.state,
            f"action{i}": lowdim.action,
            f"instruction{i}": np.array(about.instruction),
        }
        lengths.append(about.frames)
    out.mkdir(parents=True)
    np.savez(out / "arrays.npz", frames=np.array(lengths), **arrays)
    dims = {what: int(arrays[f"{what}0"].shape[1]) for what in ("state", "action")}

    def node(**features: Any) -> dict[str, Any]:
        return {"featuresDict": {"features": features}}

    def numbers(dim: int) -> dict[str, Any]:
        return {"tensor": {"shape": {"dimensions": [str(dim)]}, "dtype": "float32", "encoding": "none"}}

    image = {"image": {"dtype": "uint8", "encodingFormat": "jpeg"}}
    observation = node(**{CAMERA: image, "state": numbers(dims["state"])})
    step = node(observation=observation, action=numbers(dims["action"]), language_instruction={"text": {}})
    steps = {"pythonClassName": "...dataset_feature.Dataset", "sequence": {"feature": step, "length": "-1"}}
    (out / "features.json").write_text(json.dumps(node(steps=steps)))
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split = {"filepathTemplate": template, "name": "train", "shardLengths": [str(len(lengths))]}
    info = {"fileFormat": "tfrecord", "name": NAME, "splits": [split], "version": "1.0.0"}
    (out / "dataset_info.json").write_text(json.dumps(info))
    return {"arrays": str(out / "arrays.npz"), "episodes": lengths, "state_dim": dims["state"],
            "action_dim": dims["action"]}  # fmt: skip


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def write_store(sample: Path, out: Path, size: int) -> Path:
    """The store that `experiments.ingest` makes of the sample with its own settings, all of it for training."""
    config = IngestConfig(DATASET, str(sample), (size, size), validation=0.0)
    ingest(out, NAME, config, processes=2, progress=False)
    return out / "train" / NAME


class _NoVideo:
    """Stands for the codec of a store of which only states and actions are read."""

    facts: dict[str, Any] = {"name": "none"}  # noqa: RUF012

    def encode(self, frames: np.ndarray) -> list[bytes]:
        return [b""] * len(frames)


def write_long_store(out: Path, steps: int) -> Path:
    """About `steps` control steps of the GR-1 robot, 44 states and 44 actions each, and a frame of nothing each."""
    robot, rng = get_embodiment("gr1"), np.random.default_rng(0)
    noise = rng.normal(size=(_LONG + 1, robot.state_dim)).astype(np.float32)
    frames = np.broadcast_to(np.zeros((1, 1, 1, 1), np.uint8), (_LONG, 8, 8, 3))
    store, count = out / "long", -(-steps // _LONG)
    with ShardWriter(store, "00000", clip_steps=240, overlap_steps=80, codec=_NoVideo()) as shard:  # type: ignore[arg-type]
        for i in range(count):
            state = noise + np.float32(i / count)
            meta = {
                "episode": f"{i:06d}", "task": "none", "instruction": "", "embodiment": robot.name, "kind": "robot",
                "layout": None, "control_hz": robot.control_hz, "success_step": -1,
            }  # fmt: skip
            shard.add(Episode({CAMERA: frames}, np.arange(_LONG, dtype=np.int32), state, state[1:],
                              np.ones(_LONG, np.bool_), meta))  # fmt: skip
    finish_store(store, embodiment=robot)
    return store
