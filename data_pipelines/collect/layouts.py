"""Which scenes an episode may start from: a seed for every split and source, and proof that splits do not overlap."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Sources of one split film different scenes; the expert keeps the split's own seed, so that "layout i of validation"
# means the same in a store of demonstrations and in closed-loop evaluation.
_SOURCE_OFFSET = {"expert": 0, "play": 1000, "ego": 2000, "rollouts": 3000}
SOURCES = ("expert", "play", "ego")
"""What can be collected without a policy."""


def layout_seed(split_seed: int, source: str) -> int:
    return split_seed + _SOURCE_OFFSET[source]


def check_disjoint(layouts: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError if two of the named sets of layouts, each [n, layout_dim], share one (compared by value)."""
    owner: dict[bytes, str] = {}
    for name, rows in layouts.items():
        for row in np.ascontiguousarray(rows, np.float64):
            first = owner.setdefault(row.tobytes(), name)
            if first != name:
                raise ValueError(f"layouts {first!r} and {name!r} share {row.tolist()}: give them other seeds")
