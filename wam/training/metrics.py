"""Metrics of a run: averages per term, mode, source and sigma bin; sinks: JSONL, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from wam.diffusion.modes import MODE_NAMES

NORMS = {"grad": "grad_norm", "param": "param_norm"}
"""Kind of norm in a step's metrics -> its name in a row, before the expert's."""


class Averages:
    """Adds up the step metrics of `training.step`, so that each average is over all elements since the last reset.

    A step that was skipped (`finite` False) is counted, as are the samples it drew; it joins no average.
    """

    def __init__(self, sources: Sequence[str]):
        self.sources = list(sources)
        self.reset()

    def reset(self) -> None:
        self.steps = 0
        self.skipped = 0
        self.scalars: dict[str, float] = {}
        self.terms: Any = None
        self.samples = np.zeros(len(self.sources))
        self.action_free = 0.0
        self.modes = np.zeros(len(MODE_NAMES))

    def add(self, metrics: Mapping[str, Any]) -> None:
        metrics = jax.device_get({name: value for name, value in metrics.items() if name != "sample_id"})
        self.samples += metrics.get("samples", 0)
        self.action_free += float(metrics.get("action_free", 0))
        if not metrics.get("finite", True):
            self.skipped += 1
            return
        self.steps += 1
        scalars = {name: metrics[name] for name in ("loss", "grad_norm", "learning_rate") if name in metrics}
        for kind, norms in metrics.get("norms", {}).items():
            scalars |= {f"{NORMS[kind]}/{expert}": norm for expert, norm in norms.items()}
        for name, value in scalars.items():
            self.scalars[name] = self.scalars.get(name, 0.0) + float(value)
        self.modes += metrics.get("modes", 0)
        terms = metrics["terms"]
        self.terms = terms if self.terms is None else jax.tree.map(np.add, self.terms, terms)

    def summary(self) -> dict[str, float]:
        """Flat {name: mean}; a name into which no element fell is left out."""
        out = {name: value / self.steps for name, value in self.scalars.items()}
        if self.skipped:
            out["skipped"] = float(self.skipped)
        if drawn := self.samples.sum():
            out["action_free_share"] = self.action_free / float(drawn)
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


class Sink(Protocol):
    """Somewhere rows of metrics go."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Appends rows to `metrics.jsonl`: the record that everything else reads."""

    def __init__(self, workdir: Path):
        self._start = time.monotonic()
        self._file = (workdir / "metrics.jsonl").open("a", buffering=1)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        seconds = round(time.monotonic() - self._start, 3)
        self._file.write(json.dumps({"step": step, "seconds": seconds, "split": split, **values}) + "\n")

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files in `tensorboard/`; what an interrupted run wrote after its last checkpoint is hidden."""

    def __init__(self, workdir: Path, step: int):
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        self._board.close()


def require_wandb() -> None:
    """ValueError where the package is not installed: better now than after the first compilation."""
    if importlib.util.find_spec("wandb") is None:
        raise ValueError("--wandb needs the package wandb: pip install wandb, or leave the flag out")


class WandB:
    """A run of the Weights & Biases project `project`; a resumed training continues the same one."""

    def __init__(self, workdir: Path, project: str, config: Mapping[str, Any]):
        import wandb

        name = workdir / "wandb_id"
        if not name.exists():
            name.write_text(uuid.uuid4().hex)
        self._run = wandb.init(project=project, id=name.read_text(), resume="allow", name=workdir.name,
                               dir=str(workdir), config=dict(config))  # fmt: skip

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class Writer:
    """Hands every row to every sink; without any it does nothing, as on all processes but the first."""

    def __init__(self, sinks: Sequence[Sink] = ()):
        self._sinks = list(sinks)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.write(step, split, values)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


def open_writer(workdir: Path, step: int, *, wandb: str | None = None, config: Mapping[str, Any]) -> Writer:
    """The sinks of a run that is at `step`. Rows after it are dropped: they will be written again.

    Args:
        workdir: of the run.
        step: of the checkpoint that the run starts from.
        wandb: the Weights & Biases project to report to as well.
        config: effective configuration, for display there.
    """
    sinks: list[Sink] = [WandB(workdir, wandb, config)] if wandb else []
    truncate_metrics(workdir, step)
    return Writer([JsonLines(workdir), TensorBoard(workdir, step), *sinks])


def truncate_metrics(workdir: Path, step: int) -> None:
    """Drops rows after `step`: a resumed run continues from its checkpoint and would write them again."""
    path = workdir / "metrics.jsonl"
    if path.exists():
        rows = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(row + "\n" for row in rows))
        temporary.replace(path)


def read_rows(workdir: Path) -> list[dict[str, Any]]:
    """All rows of `metrics.jsonl`, oldest first."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in _lines(path)] if path.exists() else []


def _lines(path: Path) -> list[str]:
    """Whole lines alone: the last one of a run that was killed, or whose disk was full, may lack its end."""
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()


def totals(rows: Sequence[dict[str, Any]], prefix: str) -> dict[str, int]:
    """Sums the counts `<prefix>/<name>` (`drawn` or `modes`) of training rows per name."""
    out: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith(f"{prefix}/"):
                key = name.removeprefix(f"{prefix}/")
                out[key] = out.get(key, 0) + int(value)
    return out
