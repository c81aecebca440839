"""Where actions lead: the linear map from accumulated actions to the robot's displacement. Never decodes an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.stats import MAX_ROWS, Statistics, sampled
from data_pipelines.windows import Windows

RIDGE = 1.0
"""Pseudo-observations of every weight that say "it leads nowhere", against windows that do not overlap.

Negligible beside hundreds of these. With fewer windows than dimensions, or dimensions that hardly move, it keeps the
map small where least squares would learn the windows by heart and be wildly wrong on others.
"""


def accumulate(action: np.ndarray, steps: int, adds_up: np.ndarray) -> np.ndarray:
    """Where the first `steps` actions lead: the sum of deltas, the latest of other kinds. [..., K, A] -> [..., A]."""
    if steps == 0:
        return np.zeros_like(action[..., 0, :])
    return np.where(adds_up, action[..., :steps, :].sum(-2), action[..., steps - 1, :])


class _Moments:
    """Sums of products of the rows [z] = [x, y] seen so far: all that a linear fit needs, whatever their number."""

    def __init__(self, dims: int):
        self.count, self.sum, self.products = 0, np.zeros(dims), np.zeros((dims, dims))

    def add(self, rows: np.ndarray) -> None:
        self.count += len(rows)
        self.sum += rows.sum(0)
        self.products += rows.T @ rows

    def fit(self, unit: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ridge regression of y on x, given a unit for each dim of x: weights, bias, R^2 (0 where nothing varies)."""
        inputs = len(unit)
        mean = self.sum / self.count
        covariance = self.products - self.count * np.outer(mean, mean)
        xx, xy, yy = covariance[:inputs, :inputs], covariance[:inputs, inputs:], covariance[inputs:, inputs:]
        total = np.maximum(np.diag(yy), 0)
        weights = np.linalg.solve(xx / np.outer(unit, unit) + ridge * np.eye(inputs), xy / unit[:, None])
        weights /= unit[:, None]
        residual = total - 2 * (weights * xy).sum(0) + ((xx @ weights) * weights).sum(0)
        r2 = np.where(total > 1e-12, 1 - residual / np.maximum(total, 1e-12), 0)
        return weights, mean[inputs:] - mean[:inputs] @ weights, r2


def fit_lead(
    sources: Sequence[Windows],
    statistics: Statistics,
    action_dim: int,
    state_dim: int,
    *,
    max_rows: int = MAX_ROWS,
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression from accumulated actions to the robot's displacement, per future frame; for ONE embodiment.

    For frame j (1 <= j < T) of chunk m, from the chunk's start (its observation) to the frame:

        (state at the frame - state at the start) / scale  =  [accumulated actions, 1] @ lead[j - 1]

    with `scale` of the state normaliser, states and actions as windows give them, and accumulation as in `accumulate`
    over the actions that begin before the frame. Only windows whose actions and states are real up to the frame count;
    a frame that fewer than two of them reach leads nowhere; ValueError if that is true of all.

    Args:
        sources: windows of one embodiment and one timing.
        statistics: fitted on these sources or more.
        action_dim: A of the batch; weights are padded with zeros. Row A is the bias.
        state_dim: S of the batch, padded likewise.
        max_rows: as in `fit_statistics`.

    Returns:
        lead f32 [T-1, A+1, S] and R^2 f32 [T-1, S] (0 for padding and for dimensions that never move).
    """
    names = sorted({windows.embodiment.name for windows in sources})
    timings = {windows.config.timing for windows in sources}
    if len(names) != 1 or len(timings) != 1:
        raise ValueError(f"fit_lead takes the sources of one embodiment and one timing, got {names or 'none'}")
    embodiment, config = sources[0].embodiment, sources[0].config
    scale, unit = (normalizer.scale for normalizer in statistics.normalizers(embodiment.name))
    adds_up = np.array([kind == "delta" for kind in embodiment.model_action_kinds], np.bool_)
    T, A, S = len(config.frame_seconds), embodiment.model_action_dim, embodiment.model_state_dim
    starts = config.observation_frames
    chunk_of = [int(np.searchsorted(starts, j) - 1) for j in range(1, T)]  # a boundary frame ends the earlier chunk
    elapsed = np.asarray(config.frame_seconds)[1:] - config.observation_seconds[chunk_of]
    steps = [min(config.action_horizon, int(np.ceil(t * config.action_hz - 1e-6))) for t in elapsed]

    fps = max(windows.store.manifest["fps"] for windows in sources)
    overlaps = np.maximum(1, elapsed * fps)  # windows start a frame apart and see much the same
    moments = [_Moments(A + S) for _ in range(T - 1)]
    for windows, clip, anchors in sampled(sources, max_rows):
        low_dim, (state, real) = windows.low_dim_of(clip, anchors), windows.frame_state_of(clip, anchors)
        for j, (m, n) in enumerate(zip(chunk_of, steps, strict=True)):
            whole = real[:, j + 1] & low_dim["action_mask"][:, m, :n].all(1)
            moved = (state[whole, j + 1].astype(np.float64) - low_dim["state"][whole, m]) / scale
            led = accumulate(low_dim["action"][whole, m].astype(np.float64), n, adds_up)
            moments[j].add(np.concatenate([led, moved], 1))
    if T > 1 and max(seen.count for seen in moments) < 2:
        raise ValueError(
            f"no two windows of {embodiment.name!r} reach the frame at {config.frame_seconds[1]} s with real actions: "
            "its episodes are too short for these frame_seconds and this action_hz"
        )
    lead = np.zeros((T - 1, action_dim + 1, state_dim), np.float32)
    r2 = np.zeros((T - 1, state_dim), np.float32)
    for j, seen in enumerate(moments):
        if seen.count > 1:
            lead[j, :A, :S], lead[j, action_dim, :S], r2[j, :S] = seen.fit(unit, RIDGE * overlaps[j])
    return lead, r2
