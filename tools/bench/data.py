"""How fast training data are read: from our store, and from LeRobot and RLDS files in place, against their own loaders.

    python -m tools.bench.data              # every case
    python -m tools.bench.data --quick      # short blocks, one repeat: about eight minutes on two CPU cores

Windows of 25 frames (1.25 s of one camera), 24 actions and the state, in random order, in batches of 4, at 224 and 64
pixels, on 1 and 2 cores. Writes results/data-cpu.json and renders README.md.

The files are made from one real dataset (`data_files`): five episodes of 256 x 256 pixels at 20 frames a second. Peers
run in environments of their own, made once:

    python -m venv .venv-lerobot && .venv-lerobot/bin/pip install lerobot
    python -m venv .venv-tensorflow && .venv-tensorflow/bin/pip install tensorflow-cpu

Before anything is timed, both sides must give the same frames: of foreign files as decoded, of the store, whose h264 is
lossy, by signal to noise. Then blocks alternate. Every block starts its threads or workers anew and is timed from when
each has delivered twice. The files lie in the page cache for both sides.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench import data_files, harness
from tools.bench.command import check_machine, environment, parser, say, write
from tools.bench.worker import ROOT, Worker, WorkerError

FRAMES, HORIZON, BATCH = 25, 24, 4
CORES = (1, 2)
MAX_DIFFERENCE, MEAN_DIFFERENCE = 48, 2.0
"""Of equal frames decoded by two libraries, of 255: they interpolate the halved chroma and round differently."""
MIN_PSNR = 32.0
STEPS, WINDOWS = 1_000_000, (1_000, 10_000)
OURS, LEROBOT, TENSORFLOW = "tools.bench.data_ours", "tools.bench.peers.lerobot_data", "tools.bench.peers.tf_data"
SIDES = {"store": OURS, "lerobot": OURS, "recorded": OURS, "rlds": OURS,
         "lerobot peer": LEROBOT, "recorded peer": LEROBOT, "rlds peer": TENSORFLOW}  # fmt: skip
PEERS = {LEROBOT: ("lerobot", ".venv-lerobot/bin/python"), TENSORFLOW: ("tensorflow", ".venv-tensorflow/bin/python")}
FILES = {
    "lerobot": "as published, h264, a keyframe every 250 frames",
    "recorded": "as LeRobot's recorder encodes, h264, a keyframe every 2 frames",
    "rlds": "JPEG, TFRecord",
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Whose windows are compared with whose."""

    name: str
    ours: str
    theirs: str

    @property
    def files(self) -> str:
        return FILES[self.theirs.partition(" ")[0]]


COMPARISONS = (
    Comparison("our store", "store", "lerobot peer"),
    Comparison("our store, peer with short GOPs", "store", "recorded peer"),
    Comparison("LeRobot files", "lerobot", "lerobot peer"),
    Comparison("LeRobot files with short GOPs", "recorded", "recorded peer"),
    Comparison("RLDS files", "rlds", "rlds peer"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One image size, or one of the two questions about us alone."""

    name: str
    size: int = 0

    @property
    def is_speed(self) -> bool:
        return self.size > 0


CASES = (Case("224 px", 224), Case("64 px", 64), Case("memory"), Case("statistics"))


def frames_agree(ours: np.ndarray, theirs: np.ndarray) -> str:
    """How nearly frames decoded by two libraries agree, in words; WorkerError where they are not the same frames."""
    if ours.shape != theirs.shape:
        raise WorkerError(f"frames are {list(ours.shape)} here and {list(theirs.shape)} in the peer: nothing was timed")
    difference = np.abs(ours.astype(np.int16) - theirs)
    if difference.max() > MAX_DIFFERENCE or difference.mean() > MEAN_DIFFERENCE:
        raise WorkerError(
            f"decoded frames differ by up to {difference.max()} of 255 and {difference.mean():.2f} on average: these "
            "are not the same frames, so nothing was timed"
        )
    return f"decoded frames differ by {difference.mean():.2f} of 255 on average, at most {difference.max()}"


def signal(ours: np.ndarray, exact: np.ndarray) -> str:
    """Peak signal to noise of lossy frames, in words; WorkerError where they are other frames."""
    if ours.shape != exact.shape:
        raise WorkerError(f"the store's frames are {list(ours.shape)}, the source's {list(exact.shape)}")
    error = np.square(ours.astype(np.float64) - exact).mean(axis=(1, 2, 3, 4))
    psnr = 10 * np.log10(255**2 / np.maximum(error, 1e-9))
    if psnr.min() < MIN_PSNR:
        raise WorkerError(f"a window of the store has {psnr.min():.1f} dB to its source: nothing was timed")
    return f"the store's frames are within {psnr.min():.1f} dB of the source's"


class Bench:
    """One machine and one temporary folder for what the sides read."""

    def __init__(self, arguments: argparse.Namespace, folder: Path):
        self.arguments, self.folder = arguments, folder
        self.numbers = itertools.count()
        self.seconds, self.repeats = (2.5, 1) if arguments.quick else (8.0, 3)

    @functools.cache  # noqa: B019 (one object a run)
    def place(self, kind: str, size: int = 0) -> dict[str, Any]:
        """Writes a dataset once; returns what a side must know of it. Only stores depend on the size."""
        out = self.folder / f"{kind}{size or ''}"
        say(f"writing {out.name}")
        if kind == "store":
            return {"kind": kind, "path": str(data_files.write_store(self.arguments.sample, out, size))}
        if kind == "rlds":
            return {"kind": kind, "path": str(out)} | data_files.write_rlds(self.arguments.sample, out)
        data_files.write_lerobot(self.arguments.sample, out, recorded=kind == "recorded")
        return {"kind": "lerobot", "path": str(out)}

    def start(self, side: str, spec: dict[str, Any]) -> Worker:
        module = SIDES.get(side, OURS)
        path = self.folder / f"spec{next(self.numbers)}.json"
        path.write_text(
            json.dumps(spec | {"fps": data_files.FPS, "horizon": HORIZON, "frames": FRAMES, "batch": BATCH})
        )
        env = environment(self.folder, gpu=False, isolate=False) | {
            "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "TF_CPP_MIN_LOG_LEVEL": "2", "HF_HOME": str(self.folder / "huggingface"), "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        python = sys.executable if module == OURS else str(ROOT / PEERS[module][1])
        return Worker(module, path, log=self.folder / "log.txt", env=env, python=python)

    def rows(self, case: Case) -> list[dict[str, Any]]:
        if case.name == "memory":
            return self.memory_rows()
        return self.speed_rows(case) if case.is_speed else self.statistics_rows()

    def speed_rows(self, case: Case) -> list[dict[str, Any]]:
        sides = [side for side in SIDES if SIDES[side] == OURS or not self.arguments.ours_only]
        alive: dict[str, Worker] = {}
        blocks: dict[tuple[str, int, bool], list[dict[str, float]]] = collections.defaultdict(list)
        calibration = []
        try:
            # The records of RLDS are written by its peer, which therefore starts first.
            for side in sorted(sides, key=lambda side: side == "rlds"):
                kind = side.partition(" ")[0]
                if side == "rlds" and self.arguments.ours_only:
                    continue
                say(f"{case.name}: starting {side}")
                spec = self.place(kind, case.size if kind == "store" else 0)
                alive[side] = self.start(side, spec | {"size": case.size})
            said = self.check(alive)
            for cores in CORES:
                for side in harness.palindromes([s for s in sides if s in alive], self.repeats):
                    calibration.append(harness.calibrate(1024))
                    self.block(case, alive, blocks, side, cores, False)
            for side in harness.palindromes(
                [s for s in ("store", "lerobot", "lerobot peer") if s in alive], self.repeats
            ):
                self.block(case, alive, blocks, side, CORES[-1], True)
            notes = {side: worker.note for side, worker in alive.items()}
        finally:
            for worker in alive.values():
                worker.stop()
        rows = [row for comparison in COMPARISONS if comparison.ours in alive
                for row in table(case, comparison, blocks, said, notes)]  # fmt: skip
        return [*rows, harness.row(
            f"{case.name}: calibration", "TFLOP/s", calibration,
            note="1024 x 1024 float32 matmul of numpy before every block: how even the machine was",
        )]  # fmt: skip

    def block(self, case: Case, alive: dict[str, Worker], blocks: dict, side: str, cores: int, train: bool) -> None:
        got = alive[side].ask({"do": "block", "cores": cores, "seconds": self.seconds, "train": train})
        blocks[side, cores, train].append(got)
        say(f"{case.name}: {side}, {cores} cores{', training' * train}: {got['rate']:.1f} windows/s")

    def check(self, alive: dict[str, Worker]) -> dict[str, str]:
        """Equal frames before anything is timed; in words, by our side."""
        total = self.total_frames()
        chosen = np.linspace(0, total - 1 - FRAMES, 6).astype(int).tolist()
        clips = {}
        for side, worker in alive.items():
            for resized in (False, True) if side == "lerobot" else (False,):
                path = self.folder / "clips.npy"
                worker.ask({"do": "clips", "windows": chosen, "resized": resized, "path": str(path)})
                clips[side, resized] = np.load(path)
        said = {"store": signal(clips["store", False], clips["lerobot", True])}
        for side in alive:
            if side != "store" and f"{side} peer" in alive:
                said[side] = frames_agree(clips[side, False], clips[f"{side} peer", False])
        return said

    def total_frames(self) -> int:
        source = data_files.open_sample(self.arguments.sample)
        return sum(source.about(i).frames for i in range(len(source)))

    def memory_rows(self) -> list[dict[str, Any]]:
        worker = self.start("store", self.place("store", 64) | {"size": 64})
        try:
            held = worker.ask({"do": "memory", "cores": CORES[-1], "windows": WINDOWS})["bytes"]
        finally:
            worker.stop()
        return [
            harness.row(f"64 px, our store: memory after {windows:,} windows", "MiB", [bytes_ / 2**20],
                        note="of the process, its libraries included (proportional set size)")
            for windows, bytes_ in zip(WINDOWS, held, strict=True)
        ]  # fmt: skip

    def statistics_rows(self) -> list[dict[str, Any]]:
        say(f"writing a store of {STEPS:,} steps")
        store = data_files.write_long_store(self.folder, STEPS)
        worker = self.start("statistics", {"kind": "statistics", "path": str(store)})
        try:
            got = worker.ask({})
        finally:
            worker.stop()
        note = (f"opened, indexed and fitted; {got['windows']:,} windows of 44 states and {HORIZON} x 44 actions, "
                f"{got['rows']:,} actions read")  # fmt: skip
        return [harness.row(f"statistics of {STEPS:,} steps", "s", [got["seconds"]], note=note)]


def table(case: Case, comparison: Comparison, blocks: dict, said: dict[str, str],
          notes: dict[str, str]) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of one comparison; without the peer, of our side alone."""
    peer = comparison.theirs if comparison.theirs in notes else ""
    name = f"{case.name}, {comparison.name}"
    about = "; ".join(filter(None, (
        f"the peer's files: {comparison.files}" if peer else "", said.get(comparison.ours, ""),
        notes[comparison.ours], notes.get(peer, ""),
    )))  # fmt: skip

    def row(what: str, unit: str, cores: int, value: Any, train: bool = False, note: str = about) -> dict[str, Any]:
        ours, theirs = (
            [value(block) for block in blocks.get((side, cores, train), [])] for side in (comparison.ours, peer)
        )
        title = PEERS[SIDES[peer]][0] if peer else ""
        return harness.row(f"{name}, {cores} core{'s' * (cores > 1)}: {what}", unit, ours, peer=title, theirs=theirs,
                           note=note)  # fmt: skip

    rows = []
    for cores in CORES:
        rows.append(row("rate", "windows/s", cores, lambda block: block["rate"]))
        rows.append(row("CPU time a window", "CPU ms", cores, lambda block: 1e3 * block["cpu"]))
    rows.append(row("memory", "MiB", CORES[-1], lambda block: block["bytes"] / 2**20,
                    note="of the process and its workers, what they share counted once"))  # fmt: skip
    trained = blocks.get((comparison.ours, CORES[-1], True), [])
    if trained and (not peer or (peer, CORES[-1], True) in blocks):
        alone = np.median([block["alone"] for block in trained])
        note = (f"a step of {1e3 * alone:.0f} ms (numpy products on one thread) after every batch of {BATCH}, on the "
                "same cores")  # fmt: skip
        rows.append(row("step while training", "ms", CORES[-1], lambda block: 1e3 * block["step"], True, note))
        rows.append(row("waiting for data while training", "% of the time", CORES[-1],
                        lambda block: 100 * block["waited"], True, note))  # fmt: skip
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    flags = parser(__doc__, quick="one repeat of short blocks", only="cases whose name holds one of these words")
    flags.add_argument("--sample", type=Path, default=ROOT.parent / "shared" / "samples" / "lerobot_v2_groot_gr1_sim",
                       help="the LeRobot dataset (v2.0, GR-1) that all files are made from")  # fmt: skip
    flags.add_argument("--ours_only", action="store_true", help="without peers, and without RLDS, which they write")
    arguments = flags.parse_args(argv)
    words = arguments.only or [""]
    wanted = [case for case in CASES if any(word in case.name for word in words)]
    if not wanted:
        sys.exit(f"bench: no case holds {words}; there are: {'; '.join(case.name for case in CASES)}")
    if arguments.dry_run:
        for case in wanted:
            what = [comparison.name for comparison in COMPARISONS] if case.is_speed else ["our store alone"]
            print(f"{case.name}: {'; '.join(what)}")
        return
    check_machine(arguments, "cpu", ("cpu", "cpu"))
    if not arguments.sample.is_dir():
        sys.exit(f"bench: there is no dataset at {arguments.sample}: name one with --sample")
    if any(case.is_speed for case in wanted) and not arguments.ours_only:
        for package, python in PEERS.values():
            if not (ROOT / python).exists():
                sys.exit(f"bench: no environment of {package} at {python} (see --help), and no --ours_only")

    def measure(folder: Path) -> list[dict[str, Any]]:
        bench = Bench(arguments, folder)
        return [row for case in wanted for row in bench.rows(case)]

    write("data", argv, arguments, "cpu", measure)


if __name__ == "__main__":
    main()
