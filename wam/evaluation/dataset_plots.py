"""Figures of a data set: what its dimensions hold, how an episode runs, where it stands still, what actions follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wam.evaluation.plots import BLUE, GREY, INK, ORANGE, PALE, VERMILION, WIDTH, Numbers, styled


def _grid(count: int, columns: int, height: float, **options) -> tuple[Figure, list]:
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, height * rows + 0.35), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:count])


@styled
def plot_distributions(values: np.ndarray, names: Sequence[str]) -> Figure:
    """A histogram a dimension, over all rows, with the 1 % and 99 % quantiles that normalise it.

    Args:
        values: [rows, dims], finite or not.
        names: of the dims.
    """
    figure, axes = _grid(len(names), min(6, max(3, len(names))), 1.25)
    for ax, name, column in zip(axes, names, np.asarray(values, np.float64).T, strict=True):
        finite = column[np.isfinite(column)]
        if not len(finite):
            ax.set_title(f"{name}: nothing finite")
            continue
        low, high = np.quantile(finite, (0.01, 0.99))
        if finite.min() == finite.max():
            ax.axvline(finite[0], color=BLUE, lw=3)
        else:
            ax.hist(finite, bins=40, color=BLUE, alpha=0.85, lw=0)
        for bound in (low, high):
            ax.axvline(bound, color=VERMILION, lw=1.0, ls=(0, (3, 2)))
        ax.set_title(name, fontsize=8.5)
        ax.set_yticks([])
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.grid(visible=False)
        ax.spines["left"].set_visible(False)
    return figure


@styled
def plot_traces(
    series: Mapping[str, np.ndarray],
    names: Sequence[str],
    hz: float,
    *,
    first_step: int = 0,
    marked: Sequence[tuple[int, int]] = (),
) -> Figure:
    """States or actions over time, a panel a dimension.

    Args:
        series: {label: [steps, dims]}, drawn over each other.
        names: of the dims.
        hz: steps a second.
        first_step: of the first row, in the episode.
        marked: stretches of steps (both ends included) to shade.
    """
    figure, axes = _grid(len(names), 1 if len(names) == 1 else 2 if len(names) <= 10 else 4, 0.95, sharex=True)
    for index, (ax, name) in enumerate(zip(axes, names, strict=True)):
        for (label, values), color in zip(series.items(), (INK, VERMILION, BLUE), strict=False):
            time = (first_step + np.arange(len(values))) / hz
            ax.plot(time, values[:, index], color=color, lw=1.1, marker="." if len(values) <= 40 else "", ms=3,
                    label=label if index == 0 else None)  # fmt: skip
        for first, last in marked:
            ax.axvspan((first - 0.5) / hz, (last + 0.5) / hz, color=ORANGE, alpha=0.35, lw=0)
        ax.set_title(name, fontsize=8.5)
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.margins(x=0.01)
    for ax in axes[-4 if len(names) > 10 else -2 if len(names) > 1 else -1 :]:
        ax.set_xlabel("time (s)")
    if len(series) > 1:
        figure.legend(loc="outside upper right", ncols=len(series))
    return figure


@styled
def plot_idle(idle: Sequence[np.ndarray], hz: Numbers) -> Figure:
    """A line an episode: pale where it moves, coloured where it stands still.

    Args:
        idle: bool [N] of every episode.
        hz: steps a second of each.
    """
    figure = Figure(figsize=(WIDTH, min(6.0, 0.16 * len(idle)) + 0.8), layout="constrained")
    ax = figure.subplots()
    for row, (mask, rate) in enumerate(zip(idle, hz, strict=True)):
        ax.barh(row, len(mask) / rate, 0.8, color=PALE, lw=0)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))).reshape(-1, 2) / rate
        ax.broken_barh([(a, b - a) for a, b in edges], (row - 0.4, 0.8), color=VERMILION, lw=0)
    ax.set(xlabel="time (s)", ylabel="episode", ylim=(len(idle) - 0.5, -0.5))
    ax.yaxis.set_major_locator(MaxNLocator(min(10, max(1, len(idle))), integer=True))
    ax.grid(visible=False, axis="y")
    ax.margins(x=0.01)
    return figure


@styled
def plot_hypotheses(
    action: np.ndarray, explained_by: Mapping[str, np.ndarray], r2: Mapping[str, float], action_name: str
) -> Figure:
    """The commands against what they would follow, a panel a hypothesis.

    Args:
        action: [n]
        explained_by: {what is on the horizontal axis: [n]}
        r2: {the same: share of the variance that a line explains}
        action_name: of the vertical axis.
    """
    figure, axes = _grid(len(explained_by), len(explained_by), 2.2, sharey=True)
    best = max(r2, key=lambda name: r2[name])
    chosen = np.linspace(0, len(action) - 1, min(len(action), 1500)).astype(int)
    for ax, (label, values) in zip(axes, explained_by.items(), strict=True):
        color = BLUE if label == best else GREY
        ax.plot(values[chosen], action[chosen], ".", ms=2.5, alpha=0.5, color=color)
        ax.set_title(f"R² {r2[label]:.2f}", color=INK if label == best else GREY)
        ax.set_xlabel(label)
        ax.xaxis.set_major_locator(MaxNLocator(4))
    axes[0].set_ylabel(action_name)
    return figure
