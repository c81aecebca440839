"""Several processes as one run: joining them, which rows each feeds, what they decide together.

Everything here also works in a plain single process, where it costs nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed as runtime  # its key-value store has no public face
from jax._src.clusters import ClusterEnv  # nor have the clusters that `jax.distributed.initialize` knows
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

log = logging.getLogger(__name__)

T = TypeVar("T")

VARIABLES = ("WAM_COORDINATOR", "WAM_NUM_PROCESSES", "WAM_PROCESS_ID")
"""Environment of a process that is told explicitly: host:port of process 0, number of processes, own number."""


def initialize(*, timeout: int | None = None) -> None:
    """Joins the processes of a run; does nothing in a plain single process. Call it before any device is used.

    Processes are found through `VARIABLES`, or by jax where it knows the cluster (SLURM, Open MPI, TPU pods,
    Kubernetes) and the cluster says that there is more than one.

    Args:
        timeout: seconds to wait for the others; by default `WAM_JOIN_TIMEOUT`, or 300.

    Raises:
        ValueError: the environment is incomplete, the port is taken, or devices were used before.
        SystemExit: after `timeout`, at once and whatever else runs, with one sentence.
    """
    if jax.distributed.is_initialized():
        return
    timeout = timeout or _integer("WAM_JOIN_TIMEOUT", 300)
    arguments = _told() or _detected()
    if arguments is None:
        log.debug("a single process: nothing to join")
        return
    # Its handler would swallow a SIGTERM that arrives before the training loop listens; `Agreement` spreads the news.
    jax.config.update("jax_enable_preemption_service", False)
    where = arguments.get("coordinator_address", "the address that the cluster names")

    def give_up() -> None:
        print(
            f"the processes of this run did not meet at {where} within {timeout} s: check that all of them were "
            "started and can reach it",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(1)  # jax's call cannot be interrupted, and at its own timeout it would abort with a dump of its stack

    watchdog = threading.Timer(timeout, give_up)
    watchdog.start()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=timeout + 60, shutdown_timeout_seconds=60)
    except RuntimeError as error:
        raise ValueError(f"the run cannot be joined at {where}: {str(error).splitlines()[0][:200]}") from error
    finally:
        watchdog.cancel()
    log.info(
        "joined as process %d of %d: %d of %d devices are local",
        jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count(),
    )  # fmt: skip
    # The first collective connects the processes, on CPUs waiting half a minute at most: now they are together.
    multihost_utils.sync_global_devices("joined")


def _integer(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"the environment variable {name} must be a whole number, it is {text!r}")
    return int(text)


def _told() -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize` from `VARIABLES`, None without any of them."""
    found = [name for name in VARIABLES if os.environ.get(name)]
    if not found:
        return None
    if missing := [name for name in VARIABLES if name not in found]:
        raise ValueError(f"{', '.join(found)} is set but {', '.join(missing)} is not: a process needs all of them")
    address = os.environ["WAM_COORDINATOR"]
    number, count = _integer("WAM_PROCESS_ID", 0), _integer("WAM_NUM_PROCESSES", 1)
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
        raise ValueError(f"WAM_COORDINATOR must be host:port, it is {address!r}")
    if not number < count:
        raise ValueError(f"WAM_PROCESS_ID {number} is not one of 0 to {count - 1} (WAM_NUM_PROCESSES {count})")
    # jax must not ask a cluster as well: it would give each process of a SLURM job a single GPU.
    return {"coordinator_address": address, "num_processes": count, "process_id": number,
            "cluster_detection_method": "deactivate"}  # fmt: skip


def _detected() -> dict[str, Any] | None:
    """{} where jax detects a cluster with several tasks, so that it finds out everything itself; else None."""
    for cluster in ClusterEnv._cluster_types:
        if not cluster.opt_in_only_method and cluster.is_env_present():
            return {} if cluster.get_process_count() > 1 else None
    return None


def is_main() -> bool:
    """Is this the process that writes what all have in common? Collectives and checkpoints need every process."""
    return runtime.global_state.process_id == 0


def barrier(name: str) -> None:
    """Waits until all processes are here, however long they take: no collective of a device is involved."""
    if (client := runtime.global_state.client) is not None:
        client.wait_at_barrier(f"wam/{name}/{next(_calls)}", _PATIENCE_MS)


_calls = itertools.count()  # every process makes the same calls in the same order, so the numbers agree
_PATIENCE_MS = 7 * 24 * 3600 * 1000  # a process that is gone ends the others long before


def from_main(make: Callable[[], T]) -> T:
    """The JSON-able value that `make` returns on process 0, on every process; the others wait as long as it takes.

    Raises:
        ValueError: process 0 raised a ValueError or OSError; all processes end with its sentence instead of waiting.
    """
    client, key = runtime.global_state.client, f"wam/value/{next(_calls)}"
    if client is None:
        return make()
    problem: Exception | None = None
    if is_main():
        try:
            text = json.dumps({"value": make()})
        except (ValueError, OSError) as error:
            problem, text = error, json.dumps({"error": str(error)})
        client.key_value_set(key, text)
    answer = json.loads(client.blocking_key_value_get(key, _PATIENCE_MS))
    if "error" in answer:
        with contextlib.suppress(RuntimeError):  # the store ends with process 0: all should have heard
            client.wait_at_barrier(f"{key}/heard", 10_000)
        raise problem or ValueError(answer["error"])
    return answer["value"]


def main_first(make: Callable[[], T]) -> T:
    """What `make` returns here, run on process 0 before the others: it writes what they then find.

    ValueError on all of them if process 0 raised a ValueError or OSError.
    """
    made: list[T] = []
    from_main(lambda: made.append(make()))
    return made[0] if made else make()


def fail(sentence: str) -> NoReturn:
    """Ends this process with a sentence and exit code 1.

    One of several must not leave in the ordinary way: jax would wait a minute for the others, which wait for this one,
    and then abort with a dump. The others end when its heartbeat is missed, or at once by the launcher's hand.
    """
    if not jax.distributed.is_initialized():
        sys.exit(sentence)
    sys.stdout.flush()
    print(sentence, file=sys.stderr, flush=True)
    if is_main():
        time.sleep(1)  # without its service the others abort: where they fail too, let them say so first
    os._exit(1)


@dataclasses.dataclass(frozen=True)
class Replica:
    """Which share of the rows of every global batch a process feeds."""

    index: int
    count: int


def data_replica(
    rows: NamedSharding, batch_size: int, *, process: int | None = None,
    process_of: Callable[[Any], int] = lambda device: device.process_index,
) -> Replica:  # fmt: skip
    """The data replica that a process belongs to: processes with equal rows belong to the same one.

    Where tensor or context axes span hosts, several processes hold the same rows and must read the same data, so data
    are shared out by this and never by the number of the process.

    Args:
        rows: sharding of the batch's leading axis.
        batch_size: global.
        process: this one by default.
        process_of: the process of a device, by default its own; tests pretend.

    Raises:
        ValueError: processes hold sets of rows that overlap without being equal, or of different size.
    """
    held: dict[int, set[int]] = {}
    for device, (index, *_) in rows.devices_indices_map((batch_size,)).items():
        held.setdefault(process_of(device), set()).update(range(*index.indices(batch_size)))
    shares = sorted({tuple(sorted(share)) for share in held.values()})
    if sum(map(len, shares)) != batch_size or len({len(share) for share in shares}) > 1:
        raise ValueError(
            f"the mesh {dict(rows.mesh.shape)} deals the batch out unevenly, processes share a part of their rows: "
            "choose axes so that each of them lies within a process or spans whole processes"
        )
    own = held[jax.process_index() if process is None else process]
    return Replica(shares.index(tuple(sorted(own))), len(shares))


class Agreement:
    """Whether any process wants to stop, known to all of them at the same step.

    Call `send` once a step, after dispatching it, and then `result`. With several processes the answer is that to the
    send before: it lies behind the previous step in the device's queue, so nothing waits for the step just dispatched.
    One process has its answer at once.

    jax has a protocol of its own for preemption notices (`reached_preemption_sync_point`). It costs nothing either, but
    takes the signal handler of the whole process, polls once a second and hears nothing but SIGTERM; this also serves
    stops that the program itself decides on.
    """

    def __init__(self):
        self._latest: Any = False
        self._previous: Any = False
        if jax.process_count() == 1:
            return
        first = {}  # one device of each process is enough
        for device in jax.devices():
            first.setdefault(device.process_index, device)
        devices = np.array([first[i] for i in sorted(first)])
        mesh = Mesh(devices, ("process",), axis_types=(AxisType.Auto,))
        self._flags = NamedSharding(mesh, PartitionSpec("process"))
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def send(self, flag: bool) -> None:
        self._previous = self._latest
        if jax.process_count() == 1:
            self._latest = flag
        else:
            own = np.array([flag], np.int32)
            self._latest = self._any(jax.make_array_from_process_local_data(self._flags, own))

    def result(self) -> bool:
        return bool(self._latest if jax.process_count() == 1 else self._previous)
