"""What the checks look at: a sample of a data set's episodes, with their rows whole and their frames sparse."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from data_pipelines.lint.episodes import Episodes, Rows
from data_pipelines.sources.source import BadEpisode
from wam.embodiment import EmbodimentSpec

THUMBNAIL = 96
"""Pixels of the longer side: enough to see what is there, and an average over the noise of sensor and codec."""
Progress = Callable[[Iterable[int], str], Iterable[int]]
"""wraps the numbers that are gone through, with what is being done: for a progress bar"""
SAME_LEVELS = 2
"""Two images are the same where no value differs by more than this."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Some frames of one camera in one episode: n evenly spaced ones, and a run of consecutive ones."""

    step: np.ndarray
    """int [n]: control step of each"""
    thumbnails: np.ndarray
    """uint8 [n, h, w, 3]"""
    spread: np.ndarray
    """f32 [n]: standard deviation of the pixels, in levels of 0..255"""
    run_step: np.ndarray
    """int [r]: control steps of frames that follow each other, where the robot moves most"""
    run_same: np.ndarray
    """bool [r - 1]: are two neighbours of the run equal, at full resolution?"""
    digest: str
    """SHA-256 of the n frames at full resolution"""

    @property
    def same(self) -> np.ndarray:
        """bool [n - 1]: does a frame look like the one before?"""
        wide = self.thumbnails.astype(np.int16)
        return np.abs(np.diff(wide, axis=0)).max((1, 2, 3), initial=0) <= SAME_LEVELS


@dataclasses.dataclass(frozen=True)
class Sampled:
    """One episode that was looked at."""

    number: int
    rows: Rows
    pictures: dict[str, Pictures]

    @property
    def digest(self) -> str:
        """Of everything seen: rows, and pixels of the sampled frames."""
        parts = [str(self.rows.steps), str(self.rows.digest), *(p.digest for _, p in sorted(self.pictures.items()))]
        return hashlib.sha256("/".join(parts).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Survey:
    """A sample of a data set. S and A are the same in all its episodes."""

    name: str
    total: int
    """episodes of the data set, looked at or not"""
    episodes: list[Sampled]
    bad: dict[str, str]
    """episode -> why it cannot be read"""
    problems: list[str]
    """what the metadata said that the files do not"""
    embodiment: EmbodimentSpec | None = None
    window_seconds: float | None = None
    """what a training sample needs after its first frame; None: not known"""
    against: str = ""
    """the data set that must not share an episode with this one; empty: none was named"""
    shared: dict[str, str] = dataclasses.field(default_factory=dict)
    """episode of this data set -> the same one in the other, over all episodes of both"""

    @functools.cached_property
    def state_names(self) -> tuple[str, ...]:
        return self._names("state", self.embodiment.state_names if self.embodiment else ())

    @functools.cached_property
    def action_names(self) -> tuple[str, ...]:
        return self._names("action", self.embodiment.action_names if self.embodiment else ())

    @property
    def action_kinds(self) -> tuple[str, ...]:
        """Empty where nothing fitting is declared."""
        kinds = self.embodiment.action_kinds if self.embodiment else ()
        return kinds if len(kinds) == len(self.action_names) else ()

    def _names(self, what: str, declared: tuple[str, ...]) -> tuple[str, ...]:
        dims = self.pooled(what).shape[1]
        return declared if len(declared) == dims else tuple(f"{what}[{d}]" for d in range(dims))

    def names(self, what: str) -> tuple[str, ...]:
        return self.state_names if what == "state" else self.action_names

    def series(self, what: str) -> list[np.ndarray]:
        """States or actions of every episode, [rows, dims]; none where the data set has none."""
        arrays = (getattr(episode.rows, what) for episode in self.episodes)
        return [array for array in arrays if array is not None]

    def pooled(self, what: str) -> np.ndarray:
        """f32 [rows of all episodes, dims]"""
        return self._pool[what]

    @functools.cached_property
    def _pool(self) -> dict[str, np.ndarray]:
        return {
            what: np.concatenate(found) if (found := self.series(what)) else np.empty((0, 0), np.float32)
            for what in ("state", "action")
        }

    def span(self, what: str) -> np.ndarray:
        """f64 [dims]: between the 1 % and 99 % quantiles of the finite values; the size that a dimension has."""
        return self._spans[what]

    @functools.cached_property
    def _spans(self) -> dict[str, np.ndarray]:
        return {what: np.subtract(*quantiles(self.pooled(what), (0.99, 0.01))) for what in ("state", "action")}


def quantiles(values: np.ndarray, at: tuple[float, ...]) -> np.ndarray:
    """f64 [len(at), dims] over the finite values; 0 where there is none."""
    finite = np.where(np.isfinite(values), values, np.nan)
    found = np.zeros((len(at), values.shape[1]))
    if (some := np.isfinite(values).any(0)).any():
        found[:, some] = np.nanquantile(finite[:, some].astype(np.float64), at, axis=0)
    return found


def thumbnails(frames: np.ndarray, side: int = THUMBNAIL) -> np.ndarray:
    """uint8 [n, h, w, 3] with at most `side` pixels on the longer side; every pixel is a mean of an area."""
    h, w = frames.shape[1:3]
    factor = min(1.0, side / max(h, w))
    size = (max(1, round(w * factor)), max(1, round(h * factor)))
    if factor == 1.0:
        return frames
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames])


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers below `count`, the first and the last among them; all if `wanted` is 0."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted or count)).round().astype(int)).tolist()


def look(episodes: Episodes, i: int, *, frames: int = 8, run: int = 9, side: int = THUMBNAIL) -> Sampled:
    """Reads one episode: all rows, `frames` frames spread over it and `run` consecutive ones; BadEpisode."""
    rows, pictures = episodes.rows(i), {}
    F = len(rows.frame_step)
    spread, middle = evenly(F, frames), _liveliest(rows)
    first = int(np.clip(middle - run // 2, 0, max(0, F - run)))
    following = list(range(first, min(F, first + run)))
    for camera in rows.cameras:
        chosen = sorted({*spread, *following})
        images = episodes.frames(i, camera, chosen)
        sparse, dense = (images[np.searchsorted(chosen, numbers)] for numbers in (spread, following))
        difference = np.abs(np.diff(dense.astype(np.int16), axis=0))
        pictures[camera] = Pictures(
            step=rows.frame_step[spread],
            thumbnails=thumbnails(sparse, side),
            spread=sparse.reshape(len(sparse), -1).std(1).astype(np.float32),
            run_step=rows.frame_step[following],
            run_same=difference.max((1, 2, 3), initial=0) <= SAME_LEVELS,
            digest=hashlib.sha256(np.ascontiguousarray(sparse).tobytes()).hexdigest(),
        )
    return Sampled(i, rows, pictures)


def _liveliest(rows: Rows) -> int:
    """Number of the frame around which the state (or else the action) changes most."""
    series = rows.action if rows.state is None else rows.state
    if series is None or len(series) < 2:
        return len(rows.frame_step) // 2
    change = np.abs(np.diff(np.nan_to_num(series), axis=0))
    step = int((change / (change.max(0) + 1e-9)).sum(1).argmax())
    return int(np.searchsorted(rows.frame_step, step))


def survey(
    episodes: Episodes,
    *,
    count: int = 50,
    frames: int = 8,
    window_seconds: float | None = None,
    against: Episodes | None = None,
    progress: Progress = lambda numbers, _: numbers,
) -> Survey:
    """Looks at `count` episodes evenly spaced over the data set (0: all of them).

    Args:
        episodes: of the data set.
        count: of episodes to look at.
        frames: of each of their cameras.
        window_seconds: see `Survey`.
        against: a data set that must not share an episode; the rows of all episodes of both are read, no frames except
            where there are no rows.
        progress: see `Progress`.
    """
    found: list[Sampled] = []
    bad: dict[str, str] = {}
    for i in progress(evenly(len(episodes), count), "episodes"):
        try:
            found.append(look(episodes, i, frames=frames))
        except BadEpisode as error:
            bad[f"number {i}"] = str(error)
    dims = [tuple(0 if a is None else a.shape[1] for a in (e.rows.state, e.rows.action)) for e in found]
    usual = collections.Counter(dims).most_common(1)[0][0] if dims else ()
    for episode, own in zip(found, dims, strict=True):
        if own != usual:
            bad[f"number {episode.number}"] = (
                f"episode {episode.rows.name!r} has {own[0]} state and {own[1]} action dims, most have {usual[0]} and "
                f"{usual[1]}"
            )
    shared = {}
    if against is not None:
        theirs = _digests(against, progress)
        shared = {name: theirs[digest] for digest, name in _digests(episodes, progress).items() if digest in theirs}
    return Survey(
        name=episodes.name,
        total=len(episodes),
        episodes=[episode for episode, own in zip(found, dims, strict=True) if own == usual],
        bad=bad,
        problems=list(episodes.problems),
        embodiment=episodes.embodiment,
        window_seconds=window_seconds,
        against=against.name if against is not None else "",
        shared=shared,
    )


def _digests(episodes: Episodes, progress: Progress) -> dict[str, str]:
    """Digest -> name of every readable episode; by its rows, or by its pixels where it has no rows that vary."""
    found: dict[str, str] = {}
    for i in progress(range(len(episodes)), f"digests of {episodes.name}"):
        try:
            rows = episodes.rows(i)
            digest = rows.digest or look(episodes, i, frames=3, run=1).digest
        except BadEpisode:
            continue
        found.setdefault(digest, rows.name)
    return found
