"""What goes into the network and comes out of it, as plain tuples of arrays."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from wam.batch import Batch


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
    guide: Array | None = None  # [B, V, F, P, C']: channels beside every frame's latents, noisy ones too (Wan I2V)
    image: Array | None = None  # [B, Li, Di]: tokens of an image encoder
    # Of one chunk of a session, which remembers those before it (see `history`); None: `latents` hold all there is.
    seconds: Array | None = None  # [B, F']: times of the clean frames, which are not the first of `video_time`
    seen: Array | None = None  # [B, F', V] bool: which of them are there
    opens: Array | None = None  # [B] bool: the last clean frame is the first one of the session


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
    prefix_draws: Array | None = None  # [B, M, R] int: `prefix` of each draw
    value_sees_video: Array | None = None  # [B] 1: V(s') of the video, 0: Q(s, a); None: no value query


class Given(NamedTuple):
    """What the noisy streams read of an observation beside its keys and values."""

    observation: Observation
    instruction: dict[str, Array]  # expert -> [B, 1, 1, D], joins the condition of every sigma group
    current: Array  # [B, M, v, P, C]: the last observed frame of each chunk, target views
    masks: dict[str, Array]  # which keys exist: history [B, F' V, 1], video [B, M f v, 1], state [B, M, 1]
    text_mask: Array  # [B, Lt]


class LayerKeys(NamedTuple):
    """Keys and values (k, v) of observed streams and of what is read; a leading axis of layers where they are kept."""

    streams: dict[str, tuple[Array, Array]]  # history [B, F' V, P, N, H], state [B, M, 1, N, H]
    text: dict[str, tuple[Array, Array]]  # expert -> [B, 1, Lt, N, H]; empty without text attention
    image: dict[str, tuple[Array, Array]]  # expert -> [B, 1, Li, N, H]; empty without an image


class Context(NamedTuple):
    """An observation as the network keeps it: computed once, read by every denoising step."""

    given: Given
    keys: LayerKeys  # of all layers


class Outputs(NamedTuple):
    video: Array | None  # [B, M, f, v, P, C]: clean latents or velocity, as configured
    action: Array | None  # [B, M, K, A]: velocity
    draws: Array | None  # [B, M, R, K, A]: velocity
    value: Array | None = None  # [B, M, bins]: logits, see `wam.diffusion.value`


class Stream(NamedTuple):
    """Tokens on their way through the layers: G groups of n.

    There is one sigma a group (n of the condition is 1), one a token, or one for all groups (G is 1 as well).
    A group is a latent frame of one view (n patches), the state of a chunk, an action chunk or one of its draws, or the
    value query of a chunk.
    """

    x: Array  # [B, G, n, D]
    condition: Array  # [B, 1 or G, 1 or n, D]
    modulation: Array  # [B, 1 or G, 1 or n, 6, D]
    angles: Array  # [B, G, n, H/2]


class Lane(NamedTuple):
    """Streams that go through one expert side by side; their groups are of one size."""

    names: tuple[str, ...]
    stops: tuple[int, ...]  # groups up to and including those of each stream
    joined: Stream

    def stream(self, tokens: Any, name: str) -> Any:
        """The groups of one stream, out of every array of a tree."""
        i = self.names.index(name)
        return groups(tokens, self.stops[i - 1] if i else 0, self.stops[i])


def groups(tokens: Any, start: int, stop: int) -> Any:
    """Groups [start, stop) of every array of a tree; the group axis is the second."""
    return jax.tree.map(lambda x: x[:, start:stop], tokens)


def side_by_side(streams: dict[str, Stream]) -> Lane:
    """One lane of several streams; conditions become those of every group, or token, where another stream has that."""
    n = max(stream.modulation.shape[2] for stream in streams.values())

    def join(field: str) -> Array:
        arrays = [getattr(stream, field) for stream in streams.values()]
        if len(arrays) == 1:
            return arrays[0]
        if field in ("condition", "modulation"):
            sizes = [stream.x.shape[1] for stream in streams.values()]
            arrays = [jnp.broadcast_to(a, (a.shape[0], G, n, *a.shape[3:])) for a, G in zip(arrays, sizes, strict=True)]
        return jnp.concatenate(arrays, axis=1)

    stops = itertools.accumulate(stream.x.shape[1] for stream in streams.values())
    return Lane(tuple(streams), tuple(stops), Stream(*map(join, Stream._fields)))


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
        guide=batch.get("guide"),  # of image-to-video trunks
        image=batch.get("image"),
    )
