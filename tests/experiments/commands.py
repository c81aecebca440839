"""Runs the commands as a user does: in a process of their own, on one CPU device."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(command: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    """`python -m experiments.<command> ...`; with `check`, a failure shows what it printed."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    result = subprocess.run(
        [sys.executable, "-m", f"experiments.{command}", *arguments], cwd=ROOT, env=env, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    if check and result.returncode:
        raise AssertionError(
            f"{command} {' '.join(arguments)} failed:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
        )
    return result
