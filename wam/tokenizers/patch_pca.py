"""`PatchPCA`: a linear causal video tokenizer fitted in seconds.

Shapes are those of the causal video tokenizers of released trunks: T = 1 + r (F - 1) frames become F latent frames,
the first frame alone, then groups of r; each latent frame is a grid of patches with C channels.

A patch (patch x patch x 3 pixels, times r frames) minus its mean at that place of that camera is projected on
principal components, shared by all places. Component c is scaled by sd_c^-power, then all by one number so that the
latent has unit mean square. The model sees the observed context fully whitened through `context_gain`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from wam.config import TokenizerConfig
from wam.tokenizers.clips import check_images, latent_frames

ARRAYS = ("mean_first", "basis_first", "scale_first", "mean_group", "basis_group", "scale_group")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["arrays", "gain"], meta_fields=["config", "grid"])
@dataclasses.dataclass(frozen=True)
class PatchPCA:
    """A fitted `VideoTokenizer`.

    `arrays` holds mean_* [cameras, P, patch pixels], basis_* [patch pixels, C] and scale_* [C] (latent = coefficient
    * scale) for the first frame and the later groups; `gain` [2, C] whitens the latents of either.
    """

    config: TokenizerConfig
    grid: tuple[int, int]
    arrays: dict[str, np.ndarray]
    gain: np.ndarray

    @property
    def image_size(self) -> tuple[int, int]:
        return self.grid[0] * self.config.patch, self.grid[1] * self.config.patch

    @property
    def tells_cameras_apart(self) -> bool:
        return True  # by their means

    def latent_frames(self, frames: int) -> int:
        """F for T frames; ValueError unless T = 1 + r (F - 1)."""
        return latent_frames(frames, self.config.frames_per_latent)

    def encode(self, video: Array, camera: Array) -> Array:
        """[B, V, T, h, w, 3] uint8 and camera [B, V] int -> latents [B, V, F, P, C] float32."""
        check_images(video, self.image_size)
        self.latent_frames(video.shape[2])
        x = video.astype(jnp.float32) / 255.0
        first = self._project(self._patches(x[:, :, :1], 1), camera, "first")
        if video.shape[2] == 1:
            return first
        rest = self._project(self._patches(x[:, :, 1:], self.config.frames_per_latent), camera, "group")
        return jnp.concatenate([first, rest], axis=2)

    def decode(self, latents: Array, camera: Array, *, history: Array | None = None) -> Array:
        """[B, V, F, P, C] -> video [B, V, T, h, w, 3] float32 in [0, 1]; after a `history` there is no first frame."""
        parts = []
        if history is None:
            parts.append(self._pixels(latents[:, :, :1], camera, "first", 1))
            latents = latents[:, :, 1:]
        if latents.shape[2]:
            parts.append(self._pixels(latents, camera, "group", self.config.frames_per_latent))
        return jnp.clip(jnp.concatenate(parts, axis=2), 0.0, 1.0)

    def _patches(self, x: Array, r: int) -> Array:
        p = self.config.patch
        return rearrange(x, "B V (F r) (y p) (x q) c -> B V F (y x) (r p q c)", r=r, p=p, q=p)

    def _mean(self, camera: Array, kind: str) -> Array:
        mean = jnp.asarray(self.arrays[f"mean_{kind}"])
        onehot = jax.nn.one_hot(camera, mean.shape[0])
        return jnp.einsum("BVc,cPd->BVPd", onehot, mean)[:, :, None]

    def _project(self, patches: Array, camera: Array, kind: str) -> Array:
        coefficients = (patches - self._mean(camera, kind)) @ jnp.asarray(self.arrays[f"basis_{kind}"])
        return coefficients * jnp.asarray(self.arrays[f"scale_{kind}"])

    def _pixels(self, latents: Array, camera: Array, kind: str, r: int) -> Array:
        coefficients = latents / jnp.asarray(self.arrays[f"scale_{kind}"])
        patches = coefficients @ jnp.asarray(self.arrays[f"basis_{kind}"]).T + self._mean(camera, kind)
        p, (rows, columns) = self.config.patch, self.grid
        pattern = "B V F (y x) (r p q c) -> B V (F r) (y p) (x q) c"
        return rearrange(patches, pattern, y=rows, x=columns, r=r, p=p, q=p)

    def to_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(JSON-able description, arrays) for the checkpoint."""
        about = {"kind": "patch_pca", "config": dataclasses.asdict(self.config), "grid": list(self.grid)}
        return about, {**self.arrays, "gain": self.gain}

    @classmethod
    def from_state(cls, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> PatchPCA:
        if about.get("kind") != "patch_pca":
            raise ValueError(f"not a patch_pca tokenizer: {about.get('kind')!r}")
        arrays = {name: np.asarray(value, np.float32) for name, value in arrays.items()}
        gain = arrays.pop("gain")
        return cls(TokenizerConfig(**about["config"]), tuple(about["grid"]), arrays, gain)


def fit(config: TokenizerConfig, clips: np.ndarray, camera: np.ndarray, cameras: int) -> PatchPCA:
    """Fits on `clips` [n, 1 + r, h, w, 3] uint8 of the training stores, each filmed by `camera` [n] of `cameras`."""
    r, p = config.frames_per_latent, config.patch
    n, frames, h, w, _ = clips.shape
    if n == 0 or frames != 1 + r:
        raise ValueError(f"the tokenizer is fitted on clips of {1 + r} frames; got {n} clips of {frames}")
    if h % p or w % p:
        raise ValueError(f"tokenizer.patch {p} does not divide the image size {h}x{w}")
    grid = (h // p, w // p)
    arrays: dict[str, np.ndarray] = {}
    gains = []
    # With r = 1 first and later frames are the same kind of thing: one basis, so that their latents can be compared.
    for kind, part in (("first", clips[:, :1]), ("group", clips[:, 1:])):
        if r == 1 and kind == "group":
            arrays |= {f"{name}_group": arrays[f"{name}_first"] for name in ("mean", "basis", "scale")}
            gains.append(gains[0])
            continue
        source = clips.reshape(n * 2, 1, h, w, 3) if r == 1 else part
        which = np.repeat(camera, 2) if r == 1 else camera
        patches = rearrange(source, "n r (y p) (x q) c -> n (y x) (r p q c)", p=p, q=p).astype(np.float32) / 255.0
        mean = np.stack(
            [patches[which == c].mean(0) if (which == c).any() else patches.mean(0) for c in range(cameras)]
        )
        centred = (patches - mean[which]).reshape(-1, patches.shape[-1])
        if config.channels > centred.shape[1]:
            raise ValueError(f"tokenizer.channels {config.channels} exceeds the {centred.shape[1]} values of a patch")
        variance, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
        basis = vectors[:, ::-1][:, : config.channels]
        sd = np.sqrt(np.maximum(variance[::-1][: config.channels], 1e-8))
        scaled = sd ** (1 - config.power)
        unit = 1 / np.sqrt((scaled**2).mean())
        arrays[f"mean_{kind}"] = mean.astype(np.float32)
        # Signs of eigenvectors are arbitrary; fix them so that refitting gives the same tokenizer.
        flip = np.where(basis[np.abs(basis).argmax(0), np.arange(basis.shape[1])] < 0, -1, 1)
        arrays[f"basis_{kind}"] = (basis * flip).astype(np.float32)
        arrays[f"scale_{kind}"] = (unit * sd**-config.power).astype(np.float32)
        gains.append((1 / (unit * scaled)).astype(np.float32))
    return PatchPCA(config, grid, arrays, np.stack(gains))
