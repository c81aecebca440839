"""Where a LeRobot dataset keeps its episodes: v2.0 and v2.1 in files of their own, v3.0 many in one file."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipelines.sources.source import BadEpisode


@dataclasses.dataclass(frozen=True)
class Span:
    """Where the frames of an episode lie: in the file from `start` until before `stop` seconds; None: all of it."""

    path: pathlib.Path
    start: float | None = None
    stop: float | None = None


class Files(Protocol):
    """The files of the episodes, which are numbered here in the order of their `numbers`."""

    numbers: np.ndarray
    """int64 [E], increasing: `episode_index` of every episode"""
    lengths: np.ndarray
    """int64 [E]: what the metadata says; -1: nothing"""
    shared: bool
    """may the parquet file of an episode hold others too?"""
    keys: list[str]
    """video features that have files; the metadata may name more"""
    problems: list[str]

    def data(self, i: int) -> pathlib.Path:
        """Parquet file of episode i."""
        ...

    def video(self, i: int, key: str) -> Span: ...


def text_of(data: bytes) -> str:
    """Bytes that are not UTF-8 stay in the text as surrogates, for whoever needs this text to refuse it."""
    return data.decode("utf-8", errors="surrogateescape")


def read_lines(path: pathlib.Path, *fields: str) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file; ValueError names the line that is no object or lacks a field."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(text_of(line))
            for field in fields:
                row[field]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number} is not a JSON object with {', '.join(fields)}") from None
        yield row


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise BadEpisode(f"{path} is damaged: {str(error).splitlines()[0]}") from None


def read_table(
    path: pathlib.Path, columns: Sequence[str], *, optional: Sequence[str] = (), episode: int | None = None
) -> pa.Table:
    """Some columns of a parquet file, on one thread.

    Args:
        path: the file.
        columns: must be there.
        optional: are left out if they are not.
        episode: keep only the rows with this `episode_index`, and read only the row groups that may have some.

    Raises:
        BadEpisode: the file is missing or damaged, or lacks a column.
    """
    if not path.is_file():
        raise BadEpisode(f"{path} does not exist")
    wanted = [*columns, *(["episode_index"] if episode is not None else [])]
    with _explained(path), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        missing = [name for name in wanted if name not in names]
        if missing:
            raise BadEpisode(f"{path} lacks the column {missing[0]!r}")
        wanted = list(dict.fromkeys([*wanted, *(name for name in optional if name in names)]))
        if episode is None:
            return file.read(wanted, use_threads=False)
        table = file.read_row_groups(_groups(file.metadata, episode), wanted, use_threads=False)
    return table.filter(pc.equal(table["episode_index"], episode))


def _groups(metadata: pq.FileMetaData, episode: int) -> list[int]:
    """Row groups that may hold rows of the episode, by their statistics."""
    paths = [metadata.schema.column(c).path for c in range(metadata.num_columns)]
    column = paths.index("episode_index")
    groups = []
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(column).statistics
        if statistics is None or not statistics.has_min_max or statistics.min <= episode <= statistics.max:
            groups.append(group)
    return groups


def _with_files(found: dict[str, Any], problems: list[str]) -> list[str]:
    problems += [
        f"meta/info.json declares the video {key!r}, of which there is no file" for key in found if not found[key]
    ]
    return [key for key, files in found.items() if files]


def compare(problems: list[str], info: dict[str, Any], field: str, found: int) -> None:
    """Adds a problem if the field is there and says something else."""
    if info.get(field, found) != found:
        problems.append(f"meta/info.json says {field} {info[field]}, there are {found}")


class _Paths:
    """The path templates of meta/info.json, which may use these numbers and, for videos, `video_key`."""

    def __init__(self, directory: pathlib.Path, info: dict[str, Any], keys: Sequence[str], numbers: Sequence[str]):
        self.directory, self.info_path = directory, directory / "meta" / "info.json"
        self.templates: dict[str, str] = {}
        for field in ["data_path", *(["video_path"] if keys else [])]:
            if not isinstance(info.get(field), str):
                raise ValueError(f"{self.info_path} lacks {field}, the template of paths")
            self.templates[field] = info[field]
            self.fill(field, **dict.fromkeys(numbers, 0), **({"video_key": ""} if field == "video_path" else {}))

    def fill(self, field: str, **values) -> pathlib.Path:
        template = self.templates[field]
        try:
            return self.directory / template.format(**values)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            known = ", ".join(values)
            raise ValueError(f"{self.info_path}: {field} {template!r} must have no other fields than {known}") from None

    def find(self, field: str, **values: str) -> Iterator[pathlib.Path]:
        """The files a template may stand for, the given fields filled in."""
        parts = re.split(r"\{(\w*)[^{}]*\}", self.templates[field])  # text, name, text, ..., text
        parts[1::2] = ["*" if name not in values else glob.escape(values[name]) for name in parts[1::2]]
        return self.directory.glob("".join(parts))


class EpisodeFiles:
    """v2.0 and v2.1: a parquet file an episode, and a video for each of its cameras. The parquet files decide."""

    shared = False

    def __init__(self, directory: pathlib.Path, info: dict[str, Any], keys: Sequence[str]):
        self._paths = _Paths(directory, info, keys, ("episode_chunk", "episode_index"))
        chunk = info.get("chunks_size")
        if not isinstance(chunk, int) or chunk < 1:
            raise ValueError(f"{directory / 'meta' / 'info.json'}: chunks_size must be a positive number, is {chunk!r}")
        self._chunk = chunk
        # A file that lies elsewhere than its number says is not found, and so reported as missing.
        numbers = (
            (int(digits.group()), path)
            for path in self._paths.find("data_path")
            if (digits := re.search(r"\d+$", path.stem))
        )
        found = {number for number, path in numbers if path == self._data(number)}
        if not found:
            template = self._paths.templates["data_path"]
            raise FileNotFoundError(f"{directory} has no episode at {template}, where its meta/info.json puts them")
        self.numbers = np.array(sorted(found), np.int64)
        self.problems: list[str] = []
        videos = {key: sum(1 for _ in self._paths.find("video_path", video_key=key)) for key in keys}
        self.keys = _with_files(videos, self.problems)
        compare(self.problems, info, "total_videos", sum(videos.values()))
        listed = {}
        if (path := directory / "meta" / "episodes.jsonl").is_file():
            listed = {row["episode_index"]: row["length"] for row in read_lines(path, "episode_index", "length")}
            if lacking := len(set(listed) - found):
                self.problems.append(f"meta/episodes.jsonl lists {lacking} episodes that have no parquet file")
            if lacking := len(found - set(listed)):
                self.problems.append(f"meta/episodes.jsonl lacks {lacking} episodes that have a parquet file")
        self.lengths = np.array([listed.get(number, -1) for number in self.numbers.tolist()], np.int64)

    def _data(self, number: int) -> pathlib.Path:
        return self._paths.fill("data_path", episode_chunk=number // self._chunk, episode_index=number)

    def data(self, i: int) -> pathlib.Path:
        return self._data(int(self.numbers[i]))

    def video(self, i: int, key: str) -> Span:
        number = int(self.numbers[i])
        chunk = number // self._chunk
        return Span(self._paths.fill("video_path", episode_chunk=chunk, episode_index=number, video_key=key))


class SharedFiles:
    """v3.0: many episodes in a parquet file and in a video; meta/episodes says which, and where in the video."""

    shared = True

    def __init__(self, directory: pathlib.Path, info: dict[str, Any], keys: Sequence[str]):
        self._paths = _Paths(directory, info, keys, ("chunk_index", "file_index"))
        self._folder = directory / "meta" / "episodes"
        paths = sorted(self._folder.glob("*/*.parquet"))
        if not paths:
            raise FileNotFoundError(f"{self._folder} has no */*.parquet, which says where the episodes lie")
        self.problems: list[str] = []
        with _explained(paths[0]):
            names = pq.read_schema(paths[0]).names
        self.keys = _with_files({key: f"videos/{key}/file_index" in names for key in keys}, self.problems)
        columns = ["episode_index", "data/chunk_index", "data/file_index"]
        for field in ("chunk_index", "file_index", "from_timestamp", "to_timestamp"):
            columns += [f"videos/{key}/{field}" for key in self.keys]
        tables = [read_table(path, columns, optional=["length"]) for path in paths]
        table = pa.concat_tables(tables, promote_options="default").sort_by("episode_index")
        incomplete = [name for name in columns if table[name].null_count]
        if incomplete:
            raise ValueError(f"{self._folder}: an episode has no value of {incomplete[0]}")
        self._columns = {name: table[name].to_numpy() for name in columns}
        self.numbers = self._columns["episode_index"].astype(np.int64)
        if not len(self.numbers):
            raise ValueError(f"{self._folder} lists no episode")
        if (np.diff(self.numbers) == 0).any():
            raise ValueError(f"{self._folder} lists an episode twice")
        self.lengths = np.full(len(table), -1)
        if "length" in table.column_names:
            self.lengths = table["length"].fill_null(-1).to_numpy().astype(np.int64)

    def data(self, i: int) -> pathlib.Path:
        chunk, file = (int(self._columns[f"data/{field}"][i]) for field in ("chunk_index", "file_index"))
        return self._paths.fill("data_path", chunk_index=chunk, file_index=file)

    def video(self, i: int, key: str) -> Span:
        at = {field: self._columns[f"videos/{key}/{field}"][i] for field in ("chunk_index", "file_index")}
        path = self._paths.fill("video_path", video_key=key, **{field: int(value) for field, value in at.items()})
        start, stop = (float(self._columns[f"videos/{key}/{edge}_timestamp"][i]) for edge in ("from", "to"))
        if not 0 <= start <= stop < np.inf:
            number = self.numbers[i]
            raise BadEpisode(f"{self._folder}: episode {number} cannot last from {start} s until {stop} s of {path}")
        return Span(path, start, stop)


def read_tasks(directory: pathlib.Path) -> tuple[pathlib.Path, dict[int, str]]:
    """meta/tasks.jsonl (v2) or meta/tasks.parquet (v3), and what it says: `task_index` -> text. Empty if not there."""
    lines, parquet = directory / "meta" / "tasks.jsonl", directory / "meta" / "tasks.parquet"
    if lines.is_file():
        return lines, {row["task_index"]: row["task"] for row in read_lines(lines, "task_index", "task")}
    if not parquet.is_file():
        return lines, {}
    with _explained(parquet):
        table = pq.read_table(parquet, use_threads=False)
    # The text was the index of a data frame: its column is called `task`, or has the name of an unnamed index.
    texts = [
        field.name for field in table.schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    if "task_index" not in table.column_names or len(texts) != 1:
        raise ValueError(f"{parquet} must have task_index and one column of text, has {table.column_names}")
    text = table[texts[0]].cast(pa.large_binary()).to_pylist()
    return parquet, {i: text_of(t) for i, t in zip(table["task_index"].to_pylist(), text, strict=True)}
