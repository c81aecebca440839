"""Messages on the wire: msgpack with numpy arrays, byte for byte those of the `openpi-client` package.

An array is the map {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [2, 3]}, a numpy scalar the map
{b"__npgeneric__": True, b"data": number, b"dtype": "<f4"}. What comes from outside is data and never code: no pickle,
no objects, no structured types; sizes are compared before an array is made, and an array is a view of the message.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, NoReturn

import msgpack
import numpy as np

_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_ARRAY_KEYS = {_ARRAY, b"data", b"dtype", b"shape"}
_SCALAR_KEYS = {_SCALAR, b"data", b"dtype"}
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


class WireError(ValueError):
    """A message that is not what this page describes; the sentence says where."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a message may hold beside its bytes, which the transport bounds. A request needs a fraction of each."""

    depth: int = 6
    """maps and lists within each other"""
    items: int = 4000
    """entries of all maps and lists together, so that a small message cannot become a large object"""
    dims: int = 6
    """of an array"""
    text: int = 4096
    """bytes of a string"""


def pack(value: Any) -> bytes:
    """Maps, lists, strings, numbers and numpy arrays as one message. TypeError for anything else."""
    return msgpack.packb(value, default=_packed)


def _packed(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and not _DTYPE.fullmatch(value.dtype.str):
        raise TypeError(f"an array of dtype {value.dtype} cannot be sent")
    if isinstance(value, np.ndarray):
        return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a value of type {type(value).__name__} cannot be sent")


def unpack(message: bytes, limits: Limits | None = None) -> Any:
    """The value of one message. Arrays are read-only.

    Raises:
        WireError: malformed or truncated, a type that is not of this page, or beyond a limit.
    """
    return _Reader(limits or Limits()).read(message)


class _Reader:
    """One message. msgpack calls back for every map and list as it ends, which is where they are counted."""

    def __init__(self, limits: Limits):
        self.limits, self.items = limits, 0

    def read(self, message: bytes) -> Any:
        limits = self.limits
        try:
            value = msgpack.unpackb(
                message, raw=False, strict_map_key=True, object_pairs_hook=self.end_map, list_hook=self.end_list,
                ext_hook=_refuse_extension, timestamp=0, max_str_len=limits.text, max_bin_len=len(message),
                max_array_len=limits.items, max_map_len=limits.items,
            )  # fmt: skip
        except WireError:
            raise
        except (ValueError, msgpack.UnpackException) as error:
            reason = str(error).replace("\n", " ")[:100] or type(error).__name__
            raise WireError(f"the message is not one msgpack value: {reason}") from None
        self.check(value, limits.depth)
        return value

    def count(self, entries: int) -> None:
        self.items += entries
        if self.items > self.limits.items:
            raise WireError(f"the message has more than {self.limits.items} entries in its maps and lists")

    def end_list(self, entries: list) -> list:
        self.count(len(entries))
        return entries

    def end_map(self, pairs: list[tuple[Any, Any]]) -> Any:
        self.count(len(pairs))
        found = dict(pairs)
        if len(found) < len(pairs):
            raise WireError("a map of the message has a key twice")
        if _ARRAY in found:
            return self.array(found)
        return _scalar(found) if _SCALAR in found else found

    def array(self, found: dict) -> np.ndarray:
        if set(found) != _ARRAY_KEYS:
            raise WireError("an array needs __ndarray__, data, dtype and shape, and nothing else")
        dtype, shape, data = _dtype(found[b"dtype"]), found[b"shape"], found[b"data"]
        whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
        if not whole or len(shape) > self.limits.dims:
            raise WireError(f"the shape of an array is a list of at most {self.limits.dims} sizes, none negative")
        if not isinstance(data, bytes):
            raise WireError("the data of an array are bytes")
        # Python's integers: a product of declared sizes cannot overflow, and nothing is allocated for them.
        if math.prod(shape) * dtype.itemsize != len(data) or max(shape, default=0) > 1 << 31:
            declared = "x".join(map(str, shape))[:60]
            raise WireError(f"an array declares {declared} values of {dtype}, its data have {len(data)} bytes")
        return np.ndarray(tuple(shape), dtype, data)

    def check(self, value: Any, depth: int) -> None:
        """The depth, and that bytes and extensions occur nowhere outside arrays."""
        if isinstance(value, (dict, list)):
            if depth == 0:
                raise WireError(f"the message is nested more than {self.limits.depth} deep")
            for entry in value.values() if isinstance(value, dict) else value:
                self.check(entry, depth - 1)
            if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
                raise WireError("the keys of a map are strings")
        elif value is not None and not isinstance(value, (bool, int, float, str, np.ndarray, np.generic)):
            raise WireError(f"a value of the message has the type {type(value).__name__}, which has no meaning here")


def _dtype(name: Any) -> np.dtype:
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise WireError(
            f"the dtype of an array is a boolean, integer or float such as '<f4' or '|u1', got {str(name)[:40]!r}"
        )
    return np.dtype(name)


def _scalar(found: dict) -> np.generic:
    if set(found) != _SCALAR_KEYS or not isinstance(found[b"data"], (bool, int, float)):
        raise WireError("a numpy scalar needs __npgeneric__, data (a number) and dtype, and nothing else")
    dtype = _dtype(found[b"dtype"])
    try:
        with np.errstate(over="ignore"):  # infinite, then, which whoever reads it refuses
            return dtype.type(found[b"data"])
    except (OverflowError, ValueError):
        raise WireError(f"a numpy scalar does not fit its dtype {dtype}") from None


def _refuse_extension(code: int, _: bytes) -> NoReturn:
    raise WireError(f"the message has a msgpack extension of type {code}, which has no meaning here")
