"""What a check says: findings with their numbers and the places that show them."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipelines.lint.survey import Survey


class Severity(enum.IntEnum):
    """ERROR: training on it would be wrong. WARNING: somebody must look. NOTE: good to know."""

    NOTE = 0
    WARNING = 1
    ERROR = 2


@dataclasses.dataclass(frozen=True)
class Place:
    """Where to look: a stretch of an episode, in one dimension of its rows or in one camera."""

    episode: int
    """position in `Survey.episodes`"""
    what: str
    """"state", "action" or "frames" """
    name: str = ""
    """of the dimension or camera; empty: all"""
    first: int = 0
    last: int | None = None
    """control steps, both included; None: to the end"""


@dataclasses.dataclass(frozen=True)
class Finding:
    severity: Severity
    text: str
    """a sentence with episode, dimension and numbers"""
    places: Sequence[Place] = ()
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    """JSON-able"""


@dataclasses.dataclass(frozen=True)
class Check:
    """A question put to a data set; `run` is pure and looks at low-dimensional arrays and sampled frames only."""

    name: str
    means: str
    """what it looks for, and what goes wrong in training if it is there"""
    threshold: str
    """when it speaks, and why there"""
    run: Callable[[Survey], Iterable[Finding]]


def listed(names: Iterable[str], most: int = 4) -> str:
    """'a, b, c, d and 3 more'"""
    names = list(names)
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
