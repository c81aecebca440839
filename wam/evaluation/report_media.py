"""Pictures and short videos of a report, as data URIs that stand inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from wam.evaluation.plots import Figure, Numbers, save

GAP = 4
"""White pixels between the panels of an animation."""
MAX_FRAMES = 90
"""Longer videos are thinned evenly."""


class Budget:
    """Bytes that embedded media may still take, so that a run with many tasks does not make an unreadable page."""

    def __init__(self, size: int):
        self.left = size

    def take(self, uri: str) -> bool:
        """Whether `uri` still fits; if so it is counted."""
        fits = len(uri) <= self.left
        self.left -= len(uri) if fits else 0
        return fits


def data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def figure_uri(figure: Figure, *, pixels: bool = False) -> str:
    """A figure as SVG, or (`pixels`, for figures made of photographs) as WebP at twice the page's resolution."""
    data = io.BytesIO()
    if not pixels:
        save(figure, data, format="svg", metadata={"Date": None})
        return data_uri(data.getvalue(), "svg+xml")
    save(figure, data, format="webp", dpi=200, pil_kwargs={"quality": 88})
    return data_uri(data.getvalue(), "webp")


def animation_uri(panels: Sequence[np.ndarray], seconds: Numbers, *, slow: float = 1.0) -> str:
    """A looping WebP of videos side by side, in step with each other.

    Args:
        panels: videos, uint8 [n, h, w, 3] of one shape.
        seconds: [n], time of each frame.
        slow: how many times slower than real time it plays; the last frame stays for a moment.
    """
    keep = np.unique(np.linspace(0, len(seconds) - 1, min(MAX_FRAMES, len(seconds))).round().astype(int))
    gap = np.full((len(keep), panels[0].shape[1], GAP, 3), 255, np.uint8)
    parts = [part for panel in panels for part in (gap, panel[keep])][1:]
    first, *rest = (Image.fromarray(frame) for frame in np.concatenate(parts, axis=2))
    lengths = np.diff(np.asarray(seconds)[keep]) * 1000 * slow
    durations = [max(20, int(length)) for length in lengths] + [900]
    data = io.BytesIO()
    first.save(data, "WEBP", save_all=True, append_images=rest, duration=durations, loop=0, quality=82, method=3)
    return data_uri(data.getvalue(), "webp")


def slowdown(seconds: Numbers, wanted: float) -> int:
    """How many times slower a video must play to last `wanted` seconds; 1 if it is long enough."""
    length = float(seconds[-1]) - float(seconds[0])
    return max(1, min(20, round(wanted / length))) if length > 0 else 1


def foreseen(
    frames: np.ndarray, frame_step: np.ndarray, imagined: np.ndarray, imagined_step: np.ndarray, chunk_step: np.ndarray
) -> np.ndarray:
    """What the newest earlier chunk imagined for each moment of an episode; the frame itself where there is none.

    A frame rendered at the very step at which a chunk begins is that chunk's observation, so it is compared with what
    the chunk before had imagined.

    Args:
        frames: real, uint8 [t, h, w, 3].
        frame_step: [t], control step of each.
        imagined: uint8 [chunks, T - 1, h, w, 3].
        imagined_step: [T - 1], control steps from a chunk's start to each of its imagined frames.
        chunk_step: [chunks], the step at which each chunk was made.

    Returns:
        uint8 [t, h, w, 3].
    """
    out = frames.copy()
    for index, step in enumerate(frame_step):
        earlier = np.flatnonzero(chunk_step < step)
        if len(earlier):
            chunk = earlier[-1]
            out[index] = imagined[chunk, np.abs(chunk_step[chunk] + imagined_step - step).argmin()]
    return out
