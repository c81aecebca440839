"""The training loop: steps, metrics one step late, validation, checkpoints. Everything it uses is passed in."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from tqdm import tqdm

from wam.checkpoint import Checkpoints
from wam.config import TrainConfig
from wam.training.meter import Meter
from wam.training.metrics import Averages, Writer
from wam.training.profiler import Profiler
from wam.training.state import TrainState


class BatchIterator(Protocol):
    """A stream of device batches that can name the place after the last batch it handed out."""

    wait_seconds: float

    def __next__(self) -> Any: ...

    def state(self) -> dict[str, Any]: ...


class Agreement(Protocol):
    """What all hosts know at the same step: `send` once a step, then `result`, which may be that of the send before."""

    def send(self, flag: bool) -> None: ...

    def result(self) -> bool: ...


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that is NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a loop needs, ready made."""

    train_step: Callable[[TrainState, Any], tuple[TrainState, Any]]
    evaluate: Callable[[Any, Any, Any], Any] | None
    validation: Callable[[], Iterable[tuple[Any, Any]]]
    save: Callable[[TrainState, dict[str, Any], Mapping[str, float] | None], None]
    """(state, state of the data, metrics of the validation at this step, if any)"""
    account: Callable[[Mapping[str, Any]], Mapping[str, float]]
    """(state of the data) -> entries of a training row, such as how often each source was gone through"""
    checkpoints: Checkpoints
    sources: tuple[str, ...]
    writer: Writer
    meter: Meter
    profiler: Profiler
    skips: Skips
    stop: StopSignals
    agreement: Agreement


def train(run: Run, config: TrainConfig, state: TrainState, batches: BatchIterator, *,
          progress: bool = True) -> TrainState:  # fmt: skip
    """Trains from `state.step` to `config.steps`, saving on the way, at the end, and when asked to stop.

    Raises:
        NonFiniteError: `config.max_skipped` steps in a row were skipped; the last checkpoint stays.
        SaveError: a checkpoint could not be written; the one before it stays.
    """
    first = int(state.step)
    averages, meter = Averages(run.sources), run.meter
    bar = tqdm(total=config.steps, initial=first, desc="train", unit="step", disable=not progress, mininterval=1.0)
    pending: tuple[int, Any] | None = None

    def absorb() -> None:
        nonlocal pending
        if pending is not None:
            run.skips.see(*pending)
            averages.add(pending[1])
            pending = None

    meter.start(first, batches.wait_seconds)
    try:
        for step in range(first, config.steps):
            batch = next(batches)
            compiling = meter.apart("compile_seconds") if step == first else contextlib.nullcontext()
            with run.profiler.step(step), compiling:
                state, metrics = run.train_step(state, batch)
            done = step + 1
            # Fetched one step late, so that the device never waits for the host.
            absorb()
            pending = done, metrics
            run.agreement.send(bool(run.stop))
            stopping = run.agreement.result()
            bar.update()
            if run.profiler.after(done, metrics):
                bar.write(f"wrote the trace of the steps up to {done}")
            saving = stopping or done % config.checkpoint_every == 0 or done == config.steps
            # A row never spans a checkpoint: whoever resumes there repeats whole rows and loses none.
            if saving or done % config.log_every == 0:
                absorb()
                values = averages.summary() | dict(run.account(batches.state()))
                values |= meter.row(done, batches.wait_seconds)
                averages.reset()
                run.writer.write(done, "train", values)
                bar.set_postfix(loss=f"{values.get('loss', np.nan):.3f}", wait=f"{values['data_wait_share']:.0%}")
                run.checkpoints.check()
            validated = None
            if run.evaluate is not None and (done % config.eval_every == 0 or done == config.steps):
                with meter.apart("validation_seconds"):
                    validated = validate(run, state)
                run.writer.write(done, "validation", validated)
            if saving:
                with meter.apart("save_ms"):
                    run.save(state, batches.state(), validated)
            if stopping:
                bar.write(f"stopped by {run.stop.name} after step {done}; run the same command to continue")
                break
    finally:
        bar.close()
        run.profiler.close()
    run.checkpoints.wait()
    return state


def validate(run: Run, state: TrainState) -> dict[str, float]:
    """Averages of the EMA weights over the validation windows, with fixed noise."""
    assert run.evaluate is not None
    averages = Averages(run.sources)
    for batch, is_valid in run.validation():
        averages.add(run.evaluate(state.ema, batch, is_valid))
    return averages.summary()


class StopSignals:
    """Notes SIGTERM, and SIGUSR1, which a cluster can be told to send before it, instead of dying of them."""

    def __init__(self):
        self._received: list[int] = []

    def __enter__(self) -> StopSignals:
        kinds = (signal.SIGTERM, signal.SIGUSR1)
        self._previous = {kind: signal.signal(kind, lambda number, _: self._received.append(number)) for kind in kinds}
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._previous.items():
            signal.signal(kind, handler)

    def __bool__(self) -> bool:
        return bool(self._received)

    @property
    def name(self) -> str:
        return signal.Signals(self._received[0]).name if self._received else "a signal to another host"


class Skips:
    """Steps whose loss or gradient was not finite: the step has left the parameters alone; here it is put on record.

    Args:
        directory: gets `step_N.json` for every such step, enough to rebuild its batch; None: nothing is written.
        sources: names of the sources, in the order of the first half of a sample's id.
        seed: of the training; with the step it decides every random draw.
        limit: of such steps in a row.
    """

    def __init__(self, directory: Path | None, sources: Sequence[str], *, seed: int, limit: int):
        self._directory, self._sources, self._seed, self._limit = directory, tuple(sources), seed, limit
        self._in_a_row = 0

    def see(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Looks at the metrics of the step that brought the state to `step`; NonFiniteError at the limit."""
        if bool(metrics["finite"]):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._directory is not None:
            self._directory.mkdir(exist_ok=True)
            ids = np.asarray(jax.device_get(metrics["sample_id"])).tolist()
            record = {
                "step": step,
                "seed": self._seed,
                "loss": repr(float(metrics["loss"])),
                "grad_norm": repr(float(metrics["grad_norm"])),
                "samples": [{"source": self._sources[source], "window": window} for source, window in ids],
            }
            (self._directory / f"step_{step}.json").write_text(json.dumps(record, indent=1))
        if self._in_a_row >= self._limit:
            raise NonFiniteError(
                f"the loss or its gradient was not finite in {self._in_a_row} steps in a row, the last one {step}; "
                "checkpoints are intact: lower optimizer.learning_rate, or look at the batches, which are on record "
                f"(python -m tools.replay_step WORKDIR/skipped/step_{step}.json)"
            )


def time_steps(train_step: Callable, state: TrainState, batch: Any, steps: int = 50) -> tuple[float, float]:
    """(seconds of compilation, median seconds a warm step) on copies of `state`; nothing is kept of the training."""
    copy = jax.tree.map(lambda x: x.copy(), state)
    start = time.monotonic()
    copy, metrics = train_step(copy, batch)
    jax.block_until_ready(metrics)
    compile_seconds = time.monotonic() - start
    seconds = []
    for _ in range(steps):
        start = time.monotonic()
        copy, metrics = train_step(copy, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.monotonic() - start)
    return compile_seconds, float(np.median(seconds))


def workdir_lock(workdir: Path):
    """An exclusive lock on a run directory; ValueError, in one sentence, if another run has it."""
    import fcntl

    handle = (workdir / ".lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise ValueError(f"{workdir} is in use by another run; choose another --workdir or wait for it") from None
    return handle
