"""Image encoders as frozen features: uint8 pixels in, tokens out, prepared as each family was trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from wam.encoders.config import ViTConfig
from wam.encoders.transformer import frozen, structure
from wam.encoders.vit import Features, ViT

_FILTERS = {"bicubic": "cubic", "bilinear": "linear"}


def resize(images: Array, size: tuple[int, int], config: ViTConfig) -> Array:
    """uint8 [..., h, w, 3] -> uint8 of `size`, by the family's filter, antialiased; the aspect is not kept.

    Along rows first, then along columns, with 8 bits between: so do the libraries the encoders were trained with.
    """
    for axis, wanted in ((-2, size[1]), (-3, size[0])):
        if images.shape[axis] != wanted:
            shape = list(images.shape)
            shape[axis] = wanted
            x = jax.image.resize(images.astype(jnp.float32), shape, _FILTERS[config.resize], antialias=True)
            images = jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8)
    return images


def normalise(images: Array, config: ViTConfig) -> Array:
    """uint8 [..., h, w, 3] -> float32 with the family's mean and standard deviation."""
    return (images.astype(jnp.float32) / 255 - jnp.asarray(config.mean)) / jnp.asarray(config.std)


def image_encoder(config: ViTConfig, params: Any, size: tuple[int, int] | None = None) -> Callable[[Array], Features]:
    """A function from uint8 images [..., h, w, 3] to features [..., L, D]; [..., T, h, w, 3] for encoders of video.

    Images are brought to `size` (rows, columns); by default to the square the encoder was trained on. Any other works
    too: positions are interpolated or rotary. `config.features` says what comes out; before the last layer
    (`penultimate`) nothing is pooled.
    """
    graph, _ = structure(ViT, config)
    params = frozen(params, config)
    size = (config.image_size, config.image_size) if size is None else size
    inner = 4 if config.tubelet > 1 else 3

    @jax.jit
    def encode(params: Any, images: Array) -> Features:
        outer = images.shape[:-inner]
        flat = images.reshape(math.prod(outer), *images.shape[-inner:])
        pixels = normalise(resize(flat, size, config), config)
        model = nnx.merge(graph, params)
        if config.features == "penultimate":
            out = Features(model.hidden(pixels, config.depth - 1), None)
        else:
            out = model(pixels)
        return jax.tree.map(lambda x: x.astype(jnp.float32).reshape(*outer, *x.shape[1:]), out)

    def checked(images: Array) -> Features:
        if images.dtype != jnp.uint8 or images.ndim < inner or images.shape[-1] != 3:
            wanted = "[..., T, h, w, 3]" if inner == 4 else "[..., h, w, 3]"
            raise ValueError(
                f"the {config.family} encoder takes uint8 {wanted}, got {images.dtype} {list(images.shape)}"
            )
        return encode(params, images)

    return checked
