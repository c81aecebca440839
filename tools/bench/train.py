"""How fast our training step is, against the same network hand-written in PyTorch and against diffusers' Wan.

    python -m tools.bench.train              # every case of this machine's device: CPU, or an NVIDIA GPU
    python -m tools.bench.train --quick      # less of it: about ten minutes on two CPU cores
    python -m tools.bench.train --device=cuda --dry_run      # what would run, without running it

Needs the extra `parity` (`pip install -e '.[parity]'`) and, on a GPU, `cuda`. Writes results/train-<chip>.json and
renders README.md.

Both sides start from the same weights, batch and noise draws and run in processes of their own, with the same
environment (that of tools/env.sh: its allocator settings help PyTorch as well). Losses and every term of three
consecutive optimizer steps must agree before anything is timed, in float32 to 1e-5, relative (the norm of the gradient,
a sum over all parameters, to 1e-4). Then blocks of steps alternate: ours, theirs, theirs, ours. No data is loaded. The
first step, which compiles, is a row of its own.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.bench import cases, harness
from tools.bench.cases import Case
from tools.bench.command import check_machine, environment, find_device, parser, say, write
from tools.bench.worker import ROOT, Worker, WorkerError
from wam.training.chips import chip_of

TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}
"""Relative, of losses and their terms."""
NORM_TOLERANCE = 10
"""Times that, of the gradient's norm: it sums over every parameter, in another order on either side."""
MATMUL = {"cpu": 2048, "cuda": 8192}


@dataclasses.dataclass(frozen=True)
class Side:
    module: str
    package: str = ""
    what: str = ""
    compile: str | None = None

    @property
    def label(self) -> str:
        return f"{self.module.removeprefix('tools.bench.')}{', compiled' if self.compile else ''}"

    @property
    def peer(self) -> str:
        """What it is and which version, for the rows."""
        try:
            version = importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        return f"{self.what} {version}, {'torch.compile' if self.compile else 'eager'}"


OURS = Side("tools.bench.ours")
PEERS = {
    "joint": [Side("tools.bench.peers.torch_train", "torch", "PyTorch", mode) for mode in (None, "default")],
    "wan": [Side("tools.bench.peers.wan", "diffusers", "diffusers WanTransformer3DModel", mode)
            for mode in (None, "default")],
}  # fmt: skip


@dataclasses.dataclass
class Measured:
    """What one side gave in one case; `failed` says why it gave nothing."""

    metrics: list[dict[str, float]] = dataclasses.field(default_factory=list)
    first_step: float = 0.0
    agreed: str = ""
    """How nearly its first steps agree with ours."""
    note: str = ""
    step: list[float] = dataclasses.field(default_factory=list)
    ceiling: list[float] = dataclasses.field(default_factory=list)
    peak: list[float] = dataclasses.field(default_factory=list)
    failed: str = ""


class Bench:
    """One machine and one temporary folder for what the sides exchange."""

    def __init__(self, device: str, device_name: str, folder: Path, quick: bool):
        self.device, self.device_name, self.folder, self.quick = device, device_name, folder, quick
        self.numbers = itertools.count()

    # -------------------------------------------------------------- processes

    def environment(self, side: Side | None, place: Path, isolate: bool) -> dict[str, str]:
        return environment(place, gpu=self.device == "cuda" and side is not None, isolate=isolate)

    def prepare(self, case: Case) -> Path:
        """Writes the case's spec and arrays; returns its folder."""
        place = self.folder / f"case{next(self.numbers)}"
        place.mkdir()
        cpu, half = self.device == "cpu", case.dtype == "bfloat16"
        spec = case.spec("chunked" if cpu else "cudnn" if half else "xla", self.device)
        spec["arrays"] = str(place / "arrays.npz")
        (place / "spec.json").write_text(json.dumps(spec))
        command = [sys.executable, "-m", "tools.bench.exchange", str(place / "spec.json")]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment(None, place, False), capture_output=True, text=True
        )
        if done.returncode:
            raise WorkerError(f"preparing {case.name} failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:300]}")
        return place

    def start(self, side: Side, case: Case, place: Path) -> Worker:
        if side.package and not importlib.util.find_spec(side.package):
            raise WorkerError(f"{side.package} is not installed")
        spec = json.loads((place / "spec.json").read_text()) | {"compile": side.compile}
        path = place / f"spec-{side.module}-{side.compile}.json"
        path.write_text(json.dumps(spec))
        return Worker(side.module, path, log=place / "log.txt", env=self.environment(side, place, case.isolate))

    def first_steps(self, side: Side, case: Case, place: Path) -> Worker:
        """A worker that has left again, for what it said first: one at a time fits where two would not."""
        worker = self.start(side, case, place)
        worker.stop()
        return worker

    # ------------------------------------------------------------ measurement

    def measure(self, case: Case) -> tuple[list[tuple[Side, Measured]], list[float]]:
        """Every side and what it gave, ours first, and the calibration before every block.

        Each side starts cold, takes its first steps, which must agree, and leaves: compiling leaves memory behind. Then
        all start again with warm caches, and their blocks alternate.
        """
        place = self.prepare(case)
        measured = [(side, Measured()) for side in (OURS, *peers_of(case, self.quick))]
        for side, got in measured:
            say(f"{case.name}: first steps of {side.label}")
            try:
                worker = self.first_steps(side, case, place)
            except WorkerError as error:
                if side is OURS:
                    raise
                got.failed = str(error)
                say(got.failed)
                continue
            got.metrics, got.first_step = worker.metrics, worker.first_step
            if case.network == "joint" and side is not OURS:
                got.agreed = check_equal(measured[0][1].metrics, got.metrics, case.dtype)
        running = {side.label: (side, got) for side, got in measured if not got.failed}
        alive: dict[str, Worker] = {}
        calibration: list[float] = []
        try:
            for label in harness.palindromes(list(running), 2 if self.quick else 5):
                side, got = running[label]
                if label not in alive:
                    alive[label] = self.start(side, case, place)
                    got.note = alive[label].note
                calibration.append(harness.calibrate())
                block = alive[label].block(case.steps, MATMUL[self.device])
                got.step.append(block["step"])
                got.ceiling.append(block["ceiling"])
                got.peak.append(block["peak"] / 2**20)
                say(f"{case.name}: {label}: {1000 * block['step']:,.0f} ms a step")
                if case.isolate:
                    alive.pop(label).stop()
        finally:
            for worker in alive.values():
                worker.stop()
        (place / "arrays.npz").unlink()
        return measured, calibration

    def check(self, case: Case) -> None:
        """Loss equality in float32 of a network that is timed in bfloat16, at a thousand tokens."""
        exact = dataclasses.replace(case, grid=(16, 16), frames=4, batch=3, dtype="float32", isolate=True)
        place = self.prepare(exact)
        ours, theirs = (self.first_steps(side, exact, place).metrics for side in (OURS, PEERS["joint"][0]))
        say(f"{exact.name}: {check_equal(ours, theirs, exact.dtype)}")
        (place / "arrays.npz").unlink()

    # ------------------------------------------------------------------- rows

    def rows(self, case: Case) -> list[dict[str, Any]]:
        measured, calibration = self.measure(case)
        ours = measured[0][1]
        flops = case.flops
        out = []
        for side, theirs in measured[1:]:
            if theirs.failed:
                note = f"{side.what} could not be measured: {theirs.failed}"
                out.append(harness.row(f"{case.name}: step", "ms", [1000 * s for s in ours.step], note=note))
                continue
            same = case.network == "joint"
            their_flops = flops if same else theirs.metrics[1]["flops"]
            told = theirs.agreed if same else wan_note(flops, theirs.metrics[1])
            remat = f"our remat is {case.remat}" if case.remat != "none" else ""
            note = "; ".join(filter(None, (told, theirs.note, ours.note, remat)))
            step, first, peak, share = (f"{case.name}: {w}" for w in ("step", "first step", "peak memory", "use"))
            out.append(harness.row(step, "ms", [1000 * s for s in ours.step], peer=side.peer,
                                   theirs=[1000 * s for s in theirs.step], note=note))  # fmt: skip
            out.append(harness.row(first, "s", [ours.first_step], peer=side.peer, theirs=[theirs.first_step],
                                   note="traces, compiles and runs one step, nothing cached"))  # fmt: skip
            out.append(harness.row(peak, "MiB", ours.peak, peer=side.peer, theirs=theirs.peak, note=self.peak_note))
            shares = [list(percent(f, m)) for f, m in ((flops, ours), (their_flops, theirs))]
            note = "FLOPs of the network, three times a forward pass, over the measured rate of a large matmul"
            out.append(harness.row(share, "% of the matmul ceiling", shares[0], peer=side.peer, theirs=shares[1],
                                   note=note))  # fmt: skip
            if chip := chip_of(self.device_name):
                datasheet = 1e-12 * chip.flops
                shares = [list(percent(f, m, datasheet)) for f, m in ((flops, ours), (their_flops, theirs))]
                note = f"MFU: of {datasheet:g} TFLOP/s dense bfloat16"
                out.append(harness.row(share, "% of the datasheet", shares[0], peer=side.peer, theirs=shares[1],
                                       note=note))  # fmt: skip
        first_peer = next(((s, m) for s, m in measured[1:] if not m.failed), None)
        size = MATMUL[self.device]
        name = f"{case.name}: {size} x {size} matmul, {case.dtype}"
        peer, theirs_rate = (first_peer[0].peer, first_peer[1].ceiling) if first_peer else ("", [])
        out.append(harness.row(name, "TFLOP/s", ours.ceiling, peer=peer, theirs=theirs_rate,
                               note="the ceiling, before every block"))  # fmt: skip
        out.append(harness.row(f"{case.name}: calibration", "TFLOP/s", calibration,
                               note="2048 x 2048 float32 matmul of numpy on the host before every block: how even the "
                               "machine was"))  # fmt: skip
        return out

    @property
    def peak_note(self) -> str:
        if self.device == "cuda":
            return "peak bytes allocated on the device, by each framework's own count"
        return "peak resident memory of the process while it steps, libraries included; compiled by a process before it"

    def saving_rows(self, case: Case) -> list[dict[str, Any]]:
        """How long a checkpoint blocks training."""
        place = self.prepare(case)
        say(f"{case.name}: saving checkpoints")
        command = [sys.executable, "-m", "tools.bench.saving", str(place / "spec.json"), str(place / "run")]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment(OURS, place, False), capture_output=True, text=True
        )
        if done.returncode:
            raise WorkerError(f"saving: {(done.stderr.strip().splitlines() or ['?'])[-1][:300]}")
        got = json.loads(done.stdout)
        name, steps = f"{case.name}: saving a checkpoint", harness.spread(got["step"])
        blocked = [seconds / steps["median"] for seconds in got["blocked"]]
        later = [seconds / steps["median"] for seconds in got["slower"]]
        return [
            harness.row(f"{name} blocks for", "ms", [1000 * s for s in got["blocked"]],
                        note=f"{got['bytes'] / 2**20:,.0f} MiB of state, parameters, moments and EMA"),
            harness.row(f"{name} blocks for", "steps", blocked, note=f"of {1000 * steps['median']:,.0f} ms"),
            harness.row(f"{name} slows what follows by", "steps", later,
                        note=f"the {got['watched']} steps during which it is written, beyond their usual time"),
        ]  # fmt: skip


def peers_of(case: Case, quick: bool) -> list[Side]:
    return [side for side in PEERS[case.network] if case.quick or not (quick and side.compile)]


def percent(flops: float, measured: Measured, ceiling: float | None = None) -> Iterator[float]:
    """Share of the ceiling (TFLOP/s; by default the one measured just before) in every block."""
    for seconds, rate in zip(measured.step, measured.ceiling, strict=True):
        yield 1e-10 * flops / seconds / (ceiling or rate)


def check_equal(ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]], dtype: str) -> str:
    """How nearly the steps agree, in words; WorkerError naming the first that differs by more than is allowed."""
    worst = {"loss": 0.0, "grad_norm": 0.0}
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        for name in sorted(mine.keys() | other.keys()):
            a, b = mine[name], other[name]
            difference = abs(a - b) / max(abs(a), abs(b), 1e-12)
            allowed = TOLERANCE[dtype] * (NORM_TOLERANCE if name == "grad_norm" else 1)
            if not difference <= allowed:
                raise WorkerError(
                    f"{name} of step {step} is {a:.8g} here and {b:.8g} in PyTorch, {difference:.1e} apart where "
                    f"{allowed:g} is allowed: these are not the same training step, so nothing was timed"
                )
            kind = "grad_norm" if name == "grad_norm" else "loss"
            worst[kind] = max(worst[kind], difference)
    losses, norms = worst.values()
    return f"losses and terms of {len(ours)} steps agree to {losses:.1e}, gradient norms to {norms:.1e}"


def wan_note(flops: float, theirs: dict[str, float]) -> str:
    return (
        "another network of the same width, depth and token count, losses not comparable: Wan denoises every frame and "
        "all tokens see each other; ours observes the first frame apart, adds a state and an action token, the "
        "instruction in the modulation and per-frame noise levels, and predicts the later frames; "
        f"{1e-9 * flops:,.0f} GFLOP a step here, {1e-9 * theirs['flops']:,.0f} there"
    )


def main(argv: Sequence[str] | None = None) -> None:
    flags = parser(
        __doc__,
        quick="two repeats for five; PyTorch compiled in one case alone",
        only="cases whose name holds one of these words; `saving`",
    )
    arguments = flags.parse_args(argv)
    found, name = find_device()
    device = arguments.device or found
    chosen = cases.GPU if device == "cuda" else cases.CPU
    saving = next(case for case in chosen if case.size == "small")
    words = arguments.only or [""]
    wanted = [case for case in chosen if any(word in case.name for word in words)]
    with_saving = any(word in "saving" for word in words)
    if not wanted and not with_saving:
        sys.exit(f"bench: no case holds {words}; there are: saving; {'; '.join(case.name for case in chosen)}")
    if arguments.dry_run:
        for case in wanted:
            peers = ", ".join(side.peer for side in peers_of(case, arguments.quick))
            print(f"{case.name}: {1e-12 * case.flops:.3g} TFLOP a step, {case.steps} steps a block, against {peers}")
        print(f"saving: {saving.name}" if with_saving else "saving: not asked for")
        return
    check_machine(arguments, device, (found, name))

    def measure(folder: Path) -> list[dict[str, Any]]:
        bench = Bench(device, name, folder, arguments.quick)
        rows: list[dict[str, Any]] = []
        for size in dict.fromkeys(c.size for c in wanted if c.network == "joint" and c.dtype == "bfloat16"):
            bench.check(next(case for case in wanted if case.size == size))
        for case in wanted:
            rows += bench.rows(case)
        return rows + (bench.saving_rows(saving) if with_saving else [])

    write("train", argv, arguments, name, measure)


if __name__ == "__main__":
    main()
