"""Checkpoints: one directory a step with separate items, behind one small class.

`params`       EMA parameters, fitted constants and the tokenizer's arrays: all the arrays inference reads
`train_state`  step, parameters, EMA, optimizer moments
`data`         state of the data iterator after the last batch a step consumed
`assets`       JSON: configuration, git revision, versions, normalisers, embodiments, cameras, tokenizer description
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from wam.training.state import TrainState

FORMAT = 1


class Inference(NamedTuple):
    """What `read_inference` returns."""

    step: int
    params: Any
    constants: Any
    tokenizer: dict[str, Any]
    assets: dict[str, Any]


class Checkpoints:
    """Reads and writes `<workdir>/checkpoints`. Saves are asynchronous and atomic; the newest `keep` stay."""

    def __init__(self, workdir: str | Path, *, keep: int = 2):
        self.directory = Path(workdir).resolve() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def save(self, state: TrainState, data: dict[str, Any], constants: Any, tokenizer: dict[str, Any],
             assets: dict[str, Any]) -> None:  # fmt: skip
        """Starts saving; the state may be donated once this returns."""
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        params = {"ema": state.ema, "constants": constants, "tokenizer": tokenizer}
        self.manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                train_state=ocp.args.StandardSave(state._asdict()),
                data=ocp.args.JsonSave(data),
                assets=ocp.args.JsonSave({"format": FORMAT, **assets}),
            ),
        )

    def restore(self, like: TrainState, shardings: TrainState) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
        """(state, data, assets) of the newest checkpoint; ValueError when its arrays are not those of this model."""
        step = self.latest()
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like._asdict(), shardings._asdict()
        )
        try:
            restored = self.manager.restore(
                step,
                args=ocp.args.Composite(
                    train_state=ocp.args.StandardRestore(target),
                    data=ocp.args.JsonRestore(),
                    assets=ocp.args.JsonRestore(),
                ),
            )
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise ValueError(
                f"the checkpoint at step {step} of {self.directory} cannot be restored into this model: it was made "
                f"with another architecture or is damaged ({str(error).splitlines()[0][:200]})"
            ) from error
        return TrainState(**restored["train_state"]), restored["data"], restored["assets"]

    def close(self) -> None:
        """Waits for saves in flight."""
        self.manager.wait_until_finished()
        self.manager.close()


def read_inference(workdir: str | Path, step: int | None = None) -> Inference:
    """Everything inference needs from a run directory, as host arrays.

    Raises:
      FileNotFoundError: there is no finished checkpoint.
      ValueError: it is damaged or of another format.
    """
    directory = Path(workdir).resolve() / "checkpoints"
    if not directory.is_dir():
        raise FileNotFoundError(f"{workdir} holds no checkpoint: there is no {directory.name}/ folder in it")
    handlers = {"params": ocp.StandardCheckpointHandler(), "assets": ocp.JsonCheckpointHandler(),
                "train_state": ocp.StandardCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}  # fmt: skip
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(directory, options=options, item_handlers=handlers) as manager:
        step = manager.latest_step() if step is None else step
        if step is None or step not in manager.all_steps():
            raise FileNotFoundError(f"{directory} holds no finished checkpoint{'' if step is None else f' at {step}'}")
        try:
            assets = manager.restore(step, args=ocp.args.Composite(assets=ocp.args.JsonRestore()))["assets"]
            # Onto one local device, whatever mesh the run was trained on.
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            metadata = manager.item_metadata(step)["params"]
            target = jax.tree.map(
                lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=sharding), getattr(metadata, "tree", metadata)
            )
            params = manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(target)))["params"]
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise ValueError(
                f"the checkpoint at step {step} of {directory} is damaged: {str(error).splitlines()[0][:200]}"
            ) from error
    if assets.get("format") != FORMAT:
        raise ValueError(f"{directory} has checkpoint format {assets.get('format')}; this version reads {FORMAT}")
    return Inference(step, params["ema"], params["constants"], params["tokenizer"], assets)
