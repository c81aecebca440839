"""A program that two processes with a device each run together; it checks itself.

python -m tests.training.together     (in the environment of `wam.training.distributed.VARIABLES`)
"""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import PartitionSpec

from wam.config import MeshConfig
from wam.training import distributed, sharding

BATCH = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)


def agree(when: int) -> int:
    """The step at which this process learns that process 1, and it alone, wants to stop, having said so at `when`."""
    agreement = distributed.Agreement()
    for step in range(6):
        agreement.send(step == when and jax.process_index() == 1)
        if agreement.result():
            return step
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


def feed(config: MeshConfig) -> distributed.Replica:
    """Feeds the rows of the own replica; the global array is the whole batch, each row once and in its place."""
    mesh = sharding.make_mesh(config)
    rows = sharding.batch_sharding(mesh)
    replica = distributed.data_replica(rows, len(BATCH))
    own = np.split(BATCH, replica.count)[replica.index]
    placed = jax.make_array_from_process_local_data(rows, own, BATCH.shape)
    weights = np.arange(1, 9, dtype=np.float32)
    everywhere = jax.NamedSharding(mesh, PartitionSpec())
    total = jax.jit(lambda x: (x * weights[:, None]).sum(0), out_shardings=everywhere)(placed)
    np.testing.assert_allclose(np.asarray(total), weights @ BATCH, rtol=1e-6)
    return replica


def main() -> None:
    distributed.initialize()
    number = jax.process_index()
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 2, 1)
    assert distributed.is_main() == (number == 0)
    assert distributed.from_main(lambda: {"from": number, "text": "é"}) == {"from": 0, "text": "é"}
    assert distributed.main_first(lambda: number) == number
    assert refused() == "the disk of process 0 is full"
    assert agree(when=2) == 3, "one step late, and everywhere"
    assert agree(when=9) == -1
    assert feed(MeshConfig(data=2)) == distributed.Replica(number, 2)
    assert feed(MeshConfig(fsdp=2)) == distributed.Replica(number, 2)
    assert feed(MeshConfig(tensor=2)) == distributed.Replica(0, 1)
    assert feed(MeshConfig(context=2)) == distributed.Replica(0, 1)
    distributed.barrier("done")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # the other must not wait
        distributed.fail(f"{type(error).__name__}: {error}")
