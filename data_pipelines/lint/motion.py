"""Checks of movement in time: standing still, and jumping."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from data_pipelines.lint.finding import Check, Finding, Place, Severity, counted, listed
from data_pipelines.lint.ranges import CONSTANT
from data_pipelines.lint.survey import Rows, Survey

IDLE_SECONDS, IDLE_SPAN = 0.5, 0.01
IDLE_SHARE, IDLE_EPISODE, IDLE_STRETCH = 0.25, 0.6, 3.0
NOISE = 0.7
JUMP_MAD, JUMP_SPAN = 12.0, 0.5
SWITCH = 0.8
WRAP_MARGIN = 0.5


def positions(survey: Survey, rows: Rows) -> np.ndarray:
    """[N, D], what tells whether the robot moves: its state, or the positions that its actions add up to."""
    if rows.state is not None and rows.state.shape[1]:
        return rows.state[: rows.steps].astype(np.float64)
    if rows.action is None:
        return np.empty((rows.steps, 0))
    adds_up = np.array([kind == "delta" for kind in survey.action_kinds] or [False] * rows.action.shape[1])
    action = rows.action.astype(np.float64)
    return np.where(adds_up, np.cumsum(action, 0), action)


def telling(survey: Survey) -> tuple[np.ndarray, np.ndarray]:
    """(bool [D], f64 [D]): which dimensions of `positions` show movement, and the 1-99 % span of each.

    Not constant ones, nor those in which consecutive values differ as much as any two do: they are noise.
    """
    series = [positions(survey, episode.rows) for episode in survey.episodes]
    if not series or not series[0].shape[1]:
        return np.zeros(0, bool), np.zeros(0)
    pooled = np.nan_to_num(np.concatenate(series))
    span = np.subtract(*np.quantile(pooled, (0.99, 0.01), axis=0))
    steps = np.concatenate([np.diff(np.nan_to_num(one), axis=0) for one in series])
    noisy = steps.std(0) > NOISE * pooled.std(0) if len(steps) else np.zeros(len(span), bool)
    return (span >= CONSTANT) & ~noisy, span


def idle_steps(survey: Survey) -> list[np.ndarray]:
    """Per episode bool [N]: nothing moves around this step; all False where nothing tells."""
    use, span = telling(survey)
    found = []
    for episode in survey.episodes:
        x = np.nan_to_num(positions(survey, episode.rows))
        N = len(x)
        if not use.any():
            found.append(np.zeros(N, bool))
            continue
        half = max(1, round(IDLE_SECONDS / 2 * episode.rows.hz))
        t = np.arange(N)
        moved = np.abs(x[np.minimum(t + half, N - 1)] - x[np.maximum(t - half, 0)])[:, use] / span[use]
        found.append(moved.max(1) < IDLE_SPAN)
    return found


def stretches(mask: np.ndarray) -> list[tuple[int, int]]:
    """[first, last + 1) of every run of True."""
    edges = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def find_idle(survey: Survey) -> Iterator[Finding]:
    idle = idle_steps(survey)
    total = sum(len(mask) for mask in idle)
    if not total or not telling(survey)[0].any():
        return
    share = sum(int(mask.sum()) for mask in idle) / total
    if share > IDLE_SHARE:
        yield Finding(
            Severity.WARNING,
            f"{share:.0%} of all steps are idle: leave them out as anchors, or the policy learns to wait",
            numbers={"share": share},
        )
    per_episode = np.array([mask.mean() for mask in idle])
    if len(still := np.flatnonzero(per_episode > IDLE_EPISODE)):
        worst = int(per_episode.argmax())
        yield Finding(
            Severity.WARNING,
            f"{counted(len(still), 'episode')} of {len(idle)} stand still for more than {IDLE_EPISODE:.0%} of their "
            "time; "
            f"most {survey.episodes[worst].rows.name!r} with {per_episode[worst]:.0%}",
            [Place(worst, "state")],
            {"episodes": [survey.episodes[i].rows.name for i in still], "share": float(per_episode[worst])},
        )
    runs = [
        ((end - start) / survey.episodes[number].rows.hz, number, start, end)
        for number, mask in enumerate(idle)
        for start, end in stretches(mask)
    ]
    long = [run for run in runs if run[0] > IDLE_STRETCH]
    if long:
        seconds, number, start, end = max(long)
        hz = survey.episodes[number].rows.hz
        yield Finding(
            Severity.WARNING,
            f"{counted(len(long), 'pause')} of more than {IDLE_STRETCH:g} s; "
            "the "
            f"longest lasts {seconds:.1f} s, in episode {survey.episodes[number].rows.name!r} from {start / hz:.1f} s",
            [Place(number, "state", "", start, end - 1)],
            {"longest_seconds": seconds, "stretches": len(long)},
        )


def _switches(values: np.ndarray) -> bool:
    """Is it on or off, nearly always? Such a dimension is meant to jump."""
    low, high = np.nanmin(values), np.nanmax(values)
    return float((np.minimum(values - low, high - values) <= 0.1 * (high - low)).mean()) >= SWITCH


def _jumps(survey: Survey, what: str) -> Iterator[tuple[int, int, int, float, bool]]:
    """(dimension, episode, step before, size, is it a wrap-around) of every jump."""
    series, span, kinds = survey.series(what), survey.span(what), survey.action_kinds
    if not series or (what == "action" and not kinds):  # an action that may be a delta may do what it likes
        return
    for dim, name in enumerate(survey.names(what)):
        if "grip" in name.lower() or span[dim] < CONSTANT or _switches(survey.pooled(what)[:, dim]):
            continue
        if what == "action" and kinds[dim] not in ("absolute", "relative"):
            continue
        steps = [np.diff(np.nan_to_num(rows[:, dim].astype(np.float64))) for rows in series]
        pooled = np.abs(np.concatenate(steps))
        limit = max(JUMP_MAD * 1.4826 * float(np.median(pooled)), JUMP_SPAN * span[dim])
        for number, own in enumerate(steps):
            for step in np.flatnonzero(np.abs(own) > limit):
                before, after = series[number][step : step + 2, dim]
                near_pi = max(abs(abs(before) - math.pi), abs(abs(after) - math.pi)) < WRAP_MARGIN
                yield dim, number, int(step), float(own[step]), bool(near_pi and before * after < 0)


def find_jumps(survey: Survey, *, wraps: bool = False) -> Iterator[Finding]:
    for what in ("state", "action"):
        found = [jump for jump in _jumps(survey, what) if jump[-1] == wraps]
        if not found:
            continue
        names, span = survey.names(what), survey.span(what)
        found.sort(key=lambda jump: -abs(jump[3]) / span[jump[0]])
        dim, number, step, size, _ = found[0]
        dims = dict.fromkeys(jump[0] for jump in found)
        said = f"{what} {listed(repr(names[d]) for d in dims)}"
        where = f"{names[dim]!r} in episode {survey.episodes[number].rows.name!r} after step {step}"
        if wraps:
            text = (
                f"{said}: {counted(len(found), 'wrap-around')} at +-pi, such as {where} ({size:+.3g}): store a "
                "representation without a seam (rot6d), or unwrap it"
            )
        else:
            text = (
                f"{said}: {counted(len(found), 'jump')}, the largest by {size:.4g} ({abs(size) / span[dim]:.2g} of the "
                f"span) of {where}"
            )
        places = [Place(n, what, names[d], s, s + 1) for d, n, s, _, _ in found[:3]]
        numbers = {"steps": len(found), "largest": size, "dimensions": [names[d] for d in dims]}
        yield Finding(Severity.WARNING, text, places, numbers)


CHECKS = (
    Check(
        "idle time",
        "Steps at which nothing moves. A policy that copies them learns to stand still, and may never start.",
        f"idle: every dimension changes by less than {IDLE_SPAN:.0%} of its 1-99 % span within {IDLE_SECONDS:g} s; "
        "warns "
        f"above {IDLE_SHARE:.0%} of all steps, {IDLE_EPISODE:.0%} of an episode, or {IDLE_STRETCH:g} s at a stretch",
        find_idle,
    ),
    Check(
        "discontinuities",
        "Jumps of the state, or of absolute actions, within one step: lost packets, episodes glued together, mixed "
        "units.",
        f"a step beyond {JUMP_MAD:g} MAD of the dimension's steps and {JUMP_SPAN:.0%} of its 1-99 % span; grippers and "
        "dimensions that only switch are exempt",
        find_jumps,
    ),
    Check(
        "angle wrap-around",
        "Angles that cross +-pi: one small turn looks like a full one, and the mean of both sides points backwards.",
        f"a discontinuity between values within {WRAP_MARGIN:g} of +pi and of -pi",
        lambda survey: find_jumps(survey, wraps=True),
    ),
)
