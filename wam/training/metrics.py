"""Metrics of a run: averages per term, mode, source and sigma bin; sinks: terminal, JSONL, TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wam.diffusion.modes import MODE_NAMES


class Averages:
    """Adds up the step metrics of `training.step`, so that each average is over all elements since the last reset."""

    def __init__(self, sources: Sequence[str]):
        self.sources = list(sources)
        self.reset()

    def reset(self) -> None:
        self.steps = 0
        self.scalars: dict[str, float] = {}
        self.terms: Any = None
        self.samples = np.zeros(len(self.sources))
        self.modes = np.zeros(len(MODE_NAMES))

    def add(self, metrics: dict[str, Any]) -> None:
        metrics = jax.device_get(metrics)
        self.steps += 1
        for name in ("loss", "grad_norm", "learning_rate"):
            if name in metrics:
                self.scalars[name] = self.scalars.get(name, 0.0) + float(metrics[name])
        self.samples += metrics.get("samples", 0)
        self.modes += metrics.get("modes", 0)
        terms = metrics["terms"]
        self.terms = terms if self.terms is None else jax.tree.map(np.add, self.terms, terms)

    def summary(self) -> dict[str, float]:
        """Flat {name: mean}; a name into which no element fell is left out."""
        out = {name: value / self.steps for name, value in self.scalars.items()}
        for prefix, names, counts in (("drawn", self.sources, self.samples), ("modes", MODE_NAMES, self.modes)):
            out |= {f"{prefix}/{n}": float(count) for n, count in zip(names, counts, strict=True) if count > 0}
        for term, groups in (self.terms or {}).items():
            for group, sums in groups.items():
                if group == "all":
                    if sums[1] > 0:
                        out[term] = float(sums[0] / sums[1])
                    continue
                labels = {"mode": MODE_NAMES, "source": self.sources}.get(group) or [str(i) for i in range(len(sums))]
                for name, (error, count) in zip(labels, sums, strict=True):
                    if count > 0:
                        out[f"{term}/{group}/{name}"] = float(error / count)
        return out


class Writer:
    """Appends rows to `metrics.jsonl` and TensorBoard event files under `workdir`."""

    def __init__(self, workdir: Path):
        from tensorboardX import SummaryWriter

        self.start = time.monotonic()
        self.file = (workdir / "metrics.jsonl").open("a", buffering=1)
        self.board = SummaryWriter(str(workdir / "tensorboard"))

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        seconds = round(time.monotonic() - self.start, 3)
        self.file.write(json.dumps({"step": step, "seconds": seconds, "split": split, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        self.file.close()
        self.board.close()


def truncate_metrics(workdir: Path, step: int) -> None:
    """Drops rows after `step`: a resumed run continues from its checkpoint and would write them again."""
    path = workdir / "metrics.jsonl"
    if path.exists():
        rows = [row for row in path.read_text().splitlines() if row and json.loads(row)["step"] <= step]
        path.write_text("".join(row + "\n" for row in rows))


def read_rows(workdir: Path) -> list[dict[str, Any]]:
    """All rows of `metrics.jsonl`, oldest first."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def totals(rows: Sequence[dict[str, Any]], prefix: str) -> dict[str, int]:
    """Sums the counts `<prefix>/<name>` (`drawn` or `modes`) of training rows per name."""
    out: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith(f"{prefix}/"):
                key = name.removeprefix(f"{prefix}/")
                out[key] = out.get(key, 0) + int(value)
    return out
