"""Writes the latents of a store: a pure function over jobs, each a stretch of windows that becomes one shard.

The encoder is an argument: nothing here knows what computes it. A job's bytes depend on the job alone, so that any
engine may run jobs in any order and on any machine that computes alike.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import pathlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipelines import latents
from data_pipelines.latents import DTYPES, Plan
from data_pipelines.shards import INDEX, SHARD
from data_pipelines.store import ClipStore
from data_pipelines.windows import WindowConfig, Windows

Encode = Callable[[np.ndarray, np.ndarray], Any]
"""video uint8 [n, V', T, h, w, 3], camera int32 [n, V'] -> f32 [n, V', F, P, C], always the same n. What it returns may
still be on its way to the host: the next batch is handed over before this one is looked at."""

AHEAD = 2  # batches in flight, on the encoder's side and on the reader's


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard; picklable."""

    store: str
    config: WindowConfig
    directory: str
    name: str
    windows: range
    """numbers into `Windows(store, config)`"""
    batch_size: int
    dtype: str

    @property
    def finished(self) -> bool:
        path = pathlib.Path(self.directory)
        return (path / f"{self.name}{INDEX}").exists() and (path / f"{self.name}{SHARD}").exists()


def open_windows(job: Job) -> Windows:
    return Windows(ClipStore(job.store), job.config)


def make_jobs(windows: Windows, plan: Plan) -> list[Job]:
    """All jobs of a plan, begun in the store's own directory; ValueError if others were begun there."""
    if not len(windows):
        raise ValueError(f"{windows.store.directory} has no usable window to encode")
    directory = latents.begin(windows.store.directory, plan)
    chosen = range(0, len(windows), plan.every)
    size = plan.shard_windows
    parts = [chosen[first : first + size] for first in range(0, len(chosen), size)]
    return [
        Job(str(windows.store.directory), windows.config, str(directory), f"{i:05}-of-{len(parts):05}", part,
            plan.batch_size, plan.dtype)
        for i, part in enumerate(parts)
    ]  # fmt: skip


def write_shard(job: Job, windows: Windows, encode: Encode, *, threads: int = 2) -> int:
    """Writes one shard, or finds it finished; returns its windows. Killed, it leaves nothing that readers see.

    Raises:
        ValueError: latents that are not finite, or too large for the dtype.
    """
    if job.finished:
        return len(job.windows)
    directory = pathlib.Path(job.directory)
    temporary = directory / f".{job.name}{SHARD}.tmp"
    # Latents do not compress: the records are stored as they are.
    writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    try:
        # The number of the last record, that of black frames, is None.
        for number, array in zip((*job.windows, None), _encoded(job, windows, encode, threads), strict=True):
            with np.errstate(over="ignore"):  # refused below, with a sentence
                record = array.astype(DTYPES[job.dtype])
            if not np.isfinite(record.astype(np.float32)).all():
                raise ValueError(f"the latents of window {number} of {job.store} are not finite as {job.dtype}")
            writer.write(record.tobytes())
        writer.close()
        latents.finish_shard(temporary, directory, job.name, windows.starts(np.asarray(job.windows)))
    finally:
        if writer.is_open():
            writer.close()
        temporary.unlink(missing_ok=True)
    return len(job.windows)


def _encoded(job: Job, windows: Windows, encode: Encode, threads: int) -> Iterator[np.ndarray]:
    """f32 [V', F, P, C] of each window in order, and last of black frames of the first camera."""
    pending: deque[tuple[Any, int]] = deque()
    for video, camera, count in _batches(job, windows, threads):
        pending.append((encode(video, camera), count))
        if len(pending) > AHEAD:
            out, count = pending.popleft()
            yield from np.asarray(out, np.float32)[:count]
    for out, count in pending:
        yield from np.asarray(out, np.float32)[:count]


def _batches(job: Job, windows: Windows, threads: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(video, camera, how many rows count): the last batch is filled up with copies, so that shapes are static."""
    size = job.batch_size
    parts = [job.windows[first : first + size] for first in range(0, len(job.windows), size)]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting: deque[list[concurrent.futures.Future]] = deque()
        for i, part in enumerate(parts):
            while len(waiting) <= AHEAD and (ahead := i + len(waiting)) < len(parts):
                waiting.append([pool.submit(windows.pixels, number) for number in parts[ahead]])
            rows = [future.result() for future in waiting.popleft()]
            rows += rows[-1:] * (size - len(rows))
            video, camera = (np.stack(column) for column in zip(*rows, strict=True))
            yield video, camera, len(part)
    yield np.zeros_like(video), np.zeros_like(camera), 1
