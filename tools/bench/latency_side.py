"""What every side of `tools.bench.latency` is: named calls, host arrays in and host arrays out, timed one by one.

A request names a call. `{"call", "output"}`: the first time, which compiles; the result goes to a file, so that it can
be compared. `{"call", "calls", "seconds"}`: so many calls, or as many as fit into the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from tools.bench.worker import Answer, converse

Result = dict[str, np.ndarray]
"""`actions` [K, A] normalised and `pixels` uint8 [v, T - 1, h, w, 3], as far as the program generates them."""
WARM, LEAST = 2, 3
"""Calls before the timed ones, and timed ones even where they take longer than asked for."""


class Side(Protocol):
    note: str
    """What a reader must know of this side; known after the first call."""

    def call(self, name: str) -> Callable[[], Any]:
        """What a program or a stage runs, ended on the device when it returns; KeyError for one this side lacks."""


def seconds_of(run: Callable[[], Any], calls: int, seconds: float) -> list[float]:
    for _ in range(WARM):
        run()
    out: list[float] = []
    begun = time.perf_counter()
    while len(out) < calls:
        start = time.perf_counter()
        run()
        end = time.perf_counter()
        out.append(end - start)
        if end - begun > seconds and len(out) >= LEAST:
            break
    return out


def serve(make: Callable[[dict[str, Any]], Side]) -> None:
    """Runs a child that answers calls."""

    def begin(spec: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
        side = make(spec)
        found: dict[str, Callable[[], Any]] = {}

        def answer(request: dict[str, Any]) -> dict[str, Any]:
            name = request["call"]
            if "output" not in request:
                return {"seconds": seconds_of(found[name], request["calls"], request["seconds"])}
            start = time.perf_counter()
            found[name] = side.call(name)
            result = found[name]()
            first = time.perf_counter() - start
            if isinstance(result, dict):
                np.savez(request["output"], **result)
            return {"first": first, "note": side.note}

        return {"note": side.note}, answer

    converse(begin)
