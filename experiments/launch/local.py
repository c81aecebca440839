"""Several processes of this machine as one run: started here, their output with a prefix, stopped together."""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

from experiments.launch.options import Options
from experiments.launch.runs import Run


def render(run: Run, options: Options) -> Processes:
    if options.nodes != 1:
        raise ValueError("--backend=local is one machine: use --processes_per_node instead of --nodes")
    if options.setup:
        raise ValueError("--backend=local starts the processes itself: do what --setup says in your own shell")
    count, gpus = options.processes_per_node, options.gpus_per_node // options.processes_per_node
    environments = []
    for i in range(count):
        own = {**options.environment, "PYTHONUNBUFFERED": "1"}
        if count > 1:
            own["WAM_COORDINATOR"] = f"localhost:{run.port(options)}"
            own["WAM_NUM_PROCESSES"] = str(count)
            own["WAM_PROCESS_ID"] = str(i)
        if gpus:
            own["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(i * gpus, (i + 1) * gpus)))
        environments.append(own)
    port = run.port(options) if count > 1 else None
    return Processes(run.command, tuple(environments), options.code_dir, port, options.grace)


@dataclasses.dataclass(frozen=True)
class Processes:
    command: tuple[str, ...]
    environments: tuple[Mapping[str, str], ...]
    """what each process has on top of this one's environment"""
    directory: str
    port: int | None
    grace: float
    """seconds between the signal to stop and the end"""

    def show(self) -> str:
        lines = [f"cd {shlex.quote(self.directory)}"]
        for own in self.environments:
            settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in own.items())
            lines.append(f"{settings} {shlex.join(self.command)} &")
        return "\n".join([*lines, "wait"])

    def check(self) -> None:
        if self.port is None:
            return
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("localhost", self.port))
            except OSError:
                raise ValueError(f"port {self.port} is taken on this machine: choose another with --port") from None

    def submit(self) -> str:
        """Runs the processes to their end; a failure of one ends the others, SIGTERM and SIGINT reach all of them."""
        children: list[subprocess.Popen] = []
        signals: list[int] = []
        handlers = {
            n: signal.signal(n, lambda number, _: signals.append(number)) for n in (signal.SIGTERM, signal.SIGINT)
        }
        readers = []
        try:
            for i, own in enumerate(self.environments):
                child = subprocess.Popen(
                    self.command, env={**os.environ, **own}, cwd=self.directory, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, start_new_session=True, text=True, errors="replace",
                )  # fmt: skip
                children.append(child)
                readers.append(threading.Thread(target=_stream, args=(child.stdout, i), daemon=True))
                readers[-1].start()
            failed = self._wait(children, signals)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                    child.wait()
            for reader in readers:
                reader.join()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if failed is not None:
            code = children[failed].returncode
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise RuntimeError(f"process {failed} of {len(children)} {how}; see its output above")
        return "stopped" if signals else "finished"

    def _wait(self, children: list[subprocess.Popen], signals: list[int]) -> int | None:
        """Until all have ended; the first that failed, before any was made to end."""
        failed, deadline, told = None, float("inf"), 0
        while None in (codes := [child.poll() for child in children]):
            if failed is None:
                failed = next((i for i, code in enumerate(codes) if code), None)
                if failed is not None and len(children) > 1:
                    _send(children, signal.SIGTERM)
                    # The others wait for the one that failed, they can hardly save.
                    deadline = min(deadline, time.monotonic() + min(self.grace, 10))
            if len(signals) > told:
                told = len(signals)
                _send(children, signal.SIGTERM if told == 1 else signal.SIGKILL)  # asked twice: at once
                deadline = min(deadline, time.monotonic() + self.grace)
            if time.monotonic() > deadline:
                _send(children, signal.SIGKILL)
            time.sleep(0.05)
        if failed is None:
            failed = next((i for i, child in enumerate(children) if child.returncode), None)
        return failed


def _send(children: list[subprocess.Popen], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


_lock = threading.Lock()


def _stream(lines, number: int) -> None:
    for line in lines:
        with _lock:
            sys.stdout.write(f"[{number}] {line.rstrip()}\n")
            sys.stdout.flush()
