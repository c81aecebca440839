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

    history: Keys  # k, v [layers, B, F V, P, N, H]; mask [B, F V, 1]
    state: Keys  # k, v [layers, B, M, 1, N, H]; mask [B, M, 1]
    text: dict[str, Keys]  # expert -> k, v [layers, B, 1, Lt, N, H]; mask [B, 1, Lt]; empty without text attention
    instruction: dict[str, Array]  # expert -> [B, 1, 1, D], joins the condition of every sigma group
    current: Array  # [B, M, v, P, C]: the last observed frame of each chunk, target views
    observation: Observation


class Outputs(NamedTuple):
    video: Array | None  # [B, M, f, v, P, C]: clean latents or velocity, as configured
    action: Array | None  # [B, M, K, A]: velocity
    draws: Array | None  # [B, M, R, K, A]: velocity


class Stream(NamedTuple):
    """Noisy tokens on their way through the layers: G groups of n, each with one sigma (1 for n) or one a token (n).

    A group is a latent frame of one view (n patches), an action chunk or one of its draws (n action tokens).
    """

    x: Array  # [B, G, n, D]
    condition: Array  # [B, G, 1 or n, D]
    modulation: Array  # [B, G, 1 or n, 6, D]
    angles: Array  # [B, G, n, H/2]


def side_by_side(streams: list[Stream]) -> Stream:
    """One stream with the groups of all; a sigma per group becomes one per token where another stream has that."""
    n = max(stream.modulation.shape[2] for stream in streams)

    def join(name: str) -> Array:
        arrays = [getattr(stream, name) for stream in streams]
        if name in ("condition", "modulation"):
            arrays = [jnp.broadcast_to(a, (*a.shape[:2], n, *a.shape[3:])) for a in arrays]
        return jnp.concatenate(arrays, axis=1)

    return Stream(*map(join, Stream._fields))


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
