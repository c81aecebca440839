"""Several processes: which rows each feeds, how they are found, what they decide together."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from wam.training import distributed

ROOT = pathlib.Path(__file__).resolve().parents[2]
AXES = ("data", "fsdp", "tensor", "context")
BATCH = 16


def rows_of(shape, devices=None):
    mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicas(rows, per_process):
    """(replica, replicas) of every pretended process of so many devices each."""
    return [
        dataclasses.astuple(
            distributed.data_replica(rows, BATCH, process=i, process_of=lambda device: device.id // per_process)
        )
        for i in range(8 // per_process)
    ]


@pytest.mark.parametrize(
    ("shape", "per_process", "expected"),
    [
        ((8, 1, 1, 1), 8, [(0, 1)]),
        ((8, 1, 1, 1), 4, [(0, 2), (1, 2)]),
        ((2, 4, 1, 1), 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),  # fsdp shares rows as well
        ((4, 1, 2, 1), 4, [(0, 2), (1, 2)]),  # tensor within a process
        ((4, 1, 2, 1), 1, [(0, 4), (0, 4), (1, 4), (1, 4), (2, 4), (2, 4), (3, 4), (3, 4)]),  # tensor over two
        ((2, 1, 1, 4), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # context over two
        ((1, 1, 2, 4), 2, [(0, 1)] * 4),  # all the same rows
    ],
)
def test_data_are_shared_out_by_replica_and_not_by_process(shape, per_process, expected):
    assert replicas(rows_of(shape), per_process) == expected


def test_replicas_of_a_shuffled_mesh():
    """Devices in another order than processes: equal rows still mean the same replica, and no row is left out."""
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    devices = [jax.devices()[i] for i in order]
    assert replicas(rows_of((4, 1, 1, 2), devices), 4) == [(0, 1), (0, 1)]  # context over both, always
    assert replicas(rows_of((8, 1, 1, 1), devices), 4) == [(0, 2), (1, 2)]


def test_uneven_layouts_are_refused():
    order = [0, 1, 2, 4, 3, 5, 6, 7]  # of two processes, one has rows 0 to 2 alone, and both a part of the third
    rows = rows_of((4, 1, 1, 2), [jax.devices()[i] for i in order])
    with pytest.raises(ValueError, match="deals the batch out unevenly"):
        replicas(rows, 4)
    of = dict(zip(jax.devices(), [0, 0, 0, 1, 1, 1, 1, 1], strict=True))
    with pytest.raises(ValueError, match="deals the batch out unevenly"):
        distributed.data_replica(rows_of((8, 1, 1, 1)), BATCH, process=0, process_of=of.__getitem__)


def test_one_process_needs_nobody():
    distributed.initialize()
    assert not jax.distributed.is_initialized()
    assert distributed.is_main()
    assert distributed.data_replica(rows_of((8, 1, 1, 1)), BATCH) == distributed.Replica(0, 1)
    assert distributed.from_main(lambda: {"steps": 3}) == {"steps": 3}
    assert distributed.main_first(lambda: "own") == "own"
    with pytest.raises(OSError, match="disk"):
        distributed.from_main(full_disk)
    distributed.barrier("nobody")
    agreement = distributed.Agreement()
    assert not agreement.result()
    for flag in (False, True, False):
        agreement.send(flag)
        assert agreement.result() is flag
    with pytest.raises(SystemExit, match="a sentence"):
        distributed.fail("a sentence")


def full_disk():
    raise OSError("the disk is full")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WAM_COORDINATOR": "host:1"}, "WAM_COORDINATOR is set but WAM_NUM_PROCESSES, WAM_PROCESS_ID is not"),
        (
            {"WAM_COORDINATOR": "host", "WAM_NUM_PROCESSES": "2", "WAM_PROCESS_ID": "0"},
            "must be host:port, it is 'host'",
        ),
        ({"WAM_COORDINATOR": "host:1", "WAM_NUM_PROCESSES": "2", "WAM_PROCESS_ID": "2"}, "2 is not one of 0 to 1"),
        ({"WAM_COORDINATOR": "host:1", "WAM_NUM_PROCESSES": "two", "WAM_PROCESS_ID": "0"}, "must be a whole number"),
        ({"WAM_JOIN_TIMEOUT": "soon"}, "WAM_JOIN_TIMEOUT must be a whole number"),
    ],
)
def test_incomplete_environments_are_refused(monkeypatch, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said):
        distributed.initialize()


SLURM = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "node[01-02]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        ({}, None),
        (SLURM | {"SLURM_NTASKS": "2"}, {}),  # jax finds out the rest
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"}, None),  # a shell in an allocation, not a task
        (SLURM | {"SLURM_NTASKS": "2", "WAM_COORDINATOR": "a:1", "WAM_NUM_PROCESSES": "3", "WAM_PROCESS_ID": "2"},
         {"coordinator_address": "a:1", "num_processes": 3, "process_id": 2,
          "cluster_detection_method": "deactivate"}),
    ],
)  # fmt: skip
def test_joining_is_for_several_tasks_only(monkeypatch, environment, arguments):
    """What `jax.distributed.initialize` would be called with; None: not at all."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: calls.append(given))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(distributed.multihost_utils, "sync_global_devices", lambda _: None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.initialize(timeout=5)
    if arguments is None:
        assert calls == []
    else:
        [given] = calls
        limits = {given.pop("initialization_timeout"), given.pop("shutdown_timeout_seconds")}
        assert given == arguments and min(limits) > 5  # our own sentence comes before jax's abort


def start(program, number, port, *arguments):
    """One of two processes of a run, with a device of its own."""
    env = {
        **os.environ, "JAX_NUM_CPU_DEVICES": "1", "WAM_COORDINATOR": f"localhost:{port}", "WAM_NUM_PROCESSES": "2",
        "WAM_PROCESS_ID": str(number),
    }  # fmt: skip
    return subprocess.Popen([sys.executable, *program, *arguments], env=env, cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_two_processes_agree_and_feed_their_rows():
    """Values of process 0, its errors, stopping, and rows on meshes where the processes do and do not share them."""
    port = free_port()
    both = [start(["-m", "tests.training.together"], i, port) for i in range(2)]
    texts = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(texts)[-6000:]


FAILS = """
import sys
from wam.training import distributed
distributed.initialize()
distributed.barrier("both are here")
if distributed.is_main():
    distributed.barrier("never")
distributed.fail("this host has no data")
"""


def test_a_process_that_fails_leaves_at_once():
    """It does not wait for the other, which waits for it; the launcher can then end that."""
    port = free_port()
    main, failing = (start(["-c", FAILS], i, port) for i in range(2))
    try:
        said = failing.communicate(timeout=100)[0]
        assert failing.returncode == 1
        assert said.strip().splitlines()[-1] == "this host has no data"
        assert main.poll() is None
    finally:
        main.kill()
        main.wait()


def test_a_coordinator_that_cannot_be_reached_is_one_sentence(monkeypatch):
    code = "from wam.training import distributed; distributed.initialize()"
    for name, value in zip(distributed.VARIABLES, ("localhost:1", "2", "1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WAM_JOIN_TIMEOUT", "1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "the processes of this run did not meet at localhost:1 within 1 s: check that all of them were started and can "
        "reach it"
    )
