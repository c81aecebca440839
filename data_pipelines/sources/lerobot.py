"""LeRobot datasets of every version (v2.0, v2.1, v3.0), with GR00T's meta/modality.json on top, read in place."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.sources.faults import read_json
from data_pipelines.sources.lerobot_files import (
    EpisodeFiles,
    Files,
    SharedFiles,
    Span,
    compare,
    read_table,
    read_tasks,
    text_of,
)
from data_pipelines.sources.modality import Modality, Part
from data_pipelines.sources.source import About, BadEpisode, LowDim, check_lowdim
from data_pipelines.sources.video import FrameIndex, Videos

VERSIONS = ("v2.0", "v2.1", "v3.0")
_SAME_RATE = 0.01  # relative
_BOOKKEEPING = ("episode_index", "frame_index", "timestamp", "next.success")


class LeRobot:
    """A LeRobot dataset in its directory, as a `Source`.

    Frames are found by their number: row t of an episode belongs to its t-th frame, whatever the column `timestamp`
    says, and an episode whose videos have another number of frames than its parquet file has rows is a BadEpisode.

    With a meta/modality.json, cameras have the names it gives, and state and action are its slices. Without one,
    cameras are named by their feature, and state and action are the columns `observation.state` and `action`.

    Args:
        directory: holds meta/info.json.
        state: names of slices, or of whole columns, joined in this order; None: all slices, or the standard column,
            or no state where the dataset declares none. () for no state.
        action: likewise.
        instruction: the column (or annotation of modality.json) with the instruction, as text or as number of a task;
            None: the dataset has no language.

    Attributes:
        state_parts: name -> slice of the joined state vector.
        action_parts: likewise of the action.

    Raises:
        FileNotFoundError: no LeRobot dataset there.
        ValueError: its metadata cannot be used, or names something that is not there.
    """

    def __init__(
        self,
        directory,
        *,
        state: Sequence[str] | None = None,
        action: Sequence[str] | None = None,
        instruction: str | None = "task_index",
    ):
        self.directory = pathlib.Path(directory)
        self.name = self.directory.resolve().name
        self._info_path = self.directory / "meta" / "info.json"
        if not self._info_path.is_file():
            raise FileNotFoundError(f"{self.directory} is no LeRobot dataset: it has no meta/info.json")
        info = read_json(self._info_path)
        version = info.get("codebase_version")
        if version not in VERSIONS:
            raise ValueError(f"{self._info_path}: codebase_version is {version!r}, readable are {', '.join(VERSIONS)}")
        self._features = _features(self._info_path, info)
        fps = info.get("fps")
        if not isinstance(fps, int | float) or not fps > 0:
            raise ValueError(f"{self._info_path}: fps must be a positive number, is {fps!r}")
        self._fps = float(fps)
        keys = [key for key, feature in self._features.items() if feature["dtype"] == "video"]
        layout = SharedFiles if version == "v3.0" else EpisodeFiles
        self._files: Files = layout(self.directory, info, keys)
        self._tasks_path, self._tasks = read_tasks(self.directory)
        self._videos = Videos()
        self._counted: dict[str, set[int]] = {}  # problem -> episodes that have it

        path = self.directory / "meta" / "modality.json"
        self._modality = modality = Modality(path, read_json(path) if path.is_file() else {}, self._features)
        self._cameras = modality.cameras(self._files.keys)
        self._parts = {
            "state": modality.parts("state", state),
            "action": modality.parts("action", action),
        }
        self.state_parts, self.action_parts = (_slices(self._parts[what]) for what in ("state", "action"))
        self._annotations = modality.annotations
        self._instruction = self._annotations.get(instruction, instruction) if instruction else None
        if self._instruction is not None and self._instruction not in self._features:
            raise ValueError(
                f"{self._info_path} declares no column {self._instruction!r} for the instruction: name another, or None"
            )
        lengths = self._files.lengths
        self._wrong = list(self._files.problems)  # of the metadata as a whole
        compare(self._wrong, info, "total_episodes", len(self))
        compare(self._wrong, info, "total_tasks", len(self._tasks))
        if (lengths >= 0).all():
            compare(self._wrong, info, "total_frames", int(lengths.sum()))

    def __len__(self) -> int:
        return len(self._files.numbers)

    @property
    def problems(self) -> list[str]:
        """What the metadata said that the files do not, those of single episodes counted as far as they were read."""
        counted = [f"{problem} ({len(episodes)} episodes)" for problem, episodes in list(self._counted.items())]
        return self._wrong + counted

    def _count(self, i: int, problem: str) -> None:
        self._counted.setdefault(problem, set()).add(i)

    def _episode(self, i: int) -> str:
        return f"{self.name}/episode_{self._files.numbers[i]:06d}"

    def _table(self, i: int, columns: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
        number = int(self._files.numbers[i]) if self._files.shared else None
        return read_table(self._files.data(i), columns, optional=optional, episode=number)

    def _video(self, i: int, camera: str) -> tuple[Span, FrameIndex]:
        span = self._files.video(i, self._cameras[camera])
        return span, self._videos.index(span.path, span.start, span.stop)

    def about(self, i: int) -> About:
        """Also compares the episode's files with each other and with the metadata: see `problems`."""
        path = self._files.data(i)
        language = [self._instruction] if self._instruction else []
        table = self._table(i, language, [*_BOOKKEEPING, *self._annotations.values()])
        N = len(table)
        if not N:
            raise BadEpisode(f"{path} has no row of {self._episode(i)}")
        self._check_rows(i, table)
        indices = {}
        for camera in self._cameras:
            span, indices[camera] = self._video(i, camera)
            if len(indices[camera]) != N:
                stretch = "" if span.start is None else f" from {span.start:.6g} s until {span.stop:.6g} s"
                raise BadEpisode(f"{span.path} has {len(indices[camera])} frames{stretch}, {path} has {N} rows")
        extra: dict[str, Any] = {"annotations": self._annotated(i, table)}
        instructions = self._texts(path, table, self._instruction) if self._instruction else [(0, "")]
        labels = {text for name, text in extra["annotations"].items() if name.endswith("validity")}
        if labels & {text for _, text in instructions}:
            raise BadEpisode(f"{path}: the instruction, of {self._instruction!r}, is a validity label")
        if len(instructions) > 1:
            self._count(i, "an instruction that changes within the episode; the first one stands for the whole")
            extra["instructions"] = [list(change) for change in instructions]
        success = _numbers(table, "next.success")
        return About(
            episode=self._episode(i),
            frames=N,
            fps=self._rate(i, table, indices.values()),
            cameras={camera: index.size for camera, index in indices.items()},
            instruction=instructions[0][1],
            task=instructions[0][1],
            success=None if success is None else bool(success.any()),
            extra=extra,
        )

    def lowdim(self, i: int) -> LowDim:
        columns = {part.column for parts in self._parts.values() for part in parts}
        path, table = self._files.data(i), self._table(i, sorted(columns))
        matrices = {column: _matrix(path, table, column, self._modality.width(column)) for column in columns}
        joined = {
            what: np.concatenate([matrices[part.column][:, part.start : part.stop] for part in parts], 1)
            for what, parts in self._parts.items()
            if parts
        }
        return check_lowdim(self._episode(i), len(table), LowDim(joined.get("state"), joined.get("action")))

    def frames(self, i: int, camera: str, which: Sequence[int]) -> np.ndarray:
        if camera not in self._cameras:
            raise ValueError(f"{self.name} has no camera {camera!r}, only {', '.join(self._cameras) or 'none'}")
        span, index = self._video(i, camera)
        return self._videos.read(span.path, index, which)

    def _check_rows(self, i: int, table: pa.Table) -> None:
        path, N, frame = self._files.data(i), len(table), _numbers(table, "frame_index")
        if frame is not None and not np.array_equal(frame, np.arange(N)):
            raise BadEpisode(f"{path}: frame_index of {self._episode(i)} does not count its rows from 0")
        number = _numbers(table, "episode_index")
        if number is not None and (number != self._files.numbers[i]).any():
            self._count(i, "episode_index is not the number in the name of the parquet file")
        if self._files.lengths[i] not in (-1, N):
            self._count(i, "the metadata gives another length than the parquet file has")
        time = _numbers(table, "timestamp")
        if time is not None and abs(time[0]) > 0.5 / self._fps:
            self._count(i, "timestamp does not begin at 0")

    def _rate(self, i: int, table: pa.Table, indices: Iterable[FrameIndex]) -> float:
        """Of the control steps: as declared, unless timestamps and videos agree on another."""
        rates = [index.fps for index in indices if index.fps]
        time = _numbers(table, "timestamp")
        if time is not None and len(time) > 1 and time[-1] > time[0]:
            rates.append((len(time) - 1) / float(time[-1] - time[0]))
        if all(abs(rate / self._fps - 1) < _SAME_RATE for rate in rates):
            return self._fps
        listed = ", ".join(sorted({f"{rate:.4g}" for rate in rates}))
        self._count(i, f"meta/info.json says {self._fps:.4g} fps, videos and timestamps say {listed}")
        agreed = max(rates) / min(rates) - 1 < _SAME_RATE
        return round(rates[0], 3) if agreed else self._fps

    def _annotated(self, i: int, table: pa.Table) -> dict[str, str]:
        """Name -> text of every annotation, at the first frame."""
        found = {}
        for name, column in self._annotations.items():
            if column not in table.column_names:
                self._count(i, f"the annotation {name!r} of meta/modality.json has no column {column!r}")
                continue
            try:
                found[name] = self._texts(self._files.data(i), table, column)[0][1]
            except BadEpisode:
                if column == self._instruction:
                    raise
                self._count(i, f"the annotation {name!r} holds no text")
                continue
            if name.endswith("validity") and found[name] in self._tasks.values():
                tasks = self._tasks_path.relative_to(self.directory)
                self._count(i, f"{tasks} lists {found[name]!r}, a label of the annotation {name!r}, as a task")
        return found

    def _texts(self, path: pathlib.Path, table: pa.Table, column: str) -> list[tuple[int, str]]:
        """(first row, text) of every stretch of rows with the same text; the column holds texts or numbers of tasks."""
        values, kind = table[column], table.schema.field(column).type
        if values.null_count:
            raise BadEpisode(f"{path}: {column!r} lacks a value in some row")
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            rows = [text_of(data) for data in values.cast(pa.large_binary()).to_pylist()]
        elif pa.types.is_integer(kind):
            rows = values.to_pylist()
        else:
            raise BadEpisode(f"{path}: {column!r} must hold texts or numbers of tasks, holds {kind}")
        changes = [t for t in range(len(rows)) if t == 0 or rows[t] != rows[t - 1]]
        texts = []
        for value in (rows[t] for t in changes):
            text = value if isinstance(value, str) else self._tasks.get(value)
            if not isinstance(text, str):
                raise BadEpisode(f"{path}: {column!r} names the task {value}, which {self._tasks_path} lacks")
            if not _is_utf8(text):
                where = f"{self._tasks_path}, task {value}," if isinstance(value, int) else f"{path}: {column!r}"
                raise BadEpisode(f"{where} is not UTF-8: {text!r}")
            texts.append(text)
        return list(zip(changes, texts, strict=True))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _numbers(table: pa.Table, column: str) -> np.ndarray | None:
    """[N] of a column of plain numbers; None if it is not there or something else."""
    if column not in table.column_names or table[column].null_count:
        return None
    values = table[column].to_numpy()
    return values if values.dtype.kind in "biuf" else None


def _matrix(path: pathlib.Path, table: pa.Table, column: str, width: int) -> np.ndarray:
    """f32 [N, width] of a column of vectors, or of plain numbers where the width is 1."""
    values, found = table[column].combine_chunks(), {1}
    nulls = values.null_count
    if pa.types.is_nested(values.type):
        found = set(pc.list_value_length(values).drop_null().unique().to_pylist())
        values = values.flatten()
        nulls += values.null_count
    if nulls:
        raise BadEpisode(f"{path}: {column!r} lacks a value in some row")
    if not pa.types.is_integer(values.type) and not pa.types.is_floating(values.type):
        raise BadEpisode(f"{path}: {column!r} must hold numbers, holds {table.schema.field(column).type}")
    if len(table) and found != {width}:
        raise BadEpisode(f"{path}: {column!r} has rows of {sorted(found)} numbers, meta/info.json says {width}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
        return values.to_numpy(zero_copy_only=False).reshape(len(table), width).astype(np.float32)


def _features(path: pathlib.Path, info: Mapping[str, Any]) -> dict[str, Any]:
    features = info.get("features")
    if not isinstance(features, dict):
        raise ValueError(f"{path} lacks features")
    for name, feature in features.items():
        if not isinstance(feature, dict) or "dtype" not in feature or not isinstance(feature.get("shape"), list):
            raise ValueError(f"{path}: the feature {name!r} must have a dtype and a shape")
    return features


def _slices(parts: Sequence[Part]) -> dict[str, slice]:
    ends = np.cumsum([part.stop - part.start for part in parts]).tolist()
    return {part.name: slice(end - (part.stop - part.start), end) for part, end in zip(parts, ends, strict=True)}
