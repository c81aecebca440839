"""Writes tensors as safetensors files, one in memory at a time, and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wam.pretrained.tensor_files import INDEX, NAMES

SHARD_BYTES = 5_000_000_000
"""Bytes of the tensors of one file, as released models are cut."""


class Piece(NamedTuple):
    """One tensor to write; `make` is called when its turn comes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(directory: Path, stem: str, pieces: Sequence[Piece], *, shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """`stem.safetensors`, or as many as are needed and their index; returns the files of tensors.

    Raises:
      OSError: there is no room for them (found out before the first byte), or writing failed.
    """
    total = sum(piece.bytes for piece in pieces)
    free = shutil.disk_usage(directory).free
    if total > free:
        raise OSError(f"{directory.parent} has {free / 1e9:.1f} GB free, {total / 1e9:.1f} GB are needed")
    shards: list[list[Piece]] = [[]]
    for piece in pieces:
        if shards[-1] and sum(p.bytes for p in shards[-1]) + piece.bytes > shard_bytes:
            shards.append([])
        shards[-1].append(piece)
    names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        _write_file(directory / name, shard)
    if len(shards) > 1:
        where = {piece.name: name for name, shard in zip(names, shards, strict=True) for piece in shard}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (directory / f"{stem}.safetensors{INDEX}").write_text(json.dumps(index, indent=2))
    return [directory / name for name in names]


def _write_file(path: Path, pieces: Sequence[Piece]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for piece in pieces:
        stop = start + piece.bytes
        header[piece.name] = {"dtype": NAMES[piece.dtype], "shape": piece.shape, "data_offsets": (start, stop)}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of eight
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            array = piece.make()
            if (array.shape, array.dtype) != (piece.shape, piece.dtype):
                raise AssertionError(f"{piece.name}: {array.dtype}{array.shape} in place of {piece.dtype}{piece.shape}")
            stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory that becomes `path` when the block ends well, and is removed when it does not.

    Raises:
      FileExistsError: `path` exists already.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already and is left as it is; choose another directory")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
