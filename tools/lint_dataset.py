"""What a careful colleague would check in a data set before training on it, on one page, with an exit code for CI.

    python tools/lint_dataset.py --dataset NAME --path DIR --options split=train --against DIR:split=val --out lint.html
    python tools/lint_dataset.py --store runs/demo/data/train/expert --against runs/demo/data/validation/expert

Looks at `--episodes` episodes, evenly spaced (0: all), and at `--frames` frames of each. `--against` reads the rows of
every episode of both. Exit code: 0 clean, 1 a finding at or above --fail_on, 2 bad usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.lint import actions, motion
from data_pipelines.lint.checks import CHECKS, Findings, lint, to_json, worst
from data_pipelines.lint.finding import Finding, Place, Severity, counted
from data_pipelines.lint.survey import Survey, evenly, survey
from tools import dataset_page as shared
from wam.evaluation import dataset_plots
from wam.evaluation.page import Html, figure, join, note, page, table, tag
from wam.evaluation.report_media import Budget, figure_uri

MEDIA_BYTES = 9_000_000
MARGIN_SECONDS = 3.0
"""Of a trace, shown to each side of what a finding is about."""
SHOWN_DIMS = 12


def evidence(survey: Survey, place: Place, budget: Budget) -> list[Html]:
    """The stretch of an episode that a finding is about: a film strip, or a trace with the stretch shaded."""
    episode = survey.episodes[place.episode]
    if place.what == "frames":
        cameras = [place.name] if place.name in episode.pictures else None
        return shared.strips(episode, budget, cameras)
    rows = getattr(episode.rows, place.what)
    if rows is None or not rows.size:
        return []
    names = survey.names(place.what)
    dims = [names.index(place.name)] if place.name else list(_liveliest(rows))
    last = len(rows) - 1 if place.last is None else place.last
    room = round(MARGIN_SECONDS * episode.rows.hz)
    start, stop = max(0, place.first - room), min(len(rows), last + room + 1)
    shown = dataset_plots.plot_traces(
        {place.what: rows[start:stop, dims]}, [names[d] for d in dims], episode.rows.hz, first_step=start,
        marked=[] if place.last is None else [(place.first, last)],
    )  # fmt: skip
    return [_embedded(figure_uri(shown), f"{place.what} of {episode.rows.name}", budget)]


def _embedded(uri: str, caption: str, budget: Budget) -> Html:
    if not budget.take(uri):
        return note(f"{caption}: figure left out, the page has reached its size limit.")
    return figure(uri, caption, alt=caption)


def _liveliest(rows: np.ndarray) -> np.ndarray:
    """At most so many dimensions as a figure can show, in order."""
    moves = np.nan_to_num(rows).std(0)
    return np.sort(np.argsort(-moves, kind="stable")[:SHOWN_DIMS])


def _hypotheses(survey: Survey, finding: Finding, budget: Budget) -> list[Html]:
    """The scatter plots behind a finding about the kind of an action."""
    name = finding.places[0].name
    fit = next(fit for fit in actions.fits(survey) if survey.action_names[fit.action] == name)
    values, inputs = actions.aligned(survey)
    state = survey.state_names[fit.state]
    said = {"absolute": f"{state}, after", "delta": f"change of {state}", "second": f"change of the change of {state}"}
    columns = {said[key]: inputs[key][0][:, fit.state] for key in said}
    shown = dataset_plots.plot_hypotheses(
        values[:, fit.action], columns, {said[key]: fit.r2[key] for key in said}, f"action {name}"
    )
    return [_embedded(figure_uri(shown, pixels=True), "The command against what it could follow.", budget)]


def _finding(survey: Survey, check: str, finding: Finding, budget: Budget) -> Html:
    said = finding.severity.name.lower()
    parts = [tag("p", shared.badge(said), finding.text, class_="finding")]
    if check == "kind of action":
        return join([*parts, *_hypotheses(survey, finding, budget)])
    for place in list(finding.places)[:2]:
        parts += evidence(survey, place, budget)
    return join(parts)


def _summary(findings: Findings) -> Html:
    rows = []
    for check in CHECKS:
        found = findings[check.name]
        verdict = found[0].severity.name.lower() if found else "clean"
        link = tag("a", check.name, href="#findings") if found else Html(check.name)
        rows.append([link, shared.badge(verdict), str(len(found)) if found else "", check.means, check.threshold])
    return table(["check", "verdict", "findings", "what it looks for", "when it speaks"], rows)


def _tiles(survey: Survey, findings: Findings) -> Html:
    steps = sum(episode.rows.steps for episode in survey.episodes)
    minutes = sum(episode.rows.steps / episode.rows.hz for episode in survey.episodes) / 60
    cameras = dict.fromkeys(camera for episode in survey.episodes for camera in episode.pictures)
    counts = {s: sum(f.severity == s for found in findings.values() for f in found) for s in reversed(Severity)}
    robot = survey.embodiment.name if survey.embodiment else "not declared"
    tiles = {
        "findings": (", ".join(str(n) for n in counts.values()), "errors, warnings, notes"),
        "episodes": (f"{len(survey.episodes)} of {survey.total:,}", f"looked at; {len(survey.bad)} unreadable"),
        "steps": (f"{steps:,}", f"{minutes:.1f} minutes"),
        "dimensions": (f"{len(survey.state_names)} + {len(survey.action_names)}", f"state + action; robot {robot}"),
        "cameras": (str(len(cameras)), ", ".join(cameras) or "none"),
    }
    return tag(
        "div",
        *(tag("div", tag("span", name, class_="name"), tag("b", value), tag("span", said), class_="tile")
          for name, (value, said) in tiles.items()),
        class_="tiles",
    )  # fmt: skip


def _numbers(survey: Survey, budget: Budget) -> Html:
    parts: list[Html] = []
    for what in ("action", "state"):
        if (values := survey.pooled(what)).size:
            shown = dataset_plots.plot_distributions(values, survey.names(what))
            said = f"{what.capitalize()}: all rows looked at. Dashed: the 1 % and 99 % quantiles, which normalise."
            parts.append(_embedded(figure_uri(shown), said, budget))
    return join(parts or [note("This data set has neither states nor actions.")])


def _movement(survey: Survey, budget: Budget) -> Html:
    idle = motion.idle_steps(survey)
    if not motion.telling(survey)[0].any():
        return note("Nothing tells when the robot moves: there are no rows that vary.")
    shown = dataset_plots.plot_idle(idle, [episode.rows.hz for episode in survey.episodes])
    share = sum(int(mask.sum()) for mask in idle) / sum(len(mask) for mask in idle)
    return _embedded(
        figure_uri(shown), f"Episodes over time; coloured where nothing moves, {share:.1%} of all.", budget
    )


def _episodes(survey: Survey, budget: Budget) -> Html:
    parts: list[Html] = []
    for n in evenly(len(survey.episodes), 4):
        episode = survey.episodes[n]
        parts.append(tag("h3", episode.rows.name))
        parts += shared.strips(episode, budget)
        parts += [part for what in ("action", "state") for part in evidence(survey, Place(n, what), budget)]
    return join(parts or [note("No episode could be read.")])


def _language(survey: Survey) -> Html:
    texts: dict[str, int] = {}
    for episode in survey.episodes:
        texts[episode.rows.instruction] = texts.get(episode.rows.instruction, 0) + 1
    rows = [[text or "(empty)", str(count)] for text, count in sorted(texts.items(), key=lambda pair: -pair[1])]
    more = [note(f"and {len(rows) - 30} more")] if len(rows) > 30 else []
    return join([table(["instruction", "episodes"], rows[:30]), *more])


def lint_page(survey: Survey, findings: Findings) -> str:
    """The whole page as HTML; also for notebooks."""
    budget = Budget(MEDIA_BYTES)
    looked = f"{len(survey.episodes) + len(survey.bad)} of {counted(survey.total, 'episode')}, evenly spaced"
    against = f"; no episode may be in {survey.against}" if survey.against else ""
    shown = [
        join([tag("h3", check.name), *(_finding(survey, check.name, found, budget) for found in findings[check.name])])
        for check in CHECKS
        if findings[check.name]
    ]
    sections = [
        ("Verdict", join([tag("style", Html(shared.STYLE)), _tiles(survey, findings), _summary(findings)])),
        ("Findings", join(shown or [note("None: every check is content.")])),
        ("Numbers", _numbers(survey, budget)),
        ("Movement", _movement(survey, budget)),
        ("Episodes", _episodes(survey, budget)),
        ("Language", _language(survey)),
    ]
    if survey.bad:
        sections.append(("Unreadable", table(["episode", "why"], [[name, why] for name, why in survey.bad.items()])))
    return page(f"Lint: {survey.name}", tag("p", f"Looked at {looked}{against}.", class_="byline"), sections)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shared.add_arguments(parser)
    place = "a store, or PATH[:KEY=VALUE,...] of the same data set, that must not share an episode"
    parser.add_argument("--against", metavar="PLACE", help=place)
    parser.add_argument("--episodes", type=int, default=50, help="to look at, evenly spaced; 0: all (default 50)")
    parser.add_argument("--frames", type=int, default=8, help="of each camera of an episode (default 8)")
    parser.add_argument("--window_seconds", type=float, help="what a training sample needs after its first frame")
    parser.add_argument("--fail_on", choices=("note", "warning", "error"), default="error")
    parser.add_argument("--out", type=Path, default=Path("lint.html"), help="the page (default lint.html)")
    parser.add_argument("--json", type=Path, help="also write the findings as JSON")
    asked = parser.parse_args(arguments)
    if asked.episodes < 0 or asked.frames < 2:
        parser.error("--episodes must not be negative, and --frames must be 2 at least")
    try:
        options = shared.parse_options(asked.options)
        episodes = shared.open_episodes(asked.dataset, asked.path if asked.dataset else asked.store, options)
        other = shared.open_other(asked.dataset, asked.against, options) if asked.against else None
        seen = survey(
            episodes, count=asked.episodes, frames=asked.frames, window_seconds=asked.window_seconds, against=other,
            progress=shared.progress,
        )  # fmt: skip
        findings = lint(seen)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(lint_page(seen, findings), encoding="utf-8")
        if asked.json:
            asked.json.write_text(json.dumps(to_json(seen, findings), indent=1), encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"lint_dataset: {error}", file=sys.stderr)
        return 2
    for check, found in findings.items():
        for finding in found:
            print(f"{finding.severity.name.lower():8s}{check}: {finding.text}")
    bad = worst(findings)
    said = (
        f"{counted(sum(map(len, findings.values())), 'finding')}, worst {bad.name.lower()}"
        if bad is not None
        else "clean"
    )
    print(f"{asked.out}: {said}")
    return int(bad is not None and bad >= Severity[asked.fail_on.upper()])


if __name__ == "__main__":
    sys.exit(main())
