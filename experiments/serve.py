"""Serves a checkpoint to robots over WebSocket, in the protocol of the `openpi-client` package.

    python -m experiments.serve --checkpoint runs/demo
    python -m experiments.serve --checkpoint runs/droid --mapping experiments/serving/droid.json --modes policy
    python -m experiments.serve --checkpoint runs/demo --modes joint --program flash --steps 1
    WAM_API_KEY=... python -m experiments.serve --checkpoint runs/demo --host 0.0.0.0

A client of that package then asks `WebsocketClientPolicy("127.0.0.1", 8000).infer(observation)["actions"]`. Without
`--mapping` an observation is that of `Policy.infer`: images/CAMERA, state, instruction, embodiment. The server prints
one line when it is healthy, answers `/healthz` and `/metrics` on the same port, and ends with exit code 0 on SIGTERM or
Ctrl-C once requests under way are answered. A key comes from the file `--api_key_file` or the variable WAM_API_KEY.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from experiments import cli
from experiments.programs import program_flags, program_from_flags

if TYPE_CHECKING:
    from wam.diffusion.sampler import Program

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory that holds checkpoints/.")
_STEP = flags.DEFINE_integer("step", None, "Which of its checkpoints; by default the newest.")
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on; any but this machine's own needs a key or --open_to_all."
)
_PORT = flags.DEFINE_integer("port", 8000, "Port; 0 takes a free one.", lower_bound=0, upper_bound=65535)
_KEY_FILE = flags.DEFINE_string(
    "api_key_file", None, "File with the key that clients must send (Authorization: Api-Key KEY); or set WAM_API_KEY."
)
_OPEN = flags.DEFINE_bool("open_to_all", False, "Listen where others can reach it, without a key.")
_MAPPING = flags.DEFINE_string(
    "mapping", None, "JSON file with the clients' names of cameras and state; see experiments/serving/."
)
_MODES = flags.DEFINE_list(
    "modes", ["policy", "joint"], "Modes to compile and serve; the first is the default of a request."
)
_STEPS = flags.DEFINE_integer(
    "steps", None, "Sampler steps of the first mode, or of --program; by default the policy's.", lower_bound=1
)
_PREFIXES = flags.DEFINE_bool("prefixes", False, "Also compile for requests that carry actions already committed.")
_MAX_BATCH = flags.DEFINE_integer("max_batch", 16, "Most requests answered by one call.", lower_bound=1)
_WINDOW = flags.DEFINE_float(
    "batch_window_ms", 3.0, "How long the first request of a batch waits for others.", lower_bound=0
)
_MAX_SESSIONS = flags.DEFINE_integer("max_sessions", 128, "Most clients at a time.", lower_bound=1)
_RATE = flags.DEFINE_float("rate", 50.0, "Most requests a second of one client; 0: any.", lower_bound=0)
_IDLE = flags.DEFINE_float("idle_seconds", 600.0, "A client that asks nothing for so long is closed.", lower_bound=0.1)
_MESSAGE = flags.DEFINE_float("max_message_mb", 8.0, "Largest request, in MiB.", lower_bound=0.001)


def read_key(path: str | None) -> str:
    """The key of the file, or of WAM_API_KEY, or none. ValueError: both, or an empty one; OSError: no such file."""
    variable = os.environ.get("WAM_API_KEY")
    if path is not None and variable is not None:
        raise ValueError("--api_key_file and WAM_API_KEY are both set: which one holds?")
    if path is None and variable is None:
        return ""
    key = (Path(path).read_text() if path is not None else variable or "").strip()
    if not key:
        raise ValueError(f"{path or 'WAM_API_KEY'} is empty: it should hold the key")
    return key


def _program() -> Program | None:
    """How one mode is sampled, if the flags say so."""
    from wam.policy import DEFAULT_STEPS

    given = program_flags()
    if not given and _STEPS.value is None:
        return None
    steps = dict.fromkeys(DEFAULT_STEPS, _STEPS.value) if _STEPS.value else DEFAULT_STEPS
    return program_from_flags(None if "program" in given else _MODES.value[0], steps)


async def _serve() -> None:
    from data_pipelines.resize import fit_image
    from wam.policy import load_policy
    from wam.serving.observations import ObservationMapping
    from wam.serving.server import PolicyServer, ServerConfig

    start, checkpoint = time.monotonic(), _CHECKPOINT.value
    assert checkpoint is not None  # a required flag
    config = ServerConfig(
        host=_HOST.value, port=_PORT.value, api_key=read_key(_KEY_FILE.value), open_to_all=_OPEN.value,
        modes=tuple(_MODES.value), prefixes=_PREFIXES.value, max_batch=_MAX_BATCH.value, batch_window_ms=_WINDOW.value,
        max_sessions=_MAX_SESSIONS.value, rate=_RATE.value, idle_seconds=_IDLE.value,
        max_message_bytes=int(_MESSAGE.value * 2**20),
    )  # fmt: skip
    mapping = ObservationMapping.read(_MAPPING.value) if _MAPPING.value else ObservationMapping()
    server = PolicyServer(config, lambda: load_policy(checkpoint, step=_STEP.value), mapping, fit_image, _program())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.listen()
    guarded = "with an API key" if config.api_key else "without a key"
    print(f"serve: loading {checkpoint}; ws://{config.host}:{server.port} is not ready yet", flush=True)
    stopping, warming = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(server.warm_up())
    await asyncio.wait({stopping, warming}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if warming.done():
            warming.result()
            print(
                f"serve: healthy after {time.monotonic() - start:.1f} s on ws://{config.host}:{server.port} {guarded}: "
                f"modes {', '.join(config.modes)}, at most {config.max_sessions} sessions",
                flush=True,
            )
            await stopping
            print("serve: shutting down", flush=True)
    finally:
        warming.cancel()
        await server.drain()


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"serve: unknown argument {argv[1]!r}; see --help")
    try:
        asyncio.run(_serve())
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sys.exit(f"serve: port {_PORT.value} is taken; choose another with --port")
        sys.exit(f"serve: {f'{error.filename}: {error.strerror}' if error.filename else error}")
    except (ValueError, ImportError) as error:
        sys.exit(f"serve: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint"])
    cli.run(main)
