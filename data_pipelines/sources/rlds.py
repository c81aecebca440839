"""RLDS datasets (TFDS, one record an episode), by random access to TFRecord or ArrayRecord. No TensorFlow.

TFDS stores an episode as one tf.train.Example: a feature of each step is a list under its path (`steps/action`), N
values long for byte strings such as encoded images, N x dims for numbers. So a record's frames are found and decoded
one by one. The length of an episode is the length of these lists; `is_last` and other flags are never asked.
"""

from __future__ import annotations

import collections
import glob
import hashlib
import io
import math
import pathlib
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.sources.faults import blamed_on, frame_numbers, read_json, utf8
from data_pipelines.sources.record_files import ArrayRecordFile, RecordFile, TFRecordFile
from data_pipelines.sources.rlds_layouts import LAYOUTS, RldsLayout
from data_pipelines.sources.source import About, LowDim, check_lowdim
from data_pipelines.sources.tf_example import Feature, read_example

_FILES: dict[str, type[TFRecordFile] | type[ArrayRecordFile]] = {
    "tfrecord": TFRecordFile,
    "array_record": ArrayRecordFile,
}
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_CACHED_EPISODES = 16  # records whose features have been found


class Rlds:
    """One split of an RLDS dataset.

    Args:
        directory: the folder of a version, with dataset_info.json and features.json.
        split: such as "train".
        layout: what to read: an `RldsLayout`, the name of one in `LAYOUTS`, or None for that of the dataset's own name.
        check_sums: read an episode's record whole, once, before its first frame, and compare its checksum.

    Raises:
        FileNotFoundError: not a TFDS dataset, or none of its files is there.
        ValueError: an unknown format, split or layout, or a feature that the dataset lacks.
    """

    def __init__(
        self,
        directory,
        split: str = "train",
        layout: RldsLayout | str | None = None,
        *,
        check_sums: bool = True,
    ):
        self.directory = pathlib.Path(directory)
        info, features = (_read_json(self.directory / file) for file in ("dataset_info.json", "features.json"))
        self.name, self.split = str(info.get("name", self.directory.parent.name)), split
        self._wrong: list[str] = []  # of the metadata as a whole
        self._counted: dict[str, set[int]] = {}  # problem -> episodes that have it
        if not isinstance(layout, RldsLayout):
            if (layout or self.name) not in LAYOUTS:
                raise ValueError(
                    f"{self.directory}: no layout is known for {layout or self.name!r}: pass an RldsLayout, or one of "
                    f"{sorted(LAYOUTS)}"
                )
            layout = LAYOUTS[layout or self.name]
        self.layout = layout
        self._widths = self._check_features(dict(_leaves(features, "")))
        self._check_sums = check_sums
        self._files = self._open_files(info)
        self._ends = np.cumsum([len(file) for file in self._files])
        if not len(self):
            raise ValueError(f"{self.directory}: the split {split!r} has no episode")
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._cache: collections.OrderedDict[int, dict[str, Feature]] = collections.OrderedDict()
        self._checked: set[int] = set()

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_cache", "_checked")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()

    def _check_features(self, leaves: dict[str, dict]) -> dict[str, int]:
        """{key: numbers a step} of what the layout names; 0 for images and texts."""
        layout, where, widths = self.layout, self.directory / "features.json", {}
        for key in (*layout.cameras, *layout.state, *layout.action, *layout.instructions):
            if (leaf := leaves.get(f"steps/{key}")) is None:
                raise ValueError(f"{where} has no feature 'steps/{key}', only {sorted(leaves)}")
            if leaf["ragged"] or leaf.get("tensor", {}).get("encoding", "none").lower() != "none":
                raise ValueError(f"{where}: 'steps/{key}' is a sequence or is encoded: such features are not read")
            if (key in layout.cameras) != ("image" in leaf):
                raise ValueError(f"{where}: 'steps/{key}' is {'not ' * (key in layout.cameras)}an image")
            sizes = [int(size) for size in leaf.get("tensor", {}).get("shape", {}).get("dimensions", [])]
            if any(size < 1 for size in sizes):
                raise ValueError(f"{where}: 'steps/{key}' has the shape {sizes}: steps of any size are not read")
            widths[key] = math.prod(sizes) if "tensor" in leaf else 0
        return widths

    def _open_files(self, info: dict) -> list[RecordFile]:
        splits = {str(split.get("name")): split for split in info.get("splits", [])}
        if self.split not in splits:
            raise ValueError(f"{self.directory} has no split {self.split!r}, only {sorted(splits)}")
        kind, split = info.get("fileFormat", "tfrecord"), splits[self.split]
        if kind not in _FILES:
            raise ValueError(f"{self.directory} is in the format {kind!r}; {sorted(_FILES)} are read")
        pattern = split.get("filepathTemplate", _TEMPLATE)
        values = {"DATASET": self.name, "SPLIT": self.split, "FILEFORMAT": kind, "SHARD_X_OF_Y": "*-of-*"}
        for field, value in values.items():
            pattern = pattern.replace(f"{{{field}}}", value if "*" in value else glob.escape(value))
        numbered = {path: _shard_number(path) for path in sorted(self.directory.glob(pattern))}
        if not numbered:
            raise FileNotFoundError(f"{self.directory} has no file {pattern!r}")
        totals = {total for _, total in numbered.values()}
        if len(totals) > 1:
            raise ValueError(f"{self.directory} mixes files of several conversions: {pattern!r} with {sorted(totals)}")
        if len(numbered) != (total := totals.pop()):
            self._wrong.append(f"{len(numbered)} of the {total} files of {self.split!r} are there")
        said = [int(length) for length in split.get("shardLengths", [])]
        files: list[RecordFile] = []
        for path, (number, _) in numbered.items():
            files.append(_FILES[kind](path))
            if number < len(said) and len(files[-1]) != said[number]:
                self._wrong.append(f"{path.name} has {len(files[-1])} episodes, dataset_info.json says {said[number]}")
        return files

    @property
    def problems(self) -> list[str]:
        """What the metadata said that the files do not, that of single episodes counted as far as they were read."""
        counted = [f"{problem} ({len(episodes)} episodes)" for problem, episodes in list(self._counted.items())]
        return self._wrong + counted

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _record(self, i: int) -> tuple[RecordFile, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"episode {i} of {len(self)} episodes of {self.name}/{self.split}")
        file = int(np.searchsorted(self._ends, i, side="right"))
        return self._files[file], int(i - (self._ends[file - 1] if file else 0))

    def _id(self, i: int) -> str:
        """Names the shard and the record: the same when other shards are missing or the format is another."""
        file, record = self._record(i)
        return f"{self.name}/{self.split}-{_shard_number(file.path)[0]:05d}/{record}"

    def _features(self, i: int) -> dict[str, Feature]:
        with self._lock:
            if i in self._cache:
                self._cache.move_to_end(i)
                return self._cache[i]
        file, record = self._record(i)
        try:
            features = read_example(file.read(record))
        except ValueError as error:
            raise ValueError(f"record {record} of {file.path} {error}") from None
        with self._lock:
            self._cache[i] = features
            while len(self._cache) > _CACHED_EPISODES:
                self._cache.popitem(last=False)
        return features

    def _feature(self, i: int, key: str) -> Feature:
        features = self._features(i)
        if key not in features:
            raise ValueError(f"lacks the feature {key!r}")
        return features[key]

    def _images(self, i: int, key: str) -> list[memoryview]:
        images = self._feature(i, f"steps/{key}").byte_strings()
        frames = len(self._feature(i, f"steps/{self.layout.cameras[0]}").byte_strings())
        if not frames:
            raise ValueError("has no steps")
        if len(images) != frames:
            raise ValueError(f"has {len(images)} images in 'steps/{key}' for {frames} steps")
        return images

    def _rows(self, i: int, key: str, frames: int) -> np.ndarray:
        """[N, dims], in the dtype stored."""
        values, width = self._feature(i, f"steps/{key}").numbers(), self._widths[key]
        if len(values) != frames * width:
            raise ValueError(
                f"has {len(values)} numbers in 'steps/{key}', {frames} steps of {width} need {frames * width}"
            )
        return values.reshape(frames, width)

    def _texts(self, i: int, key: str, frames: int) -> list[str]:
        """One a step."""
        feature, what = self._feature(i, f"steps/{key}"), f"'steps/{key}'"
        if feature.kind == "int64":  # code points, filled up with zeros
            texts = ["".join(map(chr, row)).rstrip("\0") for row in self._rows(i, key, frames).tolist()]
        else:
            texts = [utf8(text, what) for text in feature.byte_strings()]
        if len(texts) != frames:
            raise ValueError(f"has {len(texts)} texts in {what} for {frames} steps")
        return texts

    def about(self, i: int) -> About:
        layout, episode = self.layout, self._id(i)
        with blamed_on(episode):
            images = {key: self._images(i, key) for key in layout.cameras}
            frames = len(images[layout.cameras[0]])
            cameras = {_camera(key): _open_image(data[0], key, 0).size[::-1] for key, data in images.items()}
            spoken = [texts for key in layout.instructions if any(texts := self._texts(i, key, frames))]
            metadata = {
                key.partition("/")[2]: _plain_value(feature, key)
                for key, feature in sorted(self._features(i).items())
                if key.startswith("episode_metadata/")
            }
            self._count_lies(i, images, metadata)
            extra: dict[str, Any] = {"episode_metadata": metadata}
            if len(spoken) > 1:
                extra["paraphrases"] = [texts[0] for texts in spoken[1:]]
            if spoken and len(set(spoken[0])) > 1:  # [frame from which it holds, text]
                texts = spoken[0]
                extra["instruction_from"] = [[t, x] for t, x in enumerate(texts) if not t or x != texts[t - 1]]
            success = None
            if layout.success_path:
                success = "success" in str(metadata.get(layout.success_path, ""))
            instruction = spoken[0][0] if spoken else ""
            return About(episode, frames, layout.fps, cameras, instruction, instruction, success, extra)

    def _count_lies(self, i: int, images: dict[str, list[memoryview]], metadata: dict[str, Any]) -> None:
        """Flags that the steps contradict; none of them is used."""
        for key, data in images.items():
            flag = f"has_{_camera(key)}"
            if metadata.get(flag) == 0 and any(image != data[0] for image in data):
                self._counted.setdefault(f"{flag} is false where there are images", set()).add(i)
        ends = self._features(i).get("steps/is_last")
        if ends is not None and ends.kind == "int64" and not ends.numbers()[-1:].any():
            self._counted.setdefault("is_last is not set at the last step", set()).add(i)

    def lowdim(self, i: int) -> LowDim:
        episode = self._id(i)
        with blamed_on(episode):
            frames = len(self._images(i, self.layout.cameras[0]))
            state, action = (
                np.concatenate([self._rows(i, key, frames) for key in keys], 1).astype(np.float32) if keys else None
                for keys in (self.layout.state, self.layout.action)
            )
            return check_lowdim(episode, frames, LowDim(state, action))

    def frames(self, i: int, camera: str, which: Sequence[int]) -> np.ndarray:
        episode, keys = self._id(i), {_camera(key): key for key in self.layout.cameras}
        if camera not in keys:
            raise ValueError(f"{self.name} has no camera {camera!r}, only {sorted(keys)}")
        with blamed_on(episode):
            if self._check_sums and i not in self._checked:
                file, record = self._record(i)
                file.check(record)
                self._checked.add(i)
            key = keys[camera]
            images = self._images(i, key)
            w, h = _open_image(images[0], key, 0).size
            frames = np.empty((len(which), h, w, 3), np.uint8)
            for row, number in enumerate(frame_numbers(which, len(images), episode)):
                image = _open_image(images[number], key, number)
                if image.size != (w, h):
                    raise ValueError(f"'steps/{key}' changes its size to {image.size} at step {number}")
                try:
                    frames[row] = np.asarray(image)
                except (OSError, SyntaxError) as error:
                    raise ValueError(f"'steps/{key}' cannot be decoded at step {number}: {error}") from None
            return frames

    def digest(self, i: int) -> str:
        """SHA-256 of the record of episode i: equal records are one episode, whatever splits they are in."""
        file, record = self._record(i)
        with blamed_on(self._id(i)):
            return hashlib.sha256(file.read(record)).hexdigest()


def _read_json(path: pathlib.Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: open the folder of a version of a TFDS dataset, such as 1.0.0")
    return read_json(path)


def _leaves(node: dict, key: str, sequences: int = 0) -> Iterator[tuple[str, dict]]:
    """(path, description) of the features below a node of features.json; "ragged": a sequence within a step."""
    if "featuresDict" in node:
        for name, child in node["featuresDict"].get("features", {}).items():
            yield from _leaves(child, f"{key}/{name}".lstrip("/"), sequences)
    elif "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], key, sequences + 1)
    else:
        yield key, node | {"ragged": sequences > 1}


def _shard_number(path: pathlib.Path) -> tuple[int, int]:
    """Number and count of shards, as the file's name says."""
    match = re.search(r"-(\d+)-of-(\d+)$", path.name)
    if not match:
        raise ValueError(f"{path} does not end as a shard does, such as -00000-of-00001")
    return int(match[1]), int(match[2])


def _camera(key: str) -> str:
    return key.rpartition("/")[2]


def _open_image(data: memoryview, key: str, step: int) -> Image.Image:
    """The header is read, pixels are decoded when asked for."""
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    except (OSError, SyntaxError, ValueError):
        raise ValueError(f"'steps/{key}' is no JPEG or PNG image at step {step}") from None
    if image.mode != "RGB":
        raise ValueError(f"'steps/{key}' is not RGB but {image.mode} at step {step}")
    return image


def _plain_value(feature: Feature, key: str) -> Any:
    """A feature of an episode as JSON: a text or a number, or a list of them if there is not just one."""
    if feature.kind == "bytes":
        values: list = [utf8(text, repr(key)) for text in feature.byte_strings()]
    else:
        values = feature.numbers().tolist()
    return values[0] if len(values) == 1 else values
