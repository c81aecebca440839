"""What a session remembers of its clean chunks: their keys and values, in a ring of static shape.

A chunk is computed once, while it is the newest observation; later ones read its keys and values. Chunk j lies in slot
j mod R of R slots, so a session costs the same however long it is. A chunk sees the newest W of them (`window` of the
model, itself included), layer by layer, as in one long sequence under a banded mask. Slots beyond W - 1 keep older
chunks alive while imagined ones are written ahead: real frames overwrite these, and nothing still in sight was lost.

Keys are kept as if their chunk were the newest and rotated by its age when they are read (rotary positions only know
differences), so no position grows with the session.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from wam.config import ModelConfig
from wam.models.rotary import apply_rope, rope_angles, step_positions
from wam.models.streams import Context


class Ring(NamedTuple):
    """G = f V: the latent frames of a chunk, of each all views; of chunk 0, the first frame alone, only the last."""

    k: Array  # [layers, B, R, G, P, N, H]
    v: Array  # [layers, B, R, G, P, N, H]
    there: Array  # [B, R, G] bool: frames and views that exist
    chunk: Array  # [B, R] int32: the chunk in each slot; -1: none
    length: Array  # [B] int32: chunks so far, which is the number of the next one


def empty(config: ModelConfig, batch_size: int, ahead: int = 1) -> Ring:
    """A ring before the first frame, in which up to `ahead` >= 1 imagined chunks leave the window intact."""
    slots, groups = config.window - 1 + ahead, config.frames_per_chunk * config.views
    shape = (config.depth, batch_size, slots, groups, config.patches, config.heads, config.head_dim)
    keys = jnp.zeros(shape, config.dtype)
    return Ring(
        k=keys,
        v=keys,
        there=jnp.zeros((batch_size, slots, groups), bool),
        chunk=jnp.full((batch_size, slots), -1, jnp.int32),
        length=jnp.zeros(batch_size, jnp.int32),
    )


def recall(ring: Ring, config: ModelConfig, chunk_seconds: Array) -> tuple[tuple[Array, Array], Array]:
    """What the chunk that comes next sees of earlier ones.

    Args:
      ring: of the session.
      config: the model's.
      chunk_seconds: [B], how long a chunk lasts.

    Returns:
      keys and values [layers, B, R G, P, N, H], and [B, R G, 1] bool: which of them are seen.
    """
    age = ring.length[:, None] - ring.chunk  # [B, R], in chunks before the newest
    seen = ring.there & ((ring.chunk >= 0) & (age > 0) & (age < config.window))[..., None]
    shift = -age * chunk_seconds[:, None] * config.latent_rate
    angles = rope_angles(step_positions(shift[..., None, None]), config.head_dim)  # [B, R, 1, 1, h]
    keys = apply_rope(ring.k, jnp.broadcast_to(angles, (*ring.k.shape[1:5], angles.shape[-1])))
    flat = [x.reshape(*x.shape[:2], -1, *x.shape[4:]) for x in (keys, ring.v)]
    return (flat[0], flat[1]), seen.reshape(seen.shape[0], -1, 1)


def remember(ring: Ring, context: Context) -> Ring:
    """The ring with the chunk that `context` was made of; made from an imagined chunk, it is a ring of imagination."""
    slots, groups = ring.there.shape[1:]
    here = jnp.arange(slots) == (ring.length % slots)[:, None]  # [B, R]

    def write(kept: Array, new: Array) -> Array:
        return jnp.where(here[:, :, None, None, None, None], new[:, :, None, -groups:], kept)

    k, v = context.keys.streams["history"]
    there = context.given.masks["history"][:, None, -groups:, 0]
    return Ring(
        k=write(ring.k, k),
        v=write(ring.v, v),
        there=jnp.where(here[..., None], there, ring.there),
        chunk=jnp.where(here, ring.length[:, None], ring.chunk),
        length=ring.length + 1,
    )
