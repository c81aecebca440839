"""One side of a comparison in a process of its own: its threads, allocator and peak memory are nobody else's.

The child calls `serve(make)`; the parent holds a `Worker` and asks it for a block of steps at a time. They speak JSON,
one object a line, over the child's standard input and output; whatever else a library prints there goes to the log.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""request to answer, both JSON-able"""


class Side(Protocol):
    """What a child measures. Every method returns when the device has finished."""

    note: str
    """What a reader must know of this side; known after the first step."""

    def step(self) -> dict[str, float]:
        """Takes one optimizer step; its metrics as numbers."""

    def steps(self, count: int) -> None:
        """Takes `count` steps without looking at their metrics in between."""

    def matmul(self, size: int) -> float:
        """TFLOP/s of a square matmul in the compute dtype: the ceiling of this framework here and now."""

    def peak_bytes(self) -> int | None:
        """Peak device memory; None: the process is what counts (CPU)."""


def peak_resident_bytes() -> int:
    """Peak resident memory of this process since it started or since `forget_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Starts the peak anew, so that compiling and loading do not count; Linux only, elsewhere they count."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)  # what they freed, glibc still holds
        path.write_text("5")


def read_arrays(spec: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of `tools.bench.exchange` by the first part of their names: params, constants, batch, draws."""
    out: dict[str, dict[str, np.ndarray]] = {}
    with np.load(spec["arrays"]) as arrays:
        for name in arrays.files:
            kind, _, rest = name.partition("/")
            out.setdefault(kind, {})[rest] = arrays[name]
    return out


def converse(begin: Callable[[dict[str, Any]], tuple[dict[str, Any], Answer]]) -> None:
    """Runs a child.

    `begin(spec)`, with the JSON file named on the command line, gives its first message and what answers requests.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")

    try:
        first, answer = begin(json.loads(Path(sys.argv[1]).read_text()))
        say(first)
        for line in sys.stdin:
            say(answer(json.loads(line)))
    except Exception as error:
        # The parent ends with this one sentence; the traceback is in the log.
        say({"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"})
        raise


def serve(make: Callable[[dict[str, Any]], Side]) -> None:
    """Runs a child that takes steps.

    Its first message holds the metrics of the first steps and the seconds of the very first, which compiles.
    """

    def begin(spec: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
        side = make(spec)
        start = time.perf_counter()
        metrics = [side.step()]
        first = time.perf_counter() - start
        metrics += [side.step() for _ in range(spec["checked_steps"] - 1)]
        forget_peak()

        def answer(request: dict[str, Any]) -> dict[str, Any]:
            ceiling = side.matmul(request["matmul"])
            start = time.perf_counter()
            side.steps(request["steps"])
            seconds = (time.perf_counter() - start) / request["steps"]
            peak = side.peak_bytes()
            return {"step": seconds, "ceiling": ceiling, "peak": peak_resident_bytes() if peak is None else peak}

        return {"metrics": metrics, "first_step": first, "note": side.note}, answer

    converse(begin)


class WorkerError(RuntimeError):
    """A side could not be run, or is not what it should be."""


class Worker:
    """The parent's end: starts `python -m module SPEC` and waits for its first message."""

    def __init__(self, module: str, spec: Path, *, log: Path, env: dict[str, str], python: str = sys.executable):
        self.module, self.log = module, log
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [python, "-m", module, str(spec)], cwd=ROOT, env=env, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        try:
            ready = self._hear()
        except BaseException:
            self.stop()
            raise
        self.metrics: list[dict[str, float]] = ready.get("metrics", [])
        self.first_step: float = ready.get("first_step", 0.0)
        self.note: str = ready["note"]

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status, said = self.process.wait(), self.log.read_text().strip().splitlines()
            raise WorkerError(f"{self.module} ended with status {status}: {said[-1][:300] if said else 'no word'}")
        message = json.loads(line)
        if "error" in message:
            raise WorkerError(f"{self.module}: {message['error']}")
        return message

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._hear()

    def block(self, steps: int, matmul: int) -> dict[str, float]:
        """{"step": seconds a step, "ceiling": TFLOP/s of a matmul just before, "peak": bytes}."""
        return self.ask({"steps": steps, "matmul": matmul})

    def stop(self) -> None:
        """Ends the child: it leaves when its input closes."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
