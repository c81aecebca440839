"""Checks of the data set as a whole: episodes twice, leaks, language, lengths, rates, and what cannot be read."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator

import numpy as np

from data_pipelines.lint.finding import Check, Finding, Place, Severity, counted, listed
from data_pipelines.lint.survey import Survey

RATE, JITTER = 0.02, 0.5
SHORT = 0.2
DOMINANT, DISTINCT, SAME_FOR_ALL = 0.5, 5, 20
SUSPICIOUS = frozenset(
    ("valid", "invalid", "test", "train", "none", "null", "nan", "n/a", "todo", "tbd", "dummy", "debug", "default",
     "unknown", "task", "instruction", "demo", "success", "failure", "placeholder")
)  # fmt: skip


def find_duplicates(survey: Survey) -> Iterator[Finding]:
    whole: dict[str, list[int]] = {}
    rows: dict[str, list[int]] = {}
    for n, episode in enumerate(survey.episodes):
        whole.setdefault(episode.digest, []).append(n)
        if digest := episode.rows.digest:
            rows.setdefault(digest, []).append(n)
    same = [group for group in whole.values() if len(group) > 1]
    near = [group for group in rows.values() if len({survey.episodes[n].digest for n in group}) > 1]
    for groups, said in (
        (same, "equal in rows and sampled frames"),
        (near, "equal in every action and state, not in frames"),
    ):
        if groups:
            names = [[survey.episodes[n].rows.name for n in group] for group in groups]
            extra = sum(len(group) - 1 for group in groups)
            yield Finding(
                Severity.WARNING,
                f"{counted(extra, 'episode')} of {len(survey.episodes)} {'is' if extra == 1 else 'are'} there already, "
                f"{said}: {listed((' = '.join(map(repr, group[:3])) for group in names), 3)}",
                [Place(n, "frames") for n in groups[0][:2]],
                {"groups": names},
            )


def find_leak(survey: Survey) -> Iterator[Finding]:
    if survey.shared:
        pairs = [f"{ours!r} = {theirs!r}" for ours, theirs in survey.shared.items()]
        yield Finding(
            Severity.ERROR,
            f"{len(survey.shared)} of {counted(survey.total, 'episode')} are also in {survey.against}: "
            f"{listed(pairs, 3)}. "
            "What is held out must be held out by content",
            numbers={"shared": len(survey.shared), "total": survey.total, "pairs": dict(survey.shared)},
        )


def find_language(survey: Survey) -> Iterator[Finding]:
    texts = [episode.rows.instruction.strip() for episode in survey.episodes]
    if not texts:
        return
    if empty := [episode.rows.name for episode, text in zip(survey.episodes, texts, strict=True) if not text]:
        yield Finding(
            Severity.WARNING,
            f"{counted(len(empty), 'episode')} of {len(texts)} {'has' if len(empty) == 1 else 'have'} no instruction: "
            f"{listed(map(repr, empty))}",
            numbers={"episodes": empty},
        )
    spoken = collections.Counter(text for text in texts if text)
    odd = [t for t in spoken if t.lower() in SUSPICIOUS or len(t) < 3 or not re.search(r"[^\W\d_]{2}", t)]
    if odd:
        yield Finding(
            Severity.WARNING,
            f"{counted(len(odd), 'instruction')} {'reads' if len(odd) == 1 else 'read'} like a label rather than a "
            "task: "
            f"{listed(f'{text!r} ({spoken[text]} episodes)' for text in odd)}",
            numbers={"instructions": odd},
        )
    if not spoken:
        return
    text, count = spoken.most_common(1)[0]
    if len(spoken) == 1 and len(texts) >= SAME_FOR_ALL:
        yield Finding(Severity.NOTE, f"all {len(texts)} episodes say {text!r}: the model can ignore language")
    elif len(spoken) >= DISTINCT and count > DOMINANT * spoken.total():
        yield Finding(
            Severity.WARNING,
            f"{count / spoken.total():.0%} of the episodes say {text!r}, the other {len(spoken) - 1} instructions "
            "share "
            "the rest",
            numbers={"share": count / spoken.total()},
        )


def find_lengths(survey: Survey) -> Iterator[Finding]:
    for n, episode in enumerate(survey.episodes):
        rows = episode.rows
        for what, array, allowed in (("states", rows.state, (0, 1)), ("timestamps", rows.seconds, (0,))):
            if array is not None and len(array) - rows.steps not in allowed:
                yield Finding(
                    Severity.ERROR,
                    f"episode {rows.name!r} has {len(array)} {what} for {rows.steps} actions or frames",
                    [Place(n, "state")] if what == "states" else [],
                )
        last = int(rows.frame_step[-1]) if len(rows.frame_step) else -1
        if rows.action is not None and (last > rows.steps or last < rows.steps - 1 - _stride(rows.frame_step)):
            yield Finding(
                Severity.ERROR,
                f"episode {rows.name!r} has {rows.steps} actions, and its {len(rows.frame_step)} frames end at step "
                f"{last}",
                [Place(n, "frames")],
            )
    seconds = np.array([episode.rows.steps / episode.rows.hz for episode in survey.episodes])
    if not len(seconds):
        return
    needed = survey.window_seconds
    short = np.flatnonzero(seconds < (needed if needed is not None else SHORT * np.median(seconds)))
    if len(short):
        least = int(seconds.argmin())
        name = survey.episodes[least].rows.name
        limit = (
            f"a window of {needed:g} s"
            if needed is not None
            else f"{SHORT:.0%} of the median {np.median(seconds):.2g} s"
        )
        yield Finding(
            Severity.WARNING,
            f"{counted(len(short), 'episode')} of {len(seconds)} {'is' if len(short) == 1 else 'are'} shorter than "
            f"{limit}; "
            f"the shortest, {name!r}, has {seconds[least]:.2g} s",
            [Place(least, "frames")],
            {"episodes": [survey.episodes[n].rows.name for n in short]},
        )


def _stride(steps: np.ndarray) -> int:
    return int(np.diff(steps).max()) if len(steps) > 1 else 1


def find_rates(survey: Survey) -> Iterator[Finding]:
    rates = collections.Counter(round(episode.rows.hz, 3) for episode in survey.episodes)
    if len(rates) > 1:
        said = ", ".join(f"{hz:g} Hz in {count}" for hz, count in rates.most_common(4))
        yield Finding(
            Severity.ERROR,
            f"episodes have different control rates ({said}): a store has one",
            numbers={"rates": {str(hz): count for hz, count in rates.items()}},
        )
    robot, usual = survey.embodiment, rates.most_common(1)[0][0] if rates else 0.0
    if robot is not None and rates and abs(usual / robot.control_hz - 1) > RATE:
        yield Finding(
            Severity.ERROR,
            f"{robot.name!r} is declared at {robot.control_hz:g} Hz, the data say {usual:g} Hz",
            numbers={"declared": robot.control_hz, "found": usual},
        )
    wrong: list[tuple[int, float]] = []
    uneven: list[tuple[int, float]] = []
    for n, episode in enumerate(survey.episodes):
        time, hz = episode.rows.seconds, episode.rows.hz
        if time is None or len(time) < 3:
            continue
        spacing = np.diff(time)
        found = (len(time) - 1) / (time[-1] - time[0]) if time[-1] > time[0] else 0.0
        if abs(found / hz - 1) > RATE:
            wrong.append((n, found))
        elif (worst := float(np.abs(spacing * hz - 1).max())) > JITTER:
            uneven.append((n, worst))
    if wrong:
        n, found = wrong[0]
        yield Finding(
            Severity.ERROR,
            f"timestamps say {found:.4g} rows a second, the data set {survey.episodes[n].rows.hz:g}, in "
            f"{counted(len(wrong), 'episode')} of {len(survey.episodes)}, first in {survey.episodes[n].rows.name!r}",
            numbers={"timestamps_hz": found, "declared_hz": survey.episodes[n].rows.hz},
        )
    if uneven:
        n, worst = max(uneven, key=lambda pair: pair[1])
        time = survey.episodes[n].rows.seconds
        assert time is not None
        at = int(np.abs(np.diff(time) * survey.episodes[n].rows.hz - 1).argmax())
        yield Finding(
            Severity.WARNING,
            f"timestamps are uneven in {counted(len(uneven), 'episode')}: in {survey.episodes[n].rows.name!r} step "
            f"{at} lasts "
            f"{time[at + 1] - time[at]:.3g} s instead of {1 / survey.episodes[n].rows.hz:.3g} s; rows were lost there",
            [Place(n, "state", "", at, at + 1)],
            {"episodes": [survey.episodes[n].rows.name for n, _ in uneven]},
        )


def find_bad(survey: Survey) -> Iterator[Finding]:
    if survey.bad:
        # The same reason in other episodes differs by names and numbers only.
        reasons = collections.Counter(re.sub(r"'[^']*'|\S*/\S*|\d+", "_", reason) for reason in survey.bad.values())
        looked = len(survey.bad) + len(survey.episodes)
        yield Finding(
            Severity.WARNING if survey.episodes else Severity.ERROR,
            f"{len(survey.bad)} of {counted(looked, 'episode')} cannot be read and would be quarantined, for "
            f"{counted(len(reasons), 'reason')}: {listed(survey.bad.values(), 3)}",
            numbers={"episodes": dict(survey.bad)},
        )


def find_problems(survey: Survey) -> Iterator[Finding]:
    for problem in survey.problems:
        yield Finding(Severity.NOTE, problem)


CHECKS = (
    Check("readable", "Episodes that cannot be read, with the reason; ingesting leaves them out.", "any", find_bad),
    Check("metadata", "What the metadata say that the files do not; the files are trusted.", "any", find_problems),
    Check(
        "lengths",
        "As many rows as frames, and enough of them for a window.",
        f"any mismatch; shorter than a window, or than {SHORT:.0%} of the median where no window is named",
        find_lengths,
    ),
    Check(
        "rates",
        "Rows a second: as declared, as the timestamps say, the same in every episode, without gaps.",
        f"{RATE:.0%} off; a step longer or shorter by {JITTER:.0%}",
        find_rates,
    ),
    Check(
        "duplicates",
        "The same episode twice: it counts double, and lands on both sides of a split.",
        "equal rows, by digest; with or without equal frames",
        find_duplicates,
    ),
    Check(
        "leakage",
        "Episodes that are also in the data set named by --against, such as the other split.",
        "any equal digest of the rows, over all episodes of both",
        find_leak,
    ),
    Check(
        "language",
        "Instructions: present, worded like a task, and of some variety.",
        f"empty; a known label such as 'valid', or without a word; over {DOMINANT:.0%} alike among {DISTINCT} or more; "
        f"one for all of {SAME_FOR_ALL} or more episodes",
        find_language,
    ),
)
