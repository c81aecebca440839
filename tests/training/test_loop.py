"""The loop, its meter, sinks and traces on a state of four numbers; whole runs are in tests/experiments."""

import dataclasses
import gzip
import json
import os
import pathlib
import signal
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from wam.checkpoint import Checkpoints
from wam.config import TrainConfig
from wam.diffusion.modes import MODE_NAMES
from wam.training import loop, meter, metrics
from wam.training.profiler import Profiler
from wam.training.state import TrainState

SOURCES = ("expert", "play")
SETTINGS = TrainConfig(steps=8, batch_size=2, log_every=3, eval_every=4, checkpoint_every=4, max_skipped=2)


@jax.jit
def step(state: TrainState, batch):
    """Adds the batch to the parameters, unless it is not finite, as the real step does."""
    loss = batch["x"].mean()
    finite = jnp.isfinite(loss)
    params = {"w": jnp.where(finite, state.params["w"] + loss, state.params["w"])}
    found: dict[str, Any] = {
        "loss": loss, "grad_norm": 2 * loss, "finite": finite, "learning_rate": jnp.float32(0.1),
        "samples": jax.nn.one_hot(batch["sample_id"][:, 0], 2).sum(0), "action_free": jnp.float32(1),
        "modes": jnp.zeros(len(MODE_NAMES)),
        "terms": {"video": {"all": jnp.array([loss, 1.0]), "source": jnp.array([[loss, 1.0], [0.0, 0.0]])}},
        "norms": {"grad": {"video": loss}, "param": {"video": 3 * loss}}, "sample_id": batch["sample_id"],
    }  # fmt: skip
    return state._replace(step=state.step + 1, params=params, ema=params), found


def evaluate(ema, batch, is_valid):
    return {"loss": ema["w"].sum(), "terms": {"video": {"all": jnp.array([1.0, 1.0])}}}


class Batches:
    """Batch i is filled with i + 1; `events` are called before the batch of their number is handed out."""

    wait_seconds = 0.0

    def __init__(self, bad=(), events=None):
        self.next, self.bad, self.events = 0, bad, events or {}

    def __next__(self):
        if self.next in self.events:
            self.events[self.next]()
        value = float("nan") if self.next in self.bad else self.next + 1.0
        ids = np.array([[0, self.next], [1, 100 + self.next]], np.uint32)
        self.next += 1
        return {"x": jnp.full(2, value), "sample_id": jnp.asarray(ids)}

    def state(self):
        return {"next": self.next}


class Alone:
    """Stands for an agreement among hosts; with `at`, another host wants to stop at that send."""

    def __init__(self, at=0):
        self.sends, self.at, self.flag = 0, at, False

    def send(self, flag):
        self.sends += 1
        self.flag = flag or self.sends == self.at

    def result(self):
        return self.flag


class Rows(metrics.Writer):
    """Keeps rows instead of writing them."""

    def __init__(self):
        super().__init__()
        self.rows: list[tuple[int, str, dict]] = []

    def write(self, step, split, values):
        self.rows.append((step, split, {key: v for key, v in values.items() if key not in meter.VOLATILE}))

    def of(self, split):
        return {step: values for step, kind, values in self.rows if kind == split}


def initial() -> tuple[TrainState, TrainState]:
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1], axis_types=(AxisType.Auto,))
    params = {"w": jnp.zeros(4)}
    state = TrainState(jnp.int32(0), jnp.int32(8), jnp.uint32(0), params, params, ())
    return state, jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), state)


def run_loop(workdir: pathlib.Path, batches: Batches, **changes):
    """(final state, rows, steps with a checkpoint) of one run in `workdir`, resuming what is there."""
    rows, checkpoints = Rows(), Checkpoints(workdir)
    state, shardings = initial()
    if checkpoints.latest() is not None:
        state, data, _ = checkpoints.restore(state, shardings)
        batches.next = data["next"]
    settings = changes.pop("settings", SETTINGS)
    with loop.StopSignals() as stop:
        run = loop.Run(
            train_step=step, evaluate=evaluate, validation=lambda: [(None, None)],
            save=lambda state, data, validated: checkpoints.save(state, data, {}, {}, {}, validated),
            account=lambda data: {"epochs/expert": data["next"] / 2}, checkpoints=checkpoints, sources=SOURCES,
            writer=rows, meter=meter.Meter(tokens=10), profiler=Profiler(workdir), stop=stop, agreement=Alone(),
            skips=loop.Skips(workdir / "skipped", SOURCES, seed=7, limit=settings.max_skipped),
        )  # fmt: skip
        try:
            state = loop.train(dataclasses.replace(run, **changes), settings, state, batches, progress=False)
        finally:
            checkpoints.close()
    return state, rows, checkpoints.steps()


def test_rows_cover_every_step_once_and_never_span_a_checkpoint(tmp_path):
    state, rows, saved = run_loop(tmp_path, Batches())
    assert int(state.step) == 8
    assert saved == [4, 8]
    train = rows.of("train")
    assert list(train) == [3, 4, 6, 8]
    assert [train[s]["loss"] for s in train] == [2.0, 4.0, 5.5, 7.5]
    assert sum(row["drawn/expert"] for row in train.values()) == 8
    assert [row["epochs/expert"] for row in train.values()] == [1.5, 2.0, 3.0, 4.0]
    assert [row["action_free_share"] for row in train.values()] == [0.5] * 4
    assert train[3]["video/source/expert"] == 2.0
    assert "video/source/play" not in train[3]
    assert train[8]["grad_norm/video"] == 7.5
    assert train[8]["param_norm/video"] == 22.5
    assert list(rows.of("validation")) == [4, 8]


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_ends_the_run_which_resumes_exactly(tmp_path, kind, capsys):
    batches = Batches(events={4: lambda: os.kill(os.getpid(), kind)})
    state, rows, saved = run_loop(tmp_path / "stopped", batches)
    assert int(state.step) == 5  # the step that was about to be taken when it came
    assert saved == [4, 5]
    assert f"stopped by {kind.name} after step 5; run the same command to continue" in capsys.readouterr().out
    state, more, _ = run_loop(tmp_path / "stopped", Batches())
    whole, undisturbed, _ = run_loop(tmp_path / "whole", Batches())
    np.testing.assert_array_equal(state.params["w"], whole.params["w"])
    drawn = [sum(row["drawn/play"] for r in parts for row in r.of("train").values())
             for parts in ([rows, more], [undisturbed])]  # fmt: skip
    assert drawn == [8, 8]
    assert signal.getsignal(kind) is signal.SIG_DFL  # ours is gone with the run


def test_another_hosts_wish_to_stop_counts(tmp_path, capsys):
    state, _, saved = run_loop(tmp_path, Batches(), agreement=Alone(at=2))
    assert int(state.step) == 2
    assert saved == [2]
    assert "stopped by a signal to another host after step 2" in capsys.readouterr().out


def test_a_step_that_is_not_finite_is_skipped_counted_and_put_on_record(tmp_path):
    state, rows, _ = run_loop(tmp_path, Batches(bad=(1, 3)))
    np.testing.assert_array_equal(state.params["w"], np.full(4, sum(range(1, 9)) - 2 - 4, np.float32))
    train = rows.of("train")
    assert [train[s].get("skipped", 0) for s in train] == [1, 1, 0, 0]
    assert train[3]["loss"] == 2.0  # of the steps 1 and 3
    assert "loss" not in train[4]  # no step of this row was taken
    assert train[4]["drawn/expert"] == 1  # its sample was drawn all the same
    assert sorted(path.name for path in (tmp_path / "skipped").iterdir()) == ["step_2.json", "step_4.json"]
    assert json.loads((tmp_path / "skipped" / "step_2.json").read_text()) == {
        "step": 2, "seed": 7, "loss": "nan", "grad_norm": "nan",
        "samples": [{"source": "expert", "window": 1}, {"source": "play", "window": 101}],
    }  # fmt: skip


def test_too_many_in_a_row_end_the_run_with_the_last_checkpoint_intact(tmp_path):
    with pytest.raises(loop.NonFiniteError, match=r"not finite in 2 steps in a row, the last one 7; .*step_7.json"):
        run_loop(tmp_path, Batches(bad=(5, 6)))
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [4]
    assert checkpoints.restore(*initial())[1] == {"next": 4}
    checkpoints.close()


def test_the_meter_tells_steps_from_all_else(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(meter, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    watch = meter.Meter(tokens=50, flops=300, peak=1000.0)  # flops per 0.5 s, of 1000 a second
    watch.start(10, 1.0)
    with watch.apart("compile_seconds"):
        clock[0] += 60
    clock[0] += 2
    with watch.apart("save_ms"):
        clock[0] += 0.25
    row = watch.row(14, 1.5)
    assert row == {"step_ms": 500.0, "data_wait_share": 0.25, "compile_seconds": 60.0, "save_ms": 250.0,
                   "tokens_per_second": 100.0, "mfu": 0.6}  # fmt: skip
    assert set(row) <= set(meter.VOLATILE)
    clock[0] += 1
    assert meter.Meter(tokens=50, flops=300).row(1, 0.0).keys() == {"step_ms", "data_wait_share", "tokens_per_second"}
    assert watch.row(15, 1.5)["step_ms"] == 1000.0
    assert meter.device_memory() == {}  # a CPU does not say


def test_device_memory_is_that_of_the_fullest_device(monkeypatch):
    stats = [{"bytes_in_use": 2**30, "peak_bytes_in_use": 2**31}, {"bytes_in_use": 3 * 2**30, "peak_bytes_in_use": 1}]
    devices = [types.SimpleNamespace(memory_stats=lambda s=s: s) for s in stats]
    monkeypatch.setattr(meter.jax, "local_devices", lambda: devices)
    assert meter.device_memory() == {"hbm_gb": 3.0, "hbm_peak_gb": 2.0}


def test_metrics_survive_a_kill_in_the_middle_of_a_line(tmp_path):
    writer = metrics.open_writer(tmp_path, 0, config={})
    for number in (1, 2, 3):
        writer.write(number, "train", {"loss": 0.5, "drawn/play": 2.0})
    writer.close()
    assert list((tmp_path / "tensorboard").glob("events*"))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "split": "tr')
    assert [row["step"] for row in metrics.read_rows(tmp_path)] == [1, 2, 3]
    metrics.truncate_metrics(tmp_path, 2)
    assert [row["step"] for row in metrics.read_rows(tmp_path)] == [1, 2]
    assert metrics.totals(metrics.read_rows(tmp_path), "drawn") == {"play": 4}


def test_wandb_is_used_when_asked_for_and_missed_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="--wandb needs the package wandb: pip install wandb"):
        metrics.require_wandb()
    calls = []
    run = types.SimpleNamespace(log=lambda values, step: calls.append((step, values)), finish=lambda: None)
    module = types.SimpleNamespace(init=lambda **arguments: calls.append(arguments) or run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for number in (1, 2):
        writer = metrics.open_writer(tmp_path, 0, wandb="wam", config={"seed": 3})
        writer.write(number, "train", {"loss": 0.5})
        writer.close()
    first, row, again, _ = calls
    assert (first["project"], first["config"], first["resume"]) == ("wam", {"seed": 3}, "allow")
    assert row == (1, {"train/loss": 0.5})
    assert again["id"] == first["id"]  # a resumed run goes on in the same place


def test_a_trace_of_some_steps_is_written(tmp_path):
    asked = Profiler.asked("2:4", tmp_path / "profile", 0, 8)
    run_loop(tmp_path, Batches(), profiler=asked)
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
    (perfetto,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    names = {event.get("name") for event in json.loads(gzip.decompress(perfetto.read_bytes()))["traceEvents"]}
    assert "train" in names


@pytest.mark.parametrize(
    ("text", "start", "end", "steps"),
    [("5", 0, 100, (10, 15)), ("5", 20, 100, (30, 35)), ("5", 0, 12, (7, 12)), ("3:5", 0, 12, (3, 5))],
)
def test_steps_to_trace(tmp_path, text, start, end, steps):
    asked = Profiler.asked(text, tmp_path, start, end)
    assert (asked._first, asked._last) == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("few", "--profile_steps is 'few'; give a number of steps, or A:B"),
        ("1:3", "not within the steps of this run, 2 to 8"),
        ("5:5", "not within the steps of this run"),
        ("7", "not within the steps of this run"),
    ],
)
def test_steps_that_cannot_be_traced_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        Profiler.asked(text, tmp_path, 2, 8)


def test_a_run_directory_has_one_run(tmp_path):
    with loop.workdir_lock(tmp_path), pytest.raises(ValueError, match="is in use by another run"):
        loop.workdir_lock(tmp_path)
    loop.workdir_lock(tmp_path).close()
