"""Frames of any source at the size of the store: resized once, antialiased, and decoded a block at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from PIL import __version__ as pillow_version

from data_pipelines.sources.source import About, Source

FITS = ("stretch", "pad", "crop")
FACTS = {"filter": "Lanczos, a = 3, widened by the factor of shrinking (antialiased)", "pillow": pillow_version}
_FILTER = Image.Resampling.LANCZOS
_DECODED_BYTES = 1 << 28  # at the source's size, at a time
_KEPT_BYTES = 1 << 28  # at our size, at a time


def fit_image(image: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [*size, 3].

    Args:
        image: any size; one that has the right size is returned as it is.
        size: (h, w) in pixels.
        fit: what happens where the aspects differ. "stretch" shows all and wastes nothing, but squeezes one axis;
            "pad" adds black bars; "crop" cuts off what sticks out, evenly on both sides.
    """
    if image.shape[:2] == size:
        return image
    height, width = size
    picture = Image.fromarray(image)
    if fit == "pad":
        picture = ImageOps.pad(picture, (width, height), _FILTER)
    elif fit == "crop":
        picture = ImageOps.fit(picture, (width, height), _FILTER)
    else:
        picture = picture.resize((width, height), _FILTER)
    return np.asarray(picture)


class LazyFrames:
    """Behaves as uint8 [N, h, w, 3] where slices are taken; decodes a block when it is first touched, keeps two."""

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, source: Source, episode: int, camera: str, which: np.ndarray, size: tuple[int, int], fit: str):
        self._source, self._episode, self._camera, self._which = source, episode, camera, which
        self._size, self._fit = size, fit
        h, w = source.about(episode).cameras[camera]
        self._batch = max(1, _DECODED_BYTES // (h * w * 3))
        self._block = max(1, _KEPT_BYTES // (size[0] * size[1] * 3))
        self._blocks: dict[int, np.ndarray] = {}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self._which), *self._size, 3)

    def __len__(self) -> int:
        return len(self._which)

    def take(self, frames: np.ndarray) -> LazyFrames:
        """Those of the frames alone; the others are never converted."""
        return LazyFrames(self._source, self._episode, self._camera, self._which[frames], self._size, self._fit)

    def __getitem__(self, key: slice) -> np.ndarray:
        first, stop, _ = key.indices(len(self))
        parts = []
        for b in range(first // self._block, -(-stop // self._block)):
            at = b * self._block
            parts.append(self._decoded(b)[max(first - at, 0) : stop - at])
        return np.concatenate(parts) if parts else np.empty((0, *self.shape[1:]), np.uint8)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def _decoded(self, block: int) -> np.ndarray:
        if block not in self._blocks:
            which = self._which[block * self._block : (block + 1) * self._block]
            images = np.empty((len(which), *self.shape[1:]), np.uint8)
            for at in range(0, len(which), self._batch):
                batch = self._source.frames(self._episode, self._camera, which[at : at + self._batch].tolist())
                for i, image in enumerate(batch):
                    images[at + i] = fit_image(image, self._size, self._fit)
            self._blocks[block] = images
            for old in sorted(self._blocks)[:-2]:
                del self._blocks[old]
        return self._blocks[block]


class Resized:
    """A source whose frames have one size, decoded when they are used; everything else is the source's own.

    Args:
        source: whose frames.
        size: (h, w) in pixels.
        fit: see `fit_image`.
    """

    def __init__(self, source: Source, size: tuple[int, int], fit: str):
        self._source, self._size, self._fit = source, size, fit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def about(self, i: int) -> About:
        about = self._source.about(i)
        return dataclasses.replace(about, cameras=dict.fromkeys(about.cameras, self._size))

    def frames(self, i: int, camera: str, which: Sequence[int]) -> Any:
        return LazyFrames(self._source, i, camera, np.asarray(which, np.int64), self._size, self._fit)
