"""Checkpoints: one directory a step with separate items, behind one small class.

`params`        EMA parameters, fitted constants and the tokenizer's arrays: all the arrays inference reads
`train_state`   step, schedule, parameters and optimizer moments: what training needs besides the EMA
`data`          state of the data iterator after the last batch a step consumed
`assets`        JSON: configuration, git revision, versions, normalisers, embodiments, cameras, tokenizer description
`fingerprints`  of every array (`wam.fingerprint`) and a digest of both JSON items: what was saved is what is restored

A step's directory appears whole or not at all. Saves run in the background; a failed one is reported by the next call.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from wam.fingerprint import fingerprints, json_digest, named_leaves
from wam.training.state import TrainState

FORMAT = 2

ARRAYS = ("params", "train_state")
JSONS = ("data", "assets", "fingerprints")

# Orbax logs a background error with its traceback and then raises it: once, in one sentence, is enough.
logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))

_report_unraisable = sys.unraisablehook


def _without_late_writes(unraisable: Any) -> None:
    """After an error Orbax closes its event loop with other reads and writes on their way; each would print a trace."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        _report_unraisable(unraisable)


sys.unraisablehook = _without_late_writes


class SaveError(RuntimeError):
    """A checkpoint could not be written; the earlier ones are untouched."""


class Inference(NamedTuple):
    """What `read_inference` returns."""

    step: int
    params: Any
    constants: Any
    tokenizer: dict[str, Any]
    assets: dict[str, Any]


class Checkpoints:
    """Reads and writes `<workdir>/checkpoints`. Saves are asynchronous and atomic.

    Args:
        workdir: of the run.
        keep_latest: newest checkpoints that stay.
        keep_every: checkpoints at multiples of this many steps stay for ever; 0: none does.
        best_metric: the checkpoint with the lowest value of this validation metric stays; empty: none does.

    Raises:
        ValueError: a checkpoint's metrics are damaged.
    """

    def __init__(self, workdir: str | Path, *, keep_latest: int = 2, keep_every: int = 0, best_metric: str = "loss"):
        self.directory = Path(workdir).resolve() / "checkpoints"

        def value(metrics: Mapping[str, float]) -> float:
            found = metrics.get(best_metric, math.inf)
            return found if math.isfinite(found) else math.inf

        kept: list[policies.PreservationPolicy] = [policies.LatestN(keep_latest)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        if best_metric:
            # Lowest last, and among equals (none has the metric yet) the newest, which stays anyway.
            kept.append(policies.BestN(get_metric_fn=value, reverse=True, n=1, keep_checkpoints_without_metrics=False))
        self._best_metric = best_metric
        self._manager = _open(
            self.directory,
            create=True,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,  # of saves that were killed
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=value,  # makes the manager keep metrics at all
            best_mode="min",
        )

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step whose validation metric was lowest; None while no checkpoint has one."""
        step = self._manager.best_step()
        metrics = {} if step is None else self._manager.metrics(step) or {}
        return step if math.isfinite(metrics.get(self._best_metric, math.inf)) else None

    def save(self, state: TrainState, data: dict[str, Any], constants: Any, tokenizer: dict[str, Any],
             assets: dict[str, Any], metrics: Mapping[str, float] | None = None) -> None:  # fmt: skip
        """Starts saving; the state may be donated once this returns. A step that is there already is left alone.

        Args:
            state: of the training; on several hosts, all of them call this.
            data: state of the data iterator.
            constants: fitted on data; equal on all hosts.
            tokenizer: its arrays; equal on all hosts.
            assets: JSON.
            metrics: of the validation at this step, if there was one.

        Raises:
            SaveError: this save, or the one before it, failed.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        # Numpy arrays are written once, by the first host.
        small = jax.device_get({"constants": constants, "tokenizer": tokenizer})
        texts = {"data": data, "assets": {"format": FORMAT, **assets}}
        marks: dict[str, Any] = {name: json_digest(text) for name, text in texts.items()}
        marks["arrays"] = {**fingerprints(state._asdict()), **fingerprints(small)}
        with self._reporting():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave({"ema": state.ema, **small}),
                    train_state=ocp.args.StandardSave(_without_ema(state)),
                    **{name: ocp.args.JsonSave(text) for name, text in {**texts, "fingerprints": marks}.items()},
                ),
                metrics=dict(metrics or {}),
            )

    def check(self) -> None:
        """SaveError if a save that ran in the background has failed; does not wait for one that still runs."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits for the save in flight; SaveError if it failed."""
        with self._reporting():
            self._manager.wait_until_finished()

    def restore(self, like: TrainState, shardings: TrainState) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
        """(state, data, assets) of the newest checkpoint, placed by `shardings`, whatever mesh it was saved from.

        Raises:
            ValueError: it was made with another architecture (the first parameter that differs is named), or it is
                damaged (what is, is named, and how to continue from the checkpoint before it).
        """
        step = self.latest()
        assert step is not None, "there is no checkpoint to restore"
        reader = _Reader(self._manager, step)
        state = _placed(_without_ema(like), _without_ema(shardings))
        params = _placed(reader.shapes("params"), shardings.step) | {"ema": _placed(like.ema, shardings.ema)}
        for item, target in (("train_state", state), ("params", params)):
            if difference := _difference(reader.shapes(item), target):
                raise ValueError(
                    f"the checkpoint at step {step} of {self.directory} was made with another architecture: "
                    f"{difference}; use a new --workdir, or the config of that checkpoint"
                )
        restored = reader.arrays(params=params, train_state=state)
        state = {**restored["train_state"], "ema": restored["params"]["ema"]}
        reader.compare(state)
        reader.compare({name: tree for name, tree in restored["params"].items() if name != "ema"})
        return TrainState(**state), reader.json("data"), reader.assets

    def close(self) -> None:
        """Waits for the save in flight; SaveError if it failed."""
        try:
            self.wait()
        finally:
            self._manager.close()

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Whatever Orbax and the file system raise while writing, as one sentence."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            self._manager.reload()  # the manager has forgotten the steps that this one was to replace
            last = self.latest()
            raise SaveError(
                f"saving a checkpoint to {self.directory} failed ({_reason(error)}); "
                + ("there is no earlier one" if last is None else f"the checkpoint at step {last} is intact")
                + ": make room there, or mend what is named, and run the same command to continue"
            ) from error


def read_everything(workdir: str | Path, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays of `params` and `train_state` on one local device, state of the data) of a checkpoint, for comparisons.

    Raises:
        ValueError: it is damaged, does not exist, or is of another format.
    """
    with _open(Path(workdir).resolve() / "checkpoints", read_only=True) as manager:
        reader = _Reader(manager, step)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        items = reader.arrays(**{name: _placed(reader.shapes(name), here) for name in ARRAYS})
        arrays = {**items["params"], **items["train_state"]}
        reader.compare(arrays)
        return arrays, reader.json("data")


def read_inference(workdir: str | Path, step: int | None = None) -> Inference:
    """Everything inference needs from a run directory, as arrays on one local device.

    Raises:
        FileNotFoundError: there is no finished checkpoint.
        ValueError: it is damaged or of another format.
    """
    directory = Path(workdir).resolve() / "checkpoints"
    if not directory.is_dir():
        raise FileNotFoundError(f"{workdir} holds no checkpoint: there is no {directory.name}/ folder in it")
    with _open(directory, read_only=True) as manager:
        step = manager.latest_step() if step is None else step
        if step is None or step not in manager.all_steps():
            raise FileNotFoundError(f"{directory} holds no finished checkpoint{'' if step is None else f' at {step}'}")
        reader = _Reader(manager, step)
        # Onto one local device, whatever mesh the run was trained on.
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        params = reader.arrays(params=_placed(reader.shapes("params"), here))["params"]
        reader.compare(params)
    return Inference(step, params["ema"], params["constants"], params["tokenizer"], reader.assets)


class _Reader:
    """Reads the items of one step; whatever is wrong with them becomes one sentence (ValueError)."""

    def __init__(self, manager: ocp.CheckpointManager, step: int):
        self._manager, self._step = manager, step
        self.assets = self._restore(assets=ocp.args.JsonRestore())["assets"]
        if self.assets.get("format") != FORMAT:
            raise ValueError(
                f"{manager.directory} has checkpoint format {self.assets.get('format')}; this version reads {FORMAT}"
            )
        self._marks = self._restore(fingerprints=ocp.args.JsonRestore())["fingerprints"]
        self._check("assets", self.assets)

    def shapes(self, item: str) -> Any:
        """The tree of an item with shapes and dtypes in place of arrays."""
        with self._reporting():
            metadata = self._manager.item_metadata(self._step)[item]
            if metadata is None:
                raise FileNotFoundError(f"{item} is missing")
            return getattr(metadata, "tree", metadata)

    def arrays(self, **targets: Any) -> Any:
        """The items named, each as the shapes, dtypes and shardings of its target say."""
        return self._restore(**{name: ocp.args.StandardRestore(target) for name, target in targets.items()})

    def json(self, item: str) -> dict[str, Any]:
        value = self._restore(**{item: ocp.args.JsonRestore()})[item]
        self._check(item, value)
        return value

    def compare(self, tree: Any) -> None:
        """ValueError names the first array that is not, bit for bit, what was saved."""
        for name, value in fingerprints(tree).items():
            if self._marks["arrays"].get(name) != value:
                raise self._damage(f"{name} is not what was saved")

    def _check(self, item: str, value: dict[str, Any]) -> None:
        if self._marks.get(item) != json_digest(value):
            raise self._damage(f"{item} is not what was saved")

    def _restore(self, **arguments: Any) -> Any:
        with self._reporting():
            return self._manager.restore(self._step, args=ocp.args.Composite(**arguments))

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # Orbax raises a bare Exception for files that are too short
            raise self._damage(_reason(error)) from error

    def _damage(self, what: str) -> ValueError:
        directory = self._manager.directory
        earlier = max((step for step in self._manager.all_steps() if step < self._step), default=None)
        fallback = "start again, as there is no earlier one" if earlier is None else f"continue from step {earlier}"
        return ValueError(
            f"the checkpoint at step {self._step} of {directory} is damaged: {what}; "
            f"delete {directory / str(self._step)} to {fallback}"
        )


def _open(directory: Path, **options: Any) -> ocp.CheckpointManager:
    handlers = {
        **{name: ocp.StandardCheckpointHandler() for name in ARRAYS},
        **{name: ocp.JsonCheckpointHandler() for name in JSONS},
    }
    try:
        return ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(**options), item_handlers=handlers)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the validation metrics of a checkpoint in {directory} are damaged ({error}); delete that step's directory"
        ) from error


def _without_ema(state: TrainState) -> dict[str, Any]:
    return {name: tree for name, tree in state._asdict().items() if name != "ema"}


def _placed(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of `tree` with `shardings`: one for all, or a tree of them."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _difference(found: Any, wanted: Any) -> str:
    """The first array in which two trees differ, in words; empty when they have the same names, shapes and dtypes."""
    there, here = ({name: _describe(x) for name, x in named_leaves(tree).items()} for tree in (found, wanted))
    # Parameters first: the optimizer's moments repeat every difference.
    for name in sorted({**here, **there}, key=lambda name: (not name.startswith("params."), name)):
        if there.get(name) != here.get(name):
            return f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
    return ""


def _describe(x: Any) -> str:
    return f"{np.dtype(x.dtype).name}[{', '.join(map(str, x.shape))}]"


def _reason(error: Exception) -> str:
    """The shortest honest account of an error: the system's words where there is an error number."""
    while type(error) is Exception and isinstance(error.__cause__, Exception):
        error = error.__cause__  # Orbax wraps the storage's words in pages of its own
    found = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(found.group(1)) if found else getattr(error, "errno", None)
    text = os.strerror(number) if number else (str(error).splitlines() or [type(error).__name__])[0]
    return text[:200]
