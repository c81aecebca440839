"""How long one action chunk takes, batch 1, host array in to host array out, against the same network in PyTorch.

    python -m tools.bench.latency              # every case of this machine's device: CPU, or an NVIDIA GPU
    python -m tools.bench.latency --quick      # less of it: about four minutes on two CPU cores
    python -m tools.bench.latency --dry_run    # compiles every answer by its shapes, computes nothing

On a GPU it needs jax, flax, optax, orbax, einops, numpy and torch alone. Writes results/latency-<chip>.json and renders
README.md.

Both sides start from the same weights, observation and noise, in processes of their own with the same environment (that
of tools/env.sh), and must give the same actions and pixels before anything is timed: in float32 to 1e-4 (actions) and
one grey level (pixels); what is timed in bfloat16 is compared in float32 first. Then blocks of calls alternate: ours,
theirs, theirs, ours; every call is timed by itself. An answer is everything from the observation on the host to the
chunk on the host: copies, tokenising, the context once, every Euler step, and the pixels of what was imagined.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench import harness
from tools.bench import latency_cases as cases
from tools.bench.command import check_machine, environment, find_device, parser, say, write
from tools.bench.latency_cases import Case, Program
from tools.bench.latency_rows import agreement, decoding, goal_note, percentiles
from tools.bench.worker import ROOT, Worker, WorkerError

PERCENTILES = (50, 95, 99)


@dataclasses.dataclass(frozen=True)
class Side:
    module: str
    what: str = ""
    compile: str | None = None
    """How PyTorch compiles, see `peers/torch_latency.py`."""

    @property
    def peer(self) -> str:
        """What it is and which version, for the rows."""
        how = {None: "eager", "default": "torch.compile", "cuda graph": "torch.compile in one CUDA graph"}[self.compile]
        return f"PyTorch {importlib.metadata.version('torch')}, {how}"


OURS = Side("tools.bench.latency_ours")
EAGER, COMPILED, CAPTURED = (
    Side("tools.bench.peers.torch_latency", "PyTorch", mode) for mode in (None, "default", "cuda graph")
)


@dataclasses.dataclass(frozen=True)
class Effort:
    repeats: int
    """Times A B B A."""
    calls: int
    """Of a block."""
    seconds: float
    """After which a block ends before its calls."""


FULL, QUICK = Effort(2, 50, 15.0), Effort(1, 15, 2.0)
Calls = dict[tuple[Side, str], list[list[float]]]
"""(side, name of the call) -> blocks of seconds"""


class Bench:
    """One machine and one temporary folder for what the sides exchange."""

    def __init__(self, device: str, chip: str, folder: Path, quick: bool):
        self.device, self.chip, self.folder, self.quick = device, chip, folder, quick
        self.effort = QUICK if quick else FULL
        self.numbers = itertools.count()

    def programs(self, case: Case) -> tuple[Program, ...]:
        return tuple(program for program in case.programs if program in cases.QUICK or not self.quick)

    def forms_of(self, case: Case) -> tuple[Program, ...]:
        """Unrolled steps take as long to compile as all else together."""
        return tuple(form for form in case.forms if form.form != cases.UNROLLED or not self.quick)

    @property
    def peers(self) -> tuple[Side, ...]:
        if not importlib.util.find_spec("torch"):
            return ()
        return (EAGER, COMPILED, *((CAPTURED,) if self.device == "cuda" else ()))

    def spec(self, case: Case) -> dict[str, Any]:
        attention = "chunked" if self.device == "cpu" else "cudnn" if case.dtype == "bfloat16" else "xla"
        return case.spec(attention, self.device)

    def prepare(self, case: Case) -> Path:
        """Writes the case's spec and arrays; returns its folder."""
        place = self.folder / f"case{next(self.numbers)}"
        place.mkdir()
        spec = self.spec(case) | {"arrays": str(place / "arrays.npz")}
        (place / "spec.json").write_text(json.dumps(spec))
        command = [sys.executable, "-m", "tools.bench.latency_exchange", str(place / "spec.json")]
        env = environment(place, gpu=False, isolate=False)
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            raise WorkerError(f"preparing {case.name} failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:300]}")
        return place

    def start(self, side: Side, place: Path) -> Worker:
        spec = json.loads((place / "spec.json").read_text()) | {"compile": side.compile}
        path = place / f"spec-{side.module}-{side.compile}.json"
        path.write_text(json.dumps(spec))
        env = environment(place, gpu=self.device == "cuda", isolate=False)
        return Worker(side.module, path, log=place / "log.txt", env=env)

    # ------------------------------------------------------------ measurement

    def measure(self, workers: Mapping[Side, Worker], calls: Sequence[tuple[Side, str]], what: str) -> Calls:
        """Blocks of the calls, in turns."""
        out: Calls = {call: [] for call in calls}
        numbers = list(range(len(calls)))
        for number in harness.palindromes(numbers, self.effort.repeats):  # type: ignore[arg-type,type-var]
            side, name = calls[number]  # type: ignore[call-overload]
            request = {"call": name, "calls": self.effort.calls, "seconds": self.effort.seconds}
            out[side, name].append(workers[side].ask(request)["seconds"])
        middle = ", ".join(f"{1000 * np.median(np.concatenate(blocks)):,.2f}" for blocks in out.values())
        say(f"{what}: {middle} ms")
        return out

    def rows(self, case: Case) -> list[dict[str, Any]]:
        place = self.prepare(case)
        workers: dict[Side, Worker] = {}
        calibration = [harness.calibrate()]
        rows: list[dict[str, Any]] = []
        try:
            workers[OURS] = self.start(OURS, place)
            missing = dict(self.start_peers(place, workers))
            for program in self.programs(case):
                rows += self.program(case, program, workers, place, missing)
                calibration.append(harness.calibrate())
            if case.forms:
                rows += self.forms(case, workers, place)
            rows += self.stages(case, workers, place)
            if case.through_policy:
                rows += self.through_policy(case, workers, place)
        finally:
            for worker in workers.values():
                worker.stop()
        (place / "arrays.npz").unlink()
        calibration.append(harness.calibrate())
        note = "2048 x 2048 float32 matmul of numpy on the host between the programs: how even the machine was"
        return [*rows, harness.row(f"{case.name}: calibration", "TFLOP/s", calibration, note=note)]

    def check(self, case: Case) -> None:
        """Equality in float32 of a network that is timed in bfloat16."""
        exact = dataclasses.replace(case, dtype="float32")
        place = self.prepare(exact)
        for name in (cases.MAIN.name, cases.JOINT.name):
            answers = []
            for side in (OURS, EAGER):  # one after the other: two of them may not fit
                worker = self.start(side, place)
                answers.append(self.first(worker, name, place)[1])
                worker.stop()
            say(f"{exact.name}: {name}: {agreement(answers[0], answers[1], exact.dtype)}")
        (place / "arrays.npz").unlink()

    def start_peers(self, place: Path, workers: dict[Side, Worker]) -> Iterator[tuple[Side, str]]:
        """Starts every peer; yields those that cannot be started, and why."""
        for side in self.peers:
            try:
                workers[side] = self.start(side, place)
            except WorkerError as error:
                say(str(error))
                yield side, str(error)

    def first(self, worker: Worker, name: str, place: Path) -> tuple[float, dict[str, np.ndarray], str]:
        """Seconds of a side's first call, which compiles, what came out, and what the side says of itself."""
        output = place / "result.npz"
        output.unlink(missing_ok=True)
        said = worker.ask({"call": name, "output": str(output)})
        result: dict[str, np.ndarray] = {}
        if output.exists():
            with np.load(output) as arrays:
                result = {key: arrays[key] for key in arrays.files}
        return said["first"], result, said["note"]

    def program(self, case: Case, program: Program, workers: dict[Side, Worker], place: Path,
                missing: dict[Side, str]) -> list[dict[str, Any]]:  # fmt: skip
        """Rows of one program: percentiles against every peer, and how many chunks and actions a second that makes."""
        what = f"{case.name}: {program.name}"
        seconds, ours, our_note = self.first(workers[OURS], program.name, place)
        say(f"{what}: compiled in {seconds:.1f} s")
        said, first = {}, {OURS: seconds}
        for side in [s for s in self.peers if s in workers]:
            if self.quick and side.compile and program != cases.MAIN:
                continue
            try:
                first[side], theirs, note = self.first(workers[side], program.name, place)
            except WorkerError as error:
                say(str(error))
                missing[side] = str(error)
                workers.pop(side).stop()
                continue
            said[side] = "; ".join(filter(None, (agreement(ours, theirs, case.dtype), note, our_note)))
        measured = self.measure(workers, [(side, program.name) for side in (OURS, *said)], what)
        mine = measured[OURS, program.name]
        rows = []
        for side, note in said.items():
            other = measured[side, program.name]
            rows += [harness.row(f"{what}: p{p}", "ms", percentiles(mine, p), peer=side.peer,
                                 theirs=percentiles(other, p), note=note) for p in PERCENTILES]  # fmt: skip
            if program == cases.MAIN:
                rows.append(
                    harness.row(
                        f"{what}: first answer",
                        "s",
                        [first[OURS]],
                        peer=side.peer,
                        theirs=[first[side]],
                        note="traces, compiles and runs once, nothing cached",
                    )
                )
        if not said:
            why = "; ".join(f"{side.peer}: {why}" for side, why in missing.items())
            rows += [
                harness.row(f"{what}: p{p}", "ms", percentiles(mine, p), note=why or our_note) for p in PERCENTILES
            ]
        goal = goal_note(case, program, self.chip, percentiles(mine, 50)[0])
        chunks = [1 / float(np.median(block)) for block in mine]
        rows.append(harness.row(f"{what}: chunk rate", "chunks/s", chunks, note=f"on {self.chip}{goal}"))
        rows.append(harness.row(f"{what}: action rate", "actions/s", [case.executed * c for c in chunks],
                                note=f"on {self.chip}, {case.executed} actions of a chunk executed"))  # fmt: skip
        return rows

    def forms(self, case: Case, workers: dict[Side, Worker], place: Path) -> list[dict[str, Any]]:
        """Our program against other ways of writing it."""
        forms = self.forms_of(case)
        for form in forms:
            self.first(workers[OURS], form.name, place)
        calls = [(OURS, program.name) for program in (cases.MAIN, *forms)]
        measured = self.measure(workers, calls, f"{case.name}: forms of {cases.MAIN.name}")
        mine = percentiles(measured[calls[0]], 50)
        told = {
            cases.UNROLLED: "ours with the steps unrolled",
            cases.SCANNED: "ours with a loop over the layers",
            cases.RECOMPUTED: "ours with the context computed in every step",
        }
        return [
            harness.row(f"{case.name}: {cases.MAIN.name}, forms: p50", "ms", mine, peer=told[form.form],
                        theirs=percentiles(measured[OURS, form.name], 50),
                        note="ours: one compiled loop over the steps, layers one after the other, the context once")
            for form in forms
        ]  # fmt: skip

    def stages(self, case: Case, workers: dict[Side, Worker], place: Path) -> list[dict[str, Any]]:
        """Parts of an answer, each a call of its own on arrays that are where it wants them."""
        rows = decoding(case)
        sides = [side for side in workers if not (side is CAPTURED or (self.quick and side.compile))]
        for stage in cases.STAGES:
            for side in sides:
                self.first(workers[side], stage, place)
            measured = self.measure(workers, [(side, stage) for side in sides], f"{case.name}: {stage}")
            mine = percentiles(measured[OURS, stage], 50)
            note = "a call of its own, with the dispatch that it saves as a part of the answer"
            name = f"{case.name}: stage {stage}: p50"
            rows += [
                harness.row(name, "ms", mine, peer=side.peer, theirs=percentiles(measured[side, stage], 50), note=note)
                for side in sides
                if side is not OURS
            ] or [harness.row(name, "ms", mine, note=note)]
        return rows

    def through_policy(self, case: Case, workers: dict[Side, Worker], place: Path) -> list[dict[str, Any]]:
        rows = []
        for program in [p for p in self.programs(case) if p.mode != "forward"]:
            name = f"Policy.infer, {program.name}"
            self.first(workers[OURS], name, place)
            calls = [(OURS, name), (OURS, program.name)]
            blocks = self.measure(workers, calls, f"{case.name}: {name}")[calls[0]]
            goal = goal_note(case, program, self.chip, percentiles(blocks, 50)[0])
            note = "checks of the observation, the instruction's tokens, normalising and units included"
            rows += [harness.row(f"{case.name}: {name}: p{p}", "ms", percentiles(blocks, p), note=note)
                     for p in PERCENTILES]  # fmt: skip
            rates = [1 / float(np.median(block)) for block in blocks]
            rows.append(
                harness.row(f"{case.name}: {name}: chunk rate", "chunks/s", rates, note=f"on {self.chip}{goal}")
            )
        return rows

    # ---------------------------------------------------------------- by shape

    def by_shape(self, case: Case) -> Iterator[str]:
        """Compiles every answer of a case without weights; a line each."""
        place = self.folder / f"case{next(self.numbers)}"
        place.mkdir()
        (place / "spec.json").write_text(json.dumps(self.spec(case) | {"by_shape": True}))
        env = environment(place, gpu=self.device == "cuda", isolate=False)
        worker = Worker(OURS.module, place / "spec.json", log=place / "log.txt", env=env)
        try:
            for program in (*self.programs(case), *(f for f in self.forms_of(case) if f.form != cases.SCANNED)):
                said = worker.ask({"call": program.name})
                sizes = ", ".join(
                    f"{said[n] / 2**20:,.0f} MiB of {n}" for n in ("arguments", "temporaries") if n in said
                )
                yield f"{case.name}: {program.name}: compiled in {said['first']:.1f} s; {sizes}"
        finally:
            worker.stop()


def main(argv: Sequence[str] | None = None) -> None:
    flags = parser(
        __doc__,
        quick="one A B B A of short blocks; fewer cases and programs, PyTorch compiled in one alone",
        only="cases whose name holds one of these words",
    )
    arguments = flags.parse_args(argv)
    found = find_device()
    device = arguments.device or found[0]
    chosen = cases.GPU if device == "cuda" else cases.CPU
    words = arguments.only or [""]
    wanted = [c for c in chosen if any(word in c.name for word in words) and (c.quick or not arguments.quick)]
    if not wanted:
        sys.exit(f"bench: no case holds {words}; there are: {'; '.join(case.name for case in chosen)}")
    if arguments.dry_run:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            bench = Bench(device, found[1], Path(folder), arguments.quick)
            for case in wanted:
                print(f"{case.name}: {len(bench.programs(case))} programs, against {len(bench.peers)} ways of PyTorch")
                for line in bench.by_shape(case) if device == found[0] else ():
                    print(line, flush=True)
        return
    check_machine(arguments, device, found)

    def measure(folder: Path) -> list[dict[str, Any]]:
        bench = Bench(device, found[1], folder, arguments.quick)
        for case in wanted:
            if case.dtype != "float32" and bench.peers:
                bench.check(case)
        return [row for case in wanted for row in bench.rows(case)]

    write("latency", argv, arguments, found[1], measure)


if __name__ == "__main__":
    main()
