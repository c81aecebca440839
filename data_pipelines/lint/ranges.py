"""Checks of single dimensions: finite, varying, within a range that a normaliser can use."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_pipelines.lint.finding import Check, Finding, Place, Severity, counted, listed
from data_pipelines.lint.survey import Survey, quantiles

CONSTANT = 1e-4
"""Below this distance of the 1 % and 99 % quantiles the default normaliser leaves a dimension as it is."""
MOVES = 1e-3
OUTLIER = 5.0
GROSS = 50.0
SATURATED = 0.05


def _place(survey: Survey, what: str, dim: int, hit: np.ndarray) -> Place:
    """The first row at which `hit` holds, bool over the rows of all episodes."""
    row = int(hit.argmax())
    for number, episode in enumerate(survey.episodes):
        rows = getattr(episode.rows, what)
        if rows is not None and row < len(rows):
            return Place(number, what, survey.names(what)[dim], row, row)
        row -= 0 if rows is None else len(rows)
    raise AssertionError(f"row {row} of {what} is in no episode")


def _named(survey: Survey, place: Place) -> str:
    return f"episode {survey.episodes[place.episode].rows.name!r}, step {place.first}"


def find_not_finite(survey: Survey) -> Iterator[Finding]:
    for what in ("state", "action"):
        bad = ~np.isfinite(survey.pooled(what))
        for dim in np.flatnonzero(bad.any(0)).tolist():
            place, count = _place(survey, what, dim, bad[:, dim]), int(bad[:, dim].sum())
            yield Finding(
                Severity.ERROR,
                f"{what} {survey.names(what)[dim]!r} is NaN or infinite in {counted(count, 'row')}, first in "
                f"{_named(survey, place)}",
                [place],
                {"rows": count},
            )


def find_constant(survey: Survey) -> Iterator[Finding]:
    for what in ("state", "action"):
        values = survey.pooled(what)
        if not values.size:
            continue
        low, high = quantiles(values, (0.0, 1.0))
        inert = survey.span(what) < CONSTANT
        names = survey.names(what)
        if what == "action":  # of a gripper that never moves, its own check speaks
            inert[[dim for dim, name in enumerate(names) if "grip" in name.lower()]] = False
        if len(still := np.flatnonzero(inert & (high - low < MOVES))):
            yield Finding(
                Severity.NOTE,
                f"{len(still)} of {len(names)} {what} dimensions hold one value: {listed(names[d] for d in still)}",
                numbers={"dimensions": [names[d] for d in still]},
            )
        for dim in np.flatnonzero(inert & (high - low >= MOVES)).tolist():
            middle = float(np.nanmedian(values[:, dim]))
            place = _place(survey, what, dim, np.abs(values[:, dim] - middle) > MOVES / 2)
            yield Finding(
                Severity.WARNING,
                f"{what} {names[dim]!r} holds one value in 98 % of the rows yet reaches {low[dim]:.4g} and "
                f"{high[dim]:.4g}: normalised by quantiles it keeps its raw size, so name min/max for it",
                [place],
                {"min": float(low[dim]), "max": float(high[dim])},
            )


def find_outliers(survey: Survey) -> Iterator[Finding]:
    for what in ("state", "action"):
        values, span = survey.pooled(what), survey.span(what)
        if not values.size:
            continue
        low, high = quantiles(values, (0.01, 0.99))
        away = np.maximum(low - values, values - high) / np.maximum(span, CONSTANT)
        away = np.where(np.isfinite(away) & (span >= CONSTANT), away, 0)
        for dim in np.flatnonzero(away.max(0) > OUTLIER).tolist():
            rows, factor = int((away[:, dim] > OUTLIER).sum()), float(away[:, dim].max())
            place = _place(survey, what, dim, away[:, dim] > OUTLIER)
            yield Finding(
                Severity.ERROR if factor > GROSS else Severity.WARNING,
                f"{what} {survey.names(what)[dim]!r} lies up to {factor:.3g} times its 1-99 % span ({low[dim]:.4g} to "
                f"{high[dim]:.4g}) beyond it, in {counted(rows, 'row')}, first in {_named(survey, place)}",
                [place],
                {"factor": factor, "rows": rows},
            )


def find_saturated(survey: Survey) -> Iterator[Finding]:
    values, span, kinds = survey.pooled("action"), survey.span("action"), survey.action_kinds
    if not values.size:
        return
    low, high = quantiles(values, (0.0, 1.0))
    found: list[tuple[float, int, str, float]] = []  # share, dimension, which end, its value
    for dim, name in enumerate(survey.action_names):
        is_gripper = (kinds and kinds[dim] == "gripper") or "grip" in name.lower()
        if is_gripper or span[dim] < CONSTANT or len(np.unique(values[:, dim])) <= 3:
            continue
        for end, bound in (("minimum", low[dim]), ("maximum", high[dim])):
            share = float((np.abs(values[:, dim] - bound) <= 1e-6 * (high[dim] - low[dim])).mean())
            if share > SATURATED:
                found.append((share, dim, end, float(bound)))
    if not found:
        return
    found.sort(reverse=True)
    names = survey.action_names
    said = listed((f"{names[dim]!r} at its {end} {bound:.4g} in {share:.0%}" for share, dim, end, bound in found), 6)
    _, dim, _, bound = found[0]
    near = 1e-6 * (high[dim] - low[dim])
    yield Finding(
        Severity.WARNING,
        f"actions stay at an end of their range: {said} of the steps. They were clipped, or the command reaches its "
        "limit",
        [_place(survey, "action", dim, np.abs(values[:, dim] - bound) <= near)],
        {"dimensions": [{"name": names[d], "end": end, "share": share} for share, d, end, _ in found]},
    )


CHECKS = (
    Check(
        "finite values",
        "NaN or infinity in states or actions. One such value turns a training step into NaN.",
        "any",
        find_not_finite,
    ),
    Check(
        "constant dimensions",
        "Dimensions that never vary (they teach nothing), or vary so rarely that a normaliser by quantiles silently "
        "does nothing to them.",
        f"1-99 % span below {CONSTANT:g}, where normalisers stop scaling; warns if values differ by {MOVES:g} or more",
        find_constant,
    ),
    Check(
        "outliers",
        "Values far outside the bulk: broken sensors, unit changes, wrong columns. Normalised, they dominate a loss.",
        f"further beyond the 1 % or 99 % quantile than {OUTLIER:g} times their distance; error from {GROSS:g} times",
        find_outliers,
    ),
    Check(
        "saturation",
        "Actions that sit exactly at their smallest or largest value: clipped by a conversion or by the controller.",
        f"more than {SATURATED:.0%} of the steps at one end; grippers and dimensions of up to three values are exempt",
        find_saturated,
    ),
)
