"""What a causal video tokenizer can take: numbers of frames and sizes of images."""

from __future__ import annotations

from jax import Array


def latent_frames(frames: int, frames_per_latent: int) -> int:
    """F for T frames; ValueError unless T = 1 + r (F - 1)."""
    r = frames_per_latent
    if frames < 1 or (frames - 1) % r:
        raise ValueError(f"a causal tokenizer with r = {r} needs T = 1 + {r} n frames, got {frames}")
    return 1 + (frames - 1) // r


def check_images(video: Array, image_size: tuple[int, int]) -> None:
    """ValueError unless the frames of video [..., h, w, 3] are of `image_size`."""
    if tuple(video.shape[-3:-1]) != image_size:
        raise ValueError(
            f"the tokenizer takes {image_size[0]}x{image_size[1]} images, got {video.shape[-3]}x{video.shape[-2]}"
        )
