"""tools/setup.sh: what is installed when, with an interpreter that writes down what it is asked."""

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = """#!/bin/sh
echo "$@" >>"{log}"
case "$*" in
  *version_info.minor*) echo {minor} ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
esac
"""


class Checkout:
    """The scripts in a directory of their own, with a fake interpreter of Python 3.`minor`."""

    def __init__(self, directory: pathlib.Path, minor: int):
        self.root, self.log = directory, directory / "log"
        shutil.copytree(ROOT / "tools" / "constraints", directory / "tools" / "constraints")
        for name in ("tools/setup.sh", "tools/env.sh", "pyproject.toml"):
            shutil.copy(ROOT / name, directory / name)
        self.python = directory / "python"
        self.python.write_text(PYTHON.format(log=self.log, minor=minor))
        self.python.chmod(0o755)

    def setup(self, *arguments: str) -> tuple[str, str]:
        """(the extras that were installed, or nothing; what was printed)."""
        self.log.write_text("")
        done = subprocess.run(
            ["tools/setup.sh", "--no-sim", "--python", str(self.python), *arguments],
            cwd=self.root, capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        asked = [line for line in self.log.read_text().splitlines() if ".[" in line]
        return (asked[-1].split(".[")[1].rstrip("]") if asked else ""), done.stdout


@pytest.fixture
def checkout(tmp_path):
    return lambda minor: Checkout(tmp_path, minor)


def test_reference_implementations_come_when_asked_for_and_stay(checkout):
    here = checkout(11)
    assert here.setup()[0] == "test,dev,pretrained,serve"
    assert here.setup() == ("", "")
    assert here.setup("--parity")[0] == "test,dev,pretrained,serve,parity"
    assert here.setup() == ("", ""), "an environment that has more is accepted"
    assert here.setup("--parity") == ("", "")
    with (here.root / "pyproject.toml").open("a") as project:
        project.write("# changed\n")
    assert here.setup()[0] == "test,dev,pretrained,serve,parity"


def test_they_are_left_out_in_words_where_they_are_not_tested(checkout):
    here = checkout(12)
    extras, said = here.setup("--parity")
    assert extras == "test,dev,pretrained,serve"
    assert "no reference implementations on Python 3.12" in said
    assert here.setup("--parity") == ("", "")
