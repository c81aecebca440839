"""Two ways of acting on the same layouts, compared layout by layout. numpy only.

Layouts differ in difficulty far more than two policies on one of them, so that the difference of two success rates is
known much better than either: intervals of the rates may overlap where that of the difference is clear of zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

RESAMPLES = 10_000


def paired_difference(first: Any, second: Any, *, seed: int = 0) -> dict[str, Any]:
    """Success of `first` minus that of `second`, bools [n] or [seeds, n], on the same n layouts in the same order.

    Returns `difference` and its `ci95` (percentile bootstrap over layouts: both sides and all seeds of a layout stay
    together), how many episodes were solved by one alone (`only_first`, `only_second`), and `p` of the exact two-sided
    test of McNemar (1947), the probability of a split at least as uneven if it were a coin's, episodes independent.

    Raises:
        ValueError: the two are not equally many, or none.
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if a.shape != b.shape or a.ndim not in (1, 2) or not a.size:
        raise ValueError(f"a paired comparison needs the same episodes on both sides, got {a.shape} and {b.shape}")
    gap = a.astype(int) - b.astype(int)
    of_layout = gap.reshape(-1, gap.shape[-1]).mean(0)
    means = np.random.default_rng(seed).choice(of_layout, (RESAMPLES, len(of_layout))).mean(1)
    wins, losses = int((gap > 0).sum()), int((gap < 0).sum())
    tail = sum(math.comb(wins + losses, k) for k in range(min(wins, losses) + 1)) / 2 ** (wins + losses)
    return {
        "difference": float(gap.mean()),
        "ci95": [round(float(x), 4) for x in np.percentile(means, (2.5, 97.5))],
        "only_first": wins,
        "only_second": losses,
        "episodes": gap.size,
        "p": min(1.0, 2 * tail),
    }


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any] | None:
    """`paired_difference` of two summaries (`closed_loop.summarize`) over the layouts of all their tasks.

    None where one of them is older than `outcomes`. ValueError if they are of different layouts.
    """
    tasks, others = first["tasks"], second["tasks"]
    if not all("outcomes" in row for row in (*tasks.values(), *others.values())):
        return None
    if (counts := [(name, row["episodes"]) for name, row in tasks.items()]) != [
        (name, row["episodes"]) for name, row in others.items()
    ]:
        raise ValueError(f"a paired comparison needs the same layouts: one has {counts}, the other {list(others)}")
    pooled = ([won for row in of.values() for won in row["outcomes"]] for of in (tasks, others))
    return paired_difference(*pooled)
