"""What every side of the data bench does alike: cores, blocks, CPU time and memory of a process and its children.

Standard library and numpy alone: peers run it with interpreters of their own.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tools.bench.worker import Answer, converse

_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
_STEP_SIZE, _STEP_PRODUCTS = 768, 8


class Loader(Protocol):
    """One side: endless batches in a random order, and single windows for the comparison before them."""

    note: str
    """what a reader must know of this side"""

    def batches(self, cores: int) -> contextlib.AbstractContextManager[Iterator[Any]]:
        """Starts reading with as many threads or processes as there are cores; leaving stops them."""

    def clip(self, window: int, resized: bool) -> np.ndarray:
        """uint8 [T, h, w, 3] of one window: as decoded, or at the size of the batches."""


def serve(make: Callable[[dict[str, Any]], Loader]) -> None:
    """Runs a child around `make(spec)`; it answers the requests of `answers`."""

    def begin(spec: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
        loader = make(spec)
        return {"note": loader.note}, lambda request: answers(loader, spec["batch"], request)

    converse(begin)


def answers(loader: Loader, batch: int, request: dict[str, Any]) -> dict[str, Any]:
    """What a side is asked.

    {"do": "clips", "windows", "resized", "path"} saves clips; {"do": "block", ...} times batches, see `block`;
    {"do": "memory", "windows": [n, ...]} gives the bytes in use after so many windows.
    """
    if request["do"] == "clips":
        np.save(request["path"], np.stack([loader.clip(i, request["resized"]) for i in request["windows"]]))
        return {}
    pin(request["cores"])
    if request["do"] == "memory":
        return {"bytes": memory_after(loader, batch, request["cores"], request["windows"])}
    return block(loader, batch, request["cores"], request["seconds"], request["train"])


def pin(cores: int) -> None:
    """Lets all threads of this process, and what they start, run on the first of its cores only."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread.name), _CORES[:cores])


def block(loader: Loader, batch: int, cores: int, seconds: float, train: bool) -> dict[str, float]:
    """Reads for about `seconds`, once all workers have delivered twice.

    Returns:
        "rate": windows a second, "cpu": CPU seconds a window (with `train` the steps' too), "step": seconds from batch
        to batch, "alone": seconds of a step without data, "waited": share of the time, "bytes": in use.
    """
    step = Step() if train else None
    with loader.batches(cores) as batches:
        for _ in range(2 * cores):
            next(batches)
        count, waited = 0, 0.0
        used, start = cpu_seconds(), time.perf_counter()
        # Workers deliver at about the same time: whole rounds, or luck decides.
        while count % cores or count < 2 * cores or time.perf_counter() - start < seconds:
            asked = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - asked
            count += 1
            if step:
                step()
        elapsed, used, held = time.perf_counter() - start, cpu_seconds() - used, held_bytes()
    windows = count * batch
    return {"rate": windows / elapsed, "cpu": used / windows, "step": elapsed / count, "waited": waited / elapsed,
            "bytes": held, "alone": step.alone() if step else 0.0}  # fmt: skip


def memory_after(loader: Loader, batch: int, cores: int, windows: list[int]) -> list[int]:
    """Bytes in use when so many windows, increasing numbers, were read in one go."""
    held, done = [], 0
    with loader.batches(cores) as batches:
        for count in windows:
            while done < count:
                next(batches)
                done += batch
            held.append(held_bytes())
    return held


class Step:
    """Stands for a training step on the host: float32 products on one thread (OPENBLAS_NUM_THREADS=1)."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.weights = rng.normal(size=(_STEP_SIZE, _STEP_SIZE)).astype(np.float32) / np.sqrt(_STEP_SIZE)
        self.x = rng.normal(size=(_STEP_SIZE, _STEP_SIZE)).astype(np.float32)

    def __call__(self) -> np.ndarray:
        x = self.x
        for _ in range(_STEP_PRODUCTS):
            x = np.tanh(x @ self.weights)
        return x

    def alone(self) -> float:
        """Seconds a step when nothing is read."""
        start = time.perf_counter()
        for _ in range(5):
            self()
        return (time.perf_counter() - start) / 5


def _family() -> list[Path]:
    """/proc of this process and of all its living descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(path.name))
    found = [os.getpid()]
    for process in found:
        found += children.get(process, [])
    return [Path(f"/proc/{process}") for process in found]


def cpu_seconds() -> float:
    """User and system time of this process and its living descendants."""
    ticks = 0
    for path in _family():
        with contextlib.suppress(OSError):
            ticks += sum(map(int, (path / "stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def held_bytes() -> int:
    """Memory of this process and its descendants; what they share counts once (proportional set size)."""
    total = 0
    for path in _family():
        with contextlib.suppress(OSError):
            lines = (path / "smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total
