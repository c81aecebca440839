"""What every benchmark shares: rows, the order of blocks, calibration, provenance, the results file. No device code.

A results file is `results/<name>-<chip>.json`:

    {"name", "command", "chip", "cores", "versions", "git", "date", "rows": [
        {"case", "unit", "ours": {"median", "min", "max", "n"}, "peer", "theirs": {...}, "ratio", "note"}]}

`ratio` says how many times better ours is: theirs / ours of the medians for times and bytes, ours / theirs for rates;
above 1 we win. A row without a peer has neither peer, theirs nor ratio. Losing rows are kept.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.provenance import git_revision

RESULTS = Path(__file__).resolve().parent / "results"
FIELDS = ("name", "command", "chip", "cores", "versions", "git", "date", "rows")
LESS_IS_BETTER = ("s", "ms", "MiB", "steps", "CPU ms", "% of the time")
MORE_IS_BETTER = (
    "frames/s",
    "windows/s",
    "chunks/s",
    "actions/s",
    "TFLOP/s",
    "% of the matmul ceiling",
    "% of the datasheet",
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "diffusers", "transformers")


def spread(values: Iterable[float]) -> dict[str, Any]:
    """{"median", "min", "max", "n"} of the measured values, to six significant digits."""
    values = [float(value) for value in values]
    if not values:
        raise ValueError("a spread needs at least one measured value")
    six = [float(f"{f(values):.6g}") for f in (statistics.median, min, max)]
    return dict(zip(("median", "min", "max"), six, strict=True)) | {"n": len(values)}


def ratio(unit: str, ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """How many times better our median is, by the direction of the unit; ValueError for a unit without one."""
    if unit not in LESS_IS_BETTER + MORE_IS_BETTER:
        raise ValueError(f"unit {unit!r} has no direction; known: {', '.join(LESS_IS_BETTER + MORE_IS_BETTER)}")
    over, under = (theirs, ours) if unit in LESS_IS_BETTER else (ours, theirs)
    return float(f"{over['median'] / under['median']:.4g}")


def row(case: str, unit: str, ours: Iterable[float], *, peer: str = "", theirs: Iterable[float] = (),
        note: str = "") -> dict[str, Any]:  # fmt: skip
    """One row of the format; with a peer its values and the ratio belong to it."""
    out: dict[str, Any] = {"case": case, "unit": unit, "ours": spread(ours)}
    ratio(unit, out["ours"], out["ours"])  # the unit is known
    if peer:
        out |= {"peer": peer, "theirs": spread(theirs)}
        out["ratio"] = ratio(unit, out["ours"], out["theirs"])
    return out | {"note": note}


def palindromes(sides: Sequence[str], repeats: int) -> list[str]:
    """A B B A, then the same again: a machine that drifts steadily is as slow for one side as for the other."""
    return [*sides, *reversed(sides)] * repeats


def matmul_rate(size: int, multiply: Callable[[], object]) -> float:
    """TFLOP/s of `multiply`, a product of two size x size matrices that has ended when it returns: the best of four."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - start)
    return 2e-12 * size**3 / min(seconds)


def calibrate(size: int = 2048) -> float:
    """TFLOP/s of a float32 numpy matmul: what the machine gives at this moment, to either side."""
    a = np.ones((size, size), np.float32)
    return matmul_rate(size, lambda: a @ a)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The CPU's model name."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", path.read_text()) if path.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def chip_slug(device: str) -> str:
    """The chip as it appears in a file name: `cpu`, or `NVIDIA H100 80GB HBM3` -> `h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower().removeprefix("nvidia ")).strip("-")


def provenance(name: str, command: str, device: str) -> dict[str, Any]:
    """Everything of a results file but its rows; `device` is `cpu` or the accelerator's name."""
    versions = {"processor": processor() if device == "cpu" else device, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return {"name": name, "command": command, "chip": chip_slug(device), "cores": cores(), "versions": versions,
            "git": git_revision(), "date": date}  # fmt: skip


def results_path(result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Where a result goes; ValueError when figures of another machine lie there: they must not be lost or mixed up."""
    path = folder / f"{result['name']}-{result['chip']}.json"
    if path.exists():
        old = json.loads(path.read_text())
        theirs, mine = ((r["chip"], r["cores"], r["versions"].get("processor")) for r in (old, result))
        if theirs != mine:
            raise ValueError(
                f"{path} holds figures of {theirs[2]} ({theirs[1]} cores); this machine is {mine[2]} ({mine[1]} "
                "cores): choose another --out, or move that file away"
            )
    return path


def write(result: dict[str, Any], rows: list[dict[str, Any]], *, folder: Path = RESULTS, append: bool = False) -> Path:
    """Writes the results file, atomically.

    With `append`, rows of cases that are not among `rows` stay; ValueError when they were measured with other code or
    other versions, because one file states one of each.
    """
    path = results_path(result, folder)
    if append and path.exists():
        old = json.loads(path.read_text())
        for field in ("git", "versions"):
            if old[field] != result[field]:
                raise ValueError(f"--append: the rows in {path} were measured with another {field}; measure them again")
        cases = {r["case"] for r in rows}
        rows = [*(r for r in old["rows"] if r["case"] not in cases), *rows]
    folder.mkdir(parents=True, exist_ok=True)
    whole = result | {"rows": rows}
    part = path.with_suffix(".part")
    part.write_text(json.dumps({field: whole[field] for field in FIELDS}, indent=1) + "\n")
    part.replace(path)
    return path
