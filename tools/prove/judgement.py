"""What a value knows: does it tell moments of good and bad episodes apart, and does it tell apart the chunks of one?

Only the second helps whoever chooses among chunks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.store import ClipStore
from experiments.held_out import batch_of, windows_of
from wam.inference import row_keys
from wam.planning.best_of_n import BestOfN
from wam.policy import load_policy


def judge(run: Path, store: Path, count: int = 128) -> dict[str, Any]:
    """V(s') and Q(s, a) of what best-of-N proposes at `count` moments of held-out rollouts: name of the value -> found.

    auc              of a moment's mean value against whether its episode succeeded
    between_moments  standard deviation of that mean
    between_chunks   standard deviation over the proposals of one moment, over futures averaged; mean over moments
    between_futures  standard deviation over imagined futures of one proposal; mean
    """
    policy = load_policy(run, unroll=False)
    windows = windows_of(policy, ClipStore(store), store.name)
    known = [i for i in range(len(windows)) if not np.isnan(windows[i]["success"]).any()]
    chosen = [known[i] for i in np.linspace(0, len(known) - 1, min(count, len(known))).astype(int)]
    batch = batch_of(policy, windows, store.name, chosen)
    ids = np.concatenate([batch["sample_id"], np.zeros((len(chosen), 1), np.uint32)], 1)

    planner = BestOfN(action_value=True)

    def judged(model: Any, tokenizer: Any, batch: Any, ids: Any) -> Any:
        return planner.search(model, tokenizer, batch, row_keys(ids), None)[0].info["judged"]

    values = np.asarray(policy.engine.jit("judge", judged)(batch, ids), np.float64)  # [moments, N, K + 1]
    won = np.array([np.isfinite(windows[i]["success"][0]) for i in chosen])
    return {
        "moments": len(chosen),
        "V": described(values[..., :-1], won),
        "Q": described(values[..., -1:], won),
    }


def described(values: np.ndarray, won: np.ndarray) -> dict[str, float]:
    """See `judge`; values [moments, N, futures], won bool [moments]."""
    moment = values.mean((1, 2))
    found = {
        "auc": auc(moment[won], moment[~won]),
        "between_moments": float(moment.std()),
        "between_chunks": float(values.mean(2).std(1).mean()),
        "between_futures": float(values.std(2).mean()),
    }
    return {name: round(value, 4) for name, value in found.items()}


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive is above a negative, ties counting half; nan if either is missing."""
    if not len(positive) or not len(negative):
        return float("nan")
    gap = positive[:, None] - negative
    return float(((gap > 0) + 0.5 * (gap == 0)).mean())
