"""Folders of plain video without actions: whole files with captions beside them, or clips that a csv table lists."""

from __future__ import annotations

import collections
import csv
import dataclasses
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from data_pipelines.sources.faults import blamed_on, natural, utf8
from data_pipelines.sources.source import About, LowDim
from data_pipelines.sources.video import FrameIndex, Videos

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")


@dataclasses.dataclass(frozen=True)
class ClipColumns:
    """Columns of a table of clips."""

    video: str = "video"
    """file name, with or without its folder and suffix"""
    start: str = "start"
    """seconds, or hours:minutes:seconds"""
    end: str = "end"
    caption: str | None = "caption"


EPIC_KITCHENS = ClipColumns("video_id", "start_timestamp", "stop_timestamp", "narration")


@dataclasses.dataclass(frozen=True)
class _Clip:
    """One episode as the folder or the table has it, not yet looked at."""

    episode: str
    video: str
    start: str | None = None
    end: str | None = None
    caption: str | None = None
    """None: in a .txt file beside the video, if there is one"""


class VideoFolder:
    """Every video below a folder as an episode, or every row of a table of clips.

    A caption is the table's, or the text of `<video>.txt` beside `<video>.mp4`; without one the instruction is empty.
    `LowDim.extra["time"]` are the seconds f32 [N] at which the frames are shown, from the first one.

    Args:
        directory: where the videos are, at any depth.
        clips: a csv table with a header, one row a clip from `start` to before `end`.
        columns: its columns; Ego4D's tables differ, so name them.
        camera: what the camera is called.

    Raises:
        FileNotFoundError: no video below the folder, or no table.
        ValueError: a table without rows or without one of the columns.
    """

    def __init__(
        self,
        directory,
        clips=None,
        *,
        columns: ClipColumns = ClipColumns(),
        camera: str = "ego",
    ):
        self.directory, self.camera = pathlib.Path(directory), camera
        self.name = self.directory.name
        self._files: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
        for path in sorted(self.directory.rglob("*"), key=lambda path: natural(str(path))):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                relative = path.relative_to(self.directory)
                for name in {relative.as_posix(), relative.with_suffix("").as_posix(), path.name, path.stem}:
                    self._files[name].append(path)
        if not self._files:
            raise FileNotFoundError(f"{self.directory} holds no video ({', '.join(SUFFIXES)})")
        self._late: set[int] = set()
        self._clips = self._all_files() if clips is None else _read_table(pathlib.Path(clips), columns)
        self._videos = Videos()

    def _all_files(self) -> list[_Clip]:
        paths = dict.fromkeys(path for paths in self._files.values() for path in paths)
        names = [path.relative_to(self.directory).as_posix() for path in paths]
        return [_Clip(name, name) for name in names]

    @property
    def problems(self) -> list[str]:
        return [f"{len(self._late)} clips end after their video"] if self._late else []

    def __len__(self) -> int:
        return len(self._clips)

    def _found(self, i: int) -> tuple[pathlib.Path, FrameIndex]:
        clip = self._clips[i]
        paths = self._files.get(clip.video, [])
        if len(paths) != 1:
            raise ValueError(f"{self.directory} has {len(paths)} videos called {clip.video!r}")
        start, end = (None if text is None else _seconds(text) for text in (clip.start, clip.end))
        if start is not None and end is not None and end <= start:
            raise ValueError(f"the clip ends at {end:g} s, not after its start at {start:g} s")
        index = self._videos.index(paths[0], start, end)
        if not len(index):
            stretch = "" if start is None else f" between {start:g} s and {end:g} s"
            raise ValueError(f"{paths[0]} shows no frame{stretch}")
        if index.fps is None:
            raise ValueError(f"{paths[0]} shows a single frame, which has no frame rate")
        if start is not None and end is not None and len(index) < (end - start) * index.fps - 1.5:
            self._late.add(i)
        return paths[0], index

    def about(self, i: int) -> About:
        clip = self._clips[i]
        with blamed_on(clip.episode):
            path, index = self._found(i)
            caption, beside = clip.caption, path.with_suffix(".txt")
            if caption is None and clip.start is None and beside.is_file():
                caption = utf8(beside.read_bytes(), str(beside))
            caption = utf8(caption or "", "the caption").strip()
            extra = {} if clip.start is None else {"video": clip.video, "start": clip.start, "end": clip.end}
            return About(
                clip.episode, len(index), index.fps or 0.0, {self.camera: index.size}, caption, caption, extra=extra
            )

    def lowdim(self, i: int) -> LowDim:
        with blamed_on(self._clips[i].episode):
            _, index = self._found(i)
            ticks = index.pts - index.pts[0]
            return LowDim(None, None, {"time": (ticks * float(index.tick)).astype(np.float32)})

    def frames(self, i: int, camera: str, which: Sequence[int]) -> np.ndarray:
        if camera != self.camera:
            raise ValueError(f"{self.name} has no camera {camera!r}, only {self.camera!r}")
        with blamed_on(self._clips[i].episode):
            path, index = self._found(i)
            return self._videos.read(path, index, which)


def _read_table(path: pathlib.Path, columns: ClipColumns) -> list[_Clip]:
    if not path.is_file():
        raise FileNotFoundError(f"the table of clips {path} does not exist")
    wanted = [columns.video, columns.start, columns.end, *([columns.caption] if columns.caption else [])]
    # Bytes that are not UTF-8 are the fault of their row alone, so they pass here and are found there.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        table = csv.DictReader(file, strict=True)
        try:
            if missing := [name for name in wanted if name not in (table.fieldnames or [])]:
                raise ValueError(f"{path} has no columns {missing}, only {table.fieldnames}")
            rows = [(table.line_num, [row[name] or "" for name in wanted]) for row in table]
        except csv.Error as error:
            raise ValueError(f"{path} is not a csv table: {error} (line {table.line_num})") from None
    if not rows:
        raise ValueError(f"{path} lists no clip")
    return [_Clip(f"{path.stem}:{line}", video, start, end, *caption) for line, (video, start, end, *caption) in rows]


def _seconds(text: str) -> float:
    """From "75.5" or "0:01:15.5"."""
    try:
        seconds = 0.0
        for part in text.split(":"):
            seconds = 60 * seconds + float(part)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{text!r} is no time in a video: write seconds, or hours:minutes:seconds")
    return seconds
