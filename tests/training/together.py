"""A program that several processes run together, and what it does when one process does it alone.

    python -m tests.training.together OUT.npz     (in the environment of `wam.training.distributed.VARIABLES`)

Two devices in all. Every scenario trains a tiny network for some steps with SGD on a mesh; each process feeds only the
rows of its own data replica. Losses and final parameters are written by process 0.
"""

from __future__ import annotations

import sys
from unittest import mock

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from tests.helpers import small_batch, small_config, small_tokenizer
from wam.config import MeshConfig, ObjectiveConfig, OptimizerConfig
from wam.training import distributed, sharding, step, trainer

MODEL = small_config(lead_width=0, inverse_width=0, text_attention=False)
BATCH, STEPS = 8, 3

SCENARIOS = {"rows": (MeshConfig(data=2), 2), "context": (MeshConfig(context=2), 1)}
"""name -> (mesh, data replicas when each device is a process): along context both need the same rows"""


def train(name: str) -> tuple[np.ndarray, dict[str, np.ndarray], distributed.Replica]:
    """(loss of every step, final parameters by path, the replica that this process fed)."""
    mesh = sharding.make_mesh(SCENARIOS[name][0], jax.devices()[:2])
    plain = lambda _: optax.identity()  # noqa: E731 (SGD: Adam makes whole steps of rounding noise)
    with mock.patch.object(step, "make_optimizer", plain), mock.patch.object(trainer, "make_optimizer", plain):
        made = trainer.Trainer(
            MODEL, ObjectiveConfig(policy_draws=1), OptimizerConfig(learning_rate=0.01, warmup_steps=1),
            small_tokenizer(MODEL), mesh, batch_size=BATCH, sources=3,
        )  # fmt: skip
    replica = distributed.data_replica(made.rows, BATCH)
    own = slice(replica.index * BATCH // replica.count, (replica.index + 1) * BATCH // replica.count)
    state = made.init(steps=STEPS, seed=0)
    losses = []
    for number in range(STEPS):
        rows = {key: value[own] for key, value in small_batch(MODEL, BATCH, seed=number).items()}
        state, metrics = made.step(state, made.place(rows))
        losses.append(float(metrics["loss"]))
    whole = multihost_utils.process_allgather(state.params, tiled=True)
    return np.array(losses), {jax.tree_util.keystr(p): x for p, x in jax.tree.leaves_with_path(whole)}, replica


def agree() -> int:
    """The step at which this process learns that process 1 alone wants to stop, having said so after step 2."""
    agreement = distributed.Agreement()
    for number in range(6):
        agreement.send(number == 2 and jax.process_index() == 1)
        if agreement.result():
            return number
    return -1


def refused() -> str:
    """What a process hears when process 0 alone runs into an error."""

    def fail() -> None:
        raise OSError("the disk of process 0 is full")

    try:
        distributed.from_main(fail)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def main(path: str) -> None:
    distributed.initialize()
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 2, 1)
    number = jax.process_index()
    assert distributed.from_main(lambda: {"from": number, "text": "é"}) == {"from": 0, "text": "é"}
    assert distributed.main_first(lambda: number) == number
    assert refused() == "the disk of process 0 is full"
    assert agree() == 3, "stops one step late, everywhere"
    found = {}
    for name, (_, replicas) in SCENARIOS.items():
        losses, params, replica = train(name)
        assert replica == distributed.Replica(number if replicas == 2 else 0, replicas), replica
        found |= {f"{name}/losses": losses} | {f"{name}/params{key}": value for key, value in params.items()}
    if distributed.is_main():
        np.savez(path, **found)
    distributed.barrier("written")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:  # the other must not wait
        distributed.fail(f"{type(error).__name__}: {error}")
