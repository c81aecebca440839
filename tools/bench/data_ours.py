"""Our side of the data bench: the mixture over a store, and sources read in place.

python -m tools.bench.data_ours SPEC.json      # started by the bench, see tools/bench/worker.py
"""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.mixture import Mixture
from data_pipelines.resize import fit_image
from data_pipelines.sources.lerobot import LeRobot
from data_pipelines.sources.rlds import Rlds
from data_pipelines.sources.rlds_layouts import RldsLayout
from data_pipelines.sources.source import Source
from data_pipelines.stats import fit_statistics
from data_pipelines.store import ClipStore
from data_pipelines.transforms import ToSample
from data_pipelines.windows import WindowConfig, Windows
from tools.bench.data_side import Loader, serve
from tools.bench.worker import Answer, converse
from wam.batch import BatchSpec

CAMERA = "ego_view"


def encode_text(_: str) -> tuple[np.ndarray, np.ndarray]:
    """One token that says nothing: the peers' batches hold the text as it is."""
    return np.zeros((1, 1), np.float32), np.ones(1, np.bool_)


def windows_of(store: str, spec: dict[str, Any], *, frames: int, cache_bytes: int = 0) -> Windows:
    """Windows of `frames` frames; of the decoded images, only those of the last clip are kept by default."""
    config = WindowConfig(
        frame_seconds=tuple(i / spec["fps"] for i in range(frames)), action_horizon=spec["horizon"],
        action_hz=spec["fps"], views=(CAMERA,), cameras=(CAMERA,),
    )  # fmt: skip
    return Windows(ClipStore(store, cache_bytes=cache_bytes), config)


class FromStore:
    """A `data_side.Loader`: `Windows` -> `ToSample` -> `Mixture`, as `experiments.train` reads."""

    note = "no decoded frames are kept but those of the last clip read, as in a dataset much larger than memory"

    def __init__(self, spec: dict[str, Any]):
        self.windows = windows_of(spec["path"], spec, frames=spec["frames"])
        robot, size = self.windows.embodiment, spec["size"]
        statistics = fit_statistics([self.windows])
        batch = BatchSpec(views=1, frames=spec["frames"], height=size, width=size, chunks=1,
                          action_horizon=spec["horizon"], action_dim=robot.model_action_dim,
                          state_dim=robot.model_state_dim, text_tokens=1, text_dim=1)  # fmt: skip
        sources, normalizers = {robot.name: self.windows}, {robot.name: statistics.normalizers(robot.name)}
        to_sample = ToSample(batch, sources, normalizers, ("none", robot.name), encode_text)
        self._mixture = lambda cores: Mixture(sources, {robot.name: 1.0}, to_sample, batch_size=spec["batch"], seed=0,
                                              threads=cores, prefetch=2 * cores)  # fmt: skip

    def batches(self, cores: int) -> contextlib.AbstractContextManager[Iterator[Any]]:
        return self._mixture(cores).iterator()

    def clip(self, window: int, resized: bool) -> np.ndarray:  # noqa: ARG002 (stored at that size)
        return self.windows[window]["frames"][0]


class InPlace:
    """A `data_side.Loader`: random windows through `Source.frames` on threads.

    Batches are resized with the peers' filter, bilinear and antialiased; single clips with that of ingest, as the store
    is. States and actions of all episodes are read once and kept, as a store's are.
    """

    note = "read in place with the reader that ingest uses, on threads; bilinear antialiased resize on both sides"

    def __init__(self, spec: dict[str, Any]):
        self.source = source_of(spec)
        self.frames, self.size = spec["frames"], (spec["size"], spec["size"])
        self.batch, self.horizon = spec["batch"], spec["horizon"]
        abouts = [self.source.about(i) for i in range(len(self.source))]
        self.camera = next(iter(abouts[0].cameras))
        self.ends = np.cumsum([about.frames for about in abouts])
        self.lowdim = [self.source.lowdim(i) for i in range(len(self.source))]
        for i in range(len(self.source)):
            self.source.frames(i, self.camera, [0])  # checksums, and indices of videos

    def _decoded(self, window: int) -> tuple[int, int, np.ndarray]:
        episode = int(np.searchsorted(self.ends, window, side="right"))
        first = window - (int(self.ends[episode - 1]) if episode else 0)
        last = int(np.diff(self.ends, prepend=0)[episode]) - 1
        return (
            episode,
            first,
            self.source.frames(episode, self.camera, np.minimum(first + np.arange(self.frames), last)),
        )

    def _make(self, windows: list[int]) -> dict[str, np.ndarray]:
        out: dict[str, list[np.ndarray]] = collections.defaultdict(list)
        video = np.empty((len(windows), self.frames, *self.size, 3), np.uint8)
        for clip, window in zip(video, windows, strict=True):
            episode, first, images = self._decoded(window)
            for place, image in zip(clip, images, strict=True):
                place[...] = Image.fromarray(image).resize(self.size, Image.Resampling.BILINEAR)
            state, action = self.lowdim[episode].state, self.lowdim[episode].action
            assert state is not None
            assert action is not None
            steps = first + np.arange(self.horizon)
            out["state"].append(state[first])
            out["action"].append(action[np.minimum(steps, len(action) - 1)])
            out["action_mask"].append(steps < len(action))
        return {"video": video} | {name: np.stack(arrays) for name, arrays in out.items()}

    def _order(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(0)
        while True:
            order = rng.permutation(int(self.ends[-1])).tolist()
            for at in range(0, len(order) - self.batch + 1, self.batch):
                yield order[at : at + self.batch]

    @contextlib.contextmanager
    def batches(self, cores: int) -> Iterator[Iterator[Any]]:
        order = self._order()
        pool = ThreadPoolExecutor(cores)

        def deliver() -> Iterator[dict[str, np.ndarray]]:
            waiting: collections.deque[Future] = collections.deque()
            while True:
                while len(waiting) < 3 * cores:
                    waiting.append(pool.submit(self._make, next(order)))
                yield waiting.popleft().result()

        try:
            yield deliver()
        finally:
            pool.shutdown(cancel_futures=True)

    def clip(self, window: int, resized: bool) -> np.ndarray:
        images = self._decoded(window)[2]
        return np.stack([fit_image(image, self.size, "stretch") for image in images]) if resized else images


def source_of(spec: dict[str, Any]) -> Source:
    if spec["kind"] == "lerobot":
        return LeRobot(spec["path"])
    layout = RldsLayout(spec["fps"], (f"observation/{CAMERA}",), ("observation/state",), ("action",),
                        ("language_instruction",))  # fmt: skip
    return Rlds(spec["path"], "train", layout)


def loader(spec: dict[str, Any]) -> Loader:
    return FromStore(spec) if spec["kind"] == "store" else InPlace(spec)


def statistics(spec: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
    """Opens the store and fits, timed apart; the files have just been written, so they lie in memory."""
    start = time.perf_counter()
    windows = windows_of(spec["path"], spec, frames=1)
    opened = time.perf_counter() - start
    fitted = fit_statistics([windows])
    seconds = time.perf_counter() - start
    count = next(iter(fitted.action.values())).count
    first = {"note": "", "opened": opened, "seconds": seconds, "rows": count, "windows": len(windows)}
    return {"note": ""}, lambda _: first


if __name__ == "__main__":
    import json
    import sys

    if json.loads(Path(sys.argv[1]).read_text())["kind"] == "statistics":
        converse(statistics)
    else:
        serve(loader)
