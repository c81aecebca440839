"""Checks of cameras: do they see something, does it change, and is it what their name says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image

from data_pipelines.lint.finding import Check, Finding, Place, Severity, counted, listed
from data_pipelines.lint.motion import positions, telling
from data_pipelines.lint.survey import Sampled, Survey

BLANK = 3.0
MOVED, FROZEN, FROZEN_WHOLLY = 0.1, 0.25, 0.9
RUN_MOVED, REPEATED = 0.002, 0.4
SWAP_RATIO, SWAP_EPISODES = 0.5, 3
TILE = 8


def cameras(survey: Survey) -> list[str]:
    return list(dict.fromkeys(camera for episode in survey.episodes for camera in episode.pictures))


def moved(
    survey: Survey, episode: Sampled, steps: np.ndarray, tells: tuple[np.ndarray, np.ndarray]
) -> np.ndarray | None:
    """f64 [n - 1]: how far the robot moves from each step to the next, in spans of the liveliest dimension.

    `tells` is `telling(survey)`. None where no row tells.
    """
    use, span = tells
    if not use.any():
        return None
    x = np.nan_to_num(positions(survey, episode.rows))
    return np.abs(np.diff(x[np.minimum(steps, len(x) - 1)][:, use], axis=0) / span[use]).max(1, initial=0)


def _episodes(survey: Survey, camera: str) -> Iterator[tuple[int, Sampled]]:
    return ((n, episode) for n, episode in enumerate(survey.episodes) if camera in episode.pictures)


def find_missing(survey: Survey) -> Iterator[Finding]:
    for camera in cameras(survey):
        lacking = [episode.rows.name for episode in survey.episodes if camera not in episode.pictures]
        if lacking:
            yield Finding(
                Severity.WARNING,
                f"camera {camera!r} is absent from {counted(len(lacking), 'episode')} of {len(survey.episodes)}: "
                f"{listed(lacking)}",
                numbers={"episodes": lacking},
            )


def find_blank(survey: Survey) -> Iterator[Finding]:
    for camera in cameras(survey):
        blank = {n: e.pictures[camera].spread < BLANK for n, e in _episodes(survey, camera)}
        hit = {n: mask for n, mask in blank.items() if mask.any()}
        if not hit:
            continue
        wholly, frames = [n for n, mask in hit.items() if mask.all()], sum(int(mask.sum()) for mask in hit.values())
        first = next(iter(hit))
        pictures = survey.episodes[first].pictures[camera]
        at = int(hit[first].argmax())
        level = float(pictures.thumbnails[at].mean())
        yield Finding(
            Severity.ERROR if wholly else Severity.WARNING,
            f"camera {camera!r} shows nothing in {counted(frames, 'sampled frame')} of {counted(len(hit), 'episode')} "
            f"({len(wholly)} of {len(blank)} from beginning to end): one even colour, of mean level {level:.0f}, first "
            "in "
            f"episode {survey.episodes[first].rows.name!r} at step {pictures.step[at]}",
            [Place(n, "frames", camera) for n in list(hit)[:2]],
            {"frames": frames, "episodes": [survey.episodes[n].rows.name for n in hit]},
        )


def find_frozen(survey: Survey) -> Iterator[Finding]:
    tells = telling(survey)
    for camera in cameras(survey):
        wholly: list[int] = []
        partly: list[int] = []
        for n, episode in _episodes(survey, camera):
            pictures = episode.pictures[camera]
            if len(pictures.step) < 2 or (pictures.spread < BLANK).all():
                continue
            distance = moved(survey, episode, pictures.step, tells)
            if distance is None:  # action-free video: nothing tells that it should change
                wholly += [n] if pictures.same.all() else []
            elif (should := distance > MOVED).any():
                alike = pictures.same & (pictures.spread[1:] >= BLANK)  # of blank frames another check speaks
                share = float(alike[should].mean())
                wholly += [n] if share >= FROZEN_WHOLLY else []
                partly += [n] if FROZEN <= share < FROZEN_WHOLLY else []
        for found, severity, said in ((wholly, Severity.ERROR, "never changes"), (partly, Severity.WARNING, "freezes")):
            if found:
                names = [survey.episodes[n].rows.name for n in found]
                when = "while the robot moves" if tells[0].any() else "from frame to frame"
                yield Finding(
                    severity,
                    f"camera {camera!r} {said} {when} in {counted(len(found), 'episode')}: {listed(map(repr, names))}",
                    [Place(n, "frames", camera) for n in found[:2]],
                    {"episodes": names},
                )


def find_repeated(survey: Survey) -> Iterator[Finding]:
    tells = telling(survey)
    for camera in cameras(survey):
        same: list[bool] = []
        rates, first = [], None
        for n, episode in _episodes(survey, camera):
            pictures = episode.pictures[camera]
            distance = moved(survey, episode, pictures.run_step, tells)
            if distance is None or not len(distance) or pictures.same.all():
                continue
            should = distance > RUN_MOVED
            same += pictures.run_same[should].tolist()
            rates.append(episode.rows.hz / float(np.median(np.diff(pictures.run_step))))
            if first is None and pictures.run_same[should].any():
                first = n
        if first is not None and (share := float(np.mean(same))) > REPEATED:
            yield Finding(
                Severity.WARNING,
                f"camera {camera!r} repeats its frame in {share:.0%} of {counted(len(same), 'moving step')}: it was "
                "stored "
                f"at {np.median(rates):.3g} frames a second and recorded at about {np.median(rates) * (1 - share):.2g}",
                [Place(first, "frames", camera)],
                {"share": share, "pairs": len(same)},
            )


def find_same_camera(survey: Survey) -> Iterator[Finding]:
    for a, b in itertools.combinations(cameras(survey), 2):
        both = [(n, e) for n, e in _episodes(survey, a) if b in e.pictures and (e.pictures[a].spread >= BLANK).any()]
        equal = [n for n, e in both if e.pictures[a].digest == e.pictures[b].digest]
        if equal:
            yield Finding(
                Severity.ERROR,
                f"cameras {a!r} and {b!r} show the same pixels in {len(equal)} of {counted(len(both), 'episode')}, "
                "first "
                f"in {survey.episodes[equal[0]].rows.name!r}",
                [Place(equal[0], "frames", camera) for camera in (a, b)],
                {"episodes": [survey.episodes[n].rows.name for n in equal]},
            )


def mean_views(survey: Survey) -> dict[str, dict[int, np.ndarray]]:
    """camera -> episode -> f64 [TILE, TILE, 3], the mean of its frames."""
    views: dict[str, dict[int, np.ndarray]] = {}
    for camera in cameras(survey):
        for n, episode in _episodes(survey, camera):
            mean = episode.pictures[camera].thumbnails.mean(0).round().astype(np.uint8)
            small = Image.fromarray(mean).resize((TILE, TILE), Image.Resampling.BOX)
            views.setdefault(camera, {})[n] = np.asarray(small, np.float64)
    return views


def find_swapped(survey: Survey) -> Iterator[Finding]:
    views = mean_views(survey)
    for a, b in itertools.combinations(views, 2):
        both = sorted(set(views[a]) & set(views[b]))
        if len(both) < SWAP_EPISODES:
            continue
        stack = {camera: np.stack([views[camera][n] for n in both]) for camera in (a, b)}
        usual = {camera: np.median(stack[camera], axis=0) for camera in (a, b)}
        away = {(x, y): np.abs(stack[x] - usual[y]).mean((1, 2, 3)) for x in (a, b) for y in (a, b)}
        exchanged = away[a, b] + away[b, a] < SWAP_RATIO * (away[a, a] + away[b, b])
        swapped = [n for n, is_swapped in zip(both, exchanged, strict=True) if is_swapped]
        if swapped:
            names = [survey.episodes[n].rows.name for n in swapped]
            yield Finding(
                Severity.ERROR,
                f"cameras {a!r} and {b!r} are exchanged in {counted(len(swapped), 'episode')} of {len(both)}: "
                f"{listed(map(repr, names))} look like everybody else's other camera",
                [Place(n, "frames") for n in [swapped[0], next((n for n in both if n not in swapped), swapped[0])]],
                {"episodes": names},
            )


CHECKS = (
    Check("cameras present", "Every episode has every camera; where one is absent its view is masked.", "any episode",
          find_missing),
    Check(
        "blank frames",
        "Frames of one colour: a lens cap, a placeholder, a failed decoder.",
        f"standard deviation of the pixels below {BLANK:g} levels; error if an episode has no other frame",
        find_blank,
    ),
    Check(
        "frozen cameras",
        "Pictures that stay the same while the robot moves: a stalled stream. A model learns that actions do nothing.",
        f"sampled frames between which a dimension moves by more than {MOVED:.0%} of its span look alike, in "
        f"{FROZEN:.0%} "
        f"of the pairs; error from {FROZEN_WHOLLY:.0%}. Without actions: all sampled frames look alike",
        find_frozen,
    ),
    Check(
        "repeated frames",
        "A camera slower than the rate it is stored at, filled up with copies: half of the predicted frames are "
        "trivial.",
        f"neighbours equal in more than {REPEATED:.0%} of the pairs between which the robot moves",
        find_repeated,
    ),
    Check("distinct cameras", "Two names for one stream.", "all sampled frames equal", find_same_camera),
    Check(
        "swapped cameras",
        "An episode whose cameras were plugged in the other way round.",
        f"the mean pictures of two cameras are, exchanged, less than {SWAP_RATIO:g} times as far from the median of "
        "the "
        f"all episodes as they are in place; from {SWAP_EPISODES} episodes on",
        find_swapped,
    ),
)  # fmt: skip
