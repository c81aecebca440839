"""From a client's names to an observation of the policy: which key is which camera, and which keys make the state."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wam.config import build
from wam.policy import Policy

FITS = ("stretch", "pad", "crop")
Fit = Callable[[np.ndarray, tuple[int, int], str], np.ndarray]
"""(image, (h, w), one of FITS) -> the image at that size"""


@dataclasses.dataclass(frozen=True)
class ObservationMapping:
    """Keys as a client sends them; a map within a map has its keys joined by "/", so either form will do.

    The default of every field is the observation of `Policy.infer`: images/CAMERA, state, instruction, embodiment.
    """

    cameras: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """camera of the checkpoint -> key; empty: images/CAMERA for each of them"""
    state: tuple[str, ...] = ("state",)
    """keys whose numbers, one after the other, are the raw state"""
    instruction: str = "instruction"
    """key"""
    embodiment: str = "embodiment"
    """key"""
    time: str = "time"
    """key of the seconds of the observation; a client that does not send it is timed on arrival"""
    default_instruction: str = ""
    """what a client that sends none is taken to ask; empty: it has to send one"""
    default_embodiment: str = ""
    """which robot a client is that does not say; empty: the checkpoint's, if it knows only one"""
    resize: str = ""
    """how images of another size are brought to the checkpoint's: stretch, pad or crop; empty: they are refused"""
    ignored: tuple[str, ...] = ()
    """keys that clients send and this checkpoint does not read"""

    def __post_init__(self):
        for name in ("instruction", "embodiment", "time", "default_instruction", "default_embodiment", "resize"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"mapping.{name}: expected a string, got {getattr(self, name)!r}")
        for name in ("state", "ignored"):
            if not isinstance(value := getattr(self, name), tuple) or not all(isinstance(key, str) for key in value):
                raise ValueError(f"mapping.{name}: expected a list of keys, got {value!r}")
        pairs = self.cameras.items() if isinstance(self.cameras, Mapping) else [(0, 0)]
        if not all(isinstance(word, str) for pair in pairs for word in pair):
            raise ValueError(f"mapping.cameras: expected camera -> key, got {self.cameras!r}")
        if not self.state:
            raise ValueError("mapping.state: expected at least one key")
        if self.resize not in ("", *FITS):
            raise ValueError(f"mapping.resize: expected one of {', '.join(FITS)}, got {self.resize!r}")
        keys = [*self.cameras.values(), *self.state, self.instruction, self.embodiment, self.time, *self.ignored]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"mapping: the key {twice[0]!r} is used twice")

    @classmethod
    def read(cls, path: str | Path) -> ObservationMapping:
        """Of a JSON file. ValueError naming file and field, FileNotFoundError."""
        try:
            values = json.loads(Path(path).read_text())
            if not isinstance(values, dict):
                raise ValueError("expected a JSON object")
            return build(cls, values)
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not a JSON file") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


class Observer:
    """Makes observations for one policy, refusing in the client's own names what the policy cannot take."""

    def __init__(self, mapping: ObservationMapping, policy: Policy, fit: Fit | None = None):
        """ValueError: the mapping does not go with the checkpoint, or `resize` without `fit`."""
        cameras = sorted({view for name in policy.embodiments for view in policy.embodiment(name).views})
        if mapping.cameras:
            needed = [mapping.default_embodiment] if mapping.default_embodiment else policy.embodiments
            views = {view for name in needed for view in policy.embodiment(name).views}
            if missing := sorted(views - set(mapping.cameras)):
                raise ValueError(f"mapping.cameras lacks the camera {missing[0]!r} of the checkpoint")
            if strange := sorted(set(mapping.cameras) - set(cameras)):
                raise ValueError(
                    f"mapping.cameras has {strange[0]!r}; the checkpoint's cameras are {', '.join(cameras)}"
                )
        if mapping.resize and fit is None:
            raise ValueError("mapping.resize is on, and there is nothing to resize with")
        self.mapping, self.policy, self.fit = mapping, policy, fit
        self.cameras = dict(mapping.cameras) or {camera: f"images/{camera}" for camera in cameras}
        only = policy.embodiments[0] if len(policy.embodiments) == 1 else ""
        self.embodiment = mapping.default_embodiment or only
        self.size: tuple[int, int] = tuple(policy.tokenizer.image_size)  # type: ignore[assignment]
        if self.embodiment:
            policy.embodiment(self.embodiment)

    @property
    def keys(self) -> tuple[str, ...]:
        """All that a client may send."""
        m = self.mapping
        return (*self.cameras.values(), *m.state, m.instruction, m.embodiment, m.time, *m.ignored)

    def __call__(self, sent: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """An observation from flat keys; `seconds` is its time where the client does not say.

        Raises:
            ValueError: naming the client's key and what was expected.
        """
        m = self.mapping
        robot = self.policy.embodiment(self._text(sent, m.embodiment, self.embodiment))
        images = {camera: self._image(sent, self.cameras[camera]) for camera in robot.views}
        others = {self.cameras[camera] for camera in set(self.cameras) - set(robot.views)}
        if unused := sorted(others & set(sent)):
            raise ValueError(f"{unused[0]!r}: the embodiment {robot.spec.name!r} has no such camera")
        state = np.concatenate([numbers(sent, key) for key in m.state])
        if len(state) != robot.spec.state_dim:
            raise ValueError(
                f"{', '.join(m.state)}: expected {robot.spec.state_dim} numbers together "
                f"({', '.join(robot.spec.state_names)}), got {len(state)}"
            )
        time = float(numbers(sent, m.time, size=1)[0]) if m.time in sent else seconds
        return {
            "images": images,
            "state": state,
            "instruction": self._text(sent, m.instruction, m.default_instruction),
            "embodiment": robot.spec.name,
            "time": time,
        }

    def _image(self, sent: Mapping[str, Any], key: str) -> np.ndarray:
        """uint8 [h, w, 3], or [n, h, w, 3] from a client that sends the frames since its last request."""
        h, w = self.size
        image = sent.get(key)
        if image is None:
            raise ValueError(f"the observation lacks the image {key!r}")
        if not isinstance(image, np.ndarray):
            raise ValueError(f"{key!r}: expected an image uint8 [{h}, {w}, 3], got {type(image).__name__}")
        right = image.dtype == np.uint8 and image.ndim in (3, 4) and image.shape[-1] == 3 and image.size > 0
        fits = image.shape[-3:-1] == (h, w)
        if not right or not (fits or self.mapping.resize):
            raise ValueError(f"{key!r}: expected uint8 [{h}, {w}, 3], got {image.dtype} {list(image.shape)}")
        if fits or self.fit is None:
            return image
        fitted = [self.fit(frame, self.size, self.mapping.resize) for frame in image.reshape(-1, *image.shape[-3:])]
        return np.stack(fitted) if image.ndim == 4 else fitted[0]

    def _text(self, sent: Mapping[str, Any], key: str, default: str) -> str:
        text = sent.get(key, default)
        if not isinstance(text, str):
            raise ValueError(f"{key!r}: expected a string, got {type(text).__name__}")
        if not text.strip():
            raise ValueError(f"{key!r}: expected a string that is not empty")
        return text


def numbers(sent: Mapping[str, Any], key: str, *, size: int | None = None) -> np.ndarray:
    """f32 [n] of a number, a list or a one-dimensional array. ValueError naming the key."""
    if key not in sent:
        raise ValueError(f"the observation lacks {key!r}")
    values = np.atleast_1d(array_of(sent[key], key))
    if values.ndim != 1 or (size is not None and len(values) != size):
        raise ValueError(f"{key!r}: expected {size or 'a list of'} finite numbers, got {list(values.shape)}")
    return values


def array_of(value: Any, key: str) -> np.ndarray:
    """f32 array of numbers that are all finite, also as float32. ValueError naming the key."""
    flat = value if isinstance(value, list) else [value]
    if not isinstance(value, np.ndarray) and not all(
        isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in flat
    ):
        raise ValueError(f"{key!r}: expected finite numbers, got {type(value).__name__}")
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiu":
            raise ValueError
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    except (ValueError, OverflowError):
        raise ValueError(f"{key!r}: expected finite numbers, got another type") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{key!r}: expected finite numbers, got some that are not")
    return array


def flatten(value: Any) -> dict[str, Any]:
    """A request's maps within maps, their keys joined by "/". ValueError: no map, or a key in both forms."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a map from keys to values, got {type(value).__name__}")
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        inner = {f"{key}/{name}": v for name, v in flatten(entry).items()} if isinstance(entry, dict) else {key: entry}
        if twice := sorted(set(inner) & set(flat)):
            raise ValueError(f"the key {twice[0]!r} comes twice")
        flat |= inner
    return flat
