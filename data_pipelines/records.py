"""What a clip looks like on disk: arrays and images as bytes, for msgpack. No pickle."""

from __future__ import annotations

import bisect
import io
import threading
from collections.abc import Sequence
from typing import overload

import numpy as np
from PIL import Image

from data_pipelines import video_codec
from data_pipelines.episode import Clip

PNG, H264 = "png", "h264"


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
        **({} if clip.may_start is None else {"may_start": pack_array(clip.may_start)}),
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


class ClipImages:
    """The images of one clip: encoded, and decoded on first use; thread-safe."""

    def __init__(self, record: dict, codec: str):
        self.lock, self._codec = threading.Lock(), codec
        h, w = record["image_size"]
        self.encoded: dict[str, list[bytes]] = {camera: record[f"frames/{camera}"] for camera in record["cameras"]}
        self.decoded = {camera: np.empty((len(data), h, w, 3), np.uint8) for camera, data in self.encoded.items()}
        self._done = {camera: np.zeros(len(data), np.bool_) for camera, data in self.encoded.items()}
        self.bytes = sum(array.nbytes for array in self.decoded.values())
        self.bytes += sum(len(image) for data in self.encoded.values() for image in data)

    def get(self, camera: str, frames: np.ndarray) -> np.ndarray:
        """uint8 [n, h, w, 3]: frames [n]; of h264, all from the keyframe before them on is decoded."""
        encoded, decoded, done = self.encoded[camera], self.decoded[camera], self._done[camera]
        with self.lock:
            missing = [i for i in sorted({int(i) for i in frames}) if not done[i]]
            if self._codec == H264:
                for first, group in _by_keyframe(encoded, missing):
                    images = video_codec.decode(encoded[first : group[-1] + 1], [i - first for i in group])
                    for i, image in zip(group, images, strict=True):
                        decoded[i] = image
            else:
                for i in missing:
                    decoded[i] = decode_png(encoded[i])
                    encoded[i] = b""
            done[missing] = True
        return decoded[frames]


def _by_keyframe(units: Sequence[bytes], wanted: Sequence[int]) -> list[tuple[int, list[int]]]:
    """(keyframe, those of the wanted frames that are decoded from it)."""
    keys = video_codec.keyframes(units)
    groups: dict[int, list[int]] = {}
    for i in wanted:
        groups.setdefault(keys[bisect.bisect_right(keys, i) - 1], []).append(i)
    return list(groups.items())
