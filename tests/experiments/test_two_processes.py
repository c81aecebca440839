"""The real training in two processes: equal to one process, stopped together, taken up again by one."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = pytest.mark.requires_sim

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 100


@pytest.fixture
def train(debug_run, tmp_path):
    """train(name, devices, **variables): a running training of the debug recipe in two data streams."""

    def start(name, devices, **variables):
        workdir = tmp_path / name
        workdir.mkdir(exist_ok=True)
        for fitted in ("fitted.json", "fitted.npz"):
            shutil.copy(debug_run / fitted, workdir)
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.train", "--config=experiments/configs/debug.py", "--noprogress",
             f"--workdir={workdir}", f"--config.data.root={debug_run / 'data'}", "--config.data.streams=2",
             f"--config.train.steps={STEPS}", "--config.train.checkpoint_every=40", "--config.train.best_metric="],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), **variables}, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


def ended(process, code=0):
    """(standard output, standard error) of a process that must end with this code."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, f"{out}\n{err[-6000:]}"
    return out, err


def train_rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines() if (workdir / "metrics.jsonl").exists() else []
    return [row for row in map(json.loads, lines) if row["split"] == "train"]


def data_state(workdir, step):
    [file] = (workdir / "checkpoints" / str(step) / "data").rglob("metadata")
    return json.loads(file.read_text())


def test_two_processes_train_stop_and_resume_like_one(train, tmp_path):
    """SIGTERM to one of two stops both at the same step with one checkpoint; one process then finishes the run."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    alone = train("alone", 2)
    run = tmp_path / "run"
    both = [
        train("run", 1, WAM_COORDINATOR=f"localhost:{port}", WAM_NUM_PROCESSES="2", WAM_PROCESS_ID=str(i))
        for i in range(2)
    ]
    while not train_rows(run) and both[1].poll() is None:
        time.sleep(0.02)
    both[1].send_signal(signal.SIGTERM)  # process 0 hears of it through the agreement alone
    (out, err), (second_out, second_err) = map(ended, both)
    assert "joined as process 0 of 2: 1 of 2 devices are local" in err
    assert "joined as process 1 of 2: 1 of 2 devices are local" in second_err
    assert f"{STEPS} steps of batch 8" in out and second_out == "" and "Traceback" not in err + second_err
    [stopped] = [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal()]
    assert 5 <= stopped < STEPS
    assert data_state(run, stopped)["grain"] == {"next_index": stopped}

    together = train_rows(run)
    resumed, _ = ended(train("run", 2))
    assert f"resuming at step {stopped} of {STEPS}" in resumed and "streams" not in resumed  # exactly as before
    ended(alone)
    expected, found = train_rows(tmp_path / "alone"), train_rows(run)
    assert [row["step"] for row in expected][-1] == found[-1]["step"] == STEPS
    for row, other in zip(together, expected, strict=False):
        if row["step"] == other["step"]:
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert found[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=0.02)
    assert data_state(run, STEPS) == data_state(tmp_path / "alone", STEPS)
    drawn = {key: 0 for key in expected[0] if key.startswith("drawn/")}
    assert drawn
    for rows in (expected, found):
        totals = {key: sum(row[key] for row in rows) for key in drawn}
        assert np.isclose(sum(totals.values()), 8 * STEPS)
        drawn = drawn if any(drawn.values()) else totals
        assert totals == drawn
