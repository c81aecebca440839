"""Statistics of states and actions, and the normalisers they give. Never decodes an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.embodiments import agree
from data_pipelines.windows import Windows
from wam.embodiment import EmbodimentSpec, Normalizer

MAX_ROWS = 1_000_000
"""Actions, over all windows of an embodiment, that are read at most, which bounds memory and time: beyond it every n-th
window is taken. Windows overlap, so that with n no larger than the horizon hardly a control step is left out."""
NORMALIZATIONS = ("quantile", "mean_std", "min_max")


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
        columns = np.ascontiguousarray(values.T)  # one dimension at a time: no second copy of them all
        q01, q99 = np.array([np.quantile(column, (0.01, 0.99)) for column in columns]).reshape(-1, 2).T
        mean = np.array([column.mean(dtype=np.float64) for column in columns])
        std = np.array([np.std(column, dtype=np.float64) for column in columns])
        return cls(len(values), values.min(0), values.max(0), mean, std, q01, q99)

    def to_json(self) -> dict:
        return {key: value if key == "count" else value.tolist() for key, value in vars(self).items()}

    @classmethod
    def from_json(cls, data: dict) -> DimStatistics:
        fields: dict[str, Any] = {k: v if k == "count" else np.asarray(v, np.float64) for k, v in data.items()}
        return cls(**fields)

    def normalizer(self, kind: str, fixed: np.ndarray) -> Normalizer:
        """Of a kind in `NORMALIZATIONS`; dimensions in `fixed`, bool [dim], are left as they are."""
        low, high = {
            "quantile": (self.q01, self.q99),
            "mean_std": (self.mean - self.std, self.mean + self.std),
            "min_max": (self.min, self.max),
        }[kind]
        return Normalizer(np.where(fixed, -1.0, low), np.where(fixed, 1.0, high))


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a run needs to know of its data: saved with the checkpoint, keyed by embodiment."""

    state: dict[str, DimStatistics]
    action: dict[str, DimStatistics]
    """of what the model sees, see `Windows`: grouped, relative; so they hold for one window config"""
    stores: dict[str, str]
    """name -> hash of every store with actions that they were fitted on"""
    specs: dict[str, EmbodimentSpec]
    normalization: dict[str, str]
    """embodiment -> one of `NORMALIZATIONS`"""

    def to_json(self) -> dict:
        return {
            "state": {name: dims.to_json() for name, dims in self.state.items()},
            "action": {name: dims.to_json() for name, dims in self.action.items()},
            "stores": dict(self.stores),
            "specs": {name: spec.to_json() for name, spec in self.specs.items()},
            "normalization": dict(self.normalization),
        }

    @classmethod
    def from_json(cls, data: dict) -> Statistics:
        return cls(
            {name: DimStatistics.from_json(dims) for name, dims in data["state"].items()},
            {name: DimStatistics.from_json(dims) for name, dims in data["action"].items()},
            dict(data["stores"]),
            {name: EmbodimentSpec.from_json(spec) for name, spec in data["specs"].items()},
            dict(data["normalization"]),
        )

    def normalizers(self, embodiment: str) -> tuple[Normalizer, Normalizer]:
        """(state, action) of an embodiment; ValueError if it was not in the data."""
        if embodiment not in self.state:
            raise ValueError(
                f"no statistics for the embodiment {embodiment!r}, only for {sorted(self.state)}: fit them on its data"
            )
        kind, spec = self.normalization[embodiment], self.specs[embodiment]
        return (
            self.state[embodiment].normalizer(kind, spec.fixed_state),
            self.action[embodiment].normalizer(kind, spec.fixed_action),
        )

    def check_fitted_on(self, sources: Sequence[Windows]) -> None:
        """ValueError if a source with actions is none of the stores these were fitted on, or its robot has changed."""
        for windows in sources:
            store, robot = windows.store, windows.embodiment
            if robot.action_dim and store.hash not in self.stores.values():
                fitted = ", ".join(f"{name} ({digest[:8]})" for name, digest in self.stores.items()) or "no store"
                raise ValueError(
                    f"the statistics were fitted on {fitted}, not on {store.directory.name} ({store.hash[:8]}): "
                    "fit them again, or take the data they belong to"
                )
            if robot.action_dim and robot != self.specs[robot.name]:
                raise ValueError(
                    f"{store.directory.name} declares its embodiment {robot.name!r} differently than when the "
                    "statistics were fitted: fit them again, or put the declaration back"
                )


def by_embodiment(sources: Sequence[Windows]) -> dict[str, list[Windows]]:
    """The sources with actions of each embodiment. ValueError if one has no windows, or a name means two robots."""
    for windows in sources:
        if not len(windows):
            raise ValueError(f"{windows.store.directory} has no usable window to fit statistics on")
    acting = [windows for windows in sources if windows.embodiment.action_dim]
    names = agree((windows.store.directory.name, windows.embodiment) for windows in acting)
    return {name: [windows for windows in acting if windows.embodiment.name == name] for name in names}


def sampled(sources: Sequence[Windows], max_rows: int) -> Iterator[tuple[Windows, int, np.ndarray]]:
    """(windows, clip, anchors): every n-th window of the sources, clip by clip, n as small as `max_rows` allows."""
    rows = sum(len(windows) * windows.config.chunks * windows.config.action_horizon for windows in sources)
    stride = max(1, -(-rows // max_rows))
    for windows in sources:
        for clip in range(len(windows.store)):
            anchors = windows.anchors(clip, stride)
            if len(anchors):
                yield windows, clip, anchors


def fit_statistics(
    sources: Sequence[Windows],
    *,
    normalization: str = "quantile",
    overrides: Mapping[str, str] | None = None,
    max_rows: int = MAX_ROWS,
) -> Statistics:
    """Fits the statistics of every embodiment on what its windows really contain: masked steps are left out.

    Exact up to `max_rows` actions an embodiment. Beyond it they are those of an evenly spaced sample: with n values a
    quantile q is off by about sqrt(q (1 - q) / n) in rank, 0.0001 for 1 % of a million.

    Args:
        sources: windows of any robots, and of video without actions.
        normalization: one of `NORMALIZATIONS`.
        overrides: embodiment -> another one.
        max_rows: memory stays below this many rows of the widest embodiment, two times.

    Raises:
        ValueError: a source without windows, an unknown kind or embodiment, or a name that means two robots.
    """
    groups = by_embodiment(sources)
    kinds = dict.fromkeys(groups, normalization) | dict(overrides or {})
    if unknown := sorted(set(kinds) - set(groups)):
        raise ValueError(f"a normalization is given for {unknown[0]!r}, but the data has {sorted(groups)}")
    for name, kind in kinds.items():
        if kind not in NORMALIZATIONS:
            raise ValueError(f"unknown normalization {kind!r} of {name!r}; choose from {', '.join(NORMALIZATIONS)}")
    state, action = {}, {}
    for name, group in groups.items():
        values: dict[str, list[np.ndarray]] = {"state": [], "action": []}
        for windows, clip, anchors in sampled(group, max_rows):
            low_dim = windows.low_dim_of(clip, anchors)
            for what, rows in values.items():
                rows.append(low_dim[what][low_dim[f"{what}_mask"]])
        state[name], action[name] = (DimStatistics.of(np.concatenate(rows)) for rows in values.values())
    return Statistics(
        state,
        action,
        {w.store.directory.name: w.store.hash for group in groups.values() for w in group},
        {name: group[0].embodiment for name, group in groups.items()},
        kinds,
    )
