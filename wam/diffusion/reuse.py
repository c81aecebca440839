"""Reusing a network's outputs where the velocity hardly turns ("DiT caching").

DreamZero (arXiv:2602.15922) runs 4 of 16 steps this way: where the last two velocities point the same way, the next
steps go on with the last one. What is kept here are the outputs as they are. Along the straight path that an Euler step
takes, a constant x_hat is a constant velocity, (x_sigma - x_hat) / sigma, so both kinds of prediction mean the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


@dataclasses.dataclass(frozen=True)
class Reuse:
    """Skip the network where the cosine of its last two velocities is above `threshold`.

    A compiled loop takes one decision for its whole batch: all rows have to agree, in every stream that is moving.
    """

    threshold: float
    """1: never"""
    max_skips: int
    """in a row"""
    warmup: int = 2
    """calls that run before the first may be skipped; a comparison needs two"""

    def __post_init__(self):
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"reuse.threshold: expected a cosine within [-1, 1], got {self.threshold}")
        if self.max_skips < 1:
            raise ValueError(f"reuse.max_skips: expected at least 1, got {self.max_skips}")
        if self.warmup < 2:
            raise ValueError(f"reuse.warmup: two velocities are compared, so expected at least 2, got {self.warmup}")


def cosine(a: Array, b: Array) -> Array:
    """[B], at most 1: of two arrays [B, ...], each row as one vector."""
    axes = tuple(range(1, a.ndim))
    norms = jnp.sqrt((a * a).sum(axes) * (b * b).sum(axes))
    # Rounding would lift equal vectors above 1, and a threshold of 1 has to mean never.
    return jnp.minimum((a * b).sum(axes) / jnp.maximum(norms, 1e-12), 1.0)


class Calls(NamedTuple):
    """What a loop knows of the network's calls. Trees over the streams; None where nothing is ever reused."""

    outputs: Any
    velocity: Any
    cosine: Any
    """[B] of the last two velocities"""
    skipped: Array
    """[] int32, in a row"""
    run: Array
    """[] int32"""


def no_calls(reuse: Reuse | None, network: Callable[[], Any], velocity: Callable[[Any], Any]) -> Calls:
    """Before the first call; `network` and `velocity` are asked for shapes alone."""
    none = jnp.int32(0)
    if reuse is None:
        return Calls(None, None, None, none, none)
    shapes = jax.eval_shape(network)
    outputs, velocities = (
        jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree) for tree in (shapes, jax.eval_shape(velocity, shapes))
    )
    return Calls(outputs, velocities, jax.tree.map(lambda v: jnp.zeros(len(v)), velocities), none, none)


def call_or_reuse(reuse: Reuse | None, calls: Calls, network: Callable[[], Any], velocity: Callable[[Any], Any],
                  moves: Any) -> tuple[Any, Calls]:  # fmt: skip
    """Outputs of `network`, or the last ones again; `velocity` turns outputs into what is compared.

    `moves` [B] bool, a tree over the streams: rows whose opinion counts, because the outputs move them.
    """
    if reuse is None:
        return network(), calls._replace(run=calls.run + 1)

    def fresh() -> tuple[Any, Calls]:
        outputs = network()
        velocities = velocity(outputs)
        alike = jax.tree.map(cosine, calls.velocity, velocities)
        return outputs, Calls(outputs, velocities, alike, jnp.int32(0), calls.run + 1)

    def again() -> tuple[Any, Calls]:
        return calls.outputs, calls._replace(skipped=calls.skipped + 1)

    agree = jax.tree.map(lambda moving, alike: (~moving | (alike > reuse.threshold)).all(), moves, calls.cosine)
    skip = (calls.run >= reuse.warmup) & (calls.skipped < reuse.max_skips) & jnp.stack(jax.tree.leaves(agree)).all()
    return jax.lax.cond(skip, again, fresh)
