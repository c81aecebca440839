"""Statistics of states and actions: normalisers, and where actions lead. Never decodes an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.windows import Windows
from wam.embodiment import Normalizer

MAX_WINDOWS = 100_000
"""Cap per source, for memory: beyond it, this many windows evenly spaced over the source are read."""


@dataclasses.dataclass(frozen=True)
class DimStatistics:
    """Per dimension [dim]; `count` values each."""

    count: int
    min: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    q01: np.ndarray
    q99: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> DimStatistics:
        """values: [count, dim]"""
        q01, q99 = np.quantile(values, (0.01, 0.99), axis=0)
        wide = values.astype(np.float64)
        return cls(len(values), values.min(0), values.max(0), wide.mean(0), wide.std(0), q01, q99)

    def to_json(self) -> dict:
        return {key: value if key == "count" else value.tolist() for key, value in vars(self).items()}

    @classmethod
    def from_json(cls, data: dict) -> DimStatistics:
        fields: dict[str, Any] = {k: v if k == "count" else np.asarray(v, np.float64) for k, v in data.items()}
        return cls(**fields)

    @property
    def normalizer(self) -> Normalizer:
        return Normalizer(self.q01, self.q99)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a run needs to know of its data: saved with the checkpoint, keyed by embodiment."""

    state: dict[str, DimStatistics]
    action: dict[str, DimStatistics]
    """after the transforms of the windows: grouped, relative; so they hold for one window config"""
    stores: dict[str, str]
    """name -> hash of every store with actions that they were fitted on"""

    def to_json(self) -> dict:
        return {
            "state": {name: dims.to_json() for name, dims in self.state.items()},
            "action": {name: dims.to_json() for name, dims in self.action.items()},
            "stores": dict(self.stores),
        }

    @classmethod
    def from_json(cls, data: dict) -> Statistics:
        return cls(
            {name: DimStatistics.from_json(dims) for name, dims in data["state"].items()},
            {name: DimStatistics.from_json(dims) for name, dims in data["action"].items()},
            dict(data["stores"]),
        )

    def normalizers(self, embodiment: str) -> tuple[Normalizer, Normalizer]:
        """(state, action) of an embodiment; ValueError if it was not in the data."""
        if embodiment not in self.state:
            raise ValueError(
                f"no statistics for the embodiment {embodiment!r}, only for {sorted(self.state)}: fit them on its data"
            )
        return self.state[embodiment].normalizer, self.action[embodiment].normalizer

    def check_fitted_on(self, sources: Sequence[Windows]) -> None:
        """Raises ValueError if a source with actions is not among the stores these statistics come from."""
        for windows in sources:
            store = windows.store
            if windows.embodiment.action_dim and store.hash not in self.stores.values():
                fitted = ", ".join(f"{name} ({digest[:8]})" for name, digest in self.stores.items()) or "no store"
                raise ValueError(
                    f"the statistics were fitted on {fitted}, not on {store.directory.name} ({store.hash[:8]}): "
                    "fit them again, or take the data they belong to"
                )


def _sample(windows: Windows, cap: int) -> Iterator[int]:
    count = len(windows)
    return (int(i) for i in np.linspace(0, count - 1, min(count, cap)).astype(np.int64))


def fit_statistics(sources: Sequence[Windows], *, max_windows: int = MAX_WINDOWS) -> Statistics:
    """Fits the statistics of every embodiment on what its windows really contain: masked steps are left out.

    Exact up to `max_windows` windows a source, evenly spaced beyond. ValueError if a source has no windows.
    """
    values: dict[str, dict[str, list[np.ndarray]]] = {}
    stores = {}
    for windows in sources:
        if not len(windows):
            raise ValueError(f"{windows.store.directory} has no usable window to fit statistics on")
        if not windows.embodiment.action_dim:
            continue
        stores[windows.store.directory.name] = windows.store.hash
        of = values.setdefault(windows.embodiment.name, {"state": [], "action": []})
        for i in _sample(windows, max_windows):
            low_dim = windows.low_dim(i)
            for what, rows in of.items():
                rows.append(low_dim[what][low_dim[f"{what}_mask"]])
    fitted = {
        name: {what: DimStatistics.of(np.concatenate(rows)) for what, rows in of.items()} for name, of in values.items()
    }
    return Statistics(
        {name: of["state"] for name, of in fitted.items()}, {name: of["action"] for name, of in fitted.items()}, stores
    )


def accumulate(action: np.ndarray, steps: int, is_delta: np.ndarray) -> np.ndarray:
    """Where the first `steps` actions lead: the sum of deltas, the latest of other kinds. [..., K, A] -> [..., A]."""
    if steps == 0:
        return np.zeros_like(action[..., 0, :])
    return np.where(is_delta, action[..., :steps, :].sum(-2), action[..., steps - 1, :])


def fit_lead(
    sources: Sequence[Windows],
    statistics: Statistics,
    action_dim: int,
    state_dim: int,
    *,
    max_windows: int = MAX_WINDOWS,
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares from accumulated actions to the robot's displacement, per future frame; for ONE embodiment.

    For frame j (1 <= j < T) of chunk m, from the chunk's start (its observation) to the frame:

        (state at the frame - state at the start) / scale  =  [accumulated raw actions, 1] @ lead[j - 1]

    with `scale` of the state normaliser, and accumulation as in `accumulate` over the actions that begin before the
    frame. Only windows whose actions and states are real up to the frame count.

    Args:
        sources: windows of one embodiment and one config.
        statistics: fitted on these sources or more.
        action_dim: A of the batch; weights are padded with zeros. Row A is the bias.
        state_dim: S of the batch, padded likewise.
        max_windows: at most so many windows a source, evenly spaced.

    Returns:
        lead f32 [T-1, A+1, S] and R^2 f32 [T-1, S] (0 for padding and for dimensions that never move).
    """
    names = sorted({windows.embodiment.name for windows in sources})
    configs = {windows.config for windows in sources}
    if len(names) != 1 or len(configs) != 1:
        raise ValueError(f"fit_lead takes the sources of one embodiment and one config, got {names or 'none'}")
    embodiment, config = sources[0].embodiment, configs.pop()
    scale = statistics.normalizers(embodiment.name)[0].scale
    is_delta = np.array([kind == "delta" for kind in embodiment.action_kinds])
    T, A, S = len(config.frame_seconds), embodiment.action_dim, embodiment.state_dim
    starts = config.observation_frames
    chunk_of = [int(np.searchsorted(starts, j) - 1) for j in range(1, T)]  # a boundary frame ends the earlier chunk
    elapsed = np.asarray(config.frame_seconds)[1:] - config.observation_seconds[chunk_of]
    steps = [min(config.action_horizon, int(np.ceil(t * config.action_hz - 1e-6))) for t in elapsed]

    inputs: list[list[np.ndarray]] = [[] for _ in range(T - 1)]
    targets: list[list[np.ndarray]] = [[] for _ in range(T - 1)]
    for windows in sources:
        for i in _sample(windows, max_windows):
            low_dim, (state, real) = windows.low_dim(i), windows.frame_state(i)
            for j, (m, n) in enumerate(zip(chunk_of, steps, strict=True)):
                if real[j + 1] and low_dim["action_mask"][m, :n].all():
                    inputs[j].append(np.append(accumulate(low_dim["action"][m], n, is_delta), 1.0))
                    targets[j].append((state[j + 1] - low_dim["state"][m]) / scale)
    lead = np.zeros((T - 1, action_dim + 1, state_dim), np.float32)
    r2 = np.zeros((T - 1, state_dim), np.float32)
    for j in range(T - 1):
        if len(inputs[j]) <= A + 1:
            raise ValueError(
                f"only {len(inputs[j])} windows of {embodiment.name!r} reach the frame at "
                f"{config.frame_seconds[j + 1]} s with real actions: too few to fit {A + 1} weights"
            )
        x, y = np.stack(inputs[j]).astype(np.float64), np.stack(targets[j]).astype(np.float64)
        weights = np.linalg.lstsq(x, y, rcond=None)[0]
        lead[j, :A, :S], lead[j, action_dim, :S] = weights[:A], weights[A]
        residual, total = np.square(y - x @ weights).sum(0), np.square(y - y.mean(0)).sum(0)
        r2[j, :S] = np.where(total > 1e-12, 1 - residual / np.maximum(total, 1e-12), 0)
    return lead, r2
