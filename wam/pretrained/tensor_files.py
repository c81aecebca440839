"""Tensors of released models on disk, by name, without reading what is not asked for.

safetensors: eight bytes (little endian) with the length of a JSON header, the header (dtype, shape and place of every
tensor), the numbers. A model is one such file, or several and an index of them. Arrays are views into the mapped file:
a device that needs a slice of a tensor reads that slice.

Files of PyTorch hold pickles, which run whatever they contain. They are opened by torch's weights-only loader alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

INDEX = ".index.json"
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_LONGEST_HEADER = 100_000_000


class Info(NamedTuple):
    """What a file says of one tensor."""

    dtype: np.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    """First byte in the file; of a pickle 0."""

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFiles(Mapping[str, np.ndarray]):
    """The tensors of a model: `info` without reading them, `self[name]` a read-only view.

    Args:
      path: one file, or a directory that holds one, or several and their index.

    Raises:
      FileNotFoundError: there is no such file, or the index names one that is missing.
      ValueError: a file is not what its name says, is incomplete, or holds a pickle that cannot be read safely.
    """

    def __init__(self, path: str | Path):
        self.files = model_files(Path(path))
        self.info: dict[str, Info] = {}
        self._loaded: dict[Path, Mapping[str, np.ndarray]] = {}
        for file in self.files:
            if file.suffix in PICKLES:
                self._loaded[file] = _read_pickle(file)
                found = {name: Info(x.dtype, x.shape, file, 0) for name, x in self._loaded[file].items()}
            else:
                found = read_header(file)
            if twice := sorted(found.keys() & self.info.keys()):
                raise ValueError(f"{file} and {self.info[twice[0]].file.name} both hold {twice[0]!r}")
            self.info |= found

    def leave_out(self, beginnings: tuple[str, ...]) -> list[str]:
        """Forgets the tensors whose names begin so; returns their names."""
        names = [name for name in self.info if beginnings and name.startswith(beginnings)]
        for name in names:
            del self.info[name]
        return names

    def __getitem__(self, name: str) -> np.ndarray:
        info = self.info[name]
        if info.file in self._loaded:
            return self._loaded[info.file][name]
        if not info.bytes:
            return np.empty(info.shape, info.dtype)
        return np.memmap(info.file, np.uint8, "r", info.start, (info.bytes,)).view(info.dtype).reshape(info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.info)

    def __len__(self) -> int:
        return len(self.info)


def model_files(path: Path) -> list[Path]:
    """The files that together are the model at `path`."""
    if path.is_file():
        if path.name.endswith(INDEX):
            return _indexed(path)
        if path.suffix in (".safetensors", *PICKLES):
            return [path]
        raise ValueError(f"{path} is no file of tensors: expected .safetensors, or {', '.join(PICKLES)}")
    if not path.is_dir():
        raise FileNotFoundError(f"there is no {path}")
    for suffixes in ((".safetensors",), PICKLES):
        indices = [f for f in sorted(path.glob(f"*{INDEX}")) if f.name.removesuffix(INDEX).endswith(suffixes)]
        files = [f for f in sorted(path.iterdir()) if f.suffix in suffixes]
        if len(indices) == 1:
            return _indexed(indices[0])
        if len(indices) > 1 or (len(files) > 1 and not indices):
            several = ", ".join(f.name for f in indices or files)
            raise ValueError(f"{path} holds several models ({several}), or their index is missing: name one file")
        if files:
            return files
    raise FileNotFoundError(f"{path} holds no .safetensors file")


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{index} is no index of tensors: it has no weight_map") from None
    for name in names:
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index.parent} lacks {name}, which {index.name} names: a partial download")
    return [index.parent / name for name in names]


def read_header(file: Path) -> dict[str, Info]:
    """What a safetensors file says it holds; ValueError unless it holds just that, to the byte."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > _LONGEST_HEADER:
            raise ValueError(f"{file} is no safetensors file: it does not begin with the length of a header")
        if 8 + length > size:
            raise ValueError(f"{file} is incomplete: {size:,} bytes, not even its header of {length:,}")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            tensors = {name: _described(file, name, header[name], 8 + length) for name in header}
        except (UnicodeDecodeError, json.JSONDecodeError, AttributeError):
            raise ValueError(f"{file} is no safetensors file: its header is not JSON") from None
    end = 8 + length
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].bytes)):
        if info.start != end:
            raise ValueError(f"{file} is damaged: {name!r} does not begin where the tensor before it ends")
        end += info.bytes
        if end > size:
            raise ValueError(f"{file} is incomplete: {size:,} bytes, {name!r} ends at {end:,}: download it again")
    if end != size:
        raise ValueError(f"{file} is damaged: {size - end:,} bytes behind its last tensor")
    return tensors


def _described(file: Path, name: str, about: Any, base: int) -> Info:
    try:
        dtype, shape, (start, stop) = about["dtype"], tuple(map(int, about["shape"])), about["data_offsets"]
        if dtype not in DTYPES:
            raise ValueError(f"{file} holds {name!r} as {dtype!r}, which is not among {', '.join(DTYPES)}")
        info = Info(DTYPES[dtype], shape, file, base + start)
    except (KeyError, TypeError):
        raise ValueError(f"{file} is damaged: its header does not describe {name!r}") from None
    if stop - start != info.bytes:
        raise ValueError(f"{file} is damaged: {name!r} has {stop - start:,} bytes, its shape needs {info.bytes:,}")
    return info


def _read_pickle(file: Path) -> dict[str, np.ndarray]:
    """Tensors of a file of PyTorch, through its weights-only loader."""
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{file} is a pickle, which is opened by torch's weights-only loader alone, and torch is not installed: "
            "install it, or convert the file where it is: safetensors.torch.save_file(torch.load(FILE, "
            "weights_only=True), 'model.safetensors')"
        ) from None
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its parsers do
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{file} is no file of weights that can be read safely: {reason}") from None
    if not isinstance(found, dict) or not all(isinstance(x, torch.Tensor) for x in found.values()):
        raise ValueError(f"{file} is no dictionary of tensors; save its state dict alone")

    def array(x: Any) -> np.ndarray:
        if x.dtype == torch.bfloat16:
            return x.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return x.contiguous().numpy()

    return {name: array(x.detach()) for name, x in found.items()}
