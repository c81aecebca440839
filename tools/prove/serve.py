"""A real server under a hundred sessions, ten thousand bad messages and clients that vanish.

    python -m tools.prove.serve --workdir runs/serve [--checkpoint DIR] [--sessions 100] [--bad 10000] [--seed 0]

Starts `python -m experiments.serve` on a checkpoint (the `debug` recipe is trained for it if none is named) and, from
another process: (a) `--sessions` clients at the same time, each answer compared with what `infer_many` gives here for
the same session, chunk and observation; (b) `--bad` messages that are malformed, truncated, oversized, nested, of wrong
types or values, or declare what they do not hold; (c) connections over raw sockets that end in the middle; then all
three again. During (b) and (c) good clients ask beside, and their answers are compared, too. At the end the server has
no session left, its second round has left no more than `--leak_mb`, and it ends on SIGTERM with exit code 0. Latency is
what a client sees, from its request to its answer. The result goes to `tools/prove/results/serve.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tools.prove.hostile import PATIENCE, observation, open_client, send_bad, vanish
from wam.serving.wire import pack, unpack

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tools" / "prove" / "results" / "serve.json"
CONFIG = "experiments/configs/debug.py"
ENV = {
    name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "WAM_API_KEY")
}  # one device
TOLERANCE = 1e-5
MOST_BYTES = 1 << 20
ATTACKERS, BESIDE = 8, 4


# ---------------------------------------------------------------- the server


@dataclasses.dataclass
class ServerProcess:
    process: subprocess.Popen
    port: int

    @property
    def metrics(self) -> dict[str, float]:
        """By name and labels, as Prometheus reads them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=PATIENCE) as page:
            rows = [line.rsplit(" ", 1) for line in page.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in rows}

    @property
    def rss_mb(self) -> float:
        return round(self.metrics["process_resident_memory_bytes"] / 2**20, 1)

    def end(self) -> int:
        """The exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def server(checkpoint: Path, log: Path, *flags: str) -> Iterator[ServerProcess]:
    """`python -m experiments.serve` on a free port, once it says that it is healthy."""
    command = [sys.executable, "-m", "experiments.serve", f"--checkpoint={checkpoint}", "--port=0", "--rate=0",
               f"--max_message_mb={MOST_BYTES / 2**20}", *flags]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=out, stderr=out)
    try:
        while not (healthy := re.search(r"healthy after .* on ws://127\.0\.0\.1:(\d+)", log.read_text())):
            if process.poll() is not None:
                raise SystemExit(f"serve: the server did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield ServerProcess(process, int(healthy.group(1)))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


# ---------------------------------------------------------------- good clients


@dataclasses.dataclass
class Answered:
    """One answer to a good request, kept to be compared when the server is at rest."""

    session: int
    chunk: int
    seed: int
    mode: str
    actions: np.ndarray
    batch: int
    """requests that shared its call"""
    seconds: float


async def ask(port: int, session: int, requests: int | asyncio.Event, modes: tuple[str, ...]) -> list[Answered]:
    """One session: so many requests, or until the event, each answer with its latency."""
    answers: list[Answered] = []
    async with open_client(port) as connection:
        about = unpack(await connection.recv(decode=False))
        while not requests.is_set() if isinstance(requests, asyncio.Event) else len(answers) < requests:
            chunk = len(answers)
            seed, mode = session * 1000 + chunk % 1000, modes[(session + chunk) % len(modes)]
            request = observation(about, seed) | {"mode": mode, "session": session}
            start = time.monotonic()
            async with asyncio.timeout(PATIENCE):
                await connection.send(pack(request))
                reply = await connection.recv()
            seconds = time.monotonic() - start
            assert isinstance(reply, bytes), f"a good request was refused: {reply}"
            answer = unpack(reply)
            assert (answer["chunk"], answer["session"]) == (chunk, session)
            rows = answer["server_timing"]["batch"]
            answers.append(Answered(session, chunk, seed, mode, answer["actions"], rows, seconds))
    return answers


async def metadata(port: int) -> dict[str, Any]:
    async with open_client(port) as connection:
        return unpack(await connection.recv(decode=False))


async def crowd(port: int, sessions: int, requests: int, modes: tuple[str, ...]) -> list[Answered]:
    """`sessions` clients at the same time."""
    found = await asyncio.gather(*(ask(port, 1 + session, requests, modes) for session in range(sessions)))
    return [answer for answers in found for answer in answers]


@contextlib.asynccontextmanager
async def beside(port: int, modes: tuple[str, ...], answers: list[Answered]) -> AsyncIterator[None]:
    """Good clients that ask, one request after the other, as long as something else goes on."""
    end = asyncio.Event()
    clients = [asyncio.create_task(ask(port, 100_000 + i, end, modes)) for i in range(BESIDE)]
    try:
        yield
    finally:
        end.set()
        for found in await asyncio.gather(*clients):
            answers += found


def check(policy: Any, about: dict[str, Any], answers: list[Answered], most: int) -> dict[str, Any]:
    """Compares answers with `policy.infer_many` here: at the same batch size, and alone.

    Raises:
        AssertionError: one differs by more than `TOLERANCE`.
    """
    from wam.serving.batching import sizes

    worst, equal, known = 0.0, 0, {}
    for answer in answers:
        seen = observation(about, answer.seed)
        ids = np.array([[0, answer.session, answer.chunk]], np.uint32)
        for size in {next(s for s in sizes(most) if s >= answer.batch), 1}:
            key = (answer.session, answer.chunk, answer.mode, size)
            if key not in known:
                chunks, _ = policy.infer_many([seen], ids, mode=answer.mode, batch_size=size)
                known[key] = chunks[0].actions
            difference = float(np.abs(known[key] - answer.actions).max())
            worst = max(worst, difference)
            assert difference <= TOLERANCE, f"session {answer.session}, chunk {answer.chunk}: off by {difference}"
            equal += size != 1 and np.array_equal(known[key], answer.actions)
    return {
        "answers": len(answers),
        "largest_difference": worst,
        "bit_identical_at_the_same_batch_size": f"{equal} of {sum(answer.batch > 1 for answer in answers)}",
    }


def latency(answers: list[Answered]) -> dict[str, float]:
    ms = 1000 * np.array([answer.seconds for answer in answers])
    found = dict(zip(("p50", "p95", "p99"), np.percentile(ms, (50, 95, 99)), strict=True))
    return {f"{name}_ms": round(float(value), 1) for name, value in found.items()}


# ---------------------------------------------------------------- the proof


async def disturb(port: int, about: dict, modes: tuple[str, ...], *, bad: int, gone: int, seed: int, marker: Path
                  ) -> tuple[dict[str, Any], list[Answered]]:  # fmt: skip
    """(b) and (c): how the bad messages ended, and the answers of good clients beside."""
    answers: list[Answered] = []
    attackers = min(ATTACKERS, max(1, bad // 10))
    shares = [bad // attackers + (i < bad % attackers) for i in range(attackers)]
    start = time.monotonic()
    async with beside(port, modes, answers):
        ends = await asyncio.gather(
            *(send_bad(port, about, count=share, seed=seed + i, most_bytes=MOST_BYTES, marker=marker)
              for i, share in enumerate(shares))
        )  # fmt: skip
        middle = time.monotonic()
        vanished = await asyncio.gather(
            *(vanish(port, about, count=gone // attackers + 1, seed=seed + 1000 + i) for i in range(attackers))
        )
    counted, left = sum(ends, collections.Counter()), sum(vanished, collections.Counter())
    assert not marker.exists(), "a pickle was loaded"
    found = {
        "bad_messages": sum(counted.values()),
        "ends": dict(sorted(counted.items())),
        "seconds": round(middle - start, 1),
        "vanished": sum(left.values()),
        "vanished_where": dict(sorted(left.items())),
        "beside": latency(answers),
    }
    return found, answers


async def at_rest(running: ServerProcess) -> dict[str, float]:
    """The server's own numbers once every session is gone."""
    end = time.monotonic() + PATIENCE
    while (now := await asyncio.to_thread(lambda: running.metrics))["wam_sessions"] or now["wam_connections"] > 1:
        assert time.monotonic() < end, f"sessions are left: {now}"
        await asyncio.sleep(0.2)
    return {name: now[name] for name in ("wam_sessions", "wam_busy", "process_open_fds")}


async def prove(running: ServerProcess, policy: Any, *, sessions: int, requests: int, bad: int, gone: int, seed: int,
                modes: tuple[str, ...], max_batch: int, marker: Path) -> dict[str, Any]:  # fmt: skip
    """All of it against one server; AssertionError where a promise is broken."""
    about, port = await metadata(running.port), running.port
    result: dict[str, Any] = {"rss_mb": {"healthy": running.rss_mb}}
    everything: list[Answered] = []
    for part in ("crowd", "disturbed", "crowd_again", "disturbed_again"):
        start = time.monotonic()
        if part.startswith("crowd"):
            answers = await crowd(port, sessions, requests, modes)
            seconds = time.monotonic() - start
            result[part] = {"sessions": sessions, "requests": len(answers), "seconds": round(seconds, 1),
                            "per_second": round(len(answers) / seconds, 1), **latency(answers),
                            "rows_per_call": round(len(answers) / sum(1 / a.batch for a in answers), 2)}  # fmt: skip
        else:
            other = seed + (0 if part == "disturbed" else 50_000)
            result[part], answers = await disturb(port, about, modes, bad=bad, gone=gone, seed=other, marker=marker)
        everything += answers
        result["rest"] = await at_rest(running)
        result["rss_mb"][part] = running.rss_mb
    # Each part brings its own buffers once; what the second round adds is what would go on growing.
    result["rss_mb"]["grown_by_the_second_round"] = round(
        result["rss_mb"]["disturbed_again"] - result["rss_mb"]["disturbed"], 1
    )
    return result | check(policy, about, everything, max_batch)


def trained(workdir: Path) -> Path:
    """A run of the debug recipe."""
    run = workdir / "run"
    commands = {
        "collect": [f"--out={workdir / 'data'}"],
        "train": [f"--workdir={run}", f"--config.data.root={workdir / 'data'}", "--noprogress"],
    }
    for name, flags in commands.items():
        command = [sys.executable, "-m", f"experiments.{name}", f"--config={CONFIG}", *flags]
        subprocess.run(command, cwd=ROOT, env=ENV, check=True)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "serve")
    parser.add_argument("--checkpoint", type=Path, help="a run directory; by default the debug recipe is trained")
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--requests", type=int, default=10, help="of each session")
    parser.add_argument("--bad", type=int, default=10_000, help="messages, twice")
    parser.add_argument("--gone", type=int, default=400, help="clients that vanish, twice")
    parser.add_argument("--max_batch", type=int, default=16)
    parser.add_argument("--leak_mb", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    workdir = arguments.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.checkpoint.resolve() if arguments.checkpoint else trained(workdir)

    from experiments.provenance import provenance
    from wam.policy import load_policy

    about = provenance() | {"load_average": round(os.getloadavg()[0], 1)}  # others on the same cores
    modes = ("policy", "joint")
    flags = (f"--max_batch={arguments.max_batch}", f"--max_sessions={arguments.sessions + 32}")
    with server(checkpoint, workdir / "server.txt", *flags) as running:
        policy = load_policy(checkpoint)
        found = asyncio.run(
            prove(running, policy, sessions=arguments.sessions, requests=arguments.requests, bad=arguments.bad,
                  gone=arguments.gone, seed=arguments.seed, modes=modes, max_batch=arguments.max_batch,
                  marker=workdir / "loaded_a_pickle")
        )  # fmt: skip
        found["exit_code_after_sigterm"] = running.end()
    about |= {"command": _command(), "seed": arguments.seed, "modes": modes,
              "parameters": sum(x.size for x in _leaves(policy.params))}  # fmt: skip
    about["versions"] |= {package: importlib.metadata.version(package) for package in ("websockets", "msgpack")}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"name": "serve", **about, **found}, indent=1) + "\n")
    print(f"wrote {RESULT.relative_to(ROOT)}: {found['answers']} answers, largest difference "
          f"{found['largest_difference']:.1e}, {found['rss_mb']} MB")  # fmt: skip
    grown = found["rss_mb"]["grown_by_the_second_round"]
    if grown > arguments.leak_mb or found["exit_code_after_sigterm"] or found["rest"]["wam_busy"]:
        sys.exit(f"serve: the second round left {grown} MB, exit code {found['exit_code_after_sigterm']}")


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


def _command() -> str:
    """The flags that decide the result; where it was run does not."""
    kept = [a for a in sys.argv[1:] if a.startswith("--") and "=" in a and not a.startswith(("--workdir", "--check"))]
    return " ".join(["python", "-m", "tools.prove.serve", *kept])


if __name__ == "__main__":
    main()
