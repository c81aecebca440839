"""From what a reader stumbles over to one sentence about one episode."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from data_pipelines.sources.source import BadEpisode


@contextlib.contextmanager
def blamed_on(episode: str) -> Iterator[None]:
    """Any ValueError or OSError within becomes a BadEpisode that names the episode."""
    try:
        yield
    except BadEpisode:
        raise
    except (ValueError, OSError) as error:
        raise BadEpisode(f"episode {episode!r}: {error}") from error


def utf8(data: bytes | bytearray | memoryview | str, what: str) -> str:
    """Text; ValueError names `what` if it is not UTF-8."""
    try:
        # HDF5 and csv readers hand undecodable bytes on as lone surrogates.
        return (data.encode() if isinstance(data, str) else bytes(data)).decode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ValueError(f"{what} is not UTF-8 text ({error.reason} at {error.start})") from None


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """ValueError if the file is not one JSON object."""
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return data


def frame_numbers(which: Sequence[int], frames: int, episode: str) -> list[int]:
    """`which` as plain ints; BadEpisode if one of them is not a frame of the episode."""
    numbers = [int(n) for n in which]
    if beyond := sorted({n for n in numbers if not 0 <= n < frames}):
        raise BadEpisode(f"episode {episode!r} has the frames 0 to {frames - 1}, not {beyond}")
    return numbers


def natural(name: str) -> list:
    """Sorts demo_2 before demo_10."""
    return [(not part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", name)]
