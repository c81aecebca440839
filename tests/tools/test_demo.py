"""The demo's script with every command replaced by one that does nothing: what it keeps in phases.json."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = f"""#!/bin/sh
case "$1" in
  -c) exec "{sys.executable}" "$@" ;;
  *) echo "$@" >>"$0.log"; [ "$2" != "$FAILS" ] ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    for name in ("tools/demo.sh", "tools/env.sh", "experiments/configs/demo.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name, text in (("tools/setup.sh", "#!/bin/sh\n"), ("venv/bin/python", PYTHON)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def demo(checkout, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "WAM_VENV": "venv", "FAILS": "", **variables}
    return subprocess.run([checkout / "tools/demo.sh", *arguments], env=environment, capture_output=True, text=True,
                          check=False)  # fmt: skip


def phases(checkout) -> dict:
    return json.loads((checkout / "runs/demo/phases.json").read_text())


def test_phases_in_order_and_the_longer_time_is_kept(checkout):
    assert demo(checkout).returncode == 0
    assert list(phases(checkout)) == ["setup", "collect", "train", "evaluate", "total"]
    log = (checkout / "venv/bin/python.log").read_text()
    assert "--budget_minutes=8" in log
    assert log.splitlines()[-1] == "-m experiments.report runs/demo"
    before = {"setup": 60, "collect": 150, "train": 600, "evaluate": 200, "report": 5.4, "total": 1015.4}
    (checkout / "runs/demo/phases.json").write_text(json.dumps(before))
    assert demo(checkout).returncode == 0
    assert phases(checkout) == before


def test_options_reach_the_commands(checkout):
    assert demo(checkout, "--workdir", "runs/x", "--budget_minutes", "3").returncode == 0
    log = (checkout / "venv/bin/python.log").read_text()
    assert "--workdir=runs/x --budget_minutes=3" in log
    for bad, message in (
        (["--fast"], "unknown option"),
        (["--workdir"], "needs a value"),
        (["--config", "no.py"], "no recipe"),
    ):
        result = demo(checkout, *bad)
        assert result.returncode == 2
        assert message in result.stderr


def test_a_failed_phase_is_named_and_not_timed(checkout):
    result = demo(checkout, FAILS="experiments.train")
    assert result.returncode == 1
    assert "phase 'train' failed" in result.stderr
    assert list(phases(checkout)) == ["setup", "collect", "total"]
