"""GR00T's meta/modality.json: names for slices of state and action, for cameras and for annotations."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

_STANDARD_COLUMN = {"state": "observation.state", "action": "action"}


@dataclasses.dataclass(frozen=True)
class Part:
    """A named stretch of a vector: dimensions [start, stop) of a column."""

    name: str
    column: str
    start: int
    stop: int


class Modality:
    """What a dataset calls its parts; without a modality.json, every feature has its own name.

    Args:
        path: of modality.json, for messages; it need not exist.
        data: its content; empty if there is none.
        features: `features` of meta/info.json: column -> dtype and shape.

    Raises:
        ValueError: an entry is malformed.
    """

    def __init__(self, path: pathlib.Path, data: Mapping[str, Any], features: Mapping[str, Any]):
        self._path, self._features = path, features
        self._sections: dict[str, dict[str, dict]] = {}
        for section in ("state", "action", "video", "annotation"):
            entries = data.get(section, {})
            if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
                raise ValueError(f"{path}: {section} must map names to objects")
            self._sections[section] = entries
        self.annotations: dict[str, str] = {
            name: entry.get("original_key", f"annotation.{name}")
            for name, entry in self._sections["annotation"].items()
        }
        """name -> column"""
        self._slices = {what: [self._slice(what, name) for name in self._sections[what]] for what in _STANDARD_COLUMN}

    def _slice(self, what: str, name: str) -> Part:
        entry = self._sections[what][name]
        column, start, stop = entry.get("original_key", _STANDARD_COLUMN[what]), entry.get("start"), entry.get("end")
        where = f"{self._path}: {what} {name!r}"
        if column not in self._features:
            raise ValueError(f"{where} is cut from {column!r}, which meta/info.json does not declare")
        width = self.width(column)
        if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start < stop <= width):
            raise ValueError(f"{where} must have start and end within the {width} dimensions of {column!r}")
        return Part(name, column, start, stop)

    def width(self, column: str) -> int:
        """Dimensions of a column; ValueError if it is no vector."""
        feature = self._features[column]
        if feature["dtype"] in ("video", "image", "string") or len(feature["shape"]) != 1:
            raise ValueError(f"{self._path.parent / 'info.json'}: {column!r} is no vector of numbers")
        return feature["shape"][0]

    def cameras(self, keys: Sequence[str]) -> dict[str, str]:
        """Name -> video feature, of those `keys` that have files; ValueError if a camera is not among them."""
        named = {name: entry.get("original_key", name) for name, entry in self._sections["video"].items()}
        for name, key in named.items():
            if key not in keys:
                raise ValueError(f"{self._path}: the video {name!r} is {key!r}, of which there is no file")
        images = [key for key, feature in self._features.items() if feature["dtype"] == "image"]
        if images and not named:
            raise ValueError(
                f"{self._path.parent / 'info.json'}: the camera {images[0]!r} is kept as images in the parquet files, "
                "only videos are read: encode it as video, or name the cameras to read in a modality.json"
            )
        return named or {key: key for key in keys}

    def parts(self, what: str, names: Sequence[str] | None) -> list[Part]:
        """The parts of "state" or "action" to be joined; see `LeRobot`. ValueError if a name is not known."""
        slices = {part.name: part for part in self._slices[what]}
        if names is None:
            if slices:
                return list(slices.values())
            names = [column for column in [_STANDARD_COLUMN[what]] if column in self._features]
        unknown = [name for name in names if name not in slices and name not in self._features]
        if unknown:
            known = sorted(slices) or sorted(key for key, f in self._features.items() if f["dtype"] != "video")
            raise ValueError(f"{self._path.parent}: there is no {what} {unknown[0]!r}, known are {', '.join(known)}")
        if len(set(names)) < len(names):
            raise ValueError(f"{self._path.parent}: a {what} is named twice in {list(names)}")
        return [slices[name] if name in slices else Part(name, name, 0, self.width(name)) for name in names]
