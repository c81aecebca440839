"""Files of records, TFRecord or ArrayRecord, read by record number. No TensorFlow.

A TFRecord file is a row of records without an index: the length (u64, little-endian), a checksum of the length, the
data, a checksum of the data. One walk over the lengths finds where they begin. The checksum is CRC-32C (Castagnoli),
rotated right by 15 bits, plus a constant.
"""

from __future__ import annotations

import functools
import mmap
import pathlib
import struct
from typing import Protocol

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_POLYNOMIAL = 0x82F63B78
_ALL_ONES = bytes.fromhex("54641f64")  # four bytes that take the remainder from 0 to its prescribed start, all ones
_BLOCK = 1 << 17  # bytes folded at once: few enough to stay in the cache


@functools.cache
def _crc_tables() -> tuple[np.ndarray, list[np.ndarray]]:
    """Remainder of two bytes, u32 [65536]; and what 2^(k+1) zero bytes make of a remainder, for each k.

    The latter is linear in the remainder: u32 [2, 65536], for its lower and for its upper half.
    """
    halves = np.arange(1 << 16, dtype=np.uint32)
    pairs = halves
    for _ in range(16):
        pairs = np.where(pairs & 1, (pairs >> 1) ^ np.uint32(_POLYNOMIAL), pairs >> 1)
    zeros = [np.stack([pairs, halves])]
    while 2 << len(zeros) <= _BLOCK:
        zeros.append(_after_zeros(zeros[-1], zeros[-1]))
    return pairs, zeros


def _after_zeros(table: np.ndarray, remainder):
    return table[0][remainder & 0xFFFF] ^ table[1][remainder >> 16]


def masked_crc32c(data) -> int:
    """The checksum of TFRecord, of any bytes-like object.

    Remainders of neighbours are folded: that of two blocks is the left one's, moved on by the length of the right
    block, plus the right one's. So numpy needs one pass for each doubling of the length.
    """
    pairs, zeros = _crc_tables()
    size = len(_ALL_ONES) + len(data)
    block = min(_BLOCK, 1 << (size - 1).bit_length())
    message = np.zeros(-(-size // block) * block, np.uint8)  # zeros in front leave a remainder of 0 as it is
    message[-size:] = np.frombuffer(_ALL_ONES + bytes(data), np.uint8)
    total = np.uint32(0)
    for part in message.reshape(-1, block):
        remainders = pairs[part.view("<u2")]
        for table in zeros:
            if len(remainders) == 1:
                break
            remainders = _after_zeros(table, remainders[0::2]) ^ remainders[1::2]
        total = _after_zeros(zeros[-1], total) ^ remainders[0]
    crc = int(total) ^ 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class RecordFile(Protocol):
    """Records by number; picklable, thread-safe, no file stays open."""

    path: pathlib.Path

    def __len__(self) -> int: ...

    def read(self, i: int) -> memoryview:
        """Record i, read from disk as far as it is looked at; ValueError if it is damaged."""
        ...

    def check(self, i: int) -> None:
        """Reads all of record i; ValueError unless its checksum is right."""
        ...


class TFRecordFile:
    """A TFRecord file. A last record that is cut off, or whose length is damaged, counts, and cannot be read."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        size = path.stat().st_size
        self._damage = ""
        spans = []
        with path.open("rb") as file:
            start = 0
            while start < size:
                header = file.read(_HEADER.size)
                length, checksum = _HEADER.unpack(header) if len(header) == _HEADER.size else (0, 0)
                spans.append((start + _HEADER.size, length))
                if len(header) == _HEADER.size and masked_crc32c(header[:8]) != checksum:
                    self._damage = "the checksum of its length is wrong: no later record of the file can be found"
                    break
                start += _HEADER.size + length + _FOOTER.size
                if start > size or len(header) < _HEADER.size:
                    self._damage = f"the file ends within it, at byte {size}"
                    break
                file.seek(start)
        self._spans = np.array(spans, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._spans)

    def _mapped(self, i: int) -> tuple[memoryview, int, int]:
        if self._damage and i == len(self) - 1:
            raise ValueError(f"record {i} of {self.path}: {self._damage}")
        start, length = (int(x) for x in self._spans[i])
        with self.path.open("rb") as file:
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if start + length + _FOOTER.size > len(whole):
            raise ValueError(f"record {i} of {self.path}: the file has become shorter since it was opened")
        return whole, start, start + length

    def read(self, i: int) -> memoryview:
        whole, start, stop = self._mapped(i)
        return whole[start:stop]

    def check(self, i: int) -> None:
        whole, start, stop = self._mapped(i)
        if masked_crc32c(whole[start:stop]) != _FOOTER.unpack_from(whole, stop)[0]:
            raise ValueError(f"record {i} of {self.path}: its checksum is wrong")


class ArrayRecordFile:
    """An ArrayRecord file, which checks what it reads by itself. If it is damaged it counts as one bad record."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        reader = self._open()
        self._damaged = not reader.ok()
        self._records = 1 if self._damaged else reader.num_records()

    def _open(self) -> ArrayRecordReader:
        # These options are ArrayRecord's advice for random access.
        return ArrayRecordReader(str(self.path), "readahead_buffer_size:0,max_parallelism:0")

    def __len__(self) -> int:
        return self._records

    def read(self, i: int) -> memoryview:
        if self._damaged:
            raise ValueError(f"{self.path} is damaged or no ArrayRecord file: none of its records can be found")
        try:
            return memoryview(self._open().read([i])[0])
        except Exception as error:  # the library raises what its C++ side throws
            raise ValueError(f"record {i} of {self.path} cannot be read: {error}") from None

    def check(self, i: int) -> None:
        self.read(i)
