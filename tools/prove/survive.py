"""Kills a training at random instants, again and again, and shows that it ends where the undisturbed one does.

    python -m tools.prove.survive --workdir runs/survive [--kills 20] [--seed 0]

The `debug` recipe is trained once without disturbance. Then the same command runs in another directory, is killed with
SIGKILL, started again, and so on; at the end parameters, EMA, moments, data state and metrics must be equal bit for
bit. A third of the kills wait for a save to begin (Orbax's temporary directory appears), a third for steps to be
taken, a third fall anywhere from the start of the process on. The program may itself be stopped and started again: what
is done is in `WORKDIR/kills.json`. The result goes to `tools/prove/results/survive.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tools" / "prove" / "results" / "survive.json"
CONFIG = "experiments/configs/debug.py"
ENV = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}  # on one device
TEMPORARY = "*.orbax-checkpoint-tmp"
POLL = 0.002  # seconds; a save of this recipe lasts a tenth of one


def train_command(workdir: Path, data: Path, steps: int) -> list[str]:
    return [
        sys.executable, "-m", "experiments.train", f"--config={CONFIG}", f"--workdir={workdir}", "--noprogress",
        f"--config.data.root={data}", f"--config.train.steps={steps}", "--config.train.checkpoint_every=2",
        "--config.train.eval_every=50",
    ]  # fmt: skip


def saves_in_flight(workdir: Path, since: float = 0.0) -> set[str]:
    """Names of the temporary directories into which something was written after the time `since`."""
    found = set()
    for directory in (workdir / "checkpoints").glob(TEMPORARY):
        with contextlib.suppress(FileNotFoundError):  # finished, or removed, while we look
            if not since or any(path.is_file() and path.stat().st_mtime >= since for path in directory.rglob("*")):
                found.add(directory.name)
    return found


def newest_step(workdir: Path) -> int:
    found = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    return max(found, default=0)


def wait_for(kind: str, process: subprocess.Popen, workdir: Path, rng: random.Random, startup: float) -> bool:
    """Blocks until the moment to kill has come; False if the process ended before."""
    begun, leftovers = newest_step(workdir), saves_in_flight(workdir)
    saves, delay = rng.randint(1, 4), rng.uniform(0, 1)
    deadline = time.monotonic() + (delay * 1.5 * startup if kind == "anywhere" else 600)
    seen: set[str] = set()
    while process.poll() is None:
        if kind == "save":
            seen |= saves_in_flight(workdir) - leftovers
            if len(seen) >= saves:
                time.sleep(delay * 0.02)
                return process.poll() is None
        if kind == "steps" and newest_step(workdir) > begun:
            time.sleep(delay * 2)
            return process.poll() is None
        if time.monotonic() > deadline:
            return True
        time.sleep(POLL)
    return False


def kill_once(kind: str, workdir: Path, data: Path, steps: int, rng: random.Random, startup: float) -> dict[str, Any]:
    """Starts the training, kills it at a moment of this kind, and says what that hit."""
    with (workdir.parent / "log.txt").open("a") as log:
        process = subprocess.Popen(train_command(workdir, data, steps), cwd=ROOT, env=ENV, stdout=log, stderr=log)
        start = time.time()
        try:
            struck = wait_for(kind, process, workdir, rng, startup)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    if not struck and process.returncode:
        raise SystemExit(f"survive: the training failed by itself (exit code {process.returncode}); see {log.name}")
    return {
        "kind": kind,
        "after_seconds": round(time.time() - start, 2),
        "newest_checkpoint": newest_step(workdir),
        # What the process leaves behind of its own is a save that the kill cut short.
        "during_a_save": struck and bool(saves_in_flight(workdir, start)),
        "finished": not struck,
    }


def read_items(workdir: Path, step: int) -> dict[str, dict[str, Any]]:
    """Everything in a checkpoint as flat {name: numpy array or JSON}, by what it is."""
    import jax
    import numpy as np

    from wam.checkpoint import read_everything
    from wam.fingerprint import named_leaves

    arrays, data = read_everything(workdir, step)
    out: dict[str, dict[str, Any]] = {"data": data}
    groups = {"params": "parameters", "ema": "ema", "opt_state": "moments"}
    for name, leaf in named_leaves(jax.device_get(arrays)).items():
        out.setdefault(groups.get(name.split(".")[0], "other"), {})[name] = np.asarray(leaf)
    return out


def equal(first: Path, second: Path, step: int) -> dict[str, bool]:
    """What is equal, bit for bit, between two runs at `step`; rows of metrics apart from timings."""
    from wam.training.meter import VOLATILE
    from wam.training.metrics import read_rows

    one, other = read_items(first, step), read_items(second, step)
    out = {}
    for group, values in one.items():
        same = values.keys() == other[group].keys()
        for name, value in values.items() if same else ():
            found = other[group][name]
            same &= found.tobytes() == value.tobytes() if hasattr(value, "tobytes") else found == value
        out[group] = bool(same)
    rows = [
        [{key: value for key, value in row.items() if key not in VOLATILE} for row in read_rows(workdir)]
        for workdir in (first, second)
    ]
    return {**out, "metrics": rows[0] == rows[1] and bool(rows[0])}


def prove(workdir: Path, data: Path, *, kills: int, steps: int, seed: int) -> dict[str, Any]:
    """Both trainings, and the kills between; what `WORKDIR` already holds is not done again."""
    undisturbed, killed, journal = workdir / "undisturbed", workdir / "killed", workdir / "kills.json"
    for directory in (undisturbed, killed):
        directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        train_command(undisturbed, data, steps), cwd=ROOT, env=ENV, check=True
    )  # compiles, for all that follow
    start = time.monotonic()
    subprocess.run(train_command(undisturbed, data, steps), cwd=ROOT, env=ENV, check=True)  # finds nothing left to do
    startup = time.monotonic() - start
    events = json.loads(journal.read_text()) if journal.exists() else []
    while len(events) < kills:
        rng = random.Random(f"{seed} {len(events)}")
        kind = ("save", "anywhere", "steps")[len(events) % 3]
        event = kill_once(kind, killed, data, steps, rng, startup)
        if event["finished"]:
            raise SystemExit(f"survive: the training was done after {len(events)} kills; raise --steps")
        events.append(event)
        journal.write_text(json.dumps(events, indent=1))
        print(f"kill {len(events)} of {kills}: {event}", flush=True)
    subprocess.run(train_command(killed, data, steps), cwd=ROOT, env=ENV, check=True)
    return {"kills": len(events), "kills_during_a_save": sum(e["during_a_save"] for e in events),
            "equal": equal(undisturbed, killed, steps), "events": events}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "survive")
    parser.add_argument("--data", type=Path, help="stores of the debug recipe; collected into WORKDIR/data by default")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    workdir = arguments.workdir.resolve()
    data = (arguments.data or workdir / "data").resolve()
    collect = [sys.executable, "-m", "experiments.collect", f"--config={CONFIG}", f"--out={data}"]
    subprocess.run(collect, cwd=ROOT, env=ENV, check=True)
    found = prove(workdir, data, kills=arguments.kills, steps=arguments.steps, seed=arguments.seed)

    from experiments.provenance import provenance

    about = provenance() | {"command": " ".join(["python", "-m", "tools.prove.survive", *_without_paths(sys.argv[1:])])}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"name": "survive", **about, "steps": arguments.steps, **found}, indent=1) + "\n")
    print(f"wrote {RESULT.relative_to(ROOT)}: {found['kills']} kills, {found['kills_during_a_save']} during a save")
    if not all(found["equal"].values()):
        sys.exit(f"survive: the killed run differs from the undisturbed one: {found['equal']}")


def _without_paths(arguments: list[str]) -> list[str]:
    """The flags that decide the result; where it was run does not."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument.startswith(("--workdir", "--data")):
            skip = not skip and "=" not in argument
            continue
        kept.append(argument)
    return kept


if __name__ == "__main__":
    main()
