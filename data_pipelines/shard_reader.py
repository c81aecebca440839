"""`Shards`: the finished shards of a directory as one list of records, checked against its manifest."""

from __future__ import annotations

import hashlib
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from data_pipelines.shards import INDEX, SHARD, file_sha256


class Shards:
    """Records by number over all shards; read only, thread-safe, picklable. Files are opened on first use.

    Making one checks the sizes of all files, the first read of a shard its number of records, reading an index its
    hash; `verify` checks all hashes.

    Args:
        directory: where the files are.
        shards: of the manifest: name -> records, bytes, sha256, index_bytes, index_sha256.
        extra: records behind those in every file, which have no number here; see `read_extra`.

    Raises:
        ValueError: a file that is truncated or altered.
    """

    def __init__(self, directory: pathlib.Path, shards: Mapping[str, Mapping[str, Any]], *, extra: int = 0):
        self._directory, self._shards, self._names, self._extra = directory, shards, list(shards), extra
        self._ends = np.cumsum([shard["records"] for shard in shards.values()])
        for path, size, _ in self._files():
            found = path.stat().st_size if path.exists() else 0
            if found != size:
                raise ValueError(f"{path} is truncated or altered: {found} bytes, the manifest says {size}")
        self._reset()

    def _files(self) -> Iterator[tuple[pathlib.Path, int, str]]:
        """(path, bytes, hash)"""
        for name, shard in self._shards.items():
            yield self._directory / f"{name}{SHARD}", shard["bytes"], shard["sha256"]
            yield self._directory / f"{name}{INDEX}", shard["index_bytes"], shard["index_sha256"]

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[tuple[int, int], ArrayRecordReader] = {}

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_readers")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def indices(self) -> Iterator[dict[str, Any]]:
        """What stands in the index of each shard, in order; ValueError if one is altered."""
        for name, shard in self._shards.items():
            path = self._directory / f"{name}{INDEX}"
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != shard["index_sha256"]:
                raise ValueError(f"{path} is altered: its hash is not the manifest's")
            yield msgpack.unpackb(data)

    def read(self, i: int) -> bytes:
        """Record i."""
        shard = int(np.searchsorted(self._ends, i, side="right"))
        return self._read(shard, int(i - (self._ends[shard - 1] if shard else 0)))

    def read_extra(self) -> bytes:
        """The first record behind those of the first file."""
        return self._read(0, int(self._ends[0]))

    def verify(self) -> None:
        """Reads every byte and compares the hashes; ValueError names the first file that was altered."""
        for path, _, sha256 in self._files():
            if file_sha256(path) != sha256:
                raise ValueError(f"{path} is altered: its hash is not the manifest's")

    def _read(self, shard: int, record: int) -> bytes:
        key = (os.getpid(), shard)  # a forked child must not share its parent's reader
        with self._lock:
            if key not in self._readers:
                path = self._directory / f"{self._names[shard]}{SHARD}"
                records = self._shards[self._names[shard]]["records"] + self._extra
                # These options are ArrayRecord's advice for random access.
                reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
                if reader.num_records() != records:
                    raise ValueError(f"{path} is altered: {reader.num_records()} records, the manifest says {records}")
                self._readers[key] = reader
            reader = self._readers[key]
        return reader.read([record])[0]
