"""The runs of a launch: one for each point of the sweep, with a workdir, an effective config and a record."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import cli, provenance
from experiments.launch.options import Options
from experiments.launch.sweep import Point, Sweep
from experiments.run_record import check_same_run

RECORD = "launch.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, ready to be rendered."""

    name: str
    workdir: PurePosixPath
    """as the machines of the run see it"""
    command: tuple[str, ...]
    """of every process, in the directory of the checkout"""
    config: Mapping[str, Any]
    """the effective config, as JSON"""

    def port(self, options: Options) -> int:
        """Two runs on one machine seldom collide, and a dry run shows what the real one takes."""
        return options.port or 20000 + zlib.crc32(str(self.workdir).encode()) % 20000


def effective_config(arguments: Sequence[str]) -> ConfigDict:
    """The config as the run itself will read it from `--config=...` and its overrides; leaves with one sentence."""
    values = flags.FlagValues()
    argv = ["launch", *arguments]
    config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values, sys_argv=argv)
    cli.parse_flags(argv, values)
    return values["config"].value


def plan(arguments: Sequence[str], sweep: Sweep, workdir: PurePosixPath, options: Options,
         extra: Sequence[str] = ()) -> list[Run]:  # fmt: skip
    """All runs of a launch, checked: an unknown key or a value of the wrong type ends the command here.

    Args:
        arguments: `--config=FILE` and its overrides.
        sweep: points that are laid over them; an empty sweep is one run in `workdir` itself.
        workdir: of the run, or the directory above those of the sweep's runs.
        options: name, interpreter and module.
        extra: further arguments of every command.
    """
    recipe = next(a for a in arguments if a.startswith("--config=")).removeprefix("--config=")
    base = options.name or re.sub(r"[^a-z0-9]+", "-", Path(recipe.partition(":")[0]).stem.lower()).strip("-")
    runs = []
    for i, point in enumerate(sweep or [{}]):
        overrides = [f"--config.{key}={value}" for key, value in point.items()]
        config = effective_config([*arguments, *overrides])
        own = workdir / f"{i:03d}-{label(point)}" if sweep else workdir
        command = [options.python or "python", "-m", options.module, *arguments, *overrides, f"--workdir={own}"]
        if options.module == "experiments.train":
            command.append("--noprogress")
        runs.append(
            Run(
                f"{base}-{i:03d}" if sweep else base,
                own,
                (*command, *extra),
                json.loads(config.to_json_best_effort()),
            )
        )
    return runs


def label(point: Point) -> str:
    """Readable part of a directory's name: `seed=1,learning_rate=0.001`."""
    text = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in point.items())
    return re.sub(r"[^\w.=,+-]+", "_", text)[:80]


def check_workdir(run: Run, directory: Path) -> None:
    """ValueError if the directory holds a run with another config: by this command, or by the training itself."""
    for name, field in ((RECORD, "config"), ("config.json", "asked")):
        if (directory / name).exists():
            check_same_run(json.loads((directory / name).read_text()).get(field) or {}, run.config, directory)


def record(run: Run, directory: Path, backend: str, shown: str) -> None:
    """Writes `launch.json`: config, and for every launch of the run its time, git revision, versions and submission."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / RECORD
    launches = json.loads(path.read_text())["launches"] if path.exists() else []
    launches.append(
        {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "name": run.name,
            "git": provenance.git_revision(),
            "versions": provenance.versions(),
            "packages": sorted({f"{d.name}=={d.version}" for d in importlib.metadata.distributions()}),
            "backend": backend,
            "command": list(run.command),
            "submitted": shown,
        }
    )
    temporary = path.with_name(RECORD + ".tmp")
    temporary.write_text(json.dumps({"config": run.config, "launches": launches}, indent=1))
    temporary.replace(path)
