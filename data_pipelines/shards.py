"""Shards: the files of a store, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Self

import msgpack
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipelines.episode import Episode, split
from data_pipelines.records import H264, encode_png, low_dim_record
from data_pipelines.video_codec import VideoCodec

FORMAT_VERSION = 1
SHARD, INDEX = ".array_record", ".index"


def fsync_rename(temporary: pathlib.Path, path: pathlib.Path) -> None:
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    fsync_rename(temporary, path)


def file_sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def encode_episode(
    episode: Episode, *, clip_steps: int, overlap_steps: int, codec: VideoCodec | None = None
) -> list[tuple[dict, bytes]]:
    """(its entry in the index, its record) of every clip of an episode; ValueError if the episode is malformed."""
    encoded = []
    for clip in split(episode, clip_steps, overlap_steps):
        low_dim = low_dim_record(clip)
        images = {
            f"frames/{camera}": codec.encode(frames) if codec else [encode_png(image) for image in frames]
            for camera, frames in clip.frames.items()
        }
        record = msgpack.packb(low_dim | images)
        encoded.append((low_dim | {"sha256": hashlib.sha256(record).hexdigest()}, record))
    return encoded


class ShardWriter:
    """Writes one shard; use as a context manager. Killed or failed writers leave nothing that readers see.

    Args:
        store_dir: created if missing.
        shard_name: unique in the store, without a suffix; see `finished_shards` for those to skip after a restart.
        clip_steps: control steps of a clip; the unit of one random read.
        overlap_steps: control steps a window may reach beyond its anchor; below `clip_steps`.
        codec: None stores PNG images, without loss.
    """

    def __init__(
        self,
        store_dir,
        shard_name: str,
        *,
        clip_steps: int = 128,
        overlap_steps: int = 48,
        codec: VideoCodec | None = None,
    ):
        if not 0 <= overlap_steps < clip_steps:
            raise ValueError(f"overlap_steps must be in [0, clip_steps), got {overlap_steps} of {clip_steps}")
        if not shard_name or shard_name.startswith(".") or "/" in shard_name:
            raise ValueError(f"{shard_name!r} cannot name a shard: use a plain file name without a leading dot")
        self._dir = pathlib.Path(store_dir)
        self._dir.mkdir(parents=True, exist_ok=True)
        if shard_name in finished_shards(self._dir):
            raise ValueError(f"shard {shard_name!r} of {self._dir} is finished: skip it, or delete its two files")
        self._name, self._clip_steps, self._overlap_steps, self._codec = shard_name, clip_steps, overlap_steps, codec
        self._temporary = self._dir / f".{shard_name}{SHARD}.tmp"
        self._clips: list[dict] = []
        self._writer: ArrayRecordWriter | None = None

    def __enter__(self) -> Self:
        # Neither PNG nor h264 compresses further, so the records are stored as they are.
        self._writer = ArrayRecordWriter(str(self._temporary), "group_size:1,uncompressed")
        return self

    def add(self, episode: Episode) -> None:
        """Appends an episode; ValueError if it is malformed, and then nothing of it is written."""
        options = {"clip_steps": self._clip_steps, "overlap_steps": self._overlap_steps}
        self.write(encode_episode(episode, **options, codec=self._codec))

    def write(self, clips: Sequence[tuple[dict, bytes]]) -> None:
        """Appends what `encode_episode` made of an episode with the settings of this shard."""
        if self._writer is None:
            raise ValueError("open the ShardWriter with a `with` statement before adding episodes")
        with self._blamed_on_disk():
            for low_dim, record in clips:
                self._writer.write(record)
                self._clips.append(low_dim)

    @contextlib.contextmanager
    def _blamed_on_disk(self) -> Iterator[None]:
        """ArrayRecord has an error of its own for what goes wrong with a file; the records themselves are in order."""
        try:
            yield
        except Exception as error:
            raise OSError(
                f"{self._temporary} cannot be written (is the disk full?): {str(error).splitlines()[0]}; "
                "run the same command again to go on"
            ) from error

    def __exit__(self, kind, error, traceback) -> None:
        assert self._writer is not None  # __enter__ opened it
        if kind is not None or not self._clips:
            with contextlib.suppress(Exception):  # a full disk fails again here, after the error that matters
                self._writer.close()
            self._temporary.unlink()
            if kind is None:
                raise ValueError(f"shard {self._name!r} got no episode: nothing was written")
            return
        try:
            with self._blamed_on_disk():
                self._writer.close()
        except OSError:
            self._temporary.unlink()
            raise
        index = {
            "format_version": FORMAT_VERSION,
            "bytes": self._temporary.stat().st_size,
            "sha256": file_sha256(self._temporary),
            "clip_steps": self._clip_steps,
            "overlap_steps": self._overlap_steps,
            **({"codec": H264, "encoder": self._codec.facts} if self._codec else {}),
            "clips": self._clips,
        }
        fsync_rename(self._temporary, self._dir / f"{self._name}{SHARD}")
        write_atomically(self._dir / f"{self._name}{INDEX}", msgpack.packb(index))


def finished_shards(store_dir) -> list[str]:
    """Names of the complete shards of a directory, sorted; a restarted collection skips these."""
    names = (path.name.removesuffix(INDEX) for path in pathlib.Path(store_dir).glob(f"*{INDEX}"))
    return sorted(name for name in names if (pathlib.Path(store_dir) / f"{name}{SHARD}").exists())
