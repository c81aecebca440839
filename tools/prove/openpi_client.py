"""Meta-World episodes driven through the `openpi-client` package, in an environment of its own, against our server.

    python -m tools.prove.openpi_client --checkpoint runs/demo [--client_python PYTHON] [--episodes 3]

That package needs numpy below 2 and our simulator one above, so the simulator runs here and hands observations over a
pipe to a process that holds the package's `WebsocketClientPolicy` and `ActionChunkBroker`; what the server reads was
written by them, with an API key and the observation names of `experiments/serving/metaworld.json`. Without
`--client_python` an environment is made in `--workdir`. Every chunk that the client executed is compared with
`infer_many` here. The result goes to `tools/prove/results/openpi_client.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import secrets
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tools.prove.serve import ROOT, TOLERANCE, server

RESULT = ROOT / "tools" / "prove" / "results" / "openpi_client.json"
MAPPING = ROOT / "experiments" / "serving" / "metaworld.json"
PACKAGES = ("openpi-client", "numpy", "websockets", "msgpack")


def environment(workdir: Path) -> str:
    """An interpreter that has the package."""
    python = workdir / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(workdir / "venv")], check=True)
        # It imports typing_extensions and does not say so.
        subprocess.run([str(python), "-m", "pip", "install", "-q", "openpi-client", "typing_extensions"], check=True)
    return str(python)


def versions(python: str) -> dict[str, str]:
    """Of what the client imports, after it has."""
    code = (
        "import importlib.metadata as m, json\n"
        "import openpi_client.action_chunk_broker, openpi_client.websocket_client_policy\n"
        f"print(json.dumps({{p: m.version(p) for p in {PACKAGES}}}))"
    )
    return json.loads(subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True).stdout)


class Client:
    """The other process, as a function from an observation, or None for the last one, to an action."""

    def __init__(self, process: subprocess.Popen):
        self.process = process

    def __call__(self, observation: dict[str, Any] | None) -> dict[str, np.ndarray]:
        """{"action": [dim], "seconds" of the answer, NaN if none was needed, "infer_ms" as the server says}."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        buffer = io.BytesIO()
        np.savez(buffer, **(observation or {}))
        self.process.stdin.write(struct.pack(">Q", buffer.tell()) + buffer.getvalue())
        self.process.stdin.flush()
        head = self.process.stdout.read(8)
        if len(head) < 8:
            raise SystemExit("openpi_client: the client's process ended; what it said is above")
        with np.load(io.BytesIO(self.process.stdout.read(*struct.unpack(">Q", head)))) as arrays:
            return {name: arrays[name] for name in arrays.files}


@contextlib.contextmanager
def client(python: str, port: int, key_file: Path, horizon: int) -> Iterator[Client]:
    # Isolated: the robot's side finds no module of ours, this file's namesake least of all.
    side = [python, "-I", str(Path(__file__).with_name("openpi_side.py")), str(port), str(key_file), str(horizon)]
    process = subprocess.Popen(side, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield Client(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


def asked(images: dict[str, np.ndarray], state: np.ndarray, instruction: str) -> dict[str, Any]:
    """In the names of the mapping."""
    mapping = json.loads(MAPPING.read_text())
    cameras = {key: images[camera] for camera, key in mapping["cameras"].items()}
    parts = dict(zip(mapping["state"], (state[:3], state[3:]), strict=True))
    return cameras | {name: part.astype(np.float64) for name, part in parts.items()} | {"prompt": instruction}


def episode(env: Any, layout: np.ndarray, act: Client, session: int, horizon: int, most: int) -> dict[str, Any]:
    """One closed-loop episode: success, steps, latencies, and what was seen and executed, chunk by chunk."""
    env.reset(layout)
    chunks: list[dict[str, Any]] = []
    seconds, served, success, step = [], [], False, 0
    while not success and step < most:
        observation = None
        if step % horizon == 0:
            images, state = env.render(), env.state.copy()
            observation = asked(images, state, env.instruction)
            if step == 0:
                observation |= {"reset": True, "session": session}
            chunks.append({"images": images, "state": state, "actions": []})
        answer = act(observation)
        if np.isfinite(answer["seconds"]):
            seconds.append(float(answer["seconds"]))
            served.append(float(answer["infer_ms"]))
        chunks[-1]["actions"].append(answer["action"])
        _, success = env.step(answer["action"])
        step += 1
    assert len(seconds) == len(chunks), "the broker asks once a chunk"
    return {"success": bool(success), "steps": step, "seconds": seconds, "served_ms": served, "chunks": chunks}


def largest_difference(policy: Any, env: Any, session: int, chunks: list[dict[str, Any]]) -> float:
    """Between what the client executed and `infer_many` here."""
    worst = 0.0
    for number, chunk in enumerate(chunks):
        seen = {"images": chunk["images"], "state": chunk["state"], "instruction": env.instruction,
                "embodiment": env.spec.name}  # fmt: skip
        answers, _ = policy.infer_many([seen], np.array([[0, session, number]], np.uint32), mode="policy")
        executed = np.stack(chunk["actions"])
        worst = max(worst, float(np.abs(answers[0].actions[: len(executed)] - executed).max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "runs" / "demo", help="a run directory of the demo")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "openpi_client")
    parser.add_argument("--client_python", help="an interpreter that has openpi-client")
    parser.add_argument("--episodes", type=int, default=3, help="of each task")
    arguments = parser.parse_args()
    workdir = arguments.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    python = arguments.client_python or environment(workdir)
    client_versions = versions(python)

    from experiments.provenance import provenance
    from wam.envs import env_factory
    from wam.envs.metaworld import SPLIT_SEEDS
    from wam.policy import load_policy

    about = provenance() | {"load_average": round(os.getloadavg()[0], 1)}  # others on the same cores
    policy = load_policy(arguments.checkpoint)
    config = policy.assets["config"]
    most, horizon = config["evaluate"]["max_steps"], config["evaluate"]["execute_steps"]
    make_env = env_factory(config["sim"]["name"], config["sim"]["render"], max_steps=most)
    key_file = workdir / "key"
    key_file.touch(0o600)
    key_file.write_text(secrets.token_urlsafe(24))
    flags = [f"--mapping={MAPPING}", f"--api_key_file={key_file}", "--modes=policy", "--max_batch=1"]
    rows, milliseconds, worst = {}, [], 0.0
    with server(arguments.checkpoint.resolve(), workdir / "server.txt", *flags) as running:
        with client(python, running.port, key_file, horizon) as act:
            for task in config["collect"]["tasks"]:
                env, found = make_env(task, policy.cameras), []
                for index, layout in enumerate(env.sample_layouts(SPLIT_SEEDS["test"], arguments.episodes)):
                    found.append(episode(env, layout, act, index, horizon, most))
                    worst = max(worst, largest_difference(policy, env, index, found[-1]["chunks"]))
                env.close()
                milliseconds += [1000 * s for one in found for s in one["seconds"]]
                served = [ms for one in found for ms in one["served_ms"]]
                rows[task] = {"successes": sum(one["success"] for one in found), "episodes": len(found),
                              "steps": [one["steps"] for one in found], "chunks": len(served),
                              "infer_ms_median": round(float(np.median(served)), 1)}  # fmt: skip
                print(f"{task}: {rows[task]}", flush=True)
        code = running.end()
    assert worst <= TOLERANCE, f"the client executed actions that are off by {worst}"
    percentiles = np.percentile(milliseconds, (50, 95, 99))
    about |= {"command": f"python -m tools.prove.openpi_client --episodes={arguments.episodes}"}
    result = {
        "name": "openpi_client", **about, "client_versions": client_versions, "checkpoint_step": policy.step,
        "mode": "policy", "execute_steps": horizon, "tasks": rows,
        "successes": sum(row["successes"] for row in rows.values()),
        "episodes": sum(row["episodes"] for row in rows.values()),
        "client_ms": dict(zip(("p50", "p95", "p99"), (round(float(ms), 1) for ms in percentiles), strict=True)),
        "largest_difference": worst, "exit_code_after_sigterm": code,
    }  # fmt: skip
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {RESULT.relative_to(ROOT)}: {result['successes']} of {result['episodes']} episodes solved")


if __name__ == "__main__":
    main()
