"""JSON beside weights: the configuration of a release, and where imported weights came from; digests of files."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

FORMAT = 1
PROVENANCE = "provenance.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; FileNotFoundError or ValueError names the file."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent} lacks {path.name}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object")
    return found


def read_provenance(directory: str | Path) -> dict[str, Any]:
    """What an import wrote beside the weights; ValueError if `directory` is none of its directories."""
    path = Path(directory) / PROVENANCE
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no imported weights: make it with tools/import_weights.py")
    try:
        provenance = read_json(path)
        version = provenance["format"]
    except (ValueError, KeyError):
        raise ValueError(f"{path} is damaged: import the weights again") from None
    if version != FORMAT:
        raise ValueError(f"{path} has format {version}; this version reads {FORMAT}: import the weights again")
    return provenance


def file_digest(file: Path) -> str:
    """sha256 of a file; read again only when its size or its time of change differ."""
    status = file.stat()
    return _file_digest(str(file), status.st_size, status.st_mtime_ns)


@functools.cache
def _file_digest(file: str, _size: int, _changed: int) -> str:
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
