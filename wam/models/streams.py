"""What goes into the network and comes out of it, as plain tuples of arrays."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from wam.batch import Batch
from wam.models.attention import Keys


class Observation(NamedTuple):
    """What is given, on the device. `latents` [B, V, F', P, C] holds the clean frames of chunks 0 .. M-1."""

    latents: Array
    view_mask: Array  # [B, V]
    camera: Array  # [B, V]
    video_time: Array  # [B, T]
    action_time: Array  # [B, M, K]
    state: Array  # [B, M, S]
    state_mask: Array  # [B, M, S]
    text: Array  # [B, Lt, Dt]
    text_mask: Array  # [B, Lt]
    embodiment: Array  # [B]
    drop_text: Array  # [B] bool
    drop_state: Array  # [B] bool
    drop_history: Array  # [B] bool


class Noisy(NamedTuple):
    """What is denoised. A stream that is None is absent: its tokens are not built."""

    video: Array | None  # [B, M, f, v, P, C]
    sigma_video: Array  # [B, M, f]
    frame_mask: Array  # [B, M, f] bool: real frames
    action: Array | None  # [B, M, K, A]
    action_mask: Array  # [B, M, K, A] bool
    sigma_action: Array  # [B, M]
    action_sees_video: Array  # [B] 0 or 1
    video_sees_action: Array  # [B] 0 or 1
    prefix: Array | None = None  # [B, M] int: leading action tokens that are given (sigma 0)
    draws: Array | None = None  # [B, M, R, K, A]
    sigma_draws: Array | None = None  # [B, M, R]


class Context(NamedTuple):
    """Keys and values of everything observed, per layer, and what the noisy streams read directly."""

    history: Keys  # k, v [layers, B, L, N, H]; mask [B, L]
    state: Keys  # k, v [layers, B, M, N, H]; mask [B, M]
    text: dict[str, Keys]  # expert -> k, v [layers, B, Lt, N, H]; mask [B, Lt]; empty without text attention
    instruction: dict[str, Array]  # expert -> [B, 1, D], joins the condition of every sigma group
    current: Array  # [B, M, v P, C]: the last observed frame of each chunk, target views
    observation: Observation


class Outputs(NamedTuple):
    video: Array | None  # [B, M, f, v, P, C]: clean latents or velocity, as configured
    action: Array | None  # [B, M, K, A]: velocity
    draws: Array | None  # [B, M, R, K, A]: velocity


class Stream(NamedTuple):
    """Noisy tokens on their way through the layers."""

    x: Array  # [B, L, D]
    condition: Array  # [B, G, D], one per sigma group
    modulation: Array  # [B, G, 6, D]
    group: Array | int  # tokens per group, or [B, L] index into two groups
    angles: Array  # [B, L, H/2]


def to_tokens(stream: Stream, groups: Array) -> Array:
    """[B, G, D] per sigma group -> [B, L, D] per token."""
    if isinstance(stream.group, int):
        return jnp.repeat(groups, stream.group, axis=1)
    chunks = groups.shape[1] // 2
    first, rest = groups[:, :chunks], groups[:, chunks:]
    per_chunk = stream.group.shape[1] // chunks
    first, rest = jnp.repeat(first, per_chunk, axis=1), jnp.repeat(rest, per_chunk, axis=1)
    return jnp.where(stream.group[..., None] == 0, first, rest)


def observe(batch: Batch, latents: Array, chunks: int, frames_per_chunk: int, *, drop_text: Array | None = None,
            drop_state: Array | None = None, drop_history: Array | None = None) -> Observation:  # fmt: skip
    """The observation of a batch whose clean latents are [B, V, F, P, C] (or only the first frames of them)."""
    never = jnp.zeros(latents.shape[0], bool)
    clean = 1 + (chunks - 1) * frames_per_chunk
    names = ("view_mask", "camera", "video_time", "action_time", "state", "state_mask")
    given = {name: batch[name] for name in (*names, "text", "text_mask", "embodiment")}
    return Observation(
        latents=latents[:, :, :clean],
        **given,
        drop_text=never if drop_text is None else drop_text,
        drop_state=never if drop_state is None else drop_state,
        drop_history=never if drop_history is None else drop_history,
    )
