"""Temporal ensembling: what overlapping chunks say about one moment, averaged."""

from __future__ import annotations

import numpy as np


def average(candidates: np.ndarray, decay: float) -> np.ndarray:
    """[n, A] of n chunks, oldest first, -> [A]: weights exp(-decay i) of the i-th oldest (ACT, arXiv:2304.13705, IV-A).

    A positive decay trusts the older chunks more, so that what is executed changes slowly; 0 weighs all alike.
    """
    weights = np.exp(-decay * np.arange(len(candidates)))
    return (weights / weights.sum() @ candidates).astype(np.float32)
