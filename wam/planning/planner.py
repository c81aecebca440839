"""What all planners have in common: rows from observations, one compiled call, and chunks from the actions chosen.

`plan` and `plan_many` are methods of `Policy`, by `Planning`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wam.batch import Batch
from wam.inference import key_words, row_keys
from wam.models.history import Ring, remember
from wam.models.joint_dit import JointDiT
from wam.models.streams import Context
from wam.session import Memory, apart, together
from wam.tokenizers.video import VideoTokenizer

Observation = Mapping[str, Any]


class Choice(NamedTuple):
    """What a planner's search returns for B rows."""

    action: Array  # [B, M, K, A], normalised
    info: dict[str, Array]  # [B, ...] each: why this chunk


class Planner(Protocol):
    """A frozen, hashable description of a way to choose a chunk: equal planners share one compiled call."""

    def check(self, policy: Any) -> None:
        """ValueError if the checkpoint cannot plan so."""

    def fields(self, policy: Any, observation: Observation) -> Batch:
        """Further fields of an observation's row; ValueError names what is wrong."""

    def search(self, model: JointDiT, tokenizer: VideoTokenizer, batch: Batch, keys: Array, ring: Ring | None
               ) -> tuple[Choice, Context]:  # fmt: skip
        """The chunks, and the context of the observations, for rows with random keys [B]."""


def candidate_keys(keys: Array, n: int) -> Array:
    """[B] -> [B n], neighbours: the first candidate has its row's own key, hence is what the policy would do."""
    others = [jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i in range(2, n + 1)]
    return jnp.stack([keys, *others], axis=1).reshape(-1)


def lined_up(policy: Any, observations: Sequence[Observation], memories: Sequence[Memory | None] | None, size: int,
             planner: Planner | None = None) -> tuple[Batch, list[Batch], list[Ring | None]]:  # fmt: skip
    """(batch of `size` rows, the rows of the observations, a ring for every row of the batch)."""
    n = len(observations)
    if size < n:
        raise ValueError(f"batch_size {size} is smaller than the {n} observations")
    rows, rings = [], []
    for observation, memory in zip(observations, memories or [None] * n, strict=True):
        row, ring = policy.observations.row(observation), None
        if policy.sessions:
            row, ring = policy.sessions.row(observation, memory)
        rows.append(row | (planner.fields(policy, observation) if planner else {}))
        rings.append(ring)
    pad = [min(i, n - 1) for i in range(size)]
    return {name: np.stack([rows[i][name] for i in pad]) for name in rows[0]}, rows, [rings[i] for i in pad]


def plan_many(policy: Any, observations: Sequence[Observation], ids: np.ndarray,
              memories: Sequence[Memory | None] | None = None, *, planner: Planner, batch_size: int | None = None
              ) -> tuple[list[Any], list[Memory], list[dict[str, np.ndarray]]]:  # fmt: skip
    """Like `Policy.infer_many`, each chunk chosen by `planner`: (chunks, memories, info records).

    Noise is keyed by `ids` [n, 3] and the candidate, so a plan does not depend on its neighbours.
    """
    planner.check(policy)
    n = len(observations)
    memories = list(memories or [None] * n)
    batch, rows, rings = lined_up(policy, observations, memories, batch_size or n, planner)
    pad = [min(i, n - 1) for i in range(batch_size or n)]

    def run(model: JointDiT, tokenizer: VideoTokenizer, batch: Batch, ids: Array, rings: Any) -> Any:
        ring = together(rings) if policy.sessions else None
        choice, context = planner.search(model, tokenizer, batch, row_keys(ids), ring)
        return choice, apart(remember(ring, context)) if ring is not None else [None] * len(rings)

    choice, after = policy.engine.jit(("plan", planner), run)(batch, jnp.asarray(ids[pad], jnp.uint32), rings)
    action, info = np.asarray(choice.action[:, 0]), jax.tree.map(np.asarray, choice.info)
    chunks, new = [], []
    for i, observation in enumerate(observations):
        robot, memory = observation["embodiment"], memories[i]
        chunks.append(policy._chunk(policy.raw_actions(action[i], observation), None, robot, 0))
        number = 1 + (memory.chunk if memory else 0)
        new.append(policy.sessions.after(observation, rows[i], after[i], number) if policy.sessions else Memory(number))
    return chunks, new, [{name: value[i] for name, value in info.items()} for i in range(n)]


def plan(policy: Any, observation: Observation, memory: Memory | None = None, *, planner: Planner,
         key: Array | None = None) -> tuple[Any, Memory, dict[str, np.ndarray]]:  # fmt: skip
    """One chunk chosen by `planner`: (chunk, memory, info record of why).

    Args:
      policy: of which this is a method.
      observation: as in `infer`; with what the planner asks for, such as a `goal`.
      memory: of the session, as in `infer`.
      planner: `BestOfN` or `ModelCEM`.
      key: noise key; by default fixed.

    Raises ValueError naming the field that is wrong, or what the checkpoint lacks.
    """
    ids = np.array([[*key_words(key), memory.chunk if memory else 0]], np.uint32)
    chunks, memories, infos = plan_many(policy, [observation], ids, [memory], planner=planner)
    return chunks[0], memories[0], infos[0]


def check_value(policy: Any) -> None:
    """ValueError for a checkpoint without a value."""
    if not policy.config.value_bins:
        raise ValueError(
            "value: this checkpoint has no value query (model.value_bins is 0); train one, as demo_value.py does, on "
            "rollouts whose success is known"
        )
