"""`VideoTokenizer`: what a run asks of the thing that turns pixels into latents, and the way back from a checkpoint.

A tokenizer is a pytree: its arrays are leaves, so that a jitted function takes it as an argument and no weight is baked
into a compiled program; all else is static.

Causal: T = 1 + r (F - 1) frames become F latent frames, the first frame alone, and a latent frame depends on the frames
up to its own only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jax import Array

from wam.tokenizers.patch_pca import PatchPCA
from wam.tokenizers.wan_tokenizer import WanTokenizer


class VideoTokenizer(Protocol):
    """Letters: B batch, V views, T frames, F latent frames, P patches in row-major order, C channels."""

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a latent frame, (rows, columns)."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""

    @property
    def gain(self) -> np.ndarray:
        """[2, C]: multiplies the latents of the first frame and of later ones on their way into the context."""

    @property
    def tells_cameras_apart(self) -> bool:
        """Do the latents depend on `camera`?"""

    def latent_frames(self, frames: int) -> int:
        """F for T frames; ValueError unless T = 1 + r (F - 1)."""

    def encode(self, video: Array, camera: Array) -> Array:
        """[B, V, T, h, w, 3] uint8 and camera [B, V] int -> latents [B, V, F, P, C] float32."""

    def decode(self, latents: Array, camera: Array, *, history: Array | None = None) -> Array:
        """[B, V, F, P, C] -> [B, V, T, h, w, 3] float32 in [0, 1].

        Where the latents go on from others, those are the `history` [B, V, F', P, C] from the clip's first frame on;
        only the frames that follow are returned.
        """

    def to_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(JSON-able description with a `kind`, arrays by name) for the checkpoint."""


KINDS: dict[str, type[PatchPCA] | type[WanTokenizer]] = {"patch_pca": PatchPCA, "wan_vae": WanTokenizer}


def from_state(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> VideoTokenizer:
    """The inverse of every tokenizer's `to_state`; ValueError for an unknown kind."""
    kind = about.get("kind")
    if kind not in KINDS:
        raise ValueError(f"unknown video tokenizer {kind!r}; known: {', '.join(KINDS)}")
    return KINDS[kind].from_state(dict(about), dict(arrays))


def digest(tokenizer: VideoTokenizer) -> str:
    """sha256 of a tokenizer's description and of all its arrays: equal digests, equal latents."""
    about, arrays = tokenizer.to_state()
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(array.data)
    return found.hexdigest()
