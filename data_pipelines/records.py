"""What a clip looks like on disk: arrays and images as bytes, for msgpack. No pickle."""

from __future__ import annotations

import io
from typing import overload

import numpy as np
from PIL import Image

from data_pipelines.episode import Clip


def pack_array(array: np.ndarray | None) -> dict | None:
    if array is None:
        return None
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": np.ascontiguousarray(array).tobytes()}


@overload
def unpack_array(packed: dict) -> np.ndarray: ...
@overload
def unpack_array(packed: None) -> None: ...
def unpack_array(packed: dict | None) -> np.ndarray | None:
    if packed is None:
        return None
    return np.frombuffer(packed["data"], np.dtype(packed["dtype"])).reshape(packed["shape"])


def encode_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def low_dim_record(clip: Clip) -> dict:
    h, w = next(iter(clip.frames.values())).shape[1:3]
    return {
        "frame_step": pack_array(clip.frame_step),
        "state": pack_array(clip.state),
        "action": pack_array(clip.action),
        "imitate": pack_array(clip.imitate),
        "meta": clip.meta,
        "start": clip.start,
        "episode_steps": clip.episode_steps,
        "anchors": list(clip.anchors),
        "cameras": sorted(clip.frames),
        "image_size": [h, w],
    }
