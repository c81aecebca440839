"""What a backend hands over: a command, with a text on its standard input. It is shown and run from the same fields."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
from typing import Protocol

STOPPED = 75
"""Exit code (EX_TEMPFAIL) of a run that was stopped and has saved: it is to be started again. 0 means finished."""


class Launchable(Protocol):
    """A rendered run."""

    def show(self) -> str:
        """Exactly what `submit` would pass on, as shell text."""
        ...

    def check(self) -> None:
        """ValueError if it cannot be submitted from here."""
        ...

    def submit(self) -> str:
        """Submits; returns what to tell the user. RuntimeError: it failed."""
        ...


@dataclasses.dataclass(frozen=True)
class Submission:
    command: tuple[str, ...]
    text: str = ""
    """for the command's standard input"""

    def show(self) -> str:
        line = shlex.join(self.command)
        if not self.text:
            return line
        end = "END"
        while end in self.text.splitlines():
            end += "_"
        return f"{line} <<'{end}'\n{self.text}{end}"

    def check(self) -> None:
        tool = self.command[0]
        if shutil.which(tool) is None:
            raise ValueError(
                f"{tool} is not installed here: run this on a machine that has it, or use --dry_run to see what would "
                "be submitted"
            )

    def submit(self) -> str:
        done = subprocess.run(self.command, input=self.text, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"{self.command[0]} refused it with exit code {done.returncode}: {said[-1]}")
        return done.stdout.strip()


def exports(environment: dict[str, str]) -> list[str]:
    """Shell lines that set an environment."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def check_name(name: str, longest: int) -> None:
    """ValueError unless Kubernetes takes the name."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > longest:
        raise ValueError(
            f"--name {name!r} is no name for Kubernetes: use at most {longest} small letters, digits and dashes, "
            "a letter first"
        )
