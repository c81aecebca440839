"""What an ingest will do, decided before a frame is decoded: which episodes, in which shard, at which rate."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.dataset import Dataset
from data_pipelines.datasets import get_dataset
from data_pipelines.differences import first_difference
from data_pipelines.resize import FACTS, FITS
from data_pipelines.selection import Ranges, find_ranges, read_ranges
from data_pipelines.sources.source import BadEpisode, Source
from data_pipelines.video_codec import VideoCodec

PLAN = "plan.json"
_SAME_RATE = 0.005  # relative: 29.97 frames a second pass as 30


@dataclasses.dataclass(frozen=True)
class IngestConfig:
    """All that decides the bytes of the stores."""

    dataset: str
    path: str
    image_size: tuple[int, int]
    """(h, w) in pixels"""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """of `Dataset.open`"""
    fit: str = "stretch"
    """see `resize.fit_image`; stretching is what most of the field does: all is seen, and no token is spent on bars"""
    fps: float | None = None
    """at most so many stored frames a second; None: all"""
    validation: float | tuple[str, ...] = 0.1
    """share of the episodes, by the hash of what they hold, or their names"""
    keep: str | None = None
    """JSON file {episode: [[start, end), ...]} of the steps at which windows may start; other episodes are left out"""
    min_steps: int = 2
    drop_idle: float | None = None
    """windows do not start where nothing changes by more than this: see `selection.idle_steps`"""
    idle_seconds: float = 0.5
    success_only: bool = False
    clip_seconds: float = 12.0
    overlap_seconds: float = 4.0
    """how far a window may reach"""
    codec: str = "h264"
    """or "png", without loss"""
    crf: int = VideoCodec.crf
    gop: int = VideoCodec.gop
    shard_frames: int = 8192

    def __post_init__(self):
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, got {self.fit!r}")
        if self.codec not in ("h264", "png"):
            raise ValueError(f"codec must be h264 or png, got {self.codec!r}")
        if len(self.image_size) != 2 or min(self.image_size) < 8:
            raise ValueError(f"image_size must be (h, w) of 8 pixels at least, got {self.image_size}")
        if self.video_codec:
            VideoCodec.check_size(*self.image_size)
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"fps must be positive, got {self.fps}")
        if isinstance(self.validation, float) and not 0 <= self.validation <= 1:
            raise ValueError(f"validation must be a share between 0 and 1 or names of episodes, got {self.validation}")
        if not 0 <= self.overlap_seconds < self.clip_seconds:
            raise ValueError(
                f"overlap_seconds must be at least 0 and below clip_seconds, got {self.overlap_seconds} of "
                f"{self.clip_seconds}"
            )
        if self.drop_idle is not None and (self.drop_idle < 0 or self.idle_seconds < 0):
            raise ValueError(f"drop_idle and idle_seconds must not be negative: {self.drop_idle}, {self.idle_seconds}")
        for name in ("min_steps", "shard_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def video_codec(self) -> VideoCodec | None:
        return VideoCodec(self.crf, self.gop) if self.codec == "h264" else None

    @property
    def splits(self) -> tuple[str, ...]:
        if self.validation in (0.0, ()):
            return ("train",)
        return ("validation",) if self.validation == 1.0 else ("train", "validation")

    def facts(self) -> dict:
        """JSON-able; with the version of everything else that decides the bytes, so that a change of it is noticed."""
        facts = json.loads(json.dumps(dataclasses.asdict(self)))
        if self.keep:
            facts["keep"] = {"file": self.keep, "sha256": read_ranges(self.keep)[1]}
        return facts | {"encoder": self.video_codec.facts if self.video_codec else None, "resize": FACTS}


@dataclasses.dataclass(frozen=True)
class Planned:
    """An episode of a job."""

    number: int
    episode: str
    frames: int
    keep: Ranges | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard a split; picklable, and all that `ingest.convert_shard` needs."""

    config: IngestConfig
    stores: Mapping[str, str]
    """split -> directory"""
    shard: str
    control_hz: float
    cameras: tuple[str, ...]
    episodes: tuple[Planned, ...]

    @property
    def result(self) -> pathlib.Path:
        """Written last: the job is done."""
        return pathlib.Path(next(iter(self.stores.values()))) / "jobs" / f"{self.shard}.json"

    @property
    def frames(self) -> int:
        return sum(planned.frames for planned in self.episodes)


@functools.lru_cache(maxsize=1)
def _opened(dataset: str, path: str, options: str) -> Source:
    return get_dataset(dataset).open(path, **json.loads(options))


def open_source(config: IngestConfig) -> tuple[Dataset, Source]:
    """Opened once a process; every caller gets a copy of its own, which has met no episode and no problem yet."""
    source = _opened(config.dataset, config.path, json.dumps(config.options, sort_keys=True))
    return get_dataset(config.dataset), copy.deepcopy(source)


def make_plan(config: IngestConfig) -> dict:
    """JSON-able: settings, control rate, cameras, shards, and the episodes that are left out or cannot be read.

    Raises:
        ValueError: nothing to ingest, names of episodes that the dataset lacks, an entry that the files contradict.
    """
    dataset, source = open_source(config)
    if wrong := dataset.check(source):
        raise ValueError(wrong[0] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
    ranges = read_ranges(config.keep)[0] if config.keep else None
    quarantined: list[dict] = []
    skipped: list[dict] = []
    rows: list[dict[str, Any]] = []
    for number in range(len(source)):
        try:
            about = source.about(number)
        except BadEpisode as error:
            quarantined.append({"number": number, "episode": None, "reason": str(error)})
            continue
        row: dict[str, Any] = {"number": number, "episode": about.episode, "frames": about.frames}
        if config.success_only and about.success is not True:
            skipped.append(row | {"reason": "failed" if about.success is False else "nobody says that it succeeded"})
        elif about.frames < config.min_steps:
            skipped.append(row | {"reason": f"shorter than {config.min_steps} steps"})
        elif ranges is not None and not (found := find_ranges(ranges, about.episode, about.extra)):
            skipped.append(row | {"reason": f"no range of it in {config.keep}"})
        else:
            kept = {} if ranges is None else {"keep": found}
            rows.append(row | kept | {"fps": about.fps, "cameras": sorted(about.cameras)})
    _check_names(config, [*rows, *skipped], source)
    if not rows:
        why = collections.Counter(row["reason"] for row in [*quarantined, *skipped]).most_common(1)
        raise ValueError(f"{config.path}: nothing to ingest of {len(source)} episodes; most often: {why[0][0]}")
    hz = _control_rate(config, dataset, [row["fps"] for row in rows])
    cameras = collections.Counter(tuple(dataset.cameras or row["cameras"]) for row in rows).most_common(1)[0][0]
    good = []
    for row in rows:
        rate = row.pop("fps")
        own = row.pop("cameras")
        resampled = config.fps is not None and not dataset.robot.action_dim
        if not resampled and abs(rate / hz - 1) > _SAME_RATE:
            reason = f"has {rate:.6g} steps a second, the store {hz:.6g}"
            if not dataset.robot.action_dim:
                reason += ": give fps, and video of any rate fits"
            quarantined.append({key: row[key] for key in ("number", "episode")} | {"reason": reason})
        elif not dataset.cameras and tuple(own) != cameras:
            reason = f"has the cameras {own}, the store {list(cameras)}"
            quarantined.append({key: row[key] for key in ("number", "episode")} | {"reason": reason})
        else:
            good.append(row)
    return {
        "settings": config.facts(),
        "source": {"name": source.name, "episodes": len(source)},
        "control_hz": hz,
        "cameras": list(cameras),
        "shards": _shards(good, config.shard_frames),
        "quarantined": quarantined,
        "skipped": skipped,
    }


def _check_names(config: IngestConfig, rows: Sequence[Mapping], source: Source) -> None:
    counts = collections.Counter(row["episode"] for row in rows)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"{source.name} has {counts[twice[0]]} episodes called {twice[0]!r}")
    named = config.validation if isinstance(config.validation, tuple) else ()
    if unknown := [name for name in named if name not in counts]:
        some = ", ".join(list(counts)[:3])
        raise ValueError(f"{source.name} has no readable episode {unknown[0]!r} for validation; it has {some}, ...")


def _control_rate(config: IngestConfig, dataset: Dataset, rates: Sequence[float]) -> float:
    if dataset.robot.action_dim:
        return float(dataset.robot.control_hz)
    # Rates come from time stamps, so they differ in far decimals from file to file.
    return float(config.fps or round(statistics.median_low(rates), 3))


def _shards(rows: Sequence[dict], frames: int) -> list[list[dict]]:
    """Neighbours, until a shard has enough frames."""
    shards: list[list[dict]] = []
    filled = frames
    for row in rows:
        if filled >= frames:
            shards.append([])
            filled = 0
        shards[-1].append(row)
        filled += row["frames"]
    return shards


def jobs_of(plan: Mapping, config: IngestConfig, stores: Mapping[str, pathlib.Path]) -> list[Job]:
    """The jobs of a plan, as it is written down."""
    return [
        Job(
            config,
            {split: str(directory) for split, directory in stores.items()},
            f"{i:05d}",
            plan["control_hz"],
            tuple(plan["cameras"]),
            tuple(
                Planned(
                    row["number"],
                    row["episode"],
                    row["frames"],
                    tuple((start, stop) for start, stop in row["keep"]) if "keep" in row else None,
                )
                for row in rows
            ),
        )
        for i, rows in enumerate(plan["shards"])
    ]


def difference(before: Any, now: Any) -> str | None:
    """The first setting that differs, in words; None if none does."""
    found = first_difference(before, now)
    return found and f"{found[0]} was {found[1]}, now it is {found[2]}"
