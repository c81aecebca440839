"""RLDS as it is usually read: TFRecord of whole episodes through `tf.data`, windows cut before frames are decoded.

python -m tools.bench.peers.tf_data SPEC.json      # started by the bench, with an interpreter that has TensorFlow

Also writes the records, so that they are TensorFlow's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tools.bench.data_side import serve

CAMERA, STATE, ACTION = "steps/observation/ego_view", "steps/observation/state", "steps/action"


def write_records(arrays: str, path: Path) -> None:
    """One tf.train.Example an episode, from what `data_files.episodes` saved."""
    with np.load(arrays) as data, tf.io.TFRecordWriter(str(path)) as writer:
        for i in range(len(data["frames"])):
            ends = np.cumsum(data[f"sizes{i}"])
            images = data[f"images{i}"].tobytes()
            frames = [images[end - size : end] for size, end in zip(data[f"sizes{i}"], ends, strict=True)]
            text = str(data[f"instruction{i}"]).encode()
            feature = {
                CAMERA: tf.train.Feature(bytes_list=tf.train.BytesList(value=frames)),
                "steps/language_instruction": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[text] * len(frames))
                ),
            }
            for key, name in ((STATE, "state"), (ACTION, "action")):
                values = data[f"{name}{i}"].ravel()
                feature[key] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


class RldsLoader:
    """A `data_side.Loader`: shuffled episodes, interleaved; of each a shuffled order of windows."""

    def __init__(self, spec: dict[str, Any]):
        self.spec, self.episodes = spec, spec["episodes"]
        path = Path(spec["path"]) / "bench-train.tfrecord-00000-of-00001"
        if not path.exists():
            write_records(spec["arrays"], path)
        self.path, self.ends = str(path), np.cumsum(self.episodes)
        self.note = (
            f"tf.data of TensorFlow {tf.__version__}: episodes parsed whole, interleaved, windows decoded in parallel "
            "maps, one thread a core"
        )

    def _parse(self, record: tf.Tensor) -> dict[str, tf.Tensor]:
        def sequence(shape: tuple[int, ...], dtype: tf.DType) -> tf.io.FixedLenSequenceFeature:
            return tf.io.FixedLenSequenceFeature(shape, dtype, allow_missing=True)

        return tf.io.parse_single_example(record, {
            CAMERA: sequence((), tf.string),
            STATE: sequence((self.spec["state_dim"],), tf.float32),
            ACTION: sequence((self.spec["action_dim"],), tf.float32),
            "steps/language_instruction": sequence((), tf.string),
        })  # fmt: skip

    def _cut(self, episode: dict[str, tf.Tensor], first: tf.Tensor) -> dict[str, tf.Tensor]:
        last = tf.shape(episode[CAMERA], out_type=tf.int64)[0] - 1
        frames = tf.minimum(first + tf.range(self.spec["frames"], dtype=tf.int64), last)
        steps = first + tf.range(self.spec["horizon"], dtype=tf.int64)
        return {
            "video": tf.gather(episode[CAMERA], frames),
            "state": episode[STATE][first],
            "action": tf.gather(episode[ACTION], tf.minimum(steps, last)),
            "action_mask": steps <= last,
            "instruction": episode["steps/language_instruction"][first],
        }

    def _decode(self, window: dict[str, tf.Tensor], resized: bool = True) -> dict[str, tf.Tensor]:
        # Written out rather than mapped: a tf.map_fn costs more than it spares.
        video = tf.stack([tf.io.decode_jpeg(window["video"][i], channels=3) for i in range(self.spec["frames"])])
        if resized:
            size = (self.spec["size"], self.spec["size"])
            video = tf.image.resize(video, size, method="bilinear", antialias=True)
            video = tf.cast(tf.clip_by_value(tf.round(video), 0, 255), tf.uint8)
        return window | {"video": video}

    @contextlib.contextmanager
    def batches(self, cores: int) -> Iterator[Iterator[Any]]:
        options = tf.data.Options()
        options.threading.private_threadpool_size = cores
        options.threading.max_intra_op_parallelism = 1
        options.deterministic = False

        def windows(episode: dict[str, tf.Tensor]) -> tf.data.Dataset:
            count = tf.shape(episode[CAMERA], out_type=tf.int64)[0]
            order = tf.data.Dataset.range(count).shuffle(count)
            return order.map(lambda first: self._cut(episode, first))

        episodes = tf.data.TFRecordDataset([self.path]).repeat().shuffle(len(self.episodes)).map(self._parse)
        data = episodes.interleave(windows, cycle_length=len(self.episodes), block_length=1)
        data = data.shuffle(64).map(self._decode, num_parallel_calls=cores)
        yield data.batch(self.spec["batch"]).prefetch(2).with_options(options).as_numpy_iterator()

    def clip(self, window: int, resized: bool) -> np.ndarray:
        i = int(np.searchsorted(self.ends, window, side="right"))
        record = next(iter(tf.data.TFRecordDataset([self.path]).skip(i)))
        first = window - (int(self.ends[i - 1]) if i else 0)
        cut = self._cut(self._parse(record), tf.constant(first, tf.int64))
        return self._decode(cut, resized)["video"].numpy()


if __name__ == "__main__":
    serve(RldsLoader)
