"""The training loop: steps, metrics one step late, validation, checkpoints. Everything it uses is passed in."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from tqdm import tqdm

from wam.checkpoint import Checkpoints
from wam.config import TrainConfig
from wam.training.metrics import Averages, Writer
from wam.training.state import TrainState


class BatchIterator(Protocol):
    """A stream of device batches that can name the place after the last batch it handed out."""

    wait_seconds: float

    def __next__(self) -> Any: ...

    def state(self) -> dict[str, Any]: ...


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient became NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a loop needs, ready made."""

    train_step: Callable[[TrainState, Any], tuple[TrainState, Any]]
    eval_step: Callable[[Any, Any, Any], Any] | None
    validation: Callable[[], Iterable[tuple[Any, Any]]] | None
    learning_rate: Callable[[int], Any]
    save: Callable[[TrainState, dict[str, Any]], None]
    sources: tuple[str, ...]


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


def train(run: Run, config: TrainConfig, state: TrainState, batches: BatchIterator, writer: Writer,
          checkpoints: Checkpoints, *, progress: bool = True) -> TrainState:  # fmt: skip
    """Trains from `state.step` to `config.steps`, saving on the way, at the end, and on SIGTERM.

    Raises:
      NonFiniteLossError: naming the step; the last good checkpoint stays.
    """
    first = int(state.step)
    averages = Averages(run.sources)
    stop: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    bar = tqdm(total=config.steps, initial=first, desc="train", unit="step", disable=not progress, mininterval=1.0)
    pending: Any = None
    mark, mark_wait, mark_step = time.monotonic(), batches.wait_seconds, first

    def absorb(metrics: Any, step: int) -> None:
        loss = float(metrics["loss"])
        if not np.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss became {loss} at step {step}; lower optimizer.learning_rate or look at the batch of that "
                "step (the last checkpoint is intact)"
            )
        averages.add(metrics)

    try:
        for step in range(first, config.steps):
            batch = next(batches)
            state, metrics = run.train_step(state, batch)
            done = step + 1
            # Fetched one step late, so that the device never waits for the host.
            if pending is not None:
                absorb(pending, step)
            pending = metrics
            bar.update()
            if done % config.log_every == 0 or done == config.steps:
                absorb(pending, done)
                pending = None
                now = time.monotonic()
                wait = (batches.wait_seconds - mark_wait) / max(1e-9, now - mark)
                values = averages.summary()
                values["step_ms"] = 1000 * (now - mark) / (done - mark_step)
                values["data_wait_share"] = wait
                values["learning_rate"] = float(run.learning_rate(step))
                writer.write(done, "train", values)
                bar.set_postfix(loss=f"{values['loss']:.3f}", wait=f"{wait:.0%}")
                averages.reset()
                mark, mark_wait, mark_step = now, batches.wait_seconds, done
            ended = done == config.steps or bool(stop)
            if run.eval_step is not None and (done % config.eval_every == 0 or done == config.steps):
                start, waited = time.monotonic(), batches.wait_seconds
                writer.write(done, "validation", validate(run, state))
                mark, mark_wait = mark + time.monotonic() - start, mark_wait + batches.wait_seconds - waited
            if done % config.checkpoint_every == 0 or ended:
                run.save(state, batches.state())
            if stop:
                bar.write(f"stopped by SIGTERM after step {done}; run the same command to continue")
                break
    finally:
        bar.close()
        checkpoints.manager.wait_until_finished()
        signal.signal(signal.SIGTERM, previous)
    return state


def validate(run: Run, state: TrainState) -> dict[str, float]:
    """Averages of the EMA weights over the validation windows, with fixed noise."""
    assert run.eval_step is not None
    assert run.validation is not None
    averages = Averages(run.sources)
    for batch, is_valid in run.validation():
        averages.add(run.eval_step(state.ema, batch, is_valid))
    return averages.summary()


def workdir_lock(workdir: Path):
    """An exclusive lock on a run directory; BlockingIOError turned into one sentence by the caller."""
    import fcntl

    handle = (workdir / ".lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise ValueError(f"{workdir} is in use by another run; choose another --workdir or wait for it") from None
    return handle
