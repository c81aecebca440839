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

import pytest

pytestmark = pytest.mark.requires_sim

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def train(debug_run, tmp_path):
    """train(name, *flags, **variables): a training of the debug recipe that has begun, one device a process."""

    def start(name, *flags, **variables):
        workdir = tmp_path / name
        workdir.mkdir(exist_ok=True)
        for fitted in ("fitted.json", "fitted.npz"):
            shutil.copy(debug_run / fitted, workdir)
        env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", **variables}
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.train", "--config=experiments/configs/debug.py", "--noprogress",
             f"--workdir={workdir}", f"--config.data.root={debug_run / 'data'}", *flags],
            env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


@pytest.fixture
def train_two(train):
    """The same in two processes."""

    def start(name, *flags):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        return [
            train(name, *flags, WAM_COORDINATOR=address, WAM_NUM_PROCESSES="2", WAM_PROCESS_ID=str(i))
            for i in range(2)
        ]  # fmt: skip

    return start


def ended(process):
    """(standard output, standard error) of a process that must end well."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, f"{out}\n{err[-6000:]}"
    return out, err


def train_rows(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row["split"] == "train"]


def data_state(workdir, step):
    return json.loads((workdir / "checkpoints" / str(step) / "data" / "metadata").read_text())


def test_two_processes_train_stop_and_resume_like_one(train, train_two, tmp_path):
    """SIGTERM to one of two stops both at the same step with one checkpoint; one process then finishes the run."""
    steps = 100
    flags = ("--config.data.streams=2", f"--config.train.steps={steps}", "--config.train.checkpoint_every=1000",
             "--config.train.eval_every=1000")  # fmt: skip
    run, both = tmp_path / "run", train_two("run", *flags)
    while not train_rows(run) and both[1].poll() is None:
        time.sleep(0.01)
    both[1].send_signal(signal.SIGTERM)  # process 0 hears of it through the agreement alone
    (out, err), (second_out, second_err) = map(ended, both)
    assert "joined as process 0 of 2: 1 of 2 devices are local" in err
    assert "joined as process 1 of 2: 1 of 2 devices are local" in second_err
    assert f"{steps} steps of batch 8" in out and second_out.count("train:") == 0
    assert "Traceback" not in err + second_err
    [stopped] = [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal()]
    assert 1 <= stopped < steps
    assert data_state(run, stopped)["grain"] == {"next_index": stopped}

    together = train_rows(run)
    resumed, _ = ended(train("run", *flags))
    assert f"resuming at step {stopped} of {steps}" in resumed and "streams" not in resumed  # exactly as before
    ended(train("alone", *flags))
    alone, whole = train_rows(tmp_path / "alone"), train_rows(run)
    expected = {row["step"]: row["loss"] for row in alone}
    assert together[0]["step"] == 1 and together[-1]["step"] == stopped
    for row in together[:2]:
        if row["step"] in expected:
            assert row["loss"] == pytest.approx(expected[row["step"]], rel=1e-4)
    assert whole[-1]["step"] == steps and whole[-1]["loss"] == pytest.approx(expected[steps], rel=0.02)
    assert data_state(run, steps) == data_state(tmp_path / "alone", steps)
