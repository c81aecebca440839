"""Figures that show where a policy is wrong: its error dimension by dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from wam.evaluation.plots import BLUE, GREY, INK, ORANGE, WIDTH, styled

OPEN_LOOP = {"policy": ("policy", BLUE), "hold": ("hold still", ORANGE)}


@styled
def plot_open_loop(row: Mapping[str, Any], *, most: int = 16) -> Figure:
    """Open-loop error of every action dimension, as a share of the error of the mean action: 1 is not looking.

    Args:
        row: of one source in open_loop.json: {"dims": {name: {"policy" | "mean" | "hold": mean absolute error}}}.
        most: dimensions shown, those with the largest share first. Where the mean has no error there is no share.
    """
    dims = {name: of for name, of in row["dims"].items() if of["mean"] > 0}
    names = sorted(dims, key=lambda name: -dims[name]["policy"] / dims[name]["mean"])[:most]
    figure = Figure(figsize=(WIDTH, 0.34 * max(1, len(names)) + 0.8), layout="constrained")
    ax = figure.subplots()
    for offset, (case, (label, color)) in zip((-0.19, 0.19), OPEN_LOOP.items(), strict=True):
        shares = [dims[name][case] / dims[name]["mean"] for name in names]
        ax.barh(np.arange(len(names)) + offset, shares, 0.34, color=color, label=label)
    ax.axvline(1.0, color=INK, lw=1.0, ls=(0, (4, 2)))
    ax.annotate("the mean", (1.0, 1.0), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
                color=GREY, va="top")  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set(xlabel="mean absolute error / that of the mean action")
    figure.legend(loc="outside upper right", ncols=len(OPEN_LOOP))
    return figure
