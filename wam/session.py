"""Sessions: what a robot's past leaves behind between two calls of a policy, owned by the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from wam.batch import Batch
from wam.config import ModelConfig
from wam.models import history
from wam.models.history import Ring
from wam.observations import Embodiment, Observations


class Past(NamedTuple):
    """The clean chunks of a session."""

    ring: Ring
    """of this session alone (B is 1)"""
    real: int
    """how many of its chunks were observed; those after them were imagined"""
    frames: np.ndarray
    """uint8 [V, h, w, 3], the last one observed"""
    instruction: str | None
    embodiment: str


class Memory(NamedTuple):
    """What a session carries from call to call; never changed, so an older one can be gone back to."""

    chunk: int
    """chunks answered so far: part of the noise key"""
    past: Past | None = None
    """of a checkpoint whose chunks see earlier ones"""


class Sessions:
    """Rows and rings of sessions. `model` is the shape of one chunk; a ring has room for `ahead` imagined ones.

    Keys and values depend on the instruction, so under another one, or as another robot, a session begins anew.
    """

    def __init__(self, observations: Observations, model: ModelConfig, ahead: int):
        self.observations, self.model, self.ahead = observations, model, ahead
        self.frames = model.video_frames - 1

    def row(self, observation: Mapping[str, Any], memory: Memory | None) -> tuple[Batch, Ring]:
        """One row of a batch (see `inference.SESSION`) and its ring; ValueError names what is wrong."""
        past = memory.past if memory else None
        if past and (past.instruction, past.embodiment) != (
            observation.get("instruction"),
            observation.get("embodiment"),
        ):
            past = None
        if past and self.model.action_places == "count":
            raise ValueError(
                "memory: this network numbers its action tokens (model.action_places 'count'), which a ring does not "
                "keep; ask it without one"
            )
        before = past.frames if past else None
        row = self.observations.row(observation, before=before, frames=self.frames)
        if past is None:
            row["video"] = np.repeat(row["video"], 1 + self.frames, axis=1)
        times = row["video_time"][:: self.model.frames_per_latent]
        row["clean_seconds"], row["opens"] = times[1:] - times[-1], np.bool_(past is None)
        return row, history.empty(self.model, 1, self.ahead) if past is None else self._rewound(past)

    def _rewound(self, past: Past) -> Ring:
        """The ring before anything was imagined: what is observed overwrites it."""
        imagined = int(past.ring.length[0]) - past.real
        if imagined > self.ahead:
            raise ValueError(
                f"memory: {imagined} chunks were imagined, but its ring keeps what the model sees of the real past for "
                f"{self.ahead} only: go on from the memory before they were, or load_policy(ahead={imagined})"
            )
        return past.ring._replace(length=jnp.full(1, past.real, jnp.int32))

    def after(self, observation: Mapping[str, Any], row: Batch, ring: Ring, chunk: int) -> Memory:
        """What to carry on, from the ring that remembers the observation's chunk."""
        real = int(ring.length[0])
        past = Past(ring, real, row["video"][:, -1], observation["instruction"], observation["embodiment"])
        return Memory(chunk, past)


def together(rings: Sequence[Ring]) -> Ring:
    """Sessions as the rows of one batch."""
    keys = [jnp.concatenate(x, axis=1) for x in zip(*(ring[:2] for ring in rings), strict=True)]
    return Ring(*keys, *(jnp.concatenate(x) for x in zip(*(ring[2:] for ring in rings), strict=True)))


def apart(ring: Ring) -> list[Ring]:
    """The inverse of `together`."""
    rows = range(ring.length.shape[0])
    return [Ring(ring.k[:, i : i + 1], ring.v[:, i : i + 1], *(x[i : i + 1] for x in ring[2:])) for i in rows]


def check_timing(robot: Embodiment, model: ModelConfig) -> None:
    """ValueError unless the chunks of a training sample follow each other evenly, as those of a session do."""
    n = (len(robot.frame_seconds) - 1) // model.chunks
    seconds = np.asarray(robot.frame_seconds)
    first = seconds[: n + 1]
    for chunk in range(model.chunks):
        if not np.allclose(seconds[chunk * n : (chunk + 1) * n + 1] - seconds[chunk * n], first, atol=1e-4):
            raise ValueError(
                f"the chunks of {robot.spec.name!r} do not last equally long ({robot.frame_seconds} s), as in a session"
            )
