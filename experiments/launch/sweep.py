"""Sweeps: lists of points, each a choice of values for some config keys, and three ways to combine them.

    product(axis("train.seed", [0, 1]), axis("optimizer.learning_rate", [1e-3, 3e-4]))   every pair: 4 points
    zipped(axis("model.size", ["tiny", "small"]), axis("train.batch_size", [32, 64]))    side by side: 2 points
    chain(a, b)                                                                          one after the other

On the command line the same is `a=1,2 * b=3,4` (product), `a=1,2 & b=3,4` (zipped) and `a=1,2 + b=3,4` (chain), with
spaces around the signs. `&` binds before `*`, `*` before `+`. A comma within brackets or quotes does not separate.
Larger sweeps are a Python file whose `get_sweep()` returns the list.
"""

from __future__ import annotations

import itertools
import re
import runpy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Point = dict[str, Any]
Sweep = list[Point]


def axis(key: str, values: Iterable[Any]) -> Sweep:
    """A point for each value of one dotted config key."""
    return [{key: value} for value in values]


def product(*sweeps: Sweep) -> Sweep:
    """Every combination; the last sweep varies fastest. ValueError if two sweeps set the same key."""
    return [_merge(points) for points in itertools.product(*sweeps)]


def zipped(*sweeps: Sweep) -> Sweep:
    """First with first, second with second. ValueError if the lengths differ, or two sweeps set the same key."""
    if len({len(sweep) for sweep in sweeps}) > 1:
        raise ValueError(
            f"zipped sweeps must be equally long, these have {', '.join(str(len(s)) for s in sweeps)} points"
        )
    return [_merge(points) for points in zip(*sweeps, strict=True)]


def chain(*sweeps: Sweep) -> Sweep:
    """All points of the first, then all of the second."""
    return list(itertools.chain(*sweeps))


def _merge(points: Sequence[Point]) -> Point:
    merged: Point = {}
    for point in points:
        if twice := sorted(set(merged) & set(point)):
            raise ValueError(f"two parts of the sweep set {twice[0]!r}")
        merged |= point
    return merged


def parse(text: str) -> Sweep:
    """A sweep from its command-line form, or from the `get_sweep()` of a Python file that `text` names.

    Raises:
        ValueError: the text is not a sweep, or its parts cannot be combined.
        FileNotFoundError: there is no such file.
    """
    if re.fullmatch(r"\S+\.py", text) and "=" not in text:
        if not Path(text).is_file():
            raise FileNotFoundError(f"there is no sweep file {text}")
        make = runpy.run_path(text).get("get_sweep")
        if make is None:
            raise ValueError(f"{text} has no get_sweep()")
        sweep = make()
        if not isinstance(sweep, list) or not sweep or not all(isinstance(point, dict) for point in sweep):
            raise ValueError(f"get_sweep() of {text} must return a list of dicts, one for each run")
        return sweep
    return chain(*(product(*(zipped(*map(_axis, _split(term, r"\s+&\s+"))) for term in _split(part, r"\s+\*\s+")))
                   for part in _split(text, r"\s+\+\s+")))  # fmt: skip


def _axis(text: str) -> Sweep:
    found = re.fullmatch(r"\s*(?:config\.)?([\w.]+)\s*=(.+)", text, re.DOTALL)
    if not found:
        raise ValueError(f"{text.strip()!r} in the sweep is not key=value,value,...")
    values = [value.strip() for value in _split(found.group(2), ",")]
    if not all(values):
        raise ValueError(f"{text.strip()!r} in the sweep has an empty value")
    return axis(found.group(1), [v[1:-1] if len(v) > 1 and v[0] in "'\"" and v[-1] == v[0] else v for v in values])


def _split(text: str, separator: str) -> list[str]:
    """Splits at matches of a pattern that lie outside of brackets and quotes."""
    parts, start, depth, quote, i = [], 0, 0, "", 0
    while i < len(text):
        letter = text[i]
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif not depth and (found := re.compile(separator).match(text, i)):
            parts.append(text[start:i])
            start = i = found.end()
            continue
        i += 1
    if quote or depth:
        raise ValueError(f"a quote or bracket in the sweep {text!r} is not closed")
    return [*parts, text[start:]]
