"""What an evaluated run left in its directory, read once, and the run's one summary table as text."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

EVALUATE = "python -m experiments.evaluate --checkpoint {workdir} --report"
POLICY_NAMES = {
    "policy": "policy",
    "joint": "joint",
    "swapped_instruction": "swapped",
    "blind_replay": "blind replay",
    "random": "random",
}
CASE_NAMES = {"true": "true", "shuffled": "shuffled", "zero": "zero", "copy_last": "copy last", "ceiling": "ceiling"}


def read_json(path: Path) -> Any:
    """The content of a JSON file; a ValueError names the file if it is not one."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged (line {error.lineno}: {error.msg}); delete it and run again") from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; a ValueError names the file if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile):
        raise ValueError(f"{path} is damaged; delete it and evaluate again") from None


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The files of a run directory. A part that the run did not make is empty, or None."""

    workdir: Path
    about: dict[str, Any]
    """config.json: `config`, `git`, `versions`, `chip`, `cores`, `command`."""
    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    """Lines of metrics.jsonl."""
    mixture: dict[str, Any] | None
    phases: dict[str, float]
    """Seconds a phase, with `total`."""
    open_loop: dict[str, Any] | None = None
    """open_loop.json."""

    @classmethod
    def read(cls, workdir: str | Path) -> RunRecord:
        """Raises FileNotFoundError for a directory that is no evaluated run, ValueError for a damaged file."""
        folder = Path(workdir)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} is no run directory (no config.json); name the --workdir of a training run"
            )
        if not (folder / "metrics.json").is_file():
            command = EVALUATE.format(workdir=folder)
            raise FileNotFoundError(f"{folder} is not evaluated yet (no metrics.json); run `{command}` first")
        rows, history = [], folder / "metrics.jsonl"
        for number, line in enumerate(history.read_text().splitlines() if history.is_file() else [], 1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                raise ValueError(f"{history}: line {number} is damaged; delete that line") from None
        optional = {name: folder / f"{name}.json" for name in ("mixture", "phases", "open_loop")}
        found = {name: read_json(path) for name, path in optional.items() if path.is_file()}
        metrics = read_json(folder / "metrics.json")
        return cls(
            workdir=folder,
            about=read_json(folder / "config.json"),
            metrics=metrics,
            rows=rows,
            mixture=found.get("mixture"),
            phases=metrics.get("phases", {}) | found.get("phases", {}),
            open_loop=found.get("open_loop"),
        )

    def dynamics(self) -> dict[str, dict[str, np.ndarray]]:
        """{kind of data: arrays of eval/dynamics_<kind>.npz}, expert first."""
        paths = {kind: self.workdir / "eval" / f"dynamics_{kind}.npz" for kind in ("expert", "play")}
        return {kind: read_arrays(path) for kind, path in paths.items() if path.is_file()}

    def episodes(self, mode: str) -> dict[str, dict[str, np.ndarray]]:
        """{task: arrays of eval/episode_<mode>_<task>.npz}, sorted by task."""
        prefix = f"episode_{mode}_"
        paths = sorted((self.workdir / "eval").glob(f"{prefix}*.npz"))
        return {path.stem.removeprefix(prefix): read_arrays(path) for path in paths}

    def tasks(self) -> list[str]:
        """Every task that any kind of control was evaluated on, in order of appearance."""
        results = self.metrics.get("closed_loop", {}).values()
        return list(dict.fromkeys(task for result in results for task in result.get("tasks", {})))


def percent(result: dict[str, Any] | None) -> str:
    """`95 [91, 97]`: success and its 95 % interval in percent; a dash if it was not measured."""
    if result is None:
        return "-"
    low, high = result["ci95"]
    return f"{100 * result['success']:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.1e}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def summary_table(run: RunRecord) -> str:
    """The run's results as plain text of at most 100 columns."""
    metrics = run.metrics
    lines: list[str] = []

    def heading(title: str, columns: list[str], width: int) -> None:
        lines.append("")
        lines.append(f"{title:24.24s}" + "".join(f"{column:>{width}s}" for column in columns))
        lines.append("-" * (24 + width * len(columns)))

    def line(name: str, cells: list[str], width: int) -> None:
        lines.append((f"{name:24.24s}" + "".join(f"{cell:>{width}s}" for cell in cells)).rstrip())

    if closed := metrics.get("closed_loop"):
        shown = [name for name in POLICY_NAMES if name in closed]
        heading("success %, 95 % interval", [POLICY_NAMES[name] for name in shown], 15)
        for task in run.tasks():
            line(task, [percent(closed[name].get("tasks", {}).get(task)) for name in shown], 15)
        line("all tasks", [percent(closed[name]) for name in shown], 15)
    if dynamics := metrics.get("forward_dynamics"):
        heading("forward dynamics, dB", [*CASE_NAMES.values(), "win rate"], 11)
        for kind, result in sorted(dynamics.items()):
            for metric, said in (("psnr", "whole frame"), ("moving", "moving region")):
                cells = [number(result.get(metric, {}).get(case)) for case in CASE_NAMES]
                line(f"{kind}, {said}", [*cells, number(result.get("win_rate")) if metric == "moving" else ""], 11)
    if inverse := metrics.get("inverse_dynamics"):
        heading("inverse dynamics, R²", ["right video", "wrong video", "policy mode", "gripper"], 15)
        for kind, result in sorted(inverse.items()):
            line(kind, [number(result.get(key)) for key in ("r2", "r2_wrong_video", "policy_r2", "r2_gripper")], 15)
    lines.append("")
    if tokenizer := metrics.get("tokenizer"):
        lines.append(f"tokenizer   {tokenizer['psnr']:.1f} dB")
    if train := metrics.get("train"):
        lines.append(f"training    {train_sentence(train)}")
    if run.phases:
        spent = ", ".join(f"{name} {seconds:.0f}" for name, seconds in run.phases.items())
        lines.append(f"seconds     {spent}")
    lines += [f"verdict     {verdict}" for verdict in metrics.get("verdicts", [])]
    wrapped = []
    for text in lines:
        wrapped += wrap(text, 100, indent=12)
    return "\n".join(wrapped).strip("\n")


def train_sentence(train: dict[str, Any]) -> str:
    return (
        f"{train['steps']:,} steps in {duration(train['seconds'])}, {train['step_ms_median']:.0f} ms a step, "
        f"{100 * train['data_wait_share']:.1f} % waiting for data, {train['parameters'] / 1e6:.2f} M parameters"
    )


def wrap(text: str, width: int, indent: int) -> list[str]:
    """Breaks a line between words; the lines that follow are indented."""
    if len(text) <= width:
        return [text]
    cut = text.rfind(" ", indent, width + 1)
    cut = cut if cut > indent else width
    return [text[:cut], *wrap(" " * indent + text[cut:].lstrip(), width, indent)]
