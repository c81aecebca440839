"""What becomes rows of `tools.bench.latency` without a side: percentiles, goals, agreement, decoding on the host."""

from __future__ import annotations

import importlib.util
import io
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tools.bench import harness
from tools.bench.command import say
from tools.bench.latency_cases import Case, Program
from tools.bench.worker import WorkerError

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Of normalised actions, which are of order one: the largest difference, or in bfloat16 the root mean square."""
GREY = {"float32": 1, "bfloat16": 12}
"""Levels out of 255 by which pixels may differ: rounding decides the last."""


def percentiles(blocks: Sequence[Sequence[float]], percent: int) -> list[float]:
    """Milliseconds: of every block its median; of the tails, all calls together: a block is too short to have them."""
    if percent == 50:
        return [1000 * float(np.median(block)) for block in blocks]
    return [1000 * float(np.percentile(np.concatenate(blocks), percent))]


def goal_note(case: Case, program: Program, chip: str, milliseconds: float) -> str:
    goal = case.goal(program, chip)
    if goal is None:
        return ""
    said = "reached" if milliseconds <= goal else "missed"
    return f"; goal: at most {goal:g} ms a chunk ({1000 / goal:g} chunks/s), {said}"


def agreement(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], dtype: str) -> str:
    """How nearly the answers agree, in words; WorkerError where they differ by more than is allowed."""
    if ours.keys() != theirs.keys() or not ours:
        raise WorkerError(f"the answer has {sorted(ours)} here and {sorted(theirs)} in PyTorch: nothing timed")
    said = []
    for name, mine in ours.items():
        other = theirs[name]
        if mine.shape != other.shape:
            raise WorkerError(f"{name} are {list(mine.shape)} here and {list(other.shape)} in PyTorch: nothing timed")
        difference = np.abs(mine.astype(np.float64) - other)
        exact = dtype == "float32" or name == "pixels"
        error = float(difference.max() if exact else np.sqrt(np.mean(difference**2)))
        allowed = GREY[dtype] if name == "pixels" else TOLERANCE[dtype]
        if not error <= allowed:
            raise WorkerError(
                f"{name} differ by {error:.1e} where {allowed:g} is allowed: this is not the same network, so nothing "
                "was timed"
            )
        said.append(f"{name} differ by {error:.1e}" if name != "pixels" else f"pixels by {error:.0f} of 255")
    return ", ".join(said)


def decoding(case: Case) -> list[dict[str, Any]]:
    """A row for decoding the JPEGs of one observation on the host, where something here can."""
    if not importlib.util.find_spec("PIL"):
        say("stage decode: no row, it needs pillow")
        return []
    from PIL import Image

    height, width = case.image_size
    row, column = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).normal(0, 8, (height, width, 3))
    waves = 128 + 90 * np.stack([np.sin(row / 9), np.cos(column / 13), np.sin((row + column) / 21)], -1)
    encoded = io.BytesIO()
    Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=90)
    views, seconds = case.model("xla").views, []
    for _ in range(50):
        start = time.perf_counter()
        for _ in range(views):
            np.asarray(Image.open(io.BytesIO(encoded.getvalue())).convert("RGB"))
        seconds.append(1000 * (time.perf_counter() - start))
    note = f"{views} JPEGs of {height} x {width} by pillow, {len(encoded.getvalue()):,} bytes each; on the host"
    return [harness.row(f"{case.name}: stage decode: p50", "ms", seconds, note=note)]
