"""Collecting a data set from a simulator: jobs of a few episodes each, in parallel, restartable and repeatable.

    <root>/collection.json              the configuration, the layouts, what came out and how long it took
    <root>/<split>/<source>/            a store each (`data_pipelines.store`): split train, validation or test;
                                        source expert (demonstrations), play (random motion) or ego (action-free video)

One job is one shard. Every random draw is keyed by (seed, split, source, task, layout index), so the same
configuration gives the same bytes, whatever was killed and restarted in between and on any number of processes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import math
import multiprocessing
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipelines.collect.disturbance import CLEAN, Perturbation
from data_pipelines.collect.layouts import SOURCES, check_disjoint, layout_seed
from data_pipelines.collect.play import play_episode
from data_pipelines.collect.recorder import Env
from data_pipelines.collect.scripted import expert_episode, without_actions
from data_pipelines.collect.summary import store_rows
from data_pipelines.episode import Episode
from data_pipelines.store import ShardWriter, finish_store, finished_shards

MakeEnv = Callable[[str, Sequence[str]], Env]

_DEFAULT_EPISODES = {
    "train": {"expert": 50, "play": 40, "ego": 10},
    "validation": {"expert": 4, "play": 4},
    "test": {"expert": 8, "play": 8},
}


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    tasks: tuple[str, ...]
    layout_seeds: Mapping[str, int]
    """Split -> seed of its layouts."""
    cameras: tuple[str, ...]
    """Of the sources expert and play."""
    ego_camera: str = "gripperPOV"
    episodes: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=lambda: _DEFAULT_EPISODES)
    """Split -> source -> episodes per task."""
    episodes_per_shard: int = 10
    frame_stride: int = 4
    """Control steps from one stored frame to the next."""
    perturb: bool = True
    """Disturb the experts of the source expert (`disturbance.Perturbation`)."""
    expert_max_steps: int = 200
    """An expert that has not succeeded by then has failed: its episode is kept, but not to be imitated."""
    after_success: int = 24
    play_steps: int = 96
    seed: int = 0
    processes: int = 2

    def __post_init__(self):
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks must name each task once and one at least, got {list(self.tasks)}")
        if not self.cameras:
            raise ValueError("cameras must name at least one camera")
        for split, sources in self.episodes.items():
            if split not in self.layout_seeds:
                raise ValueError(f"episodes: unknown split {split!r}; choose from {sorted(self.layout_seeds)}")
            if unknown := sorted(set(sources) - set(SOURCES)):
                raise ValueError(f"episodes.{split}: unknown source {unknown[0]!r}; choose from {list(SOURCES)}")
            for source, count in sources.items():
                if count < 0:
                    raise ValueError(f"episodes.{split}.{source} must not be negative, got {count}")
        for name in ("episodes_per_shard", "frame_stride", "expert_max_steps", "play_steps", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not any(count for sources in self.episodes.values() for count in sources.values()):
            raise ValueError("episodes: nothing to collect, every count is 0")

    def sources(self) -> list[tuple[str, str, int]]:
        """(split, source, episodes per task) of everything to collect."""
        return [
            (split, source, count)
            for split, sources in self.episodes.items()
            for source, count in sources.items()
            if count
        ]

    def to_json(self) -> dict:
        """All that decides the data: every field but the number of processes."""
        data = json.loads(json.dumps(dataclasses.asdict(self)))
        del data["processes"]
        return data


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard: the episodes of `task` from `layouts` [n, layout_dim], numbered from `first`."""

    split: str
    source: str
    task: str
    first: int
    layouts: np.ndarray

    @property
    def shard(self) -> str:
        return f"{self.task}-{self.first:05d}"

    def store(self, root: pathlib.Path) -> pathlib.Path:
        return root / self.split / self.source

    def __str__(self) -> str:
        return f"{self.split}/{self.source}/{self.shard}"


class CollectionError(RuntimeError):
    """Some jobs failed; the others are on disk and are not repeated."""


_env: tuple[tuple, Env] | None = None  # one environment a process: building one and its GL context takes a second


def _environment(make_env: MakeEnv, task: str, cameras: Sequence[str]) -> Env:
    global _env
    key = (task, tuple(cameras))
    if _env is None or _env[0] != key:
        if _env is not None:
            _env[1].close()
            _env = None
        _env = (key, make_env(task, cameras))
    return _env[1]


def _sample_layouts(config: CollectConfig, make_env: MakeEnv, task: str) -> tuple[dict, tuple[int, ...]]:
    """{"split/source": layouts [n, layout_dim]} of one task, checked to be disjoint, and the shape of an image."""
    with_ego = any(source == "ego" for _, source, _ in config.sources())
    cameras = dict.fromkeys((*config.cameras, *([config.ego_camera] if with_ego else [])))
    env = _environment(make_env, task, tuple(cameras))  # with all cameras, so that an unknown one is found here
    layouts = {
        f"{split}/{source}": env.sample_layouts(layout_seed(config.layout_seeds[split], source), count)
        for split, source, count in config.sources()
    }
    check_disjoint(layouts)
    env.reset(next(iter(layouts.values()))[0])
    return layouts, next(iter(env.render().values())).shape


def record(config: CollectConfig, make_env: MakeEnv, job: Job, index: int) -> Episode:
    """Episode `index` of a job: a function of its arguments alone."""
    env = _environment(make_env, job.task, (config.ego_camera,) if job.source == "ego" else config.cameras)
    rng = np.random.default_rng([config.seed, index, *f"{job.split}/{job.source}/{job.task}".encode()])
    layout = job.layouts[index - job.first]
    meta = {
        "episode": f"{job.split}/{job.source}/{job.task}/{index:05d}",
        "layout": layout.tolist(),
        "layout_index": index,
        "layout_seed": layout_seed(config.layout_seeds[job.split], job.source),
    }
    if job.source == "play":
        return play_episode(env, layout, rng, meta, steps=config.play_steps, frame_stride=config.frame_stride)
    episode = expert_episode(
        env,
        layout,
        rng,
        meta,
        perturbation=Perturbation() if config.perturb and job.source == "expert" else CLEAN,
        max_steps=config.expert_max_steps,
        after_success=config.after_success,
        frame_stride=config.frame_stride,
    )
    return without_actions(episode) if job.source == "ego" else episode


def _run(root: pathlib.Path, config: CollectConfig, make_env: MakeEnv, job: Job) -> float:
    """Writes one shard; returns the seconds it took."""
    start = time.perf_counter()
    with ShardWriter(job.store(root), job.shard) as writer:
        for index in range(job.first, job.first + len(job.layouts)):
            writer.add(record(config, make_env, job, index))
    return time.perf_counter() - start


def _check_space(root: pathlib.Path, config: CollectConfig, image_shape: Sequence[int]) -> None:
    steps = {"expert": config.expert_max_steps, "ego": config.expert_max_steps, "play": config.play_steps}
    images = len(config.tasks) * sum(
        count * math.ceil(steps[source] / config.frame_stride) * (1 if source == "ego" else len(config.cameras))
        for _, source, count in config.sources()
    )
    need, free = images * math.prod(image_shape), shutil.disk_usage(root).free
    if need > free:
        raise ValueError(
            f"{root} has {free / 1e9:.1f} GB free and the collection may need {need / 1e9:.1f} GB: "
            "free some space, or collect fewer episodes"
        )


def check_same(root: pathlib.Path, identity: Mapping[str, Mapping]) -> None:
    """ValueError unless `root` is new, empty, or holds a collection of the same `identity`: {part: {field: value}}."""
    path = root / "collection.json"
    if not path.exists():
        if root.exists() and any(root.iterdir()):
            raise ValueError(f"{root} is neither empty nor a collection: choose another directory")
        return
    before = json.loads(path.read_text())
    for part, now in identity.items():
        for key in sorted(set(now) | set(before[part])):
            was, wanted = before[part].get(key), now.get(key)
            if was != wanted:
                raise ValueError(
                    f"{root} was collected with {part}.{key} = {was}, now it is {wanted}: choose another directory"
                )


def write_json(path: pathlib.Path, data: dict) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    temporary.replace(path)


def collect(root, config: CollectConfig, make_env: MakeEnv, simulator: Mapping[str, Any]) -> dict:
    """Collects everything `config` asks for under `root` and returns what is written to collection.json.

    Calling it again continues: finished shards are skipped.

    Args:
        root: a new directory, or one where this very collection was begun.
        config: what to collect.
        make_env: picklable; called in the worker processes.
        simulator: JSON-able facts about `make_env` that decide the data (name, render settings); compared on restart.

    Raises:
        ValueError: bad configuration, another collection's directory, too little disk space, overlapping splits.
        CollectionError: names every job that failed, with its reason.
    """
    start = time.perf_counter()
    root = pathlib.Path(root)
    identity = {"config": config.to_json(), "simulator": json.loads(json.dumps(simulator))}
    check_same(root, identity)
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(config.processes, mp_context=context)
    try:
        sampled = [pool.submit(_sample_layouts, config, make_env, task) for task in config.tasks]
        layouts = {}
        image_shape: Sequence[int] = ()
        for task, future in zip(config.tasks, sampled, strict=True):
            layouts[task], image_shape = future.result()
        root.mkdir(parents=True, exist_ok=True)
        _check_space(root, config, image_shape)
        if not (root / "collection.json").exists():
            write_json(root / "collection.json", identity)
        jobs = _jobs(config, layouts)
        todo = [job for job in jobs if job.shard not in finished_shards(job.store(root))]
        seconds = _run_all(pool, root, config, make_env, jobs, todo)
    finally:
        pool.shutdown(cancel_futures=True)
    rows = []
    for split, source, _ in config.sources():
        meta = identity | {"split": split, "source": source, "layout_seeds": dict(config.layout_seeds)}
        finish_store(root / split / source, meta)
        rows += store_rows(root, split, source, seconds)
    result = identity | {
        "shards": {"made": len(todo), "found": len(jobs) - len(todo)},
        "seconds": round(time.perf_counter() - start, 1),
        "rows": rows,
        "layouts": {task: {name: rows.tolist() for name, rows in sets.items()} for task, sets in layouts.items()},
    }
    write_json(root / "collection.json", result)
    return result


def _jobs(config: CollectConfig, layouts: Mapping[str, Mapping[str, np.ndarray]]) -> list[Job]:
    """All jobs; those that share an environment follow each other."""
    size = config.episodes_per_shard
    jobs = [
        Job(split, source, task, first, layouts[task][f"{split}/{source}"][first : first + size])
        for task in config.tasks
        for split, source, count in config.sources()
        for first in range(0, count, size)
    ]
    return sorted(jobs, key=lambda job: (config.tasks.index(job.task), job.source == "ego"))


def _run_all(
    pool: concurrent.futures.Executor,
    root: pathlib.Path,
    config: CollectConfig,
    make_env: MakeEnv,
    jobs: Sequence[Job],
    todo: Sequence[Job],
) -> dict[tuple[str, str, str], float]:
    """Runs `todo` and returns {(split, source, task): seconds}, summed over processes."""
    futures = {pool.submit(_run, root, config, make_env, job): job for job in todo}
    seconds: dict[tuple[str, str, str], float] = {}
    failures = []
    total = sum(len(job.layouts) for job in jobs)
    found = total - sum(len(job.layouts) for job in todo)
    with tqdm(total=total, initial=found, unit="episode", desc="collect", smoothing=0.05) as bar:
        for future in concurrent.futures.as_completed(futures):
            job = futures[future]
            error = future.exception()
            if isinstance(error, concurrent.futures.process.BrokenProcessPool):
                raise CollectionError("a worker process died (out of memory?): run the same command again to continue")
            if error is not None:
                failures.append(f"{job}: {type(error).__name__}: {error}")
            else:
                key = (job.split, job.source, job.task)
                seconds[key] = seconds.get(key, 0.0) + future.result()
            bar.update(len(job.layouts))
    if failures:
        raise CollectionError(f"{len(failures)} of {len(todo)} jobs failed: " + "; ".join(sorted(failures)))
    return seconds
