"""The batch: the one contract between data and model. numpy only.

Letters used in every shape of the project:
B batch, M chunks, V camera views, T video frames, F latent frames, P patches per latent frame, C latent channels,
L tokens, D width, N heads, H head dim, K action horizon, A action dim (padded), S state dim (padded), E embodiments.

A batch is a flat dict of arrays. `BatchSpec.fields` lists every key with its shape and dtype; `check_batch` names
the first field that breaks it. Chunk 0 is the first frame alone; chunks 1..M are predicted, so T = 1 + M * (frames per
chunk) and the current observation of chunk i is the last frame of chunk i - 1.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """Static sizes of a batch. `latent` = (patches, channels) when latents travel instead of pixels."""

    views: int
    frames: int
    height: int
    width: int
    chunks: int
    action_horizon: int
    action_dim: int
    state_dim: int
    text_tokens: int
    text_dim: int
    latent: tuple[int, int, int] | None = None
    """(F, P, C) of precomputed latents; None: `video` holds pixels."""
    guide: tuple[int, int, int] | None = None
    """(F, P, C') of channels that stand beside the latents and are not denoised (image-to-video trunks)."""
    image: tuple[int, int] | None = None
    """(tokens, width) of an image encoder's output (image-to-video trunks)."""

    def fields(self, batch_size: int | None) -> dict[str, tuple[tuple[int, ...], type]]:
        """{name: (shape, dtype)}; `batch_size=None` gives one sample, without the leading B."""
        lead = () if batch_size is None else (batch_size,)
        V, T, M, K, A, S = self.views, self.frames, self.chunks, self.action_horizon, self.action_dim, self.state_dim
        pixels: dict[str, tuple[tuple[int, ...], type]] = {"video": ((V, T, self.height, self.width, 3), np.uint8)}
        if self.latent is not None:
            pixels = {"latents": ((V, *self.latent), np.float32)}
        if self.guide is not None:
            pixels["guide"] = ((V, *self.guide), np.float32)
        if self.image is not None:
            pixels["image"] = (self.image, np.float32)
        fields = pixels | {
            "frame_mask": ((T,), np.bool_),  # real frames (False: padding past the end of the episode)
            "view_mask": ((V,), np.bool_),  # real cameras
            "camera": ((V,), np.int32),  # index into the run's camera table, names which camera fills the view
            "video_time": ((T,), np.float32),  # seconds relative to the current observation
            "action_time": ((M, K), np.float32),
            "state": ((M, S), np.float32),  # normalised
            "state_mask": ((M, S), np.bool_),
            "action": ((M, K, A), np.float32),  # normalised
            "action_mask": ((M, K, A), np.bool_),  # per step and dimension; all False without actions
            "imitate": ((M,), np.bool_),  # may this chunk be copied? False for play, perturbed and failed data
            "text": ((self.text_tokens, self.text_dim), np.float32),
            "text_mask": ((self.text_tokens,), np.bool_),
            "embodiment": ((), np.int32),  # 0 = none
            "value": ((M,), np.float32),  # discounted success
            "value_mask": ((M,), np.bool_),
            "source": ((), np.int32),  # which dataset
            "sample_id": ((2,), np.uint32),  # (source, window): key of every random draw for this sample
        }
        return {name: ((*lead, *shape), dtype) for name, (shape, dtype) in fields.items()}


def check_batch(batch: Batch, spec: BatchSpec, batch_size: int | None) -> None:
    """Raises ValueError naming the first field whose presence, shape or dtype differs from `spec`."""
    fields = spec.fields(batch_size)
    if missing := sorted(set(fields) - set(batch)):
        raise ValueError(f"batch lacks the fields {missing}")
    if extra := sorted(set(batch) - set(fields)):
        raise ValueError(f"batch has unknown fields {extra}")
    for name, (shape, dtype) in fields.items():
        array = batch[name]
        if tuple(array.shape) != shape or np.dtype(array.dtype) != np.dtype(dtype):
            raise ValueError(
                f"batch field {name!r}: expected {np.dtype(dtype).name}{list(shape)}, "
                f"got {np.dtype(array.dtype).name}{list(array.shape)}"
            )


def fake_batch(spec: BatchSpec, batch_size: int, *, embodiments: int = 2, cameras: int = 1, seed: int = 0) -> Batch:
    """A batch that satisfies `spec` without any data: for tests, golden values and dry runs.

    Deterministic in `seed`. Every third sample is action-free video (embodiment 0); the next is not to be imitated.
    """
    rng = np.random.default_rng(seed)
    batch: Batch = {}
    for name, (shape, dtype) in spec.fields(batch_size).items():
        if dtype is np.uint8:
            batch[name] = rng.integers(0, 256, shape, dtype=np.uint8)
        elif dtype is np.bool_:
            batch[name] = np.ones(shape, np.bool_)
        elif dtype is np.float32:
            batch[name] = np.clip(rng.standard_normal(shape), -2, 2).astype(np.float32)
        else:
            batch[name] = np.zeros(shape, dtype)
    index = np.arange(batch_size)
    kind = index % 3  # 0: expert, 1: action-free, 2: play
    seconds = np.linspace(0, 0.1 * (spec.frames - 1), spec.frames, dtype=np.float32)
    batch["video_time"][:] = seconds
    batch["action_time"][:] = np.linspace(
        0, seconds[-1], spec.chunks * spec.action_horizon, endpoint=False, dtype=np.float32
    ).reshape(spec.chunks, spec.action_horizon)
    batch["camera"][:] = np.arange(spec.views) % max(1, cameras)
    has_action = kind != 1
    batch["action_mask"] &= has_action[:, None, None, None]
    batch["state_mask"] &= has_action[:, None, None]
    batch["action"] *= batch["action_mask"]
    batch["state"] *= batch["state_mask"]
    batch["imitate"] &= (kind == 0)[:, None]
    batch["value"] = np.clip(np.abs(batch["value"]), 0, 1).astype(np.float32)
    batch["value_mask"] &= False
    batch["embodiment"] = np.where(has_action, 1 + index % max(1, embodiments - 1), 0).astype(np.int32)
    batch["source"] = kind.astype(np.int32)
    batch["sample_id"] = np.stack([kind, index], -1).astype(np.uint32)
    check_batch(batch, spec, batch_size)
    return batch
