"""Sessions: what the server keeps of each connection, and how many and how fast they may ask."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Clock = Callable[[], float]


class LimitError(ValueError):
    """A request or connection over a limit; the sentence says which."""


class TokenBucket:
    """At most `rate` requests a second in the long run, and as many at once as a second brings (one at least).

    rate: 0 for no limit.
    """

    def __init__(self, rate: float, clock: Clock = time.monotonic):
        self.rate, self.clock = rate, clock
        self.most = max(rate, 1.0)
        self.tokens, self.seen = self.most, clock()

    def take(self) -> None:
        """LimitError if there is no token left."""
        if not self.rate:
            return
        now = self.clock()
        self.tokens = min(self.most, self.tokens + (now - self.seen) * self.rate)
        self.seen = now
        if self.tokens < 1:
            wait = (1 - self.tokens) / self.rate
            raise LimitError(f"more than {self.rate:g} requests a second; ask again in {wait:.3f} s")
        self.tokens -= 1


@dataclasses.dataclass(eq=False)
class Session:
    """One robot's episode on one connection; a `reset` begins the next."""

    bucket: TokenBucket
    name: int = 0
    """names the noise: equal names, equal observations, equal answers, whoever else is served"""
    chunk: int = 0
    """chunks answered"""
    memory: Any = None
    """`wam.policy.Memory` as the last call returned it"""
    started: float = dataclasses.field(default_factory=time.monotonic)
    opened: float = dataclasses.field(default_factory=time.monotonic)
    """the connection"""
    requests: int = 0
    """of the connection, refused ones too"""
    previous_seconds: float | None = None
    """the whole of the last request, from its message to its answer"""

    @property
    def ids(self) -> np.ndarray:
        """uint32 [3]: keys the noise of the next chunk."""
        return np.array([self.name >> 32, self.name & 0xFFFFFFFF, self.chunk], np.uint32)

    def begin(self, name: int | None) -> None:
        """Forgets what was: the next observation is the first."""
        self.name, self.chunk, self.memory = name or 0, 0, None
        self.started = time.monotonic()

    def check_name(self, name: int | None) -> None:
        """ValueError if a request in the middle of the session gives it another name."""
        if self.chunk and name is not None and name != self.name:
            raise ValueError(f"'session': this one is {self.name} and has begun; another begins with reset")

    def answered(self, memory: Any) -> None:
        self.chunk, self.memory = self.chunk + 1, memory


class Sessions:
    """Those that are open."""

    def __init__(self, most: int, rate: float):
        self.most, self.rate = most, rate
        self._open: set[Session] = set()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def full(self) -> bool:
        return len(self._open) >= self.most

    def open(self) -> Session:
        """LimitError if there are as many as there may be."""
        if self.full:
            raise LimitError(f"the server has {self.most} sessions, which is its most")
        session = Session(TokenBucket(self.rate))
        self._open.add(session)
        return session

    def close(self, session: Session) -> None:
        self._open.discard(session)
