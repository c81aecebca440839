"""Foreign datasets by name: how each is opened, what its cameras are called, and whose robot it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from data_pipelines.episode import Episode
from data_pipelines.sources.source import Source, read_episode
from wam.embodiment import NONE_EMBODIMENT


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One entry a dataset."""

    name: str
    open: Callable[..., Source]
    """path, and options of its format such as `split` -> its source"""
    embodiment: str = NONE_EMBODIMENT.name
    cameras: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """our name -> the source's, in order; empty: all, under their own names"""
    wrist: tuple[str, ...] = ()
    """those of our names that move with a hand"""

    def read(self, source: Source, i: int) -> Episode:
        """Episode i with our camera names; BadEpisode as `read_episode`."""
        names = dict(self.cameras) or {name: name for name in source.about(i).cameras}
        episode = read_episode(source, i, names.values(), embodiment=self.embodiment)
        return dataclasses.replace(episode, frames={ours: episode.frames[theirs] for ours, theirs in names.items()})


def _video(path, **options) -> Source:
    from data_pipelines.sources.video_folder import VideoFolder

    return VideoFolder(path, **options)


DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in (Dataset("video", _video),)}


def get_dataset(name: str) -> Dataset:
    """Raises ValueError if nobody declared the dataset."""
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}: declare it in {__name__}, known are {sorted(DATASETS)}")
    return DATASETS[name]
