"""tf.train.Example in its wire format: named lists of byte strings, floats or integers, found without copying them.

The message is a map of features; a feature holds one of three lists (protocol buffer fields: Example.features 1,
Features.feature 1 with key 1 and value 2, Feature.bytes_list 1, float_list 2, int64_list 3, and value 1 of each list).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
KINDS = {1: "bytes", 2: "float", 3: "int64"}


def _varint(data: memoryview, at: int, stop: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends."""
    value = shift = 0
    while at < stop and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number does not end")


def _fields(data: memoryview, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, start, stop) of the fields of a message."""
    while at < stop:
        key, at = _varint(data, at, stop)
        wire, start = key & 7, at
        if wire == _VARINT:
            at = _varint(data, at, stop)[1]
        elif wire == _FIXED64:
            at += 8
        elif wire == _BYTES:
            length, start = _varint(data, at, stop)
            at = start + length
        elif wire == _FIXED32:
            at += 4
        else:
            raise ValueError(f"there is no wire type {wire}")
        if at > stop:
            raise ValueError("a field reaches beyond its message")
        yield key >> 3, wire, start, at


def _messages(data: memoryview, at: int, stop: int, number: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the fields of a message that have this number and hold bytes."""
    return ((a, b) for n, wire, a, b in _fields(data, at, stop) if n == number and wire == _BYTES)


def _packed_varints(data: memoryview) -> np.ndarray:
    """int64 [n]: numbers of seven bits a byte, the lowest first, whose last byte is below 128."""
    raw = np.frombuffer(data, np.uint8)
    if not len(raw):
        return np.empty(0, np.int64)
    lasts = np.flatnonzero(raw < 0x80)
    if not len(lasts) or lasts[-1] != len(raw) - 1:
        raise ValueError("a number does not end")
    starts = np.concatenate([[0], lasts[:-1] + 1])
    place = np.arange(len(raw)) - np.repeat(starts, np.diff(starts, append=len(raw)))
    return np.add.reduceat((raw & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64), starts).view(np.int64)


class Feature:
    """One list of an Example; decoded when asked."""

    def __init__(self, data: memoryview, number: int, start: int, stop: int):
        self.kind = KINDS.get(number, "empty")
        self._data, self._start, self._stop = data, start, stop
        self._strings: list[memoryview] | None = None  # found once: there is one for every frame of the episode

    def byte_strings(self) -> list[memoryview]:
        """The strings of a "bytes" list; views, not copies."""
        if self.kind not in ("bytes", "empty"):
            raise ValueError(f"holds {self.kind}, not bytes")
        if self._strings is None:
            self._strings = [self._data[a:b] for a, b in _messages(self._data, self._start, self._stop, 1)]
        return self._strings

    def numbers(self) -> np.ndarray:
        """The numbers of a "float" or "int64" list: f32 or int64 [n]."""
        if self.kind not in ("float", "int64", "empty"):
            raise ValueError(f"holds {self.kind}, not numbers")
        parts: list[np.ndarray] = [np.empty(0, np.int64 if self.kind == "int64" else np.float32)]
        for number, wire, start, stop in _fields(self._data, self._start, self._stop):
            if number != 1:
                continue
            if self.kind == "int64":
                parts.append(_packed_varints(self._data[start:stop]))
            elif wire in (_BYTES, _FIXED32) and not (stop - start) % 4:
                parts.append(np.frombuffer(self._data[start:stop], "<f4"))
            else:
                raise ValueError("holds floats that are not four bytes each")
        return np.concatenate(parts)


def read_example(data: memoryview) -> dict[str, Feature]:
    """{name: Feature}; ValueError if `data` is not a tf.train.Example."""
    features = {}
    try:
        for start, stop in _messages(data, 0, len(data), 1):
            for entry in _messages(data, start, stop, 1):
                name, feature = "", Feature(data, 0, 0, 0)
                for number, _, a, b in _fields(data, *entry):
                    if number == 1:
                        name = bytes(data[a:b]).decode()
                    elif number == 2:
                        for kind, _, c, d in _fields(data, a, b):
                            feature = Feature(data, kind, c, d)
                features[name] = feature
    except ValueError as error:
        raise ValueError(f"is not a tf.train.Example: {error}") from None
    return features
