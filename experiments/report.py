"""Writes the report page of an evaluated run and prints its one table.

    python -m experiments.report runs/demo            # runs/demo/report/index.html, then the table
    python -m experiments.report runs/demo --table    # the table alone

The seconds that the page took are added to `phases.json` and to the phases of `metrics.json`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from absl import flags

from experiments import cli

_TABLE = flags.DEFINE_bool("table", False, "Print the table and leave the page as it is.")


def add_phase(workdir: Path, name: str, seconds: float) -> None:
    """Records the seconds of a phase in `phases.json` and `metrics.json`; a second call replaces the first."""
    path = workdir / "phases.json"
    phases = json.loads(path.read_text()) if path.exists() else {}
    before = phases.pop("total", sum(phases.values()))
    total = before - phases.get(name, 0.0) + seconds
    phases = {**phases, name: round(seconds, 1), "total": round(total, 1)}
    metrics = json.loads((workdir / "metrics.json").read_text())
    for target, value in ((path, phases), (workdir / "metrics.json", metrics | {"phases": phases})):
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps(value, indent=1))
        temporary.replace(target)


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        sys.exit("report: name one run directory, for instance `python -m experiments.report runs/demo`")
    workdir, start = Path(argv[1]), time.monotonic()
    from wam.evaluation.record import RunRecord, summary_table

    try:
        run = RunRecord.read(workdir)
        if not _TABLE.value:
            from wam.evaluation.report import write_report

            page = write_report(workdir)
            add_phase(workdir, "report", time.monotonic() - start)
            run = RunRecord.read(workdir)
    except (ValueError, OSError) as error:
        sys.exit(f"report: {error}")
    print(summary_table(run))
    if not _TABLE.value:
        print(f"report      {page}")


if __name__ == "__main__":
    cli.run(main)
