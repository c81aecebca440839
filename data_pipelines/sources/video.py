"""Exact frames of video files of any codec: numbered in order of presentation, decoded from the keyframe before."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av
import av.video.reformatter
import numpy as np

from data_pipelines.sources.source import BadEpisode

# A seek flushes the decoder; decoding on through so few frames is cheaper.
_WORTH_A_SEEK = 8


@dataclasses.dataclass(frozen=True)
class FrameIndex:
    """The n frames of a stretch of a video, in order of presentation."""

    pts: np.ndarray
    """int64 [n], increasing: when each is shown, in ticks"""
    keyframes: np.ndarray
    """int64 [k], increasing: numbers of the frames that need no other to be decoded; maybe none in this stretch"""
    tick: Fraction
    """seconds"""
    size: tuple[int, int]
    """(h, w) in pixels"""

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def fps(self) -> float | None:
        """Mean frame rate; None for a single frame."""
        if len(self) < 2:
            return None
        return float((len(self) - 1) / (self.tick * int(self.pts[-1] - self.pts[0])))


class _Video:
    """One open file and its decoder; for one thread at a time."""

    def __init__(self, path: pathlib.Path):
        if not path.is_file():
            raise BadEpisode(f"{path} does not exist")
        self.path = path
        with self._explained():
            self.container = av.open(str(path))
        if not self.container.streams.video:
            raise BadEpisode(f"{path} holds no video")
        self.stream = self.container.streams.video[0]
        if self.stream.codec_context is None:
            raise BadEpisode(f"{path} is in a codec that this installation of PyAV cannot decode")
        self.stream.thread_type = "NONE"
        self.stream.codec_context.thread_count = 1
        if not self.stream.time_base or not self.stream.average_rate:
            raise BadEpisode(f"{path} says neither when its frames are shown nor how many there are a second")
        self.tick, self._half = self.stream.time_base, Fraction(1, 2) / self.stream.average_rate
        self.start = self.stream.start_time or 0
        self._reformatter = av.video.reformatter.VideoReformatter()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except av.FFmpegError as error:
            raise BadEpisode(f"{self.path} is damaged: {error.strerror or error}") from None

    def _seconds(self, pts: int) -> float:
        return float((pts - self.start) * self.tick)

    def _shown(self, packet: av.Packet) -> int:
        if packet.pts is None:
            raise BadEpisode(f"{self.path} stores no times of its frames")
        return packet.pts

    def _packets(self, pts: int) -> Iterator[av.Packet]:
        """Packets in file order from a keyframe shown at or before `pts`, or from the first packet of the file."""
        at, arrived = pts, None
        while True:
            self.container.seek(at, stream=self.stream)
            packets = self.container.demux(self.stream)
            packet = next((p for p in packets if p.size and p.is_keyframe), None)
            if packet is None:
                raise BadEpisode(f"{self.path} has no keyframe before {self._seconds(pts):.6g} s")
            # Containers look for a decoding time, which may belong to a keyframe that is shown too late: what is shown
            # before its keyframe may need frames from before it.
            shown = self._shown(packet)
            if shown <= pts or shown == arrived:
                break
            at, arrived = min(at, shown if packet.dts is None else packet.dts) - 1, shown
        yield packet
        yield from packets

    def index(self, start: float | None, stop: float | None) -> FrameIndex:
        # Times are rounded where they are written down: what is nearer than half a frame is meant.
        first = self.start if start is None else self._ticks(Fraction(start) - self._half)
        last = None if stop is None else self._ticks(Fraction(stop) - self._half)
        found: list[tuple[int, bool]] = []
        with self._explained():
            for packet in self._packets(first):
                if not packet.size or packet.is_discard:
                    continue
                shown = self._shown(packet)
                if last is not None and packet.dts is not None and packet.dts >= last:
                    break  # nothing is decoded after it is shown
                if packet.is_corrupt:
                    raise BadEpisode(f"{self.path} is cut off at {self._seconds(shown):.6g} s")
                if (start is None or shown >= first) and (last is None or shown < last):
                    found.append((shown, packet.is_keyframe))
        found.sort()
        pts = np.array([pts for pts, _ in found], np.int64)
        if (np.diff(pts) <= 0).any():
            raise BadEpisode(f"{self.path} shows two frames at the same time")
        keyframes = np.flatnonzero([is_keyframe for _, is_keyframe in found])
        return FrameIndex(pts, keyframes, self.tick, (self.stream.height, self.stream.width))

    def _ticks(self, seconds: Fraction) -> int:
        return self.start + round(seconds / self.tick)

    def _decoded(self, pts: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """(pts, frame) in order of presentation, from a keyframe shown at or before `pts`."""
        for packet in self._packets(pts):
            for frame in packet.decode():
                if frame.pts is not None:
                    yield frame.pts, frame

    def read(self, index: FrameIndex, which: Sequence[int]) -> np.ndarray:
        out = np.empty((len(which), *index.size, 3), np.uint8)
        places: dict[int, list[int]] = {}
        for place, i in enumerate(which):
            places.setdefault(i, []).append(place)
        frames: Iterator[tuple[int, av.VideoFrame]] = iter(())
        at = None
        with self._explained():
            for i in sorted(places):
                pts = int(index.pts[i])
                before = int(np.searchsorted(index.keyframes, i, side="right")) - 1
                keyframe = int(index.keyframes[before]) if before >= 0 else -1
                if at is None or keyframe > at + _WORTH_A_SEEK:
                    frames = self._decoded(pts)
                shown, frame = next((found for found in frames if found[0] >= pts), (None, None))
                at = i
                if frame is None or shown != pts or frame.is_corrupt:
                    raise BadEpisode(f"{self.path} is damaged: the frame at {self._seconds(pts):.6g} s does not decode")
                if (frame.height, frame.width) != index.size:
                    raise BadEpisode(f"{self.path} changes its size at {self._seconds(pts):.6g} s")
                out[places[i]] = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return out

    def close(self) -> None:
        self.container.close()


class Videos:
    """Random access to the frames of many video files; thread-safe, picklable.

    Opening a file costs more than a frame, so decoders stay open: one a file and thread that reads it at the same time,
    the least recently used closed first.

    Args:
        open_files: how many idle decoders are kept.
        indices: how many indices are kept; 8 bytes a frame.
    """

    def __init__(self, *, open_files: int = 16, indices: int = 1024):
        self._capacity = (open_files, indices)
        self._reset()

    def _reset(self) -> None:
        self._lock, self._process = threading.Lock(), os.getpid()
        self._idle: list[_Video] = []  # most recently used last
        self._indices: collections.OrderedDict[tuple, FrameIndex] = collections.OrderedDict()

    def __getstate__(self) -> tuple[int, int]:
        return self._capacity

    def __setstate__(self, state: tuple[int, int]) -> None:
        self._capacity = state
        self._reset()

    @contextlib.contextmanager
    def _video(self, path: pathlib.Path) -> Iterator[_Video]:
        if self._process != os.getpid():
            self._reset()  # a forked process would share its parent's positions in the files
        with self._lock:
            video = next((video for video in self._idle if video.path == path), None)
            if video:
                self._idle.remove(video)
        if video is None:
            video = _Video(path)
        try:
            yield video
        except BaseException:
            video.close()
            raise
        with self._lock:
            self._idle.append(video)
            surplus = self._idle[: -self._capacity[0]]
            del self._idle[: -self._capacity[0]]
        for old in surplus:
            old.close()

    def index(self, path: pathlib.Path, start: float | None = None, stop: float | None = None) -> FrameIndex:
        """The frames of a file from `start` until before `stop` (seconds, to half a frame); decodes nothing.

        Reads that stretch of the file and nothing else. Raises BadEpisode if the file is missing or damaged there.
        """
        key = (path, start, stop)
        with self._lock:
            if key in self._indices:
                self._indices.move_to_end(key)
                return self._indices[key]
        with self._video(path) as video:
            index = video.index(start, stop)
        with self._lock:
            self._indices[key] = index
            while len(self._indices) > self._capacity[1]:
                self._indices.popitem(last=False)
        return index

    def read(self, path: pathlib.Path, index: FrameIndex, which: Sequence[int]) -> np.ndarray:
        """uint8 [n, h, w, 3]: the frames with these numbers of an index of the file, in this order.

        Raises BadEpisode if one cannot be decoded, or is not there.
        """
        which = [int(i) for i in which]
        missing = [i for i in which if not 0 <= i < len(index)]
        if missing:
            raise BadEpisode(f"{path} has no frame {missing[0]}, only {len(index)} frames of this episode")
        with self._video(path) as video:
            return video.read(index, which)
