"""`WanTokenizer`: the video autoencoder of Wan 2.1 or 2.2 as a run's tokenizer: pixels to trunk tokens and back.

A latent frame is a grid of cells (8 or 16 pixels wide) with 16 or 48 channels; Wan's trunks take 2 x 2 cells as one
token. Inside a token the order is (row of the cell, column of the cell, channel), the channel fastest:

    token[(2 p + q) * channels + c] = latent[2 y + p, 2 x + q, c]

so a trunk's patch-embedding convolution, kernel [width, channels, 1, 2, 2], is the linear map [4 channels, width]
`kernel[:, :, 0].transpose(2, 3, 1, 0).reshape(4 * channels, width)`. The trunk's output projection in the released
files orders a token in the same way: (frame, row, column, channel).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from wam.config import build
from wam.tokenizers import wan_vae
from wam.tokenizers.clips import check_images, latent_frames
from wam.tokenizers.tiling import tiled
from wam.tokenizers.wan_vae import Cache, WanVAE
from wam.tokenizers.wan_vae_config import WanVAEConfig


@functools.cache
def _graph(config: WanVAEConfig) -> Any:
    return nnx.split(nnx.eval_shape(lambda: wan_vae.create(config)))[0]


def shapes(config: WanVAEConfig) -> dict[str, Any]:
    """The network's parameters by shape, a nested dict."""
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: wan_vae.create(config)), nnx.Param))


def network(config: WanVAEConfig, params: dict[str, Any]) -> WanVAE:
    """The autoencoder with these parameters, a nested dict."""
    return nnx.merge(_graph(config), params)


def in_chunks(step: Any, x: Array, first: int, later: int) -> Array:
    """`step(chunk, cache) -> (result, cache)` over `first` frames of x [B, T, ...], then over `later` at a time.

    Only one chunk is computed at a time; a rest that does not fill one is computed last.
    """
    y, cache = step(x[:, :first], None)
    parts, rest = [y], x[:, first:]
    full = rest.shape[1] // later
    if full > 1:
        chunks = jnp.moveaxis(rest[:, : full * later].reshape(x.shape[0], full, later, *x.shape[2:]), 1, 0)

        def body(cache: Cache, chunk: Array) -> tuple[Cache, Array]:
            y, cache = step(chunk, cache)
            return cache, y

        cache, ys = jax.lax.scan(body, cache, chunks)
        ys = jnp.moveaxis(ys, 0, 1)
        parts.append(ys.reshape(ys.shape[0], -1, *ys.shape[3:]))
        rest = rest[:, full * later :]
    if rest.shape[1]:
        parts.append(step(rest, cache)[0])
    return jnp.concatenate(parts, axis=1)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["config", "grid"])
@dataclasses.dataclass(frozen=True)
class WanTokenizer:
    """A `VideoTokenizer`; cameras are not told apart.

    `params` is the network's nested dict (numpy or jax arrays), `grid` the rows and columns of tokens of a frame. Whole
    clips are computed at once, or `config.chunk` latent frames at a time, in tiles where `config.tile` says so.
    """

    config: WanVAEConfig
    grid: tuple[int, int]
    params: dict[str, Any]

    @property
    def image_size(self) -> tuple[int, int]:
        side = self.config.patch * self.config.cell
        return self.grid[0] * side, self.grid[1] * side

    @property
    def gain(self) -> np.ndarray:
        """Ones: normalised latents have about unit variance already."""
        return np.ones((2, self.config.patch**2 * self.config.channels), np.float32)

    @property
    def tells_cameras_apart(self) -> bool:
        return False

    def latent_frames(self, frames: int) -> int:
        """F for T frames; ValueError unless T = 1 + r (F - 1)."""
        return latent_frames(frames, self.config.frames_per_latent)

    def encode(self, video: Array, camera: Array) -> Array:  # noqa: ARG002
        """[B, V, T, h, w, 3] uint8 -> latents [B, V, F, P, C] float32."""
        check_images(video, self.image_size)
        self.latent_frames(video.shape[2])
        pixels = video.reshape(-1, *video.shape[2:]).astype(jnp.float32) / 127.5 - 1.0
        return self.tokens(self.encode_pixels(pixels)).reshape(*video.shape[:2], -1, *self._token_shape)

    def decode(self, latents: Array, camera: Array, *, history: Array | None = None) -> Array:  # noqa: ARG002
        """[B, V, F, P, C] -> video [B, V, T, h, w, 3] float32 in [0, 1], after `history` if there is one."""
        before = 0 if history is None else 1 + self.config.frames_per_latent * (history.shape[2] - 1)
        if history is not None:
            latents = jnp.concatenate([history, latents], axis=2)
        cells = self.cells(latents.reshape(-1, *latents.shape[2:]))
        video = jnp.clip(0.5 + 0.5 * self.decode_cells(cells), 0.0, 1.0)
        return video.reshape(*latents.shape[:2], *video.shape[1:])[:, :, before:]

    @property
    def _token_shape(self) -> tuple[int, int]:
        return self.grid[0] * self.grid[1], self.config.patch**2 * self.config.channels

    def tokens(self, cells: Array) -> Array:
        """[B, F, rows, columns, channels] -> [B, F, P, C]."""
        p = self.config.patch
        return rearrange(cells, "B F (y p) (x q) c -> B F (y x) (p q c)", p=p, q=p)

    def cells(self, tokens: Array) -> Array:
        """The inverse of `tokens`."""
        p, (rows, columns) = self.config.patch, self.grid
        return rearrange(tokens, "B F (y x) (p q c) -> B F (y p) (x q) c", y=rows, x=columns, p=p, q=p)

    def encode_pixels(self, video: Array) -> Array:
        """[B, T, h, w, 3] in [-1, 1] -> normalised latents [B, F, rows, columns, channels]."""
        return self._run(network(self.config, self.params).encode, video, encode=True)

    def decode_cells(self, latents: Array) -> Array:
        """The way back; the pixels are not clipped."""
        return self._run(network(self.config, self.params).decode, latents, encode=False)

    def _run(self, step: Any, x: Array, *, encode: bool) -> Array:
        config = self.config

        def clip(part: Array) -> Array:
            if not config.chunk:
                return step(part)[0]
            return in_chunks(step, part, 1, config.chunk * (config.frames_per_latent if encode else 1))

        if not config.tile:
            return clip(x)
        scale_in, scale_out = (config.cell, 1) if encode else (1, config.cell)
        return tiled(clip, x, tile=config.tile, overlap=config.tile_overlap, scale_in=scale_in, scale_out=scale_out)

    def to_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(JSON-able description, arrays by dotted path) for the checkpoint."""
        about = {"kind": "wan_vae", "config": dataclasses.asdict(self.config), "grid": list(self.grid)}
        return about, flatten_dict(self.params, sep=".")

    @classmethod
    def from_state(cls, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> WanTokenizer:
        """ValueError names an array that is missing, too many, or of another shape than the configuration's."""
        config, params = build(WanVAEConfig, about["config"]), unflatten_dict(arrays, sep=".")
        expected = flatten_dict(shapes(config), sep=".")
        for name in sorted(expected.keys() | arrays.keys()):
            found, due = (tuple(side[name].shape) if name in side else None for side in (arrays, expected))
            if found != due:
                raise ValueError(f"the tokenizer's array {name!r} has the shape {found}, expected {due}")
        return cls(config, tuple(about["grid"]), params)
