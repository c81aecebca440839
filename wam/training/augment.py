"""Augmentation on the device: crop, rotation and colour of the training images, inside the jitted step.

Every clip of a view is changed by one draw, the same for all its frames, so that its motion stays what it was. Views of
a sample are drawn independently: their cameras are mounted and exposed independently, and a model that may not rely on
their exact relation survives a camera that was nudged. Draws are keyed by the step's key and the sample's id, outside
the loss, like all others: neither the place in the batch nor microbatches nor devices change them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wam.batch import Batch
from wam.training.augment_config import AugmentConfig

_STREAM = np.uint32(2**32 - 1)
"""Sets these draws apart from those of the modes: no source has this number."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of ITU-R BT.601, by which libraries turn RGB into grey."""
# RGB to chroma, two axes: I and Q of NTSC's YIQ. A turn in their plane changes hue and keeps luma.
_CHROMA = np.array([[0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float32)
_FROM_CHROMA = np.linalg.inv(np.vstack([LUMA, _CHROMA]).astype(np.float64))[:, 1:].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """`augmentation(key, batch)`: the batch with other pixels; the very same batch where everything is off.

    `wrist` are the cameras (indices of the run's table) that move with a hand; unless `config.wrist` asks for more,
    their views stay as they are to the bit, as do views without a camera.
    """

    config: AugmentConfig
    wrist: tuple[int, ...] = ()

    def __call__(self, key: Array, batch: Batch) -> Batch:
        """`key` holds the seed and the step. ValueError for a batch of precomputed latents."""
        if not self.config.active:
            return batch
        if "video" not in batch:
            raise ValueError(
                "augment changes pixels, but the batches hold precomputed latents: leave augment off, or the latents"
            )
        views = batch["camera"].shape[1]

        def keys(sample_id: Array) -> Array:
            own = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, _STREAM), sample_id[0]), sample_id[1])
            return jax.random.split(own, views)

        on_wrist = (batch["camera"][..., None] == jnp.asarray(self.wrist, jnp.int32)).any(-1)
        colours = batch["view_mask"] & (~on_wrist | (self.config.wrist != "none"))
        moves = batch["view_mask"] & (~on_wrist | (self.config.wrist == "all"))
        clips = jax.vmap(jax.vmap(self._clip))
        return batch | {"video": clips(jax.vmap(keys)(batch["sample_id"]), batch["video"], moves, colours)}

    def _clip(self, key: Array, video: Array, moves: Array, colours: Array) -> Array:
        """One view's clip [T, h, w, 3] uint8 -> the same; where neither is allowed, to the bit."""
        config = self.config
        place, angle, brightness, contrast, saturation, hue = jax.random.split(key, 6)

        def within(key: Array, most: float) -> Array:
            return jax.random.uniform(key, (), minval=-most, maxval=most)

        out = video.astype(jnp.float32)
        if config.moves:
            offset = (1 - config.crop) / 2 * jax.random.uniform(place, (2,), minval=-1.0, maxval=1.0)
            warped = warp(video, config.crop, within(angle, config.rotation) * np.pi / 180, offset)
            out = jnp.where(moves, warped, out)
        if config.colours:
            changed = jitter(
                out, 1 + within(brightness, config.brightness), 1 + within(contrast, config.contrast),
                1 + within(saturation, config.saturation), within(hue, config.hue),
            )  # fmt: skip
            out = jnp.where(colours, changed, out)
        return jnp.round(out).astype(jnp.uint8)


OFF = Augmentation(AugmentConfig())


def warp(video: Array, scale: float, angle: Array, offset: Array) -> Array:
    """A turned crop of each frame, resized to the whole frame: bilinear, pixel centres at half integers.

    The pixel at (y, x) from the centre of the result is read at offset + scale * R(angle) (y, x) from the centre of the
    frame, so the crop turns about its own middle. Beyond its edge a frame goes on with its outermost pixels: a crop
    lies inside, but its corners may leave the frame when it turns.

    Args:
      video: [T, h, w, 3] of any dtype.
      scale: side of the crop, as a part of the frame's.
      angle: in radians; what the picture shows turns counterclockwise by it.
      offset: [2] of the crop's middle from the frame's, (down, right), as parts of (h, w).

    Returns:
      float32 [T, h, w, 3], on the same scale of values.
    """
    T, h, w, C = video.shape
    y, x = jnp.meshgrid(jnp.arange(h) - (h - 1) / 2, jnp.arange(w) - (w - 1) / 2, indexing="ij")
    cos, sin = scale * jnp.cos(angle), scale * jnp.sin(angle)
    source_y = jnp.clip(cos * y + sin * x + (h - 1) / 2 + offset[0] * h, 0, h - 1).reshape(-1)
    source_x = jnp.clip(cos * x - sin * y + (w - 1) / 2 + offset[1] * w, 0, w - 1).reshape(-1)
    top, left = jnp.floor(source_y), jnp.floor(source_x)
    down, right = (source_y - top)[:, None], (source_x - left)[:, None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    bottom, beside = jnp.minimum(top + 1, h - 1), jnp.minimum(left + 1, w - 1)
    # One row a pixel holds it in all frames, so that every index is used for all of them.
    pixels = video.transpose(1, 2, 0, 3).reshape(h * w, T * C)

    def at(row: Array, column: Array) -> Array:
        return jnp.take(pixels, row * w + column, axis=0, mode="clip").astype(jnp.float32)

    upper = at(top, left) * (1 - right) + at(top, beside) * right
    lower = at(bottom, left) * (1 - right) + at(bottom, beside) * right
    return (upper * (1 - down) + lower * down).reshape(h, w, T, C).transpose(2, 0, 1, 3)


def jitter(video: Array, brightness: Array, contrast: Array, saturation: Array, hue: Array) -> Array:
    """Changes of brightness, contrast, saturation and hue, in this order, as one affine map of RGB for a whole clip.

    All four are linear (hue is a turn of the chroma in YIQ, which keeps luma), so a pixel meets one 3 x 3 matrix and is
    clipped once, at the end.

    Args:
      video: float32 [T, h, w, 3] in [0, 255].
      brightness: factor on all.
      contrast: factor on the distance from the clip's mean grey.
      saturation: factor on the distance from the pixel's own grey.
      hue: turn, 1 is the whole circle.
    """
    turn = 2 * np.pi * hue
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    chroma = _FROM_CHROMA @ jnp.array([[cos, -sin], [sin, cos]]) @ _CHROMA
    matrix = np.tile(LUMA, (3, 1)) + saturation * chroma
    grey = (video.mean((0, 1, 2)) * LUMA).sum()
    # Written out: products of thousands of 3 x 3 matrices, one a clip, are slow where matrices are meant to be large.
    turned = sum(video[..., c : c + 1] * matrix[:, c] for c in range(3))
    return jnp.clip(brightness * (contrast * turned + (1 - contrast) * grey), 0, 255)
