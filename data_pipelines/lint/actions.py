"""Checks of what actions mean: do they behave as declared, are they commands at all, which way does the gripper go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from data_pipelines.lint.finding import Check, Finding, Place, Severity, counted, listed
from data_pipelines.lint.ranges import CONSTANT
from data_pipelines.lint.survey import Survey
from wam.embodiment import Gripper

FITS, MARGIN = 0.6, 0.2
LAGS = (0, 1, 2)
MIN_ROWS = 20
EQUAL, EQUAL_SHARE = 1e-5, 0.99
BIMODAL, BIMODAL_END, OUTSIDE = 0.8, 0.1, 0.1
GRIPPER_LAG_SECONDS, FOLLOWS = 1.0, 0.3

HYPOTHESES = {
    "absolute": "an absolute target",
    "subtracted": "a target from which the state was subtracted twice",
    "delta": "a delta",
    "second": "a delta of deltas",
}


@dataclasses.dataclass(frozen=True)
class Fit:
    """How well one action dimension is explained by one state dimension, linearly, under each hypothesis."""

    action: int
    state: int
    r2: dict[str, float]
    slope: float
    """of the state's own value, of the absolute hypothesis"""

    @property
    def best(self) -> str | None:
        """The hypothesis that explains the action, clearly better than the others; None if none does."""
        order = sorted(self.r2, key=lambda name: -self.r2[name])
        if self.r2[order[0]] < FITS or self.r2[order[0]] - self.r2[order[1]] < MARGIN:
            return None
        if order[0] == "absolute" and self.slope < 0:
            return "subtracted"
        return order[0]


def _grippers(survey: Survey, what: str) -> list[int]:
    names, kinds = survey.names(what), survey.action_kinds if what == "action" else ()
    return [d for d, name in enumerate(names) if "grip" in name.lower() or (kinds and kinds[d] == "gripper")]


def aligned(survey: Survey) -> tuple[np.ndarray, dict[str, list[np.ndarray]]]:
    """Actions f64 [n, A], and what explains them under each hypothesis, one [n, S] a lag.

    With s the state after the action: absolute s, delta its change over the action, second the change of that. Robots
    react late, so later steps are tried as well.
    """
    actions: list[np.ndarray] = []
    inputs: dict[str, list[list[np.ndarray]]] = {name: [[] for _ in LAGS] for name in ("absolute", "delta", "second")}
    for episode in survey.episodes:
        state, action = episode.rows.state, episode.rows.action
        if state is None or action is None or len(state) < max(LAGS) + 4:
            continue
        s, last = state.astype(np.float64), min(len(action), len(state) - 1 - max(LAGS))
        t = np.arange(1, last)
        actions.append(action[t].astype(np.float64))
        for lag in LAGS:
            inputs["absolute"][lag].append(s[t + 1 + lag])
            inputs["delta"][lag].append(s[t + 1 + lag] - s[t + lag])
            inputs["second"][lag].append(s[t + 1 + lag] - 2 * s[t + lag] + s[t + lag - 1])
    if not actions:
        return np.empty((0, 0)), {name: [] for name in inputs}
    return np.concatenate(actions), {name: [np.concatenate(lag) for lag in lags] for name, lags in inputs.items()}


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[A, S] of the columns of [n, A] and [n, S]; 0 where one does not vary."""
    a, b = a - a.mean(0), b - b.mean(0)
    size = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)
    return np.where(size > 1e-9, a.T @ b / np.maximum(size, 1e-9), 0.0)


def fits(survey: Survey) -> list[Fit]:
    """Of every action dimension that moves, but for grippers.

    The state dimension of the same name is taken, else that of the same number where there are as many of both, else
    the one that explains most.
    """
    actions, inputs = aligned(survey)
    finite = np.isfinite(actions).all(1)
    for lags in inputs.values():
        for array in lags:
            finite &= np.isfinite(array).all(1)
    if finite.sum() < MIN_ROWS or not actions.shape[1] or not inputs["absolute"][0].shape[1]:
        return []
    actions = actions[finite]
    correlation = {
        name: np.stack([_correlation(actions, array[finite]) for array in lags]) for name, lags in inputs.items()
    }
    r2 = {name: np.square(found).max(0) for name, found in correlation.items()}  # [A, S]
    # A lagging state is a worse target than the next one only by noise: the sign and slope are those of the next.
    found, names = [], survey.state_names
    for dim in np.flatnonzero(actions.std(0) > 1e-6):
        if dim in _grippers(survey, "action"):
            continue
        if survey.action_names[dim] in names:
            state = names.index(survey.action_names[dim])
        elif len(names) == len(survey.action_names):
            state = int(dim)
        else:
            state = int(np.max([r2[name][dim] for name in r2], axis=0).argmax())
        target = inputs["absolute"][0][finite][:, state]
        slope = correlation["absolute"][0, dim, state] * actions[:, dim].std() / max(target.std(), 1e-9)
        found.append(Fit(int(dim), state, {name: float(r2[name][dim, state]) for name in r2}, float(slope)))
    return found


_WRONG = {
    ("delta", "absolute"): "windows would add targets up: declare it absolute, or relative",
    ("absolute", "delta"): "a repeated last value would go on moving: declare it delta",
    ("relative", "delta"): "the state would be subtracted twice: declare it delta, or ingest the targets",
}
_TWICE = "a difference was taken twice before the data came here: go back to the source's own actions"


def find_wrong_kind(survey: Survey) -> Iterator[Finding]:
    groups: dict[tuple[str, str], list[Fit]] = {}
    for fit in fits(survey):
        declared = survey.action_kinds[fit.action] if survey.action_kinds else ""
        if fit.best is not None:
            groups.setdefault((declared, fit.best), []).append(fit)
    for (declared, best), found in groups.items():
        twice = best in ("second", "subtracted")
        if declared and not twice and (declared, best) not in _WRONG:
            continue
        most = max(found, key=lambda fit: max(fit.r2.values()))
        names = listed(repr(survey.action_names[fit.action]) for fit in found)
        values = ", ".join(f"{HYPOTHESES[name]} {value:.2f}" for name, value in most.r2.items())
        evidence = (
            f"{survey.action_names[most.action]!r} against state {survey.state_names[most.state]!r}: R2 as {values}, "
            f"slope {most.slope:.2g}"
        )
        kind = f"declared {declared}" if declared else "undeclared"
        advice = _TWICE if twice else _WRONG.get((declared, best), "declare the kind of every action dimension")
        yield Finding(
            Severity.ERROR if declared or twice else Severity.NOTE,
            f"action {names} ({kind}) {'behaves' if len(found) == 1 else 'behave'} like {HYPOTHESES[best]}; "
            f"{evidence}. "
            f"{advice[0].upper()}{advice[1:]}",
            [Place(0, "action", survey.action_names[most.action])],
            {"declared": declared, "behaves": best, "dimensions": [survey.action_names[f.action] for f in found]}
            | {"r2": most.r2, "slope": most.slope, "state": survey.state_names[most.state]},
        )


def _equal_dims(survey: Survey, shift: int) -> dict[int, int]:
    """Action dimension -> the moving state dimension that it equals, `shift` steps later."""
    pairs = [(e.rows.action, e.rows.state) for e in survey.episodes]
    series = [(a, s) for a, s in pairs if a is not None and s is not None]
    if not series:
        return {}
    a = np.concatenate([action[: min(len(action), len(state) - shift)] for action, state in series])
    s = np.concatenate([state[shift:][: min(len(action), len(state) - shift)] for action, state in series])
    moving = np.flatnonzero(survey.span("state") >= CONSTANT)
    found = {}
    for dim in np.flatnonzero(survey.span("action") >= CONSTANT):
        near = np.abs(s[:, moving] - a[:, [dim]]) <= EQUAL * np.maximum(1, np.abs(a[:, [dim]]))
        share = near.mean(0) if len(near) else np.zeros(len(moving))
        if len(share) and share.max() >= EQUAL_SHARE:
            found[int(dim)] = int(moving[share.argmax()])
    return found


def find_action_is_state(survey: Survey) -> Iterator[Finding]:
    for shift, said in ((0, "the state at the same step"), (1, "the state one step later")):
        dims = _equal_dims(survey, shift)
        if not dims:
            continue
        names = listed(repr(survey.action_names[dim]) for dim in dims)
        deltas = [d for d in dims if survey.action_kinds and survey.action_kinds[d] == "delta"]
        if deltas:
            severity, advice = Severity.ERROR, "declared delta, they are absolute"
        elif shift == 0:
            severity, advice = Severity.ERROR, "nothing was commanded: a policy that copies them stays where it is"
        else:
            severity, advice = Severity.NOTE, "they are what was measured next, not what was commanded"
        yield Finding(
            severity,
            f"action {names} equal{'s' if len(dims) == 1 else ''} {said} ({len(dims)} of {len(survey.action_names)} "
            f"dimensions): {advice}",
            [Place(0, "action", survey.action_names[next(iter(dims))])],
            {"dimensions": [survey.action_names[dim] for dim in dims], "shift": shift},
        )
        return


def find_gripper(survey: Survey) -> Iterator[Finding]:
    measured = _grippers(survey, "state")
    for dim in _grippers(survey, "action"):
        name, values = survey.action_names[dim], survey.pooled("action")[:, dim]
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
        if high - low < CONSTANT:
            yield Finding(
                Severity.WARNING,
                f"gripper {name!r} never moves: it is {low:.4g} in every step",
                [Place(0, "action", name)],
            )
            continue
        if (declared := _declared(survey, "action", name)) is not None:
            bounds = sorted((declared.open, declared.closed))
            room = OUTSIDE * (bounds[1] - bounds[0])
            if low < bounds[0] - room or high > bounds[1] + room:
                yield Finding(
                    Severity.ERROR,
                    f"gripper {name!r} goes from {low:.4g} to {high:.4g}, declared are {declared.open:.4g} for open "
                    "and "
                    f"{declared.closed:.4g} for closed",
                    [Place(0, "action", name)],
                    {"min": low, "max": high},
                )
        ends = np.minimum(values - low, high - values) <= BIMODAL_END * (high - low)
        if (share := float(ends.mean())) < BIMODAL:
            yield Finding(
                Severity.NOTE,
                f"gripper {name!r} is continuous over {low:.4g} to {high:.4g}: {share:.0%} of its values lie near an "
                "end",
                [Place(0, "action", name)],
                {"min": low, "max": high, "near_ends": share},
            )
        if len(measured) == 1:
            yield from _follows(survey, dim, measured[0])


def _declared(survey: Survey, what: str, name: str) -> Gripper | None:
    """Which end of a gripper is open, if its robot says so."""
    robot = survey.embodiment
    grippers = () if robot is None else robot.action_grippers if what == "action" else robot.state_grippers
    return next((gripper for gripper in grippers if gripper.name == name), None)


def _bulk(values: np.ndarray) -> float:
    """Range without the ends: a few odd steps are no movement of a gripper."""
    high, low = np.quantile(values, (0.95, 0.05))
    return float(high - low)


def _follows(survey: Survey, dim: int, state_dim: int) -> Iterator[Finding]:
    """Compares a gripper's command with its measurement."""
    found: list[tuple[int, float]] = []  # (episode, correlation of the lag at which it is strongest)
    wide = {what: 0.3 * np.ptp(survey.pooled(what)[:, d]) for what, d in (("action", dim), ("state", state_dim))}
    for number, episode in enumerate(survey.episodes):
        action, state = episode.rows.action, episode.rows.state
        if action is None or state is None or len(action) < 4:
            continue
        a, best = action[:, dim].astype(np.float64), 0.0
        for lag in range(min(len(action) // 2, max(1, round(GRIPPER_LAG_SECONDS * episode.rows.hz))) + 1):
            s = state[lag : len(a)][:, state_dim].astype(np.float64)
            own = a[: len(s)]
            if len(s) > 2 and _bulk(own) > wide["action"] and _bulk(s) > wide["state"]:
                here = float(np.corrcoef(own, s)[0, 1])
                best = here if abs(here) > abs(best) else best
        if best:
            found.append((number, best))
    if not found:
        return
    name, other = survey.action_names[dim], survey.state_names[state_dim]
    r = np.array([value for _, value in found])
    sign = float(np.sign(np.median(r)))
    against = [number for number, value in found if value * sign < -FOLLOWS]
    if against and np.abs(np.median(r)) > FOLLOWS:
        who = listed(repr(survey.episodes[number].rows.name) for number in against)
        yield Finding(
            Severity.ERROR,
            f"gripper {name!r} goes the other way in {counted(len(against), 'episode')} of {len(found)} ({who}): its "
            f"correlation with {other!r} is {np.median(r):+.2f} in the median episode, {min(r * sign) * sign:+.2f} "
            "there",
            [Place(number, what, n) for number in against[:2] for what, n in (("action", name), ("state", other))],
            {"episodes": [survey.episodes[number].rows.name for number in against]},
        )
    elif abs(float(np.median(r))) < FOLLOWS:
        yield Finding(
            Severity.WARNING,
            f"gripper {name!r} does not move with the measured {other!r}: correlation {np.median(r):+.2f} in the "
            "median "
            "episode",
            [Place(found[0][0], "action", name), Place(found[0][0], "state", other)],
            {"correlation": float(np.median(r))},
        )
    elif (ends := [_declared(survey, "action", name), _declared(survey, "state", other)]) and all(ends):
        directions = [np.sign(gripper.open - gripper.closed) for gripper in ends if gripper is not None]
        if directions[0] * directions[1] != sign:
            yield Finding(
                Severity.ERROR,
                f"gripper {name!r} is declared the wrong way round: by the declared ends it should move "
                f"{'with' if sign < 0 else 'against'} {other!r}, their correlation is {np.median(r):+.2f}",
                [Place(found[0][0], "action", name), Place(found[0][0], "state", other)],
                {"correlation": float(np.median(r))},
            )
    elif sign < 0:
        yield Finding(
            Severity.NOTE,
            f"a larger command {name!r} goes with a smaller {other!r} (correlation {np.median(r):+.2f}): they have "
            "opposite signs, so declare which end is open",
            [Place(found[0][0], "action", name), Place(found[0][0], "state", other)],
            {"correlation": float(np.median(r))},
        )


CHECKS = (
    Check(
        "kind of action",
        "Absolute, relative or delta declared wrongly, or a difference taken twice: the most expensive silent fault, "
        "since losses still fall. Each action is regressed on the state after it, on the state's change, and on the "
        "change of that.",
        f"one explains R2 >= {FITS:g} and {MARGIN:g} more than the others, and it is not what is declared",
        find_wrong_kind,
    ),
    Check(
        "action equals state",
        "Actions that are a copy of the state: nobody recorded a command. Of the same step, they teach to stay in "
        "place.",
        f"equal within {EQUAL:g} in {EQUAL_SHARE:.0%} of the steps; error at the same step, or where deltas are "
        "declared",
        find_action_is_state,
    ),
    Check(
        "gripper",
        "Which way a gripper's command goes, within the declared ends, whether the measured gripper follows, and the "
        "same way in every episode.",
        f"constant; under {BIMODAL:.0%} of the values near an end; correlation with the measurement below {FOLLOWS:g}, "
        "or "
        "of another sign in some episodes",
        find_gripper,
    ),
)
