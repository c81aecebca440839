"""What the commands of two-sided benchmarks share: flags, the device, the environment of every side. No device code."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.bench import harness, render
from tools.bench.worker import ROOT, WorkerError


def parser(doc: str | None, *, quick: str, only: str) -> argparse.ArgumentParser:
    """The flags, with what `--quick` and `--only` mean here."""
    out = argparse.ArgumentParser(description=doc.splitlines()[0] if doc else None)
    out.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where nvidia-smi answers")
    out.add_argument("--quick", action="store_true", help=quick)
    out.add_argument("--only", nargs="+", metavar="WORD", help=only)
    out.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of the results file")
    out.add_argument("--append", action="store_true", help="keep the rows of other cases, if code and versions match")
    out.add_argument("--busy", action="store_true", help="measure although other programs keep the cores busy")
    out.add_argument("--dry_run", action="store_true", help="print the cases and stop")
    return out


def written(name: str, argv: Sequence[str] | None) -> str:
    """The command as it goes into the results file."""
    return " ".join([f"python -m tools.bench.{name}", *(sys.argv[1:] if argv is None else argv)])


def find_device() -> tuple[str, str]:
    """("cuda", its name) where an NVIDIA GPU answers, else ("cpu", "cpu")."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "cpu", "cpu"
    return "cuda", done.stdout.strip()


def check_machine(arguments: argparse.Namespace, device: str, found: tuple[str, str]) -> None:
    """Ends the program where another device was asked for than there is, or the cores are busy."""
    if device != found[0]:
        sys.exit(f"bench: --device={device}, but this machine has {found[1]}")
    load = os.getloadavg()[0]
    if load > harness.cores() / 2 and not arguments.busy:
        sys.exit(
            f"bench: the machine is busy (load {load:.1f} on {harness.cores()} cores) and PyTorch's threads wait for "
            "each other: wait until it is quiet, or measure all the same with --busy"
        )


def environment(place: Path, *, gpu: bool, isolate: bool) -> dict[str, str]:
    """That of tools/env.sh, the same for every side, with caches of the case's own: a first step is a cold one."""
    done = subprocess.run(["bash", "-c", ". tools/env.sh && env -0"], cwd=ROOT, capture_output=True, check=True)
    env = dict(item.split("=", 1) for item in done.stdout.decode().split("\0") if "=" in item)
    env["JAX_PLATFORMS"] = "cuda" if gpu else "cpu"
    env["JAX_COMPILATION_CACHE_DIR"] = str(place / "jax_cache")
    env["TORCHINDUCTOR_CACHE_DIR"] = str(place / "inductor_cache")
    if not isolate:
        env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the other sides live on the same card
    return env


def write(name: str, argv: Sequence[str] | None, arguments: argparse.Namespace, chip: str,
          measure: Callable[[Path], list[dict[str, Any]]]) -> None:  # fmt: skip
    """Measures in a temporary folder, writes the results file, and renders it where it lies among the others.

    An error of the harness or of a side ends the program with one sentence.
    """
    result = harness.provenance(name, written(name, argv), chip)
    try:
        harness.results_path(result, arguments.out)  # refuse before the work, not after it
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            rows = measure(Path(folder))
        path = harness.write(result, rows, folder=arguments.out, append=arguments.append)
    except (ValueError, WorkerError) as error:
        sys.exit(f"bench: {error}")
    print(f"bench: wrote {os.path.relpath(path)}")
    if arguments.out == harness.RESULTS:
        render.main([])


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)
