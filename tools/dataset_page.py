"""What the pages about data share: which data set is meant, film strips, traces, the size a page may have."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.datasets import get_dataset
from data_pipelines.lint.episodes import Episodes, ForeignEpisodes, StoreEpisodes
from data_pipelines.lint.survey import Sampled
from data_pipelines.store import MANIFEST, ClipStore
from wam.evaluation import plots
from wam.evaluation.page import Html, figure, note, tag
from wam.evaluation.report_media import Budget, figure_uri

STYLE = """
.badge { display: inline-block; min-width: 74px; margin-right: 10px; padding: 1px 9px; border-radius: 9px;
  color: #fff; font-size: 12.5px; font-weight: 600; text-align: center; }
.error { background: #c0392b; } .warning { background: #b7791f; } .note-badge { background: #5b6672; }
.clean { background: #2e7d4f; }
.finding { margin: 18px 0 8px; max-width: 100ch; overflow-wrap: anywhere; }
:is(#episode, #window) td { text-align: left; white-space: normal; }
#verdict table { font-size: 13px; }
#verdict :is(th, td):nth-child(n+4) { min-width: 300px; text-align: left; vertical-align: top; white-space: normal; }
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--dataset with --path and --options, or --store."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--dataset", metavar="NAME", help="a foreign data set, by its name in data_pipelines/datasets.py"
    )
    which.add_argument("--store", metavar="DIR", type=Path, help="one of our stores, such as ROOT/train/NAME")
    parser.add_argument("--path", help="where the files of --dataset are")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="of its format, as split=train")


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """['split=train', 'check_sums=false'] -> options; what is JSON is read as such, all else is text. ValueError."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key.isidentifier() or not equals:
            raise ValueError(f"--options {pair!r} is not KEY=VALUE, such as split=train")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def open_episodes(dataset: str | None, path: str | Path | None, options: Mapping[str, Any]) -> Episodes:
    """A store where `dataset` is None, else that data set; ValueError or FileNotFoundError says what is wrong."""
    if dataset is None:
        assert path is not None
        return StoreEpisodes(ClipStore(path))
    if path is None:
        raise ValueError(f"--dataset {dataset} needs --path, the place of its files")
    entry = get_dataset(dataset)
    try:
        source = entry.open(path, **options)
    except TypeError as error:  # an option that its format does not have
        raise ValueError(f"--options of {dataset}: {error}") from None
    said = ", ".join(f"{key} {value}" for key, value in options.items())
    return ForeignEpisodes(entry, source, label=f"{source.name}, {said}" if said else "")


def open_other(dataset: str | None, place: str, options: Mapping[str, Any]) -> Episodes:
    """What `--against` names: a store, or the same data set elsewhere or, as PATH:KEY=VALUE, in another split."""
    if (Path(place) / MANIFEST).is_file():
        return StoreEpisodes(ClipStore(place))
    if dataset is None:
        raise ValueError(f"--against {place} is no store, and without --dataset nothing says how to read it")
    path, _, option = place.partition(":")
    return open_episodes(dataset, path, {**options, **parse_options(filter(None, option.split(",")))})


def progress(numbers: Iterable[int], said: str) -> Iterator[int]:
    """Counts on standard error, where somebody looks at it."""
    numbers = list(numbers)
    show = sys.stderr.isatty()
    for done, number in enumerate(numbers):
        if show:
            print(f"\r{said}: {done + 1} of {len(numbers)}", end="", file=sys.stderr, flush=True)
        yield number
    if show:
        print(file=sys.stderr)


def strips(episode: Sampled, budget: Budget, cameras: Iterable[str] | None = None) -> list[Html]:
    """Film strips of an episode, one row a camera; cameras of different shape stand below each other."""
    by_shape: dict[tuple, dict[str, np.ndarray]] = {}
    for camera in episode.pictures if cameras is None else cameras:
        shown = episode.pictures[camera].thumbnails
        by_shape.setdefault(shown.shape, {})[camera] = shown
    parts = []
    for videos in by_shape.values():
        seconds = episode.pictures[next(iter(videos))].step / episode.rows.hz
        strip = plots.plot_rollout(videos, seconds, reference="", columns=len(seconds))
        uri = figure_uri(strip, pixels=True)
        caption = f"{episode.rows.name}: {episode.rows.instruction or 'no instruction'}"
        if budget.take(uri):
            parts.append(figure(uri, caption, alt="Film strip of " + ", ".join(videos),
                                width=100 * strip.get_figwidth()))  # fmt: skip
        else:
            parts.append(note(f"{caption}. Film strip left out: the page has reached its size limit."))
    return parts


def badge(kind: str) -> Html:
    return tag("span", kind, class_=f"badge {'note-badge' if kind == 'note' else kind}")
