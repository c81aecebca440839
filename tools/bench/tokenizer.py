"""How fast our video tokenizers encode and decode, against `diffusers`' `AutoencoderKLWan` with the same weights.

    python -m tools.bench.tokenizer              # every case of this machine's device: CPU, or an NVIDIA GPU
    python -m tools.bench.tokenizer --quick      # Wan 2.1 alone: about four minutes on two CPU cores
    python -m tools.bench.tokenizer --device=cuda --dry_run      # what would run, without running it

Needs the extra `parity` (`pip install -e '.[parity]'`) and, on a GPU, `cuda`. Writes results/tokenizer-<chip>.json and
renders README.md.

The released shapes with random weights. Both sides get the same weights and input, run in processes of their own with
the same environment (that of tools/env.sh), and must give the same latents or pixels before anything is timed: in
float32 to 1e-4, in bfloat16 to 5 % root mean square. Then single calls alternate: ours, theirs, theirs, ours.
`diffusers` works through a clip in groups of four frames, as it always does; ours takes it whole.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench import harness, vae_cases
from tools.bench.command import check_machine, environment, find_device, parser, say, write
from tools.bench.vae_cases import Case
from tools.bench.worker import ROOT, Worker, WorkerError
from wam.pretrained.wan_vae import diffusers_config

OURS, THEIRS = "tools.bench.vae_ours", "tools.bench.peers.diffusers_vae"
TOLERANCE = 1e-4
"""Largest difference in float32; latents and pixels are of order one."""
TOLERANCE_BFLOAT16 = 5e-2
"""Root mean square of the difference, relative to that of the values."""
MATMUL = {"cpu": 1024, "cuda": 8192}


@dataclasses.dataclass
class Measured:
    first: float = 0.0
    note: str = ""
    step: list[float] = dataclasses.field(default_factory=list)
    peak: list[float] = dataclasses.field(default_factory=list)


def agreement(ours: np.ndarray, theirs: np.ndarray, dtype: str) -> str:
    """How nearly the results agree, in words; WorkerError where they differ by more than is allowed."""
    if ours.shape != theirs.shape:
        raise WorkerError(f"the result is {list(ours.shape)} here and {list(theirs.shape)} in diffusers: nothing timed")
    difference = ours.astype(np.float64) - theirs
    if dtype == "float32":
        error, allowed, what = float(np.abs(difference).max()), TOLERANCE, "at most"
    else:
        error = float(np.sqrt(np.mean(difference**2) / np.mean(theirs.astype(np.float64) ** 2)))
        allowed, what = TOLERANCE_BFLOAT16, "by root mean square"
    if not error <= allowed:
        raise WorkerError(
            f"results differ {what} {error:.1e} where {allowed:g} is allowed: this is not the same network, so nothing "
            "was timed"
        )
    return f"results differ {what} {error:.1e}"


class Bench:
    """One machine and one temporary folder for what the sides exchange."""

    def __init__(self, device: str, folder: Path, quick: bool):
        self.device, self.folder, self.quick = device, folder, quick
        self.numbers = itertools.count()

    def prepare(self, case: Case) -> Path:
        """Writes the case's specs and arrays; returns its folder."""
        place = self.folder / f"case{next(self.numbers)}"
        place.mkdir()
        spec = case.spec(self.device) | {
            "arrays": str(place / "arrays.npz"),
            "diffusers": diffusers_config(case.config),
        }
        for side in (OURS, THEIRS):
            (place / f"{side}.json").write_text(json.dumps(spec | {"output": str(place / f"{side}.npy")}))
        command = [sys.executable, "-m", "tools.bench.vae_exchange", str(place / f"{OURS}.json")]
        env = environment(place, gpu=False, isolate=False)
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            raise WorkerError(f"preparing {case.name} failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:300]}")
        return place

    def start(self, side: str, place: Path) -> Worker:
        env = environment(place, gpu=self.device == "cuda", isolate=False)
        return Worker(side, place / f"{side}.json", log=place / "log.txt", env=env)

    def rows(self, case: Case) -> list[dict[str, Any]]:
        """Each side runs once cold, for its result, which must agree; then both start again and their calls alternate.

        Ours finds its compiled program in a cache the second time: compiling leaves memory behind.
        """
        place = self.prepare(case)
        measured = {OURS: Measured(), THEIRS: Measured()}
        for side, got in measured.items():
            say(f"{case.name}: first call of {side.removeprefix('tools.bench.')}")
            worker = self.start(side, place)
            worker.stop()
            got.first = worker.first_step
        said = agreement(np.load(place / f"{OURS}.npy"), np.load(place / f"{THEIRS}.npy"), case.dtype)
        alive: dict[str, Worker] = {}
        calibration = []
        try:
            for side in measured:
                alive[side] = self.start(side, place)
                measured[side].note = alive[side].note
            for side in harness.palindromes(list(measured), 2 if self.quick else 5):
                calibration.append(harness.calibrate())
                block = alive[side].block(case.steps, MATMUL[self.device])
                measured[side].step.append(block["step"])
                measured[side].peak.append(block["peak"] / 2**20)
                say(f"{case.name}: {side.removeprefix('tools.bench.')}: {block['step']:,.2f} s")
        finally:
            for worker in alive.values():
                worker.stop()
        (place / "arrays.npz").unlink()
        return self.table(case, measured[OURS], measured[THEIRS], said, calibration)

    def table(self, case: Case, ours: Measured, theirs: Measured, said: str,
              calibration: list[float]) -> list[dict[str, Any]]:  # fmt: skip
        peer = f"diffusers AutoencoderKLWan {importlib.metadata.version('diffusers')}, eager"
        frames = case.frames * case.batch
        note = "; ".join(filter(None, (said, theirs.note)))
        peak = "of the device" if self.device == "cuda" else "resident memory of the process, libraries included"
        return [
            harness.row(f"{case.name}: rate", "frames/s", [frames / s for s in ours.step], peer=peer,
                        theirs=[frames / s for s in theirs.step], note=note),
            harness.row(f"{case.name}: first call", "s", [ours.first], peer=peer, theirs=[theirs.first],
                        note="traces, compiles and runs once, nothing cached"),
            harness.row(f"{case.name}: peak memory", "MiB", ours.peak, peer=peer, theirs=theirs.peak, note=peak),
            harness.row(f"{case.name}: calibration", "TFLOP/s", calibration,
                        note="2048 x 2048 float32 matmul of numpy on the host before every call: how even the machine "
                        "was"),
        ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(
        __doc__, quick="two repeats for five; Wan 2.1 alone", only="cases whose name holds one of these words"
    ).parse_args(argv)
    found = find_device()
    device = arguments.device or found[0]
    chosen = vae_cases.GPU if device == "cuda" else vae_cases.CPU
    words = arguments.only or [""]
    wanted = [
        case for case in chosen if any(word in case.name for word in words) and (case.quick or not arguments.quick)
    ]
    if not wanted:
        sys.exit(f"bench: no case holds {words}; there are: {'; '.join(case.name for case in chosen)}")
    if arguments.dry_run:
        for case in wanted:
            print(f"{case.name}: {case.steps} calls a block, input {list(case.input_shape)}, against diffusers")
        return
    check_machine(arguments, device, found)
    if not importlib.util.find_spec("diffusers"):
        sys.exit("bench: diffusers is not installed: pip install -e '.[parity]'")

    def measure(folder: Path) -> list[dict[str, Any]]:
        bench = Bench(device, folder, arguments.quick)
        return [row for case in wanted for row in bench.rows(case)]

    write("tokenizer", argv, arguments, found[1], measure)


if __name__ == "__main__":
    main()
