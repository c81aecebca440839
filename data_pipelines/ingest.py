"""Any source to clip stores: planned first, then shard by shard, restartable and repeatable.

    <root>/<split>/<name>/plan.json          settings and shards, made from what is known without decoding
    <root>/<split>/<name>/jobs/<shard>.json  what became of every episode; written last, so it marks a finished job
    <root>/<split>/<name>/quarantine.jsonl   episodes that cannot be read, and why
    <root>/<split>/<name>/                   a store (`data_pipelines.store`)

`convert_shard` is a function of its job and of the source's files alone, so the same command gives the same bytes,
whatever was killed in between, on any number of processes and on every engine (`data_pipelines.engines`). A bad
episode costs itself: the clips of the others are the same bytes as if it were not there.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipelines import engines
from data_pipelines.dataset import Dataset
from data_pipelines.datasets import get_dataset
from data_pipelines.episode import Episode
from data_pipelines.ingest_plan import PLAN, IngestConfig, Job, Planned, difference, jobs_of, make_plan, open_source
from data_pipelines.resize import Resized
from data_pipelines.selection import idle_steps, resample, within
from data_pipelines.shards import INDEX, SHARD, ShardWriter, encode_episode, write_atomically
from data_pipelines.sources.source import Source
from data_pipelines.store import finish_store

QUARANTINE = "quarantine.jsonl"


class IngestError(RuntimeError):
    """The ingest ended without stores, for the reason given."""


def convert_shard(job: Job) -> dict:
    """Converts the episodes of a job into one shard a split, and returns what became of each; JSON-able.

    Raises:
        OSError, ValueError: the shard cannot be written. What is wrong with an episode only quarantines it.
    """
    config = job.config
    dataset, source = open_source(config)
    out: dict = {"shard": job.shard, "episodes": [], "quarantined": [], "skipped": []}
    options: dict[str, Any] = {
        "clip_steps": max(2, round(config.clip_seconds * job.control_hz)),
        "overlap_steps": round(config.overlap_seconds * job.control_hz),
        "codec": config.video_codec,
    }
    for directory in job.stores.values():
        for suffix in (INDEX, SHARD):  # of this very job, killed before it was done
            (pathlib.Path(directory) / f"{job.shard}{suffix}").unlink(missing_ok=True)
    writers: dict[str, ShardWriter] = {}
    with contextlib.ExitStack() as stack:
        for planned in job.episodes:
            row = {"number": planned.number, "episode": planned.episode}
            try:
                episode = read_planned(dataset, source, job, planned)
                if episode.may_start is not None and not episode.may_start.any():
                    out["skipped"].append(row | {"reason": "no window may start in it"})
                    continue
                clips = encode_episode(episode, **options)
            except MemoryError:
                raise
            except Exception as error:  # whatever a damaged file does to its reader
                reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                out["quarantined"].append(row | {"reason": reason})
                continue
            split = split_of(config, episode)
            if split not in writers:
                writers[split] = stack.enter_context(ShardWriter(job.stores[split], job.shard, **options))
            writers[split].write(clips)
            done = {"split": split, "clips": [low_dim["sha256"] for low_dim, _ in clips]}
            out["episodes"].append(row | done | {"digest": episode.meta["digest"], "frames": len(episode.frame_step)})
    out["problems"] = list(source.problems)
    job.result.parent.mkdir(exist_ok=True)
    write_atomically(job.result, json.dumps(out).encode())
    return out


def read_planned(dataset: Dataset, source: Source, job: Job, planned: Planned) -> Episode:
    """The episode as it is stored; its frames are decoded when they are used."""
    config, i, robot = job.config, planned.number, dataset.robot
    episode = dataset.read(Resized(source, config.image_size, config.fit), i)
    for what, array, dim in (
        ("state", episode.state, robot.state_dim),
        ("action", episode.action, robot.action_dim),
    ):
        if robot.action_dim and (array is None or array.shape[1:] != (dim,)):
            shape = None if array is None else list(array.shape)
            raise ValueError(f"episode {planned.episode!r}: {what} is {shape}, {robot.name!r} declares {dim} dims")
    meta = episode.meta | {"digest": digest(dataset, source, i, episode)}
    imitate = episode.imitate & (meta.get("success") is not False)
    may_start = None
    if planned.keep is not None:
        may_start = within(planned.keep, episode.frame_step)
    if config.drop_idle is not None and episode.action is not None:
        idle = idle_steps(episode, config.drop_idle, config.idle_seconds)
        moving = ~idle[np.minimum(episode.frame_step, episode.steps - 1)]
        may_start = moving if may_start is None else may_start & moving
    rate = float(meta["control_hz"])
    episode = dataclasses.replace(
        episode, imitate=imitate, may_start=may_start, meta=meta | {"control_hz": job.control_hz}
    )
    if config.fps is None:
        return episode
    if episode.action is not None:
        return resample(episode, episode.frame_step / job.control_hz, config.fps)
    return resample(episode, source.lowdim(i).extra.get("time", episode.frame_step / rate), config.fps)


def digest(dataset: Dataset, source: Source, i: int, episode: Episode) -> str:
    """Of what an episode holds, whatever it is called: low-dimensional arrays, length, first frames as they are."""
    sha = hashlib.sha256(str(episode.steps).encode())
    for array in (episode.state, episode.action):
        if array is not None:
            sha.update(np.ascontiguousarray(array).tobytes())
    for camera in dataset.cameras.values() or source.about(i).cameras:
        sha.update(np.ascontiguousarray(source.frames(i, camera, [0])).tobytes())
    return sha.hexdigest()


def split_of(config: IngestConfig, episode: Episode) -> str:
    """By name, or by what it holds, so that equal episodes lie on the same side."""
    if isinstance(config.validation, tuple):
        return "validation" if episode.meta["episode"] in config.validation else "train"
    share = int(episode.meta["digest"][:13], 16) / 16**13  # 52 bits are exact as a float
    return "validation" if share < config.validation else "train"


def ingest(
    root,
    name: str,
    config: IngestConfig,
    *,
    engine: str = "local",
    processes: int = 1,
    engine_options: str = "",
    max_bad: float = 0.1,
    progress: bool = True,
) -> dict:
    """Makes ROOT/train/NAME and ROOT/validation/NAME, or goes on making them; returns {"stores", "rows", ...}.

    Args:
        root: of all stores of a run.
        name: of the dataset there.
        config: what to make.
        engine: see `engines.run`; neither it nor the next two change a byte.
        processes: at the same time.
        engine_options: of the engine.
        max_bad: with a larger share of quarantined episodes, something else is wrong: no store is finished.
        progress: show a bar.

    Raises:
        ValueError: bad settings or source, or a directory that holds something else.
        OSError: nothing can be written there.
        IngestError: too many bad episodes, or none that is good.
    """
    stores = {split: pathlib.Path(root) / split / name for split in config.splits}
    source_path = pathlib.Path(config.path).resolve()
    for directory in stores.values():
        if source_path == directory.resolve() or source_path in directory.resolve().parents:
            raise ValueError(f"the store {directory} would lie inside its source {config.path}: choose another --out")
    plan = _begin(stores, config)
    jobs = jobs_of(plan, config, stores)
    todo = [job for job in jobs if not _is_done(job)]
    total, left = sum(job.frames for job in jobs), {job.shard: job.frames for job in todo}
    found = engines.run(
        convert_shard,
        todo,
        engine,
        processes=processes,
        scratch=next(iter(stores.values())),
        options=engine_options,
    )
    with tqdm(
        total=total, initial=total - sum(left.values()), unit="frame", desc=name, smoothing=0.05, disable=not progress
    ) as bar:
        for result in found:
            bar.update(left[result["shard"]])
    results = [json.loads(job.result.read_text()) for job in jobs]
    return _finish(stores, plan, config, results, max_bad) | {"made": len(todo), "found": len(jobs) - len(todo)}


def _begin(stores: Mapping[str, pathlib.Path], config: IngestConfig) -> dict:
    """The plan of these stores: the one they have, which must be of the same settings, or a new one, written down."""
    plan = None
    for directory in stores.values():
        if (directory / PLAN).exists():
            plan = json.loads((directory / PLAN).read_text())
            if found := difference(plan["settings"], config.facts()):
                raise ValueError(f"{directory} was begun with other settings: {found}; choose another name")
        elif directory.exists() and any(directory.iterdir()):
            raise ValueError(f"{directory} is neither empty nor an ingest: choose another name")
    if plan is None:
        plan = make_plan(config)
    elif (count := len(open_source(config)[1])) != plan["source"]["episodes"]:
        raise ValueError(
            f"{config.path} has {count} episodes, {plan['source']['episodes']} when this ingest was planned: choose "
            "another name"
        )
    for directory in stores.values():
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / PLAN, json.dumps(plan, indent=1, sort_keys=True).encode())
    return plan


def _is_done(job: Job) -> bool:
    if not job.result.exists():
        return False
    splits = {row["split"] for row in json.loads(job.result.read_text())["episodes"]}
    return all((pathlib.Path(job.stores[split]) / f"{job.shard}{INDEX}").exists() for split in splits)


def _finish(
    stores: Mapping[str, pathlib.Path], plan: Mapping, config: IngestConfig, results: Iterable[Mapping], max_bad: float
) -> dict:
    episodes, problems = [], collections.Counter()
    quarantined, skipped = list(plan["quarantined"]), list(plan["skipped"])
    for result in results:
        episodes += result["episodes"]
        quarantined += result["quarantined"]
        skipped += result["skipped"]
        problems.update(result["problems"])
    quarantined.sort(key=lambda row: row["number"])
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in quarantined).encode()
    for directory in stores.values():
        write_atomically(directory / QUARANTINE, lines)
    considered = len(quarantined) + len(episodes)
    first = f"; the first: {quarantined[0]['reason']}" if quarantined else ""
    if not episodes:
        raise IngestError(f"nothing could be kept of {plan['source']['episodes']} episodes{first}")
    if len(quarantined) > max_bad * considered:
        raise IngestError(
            f"{len(quarantined)} of {considered} episodes are bad, more than max_bad = {max_bad:g} (see "
            f"{next(iter(stores.values())) / QUARANTINE}); with a larger max_bad the same command ends at once{first}"
        )
    why = collections.Counter(row["reason"] for row in skipped)
    meta = {
        "dataset": config.dataset,
        "source": plan["source"]["name"],
        "settings": {key: value for key, value in plan["settings"].items() if key not in ("path", "encoder")},
        "problems": dict(sorted(problems.items())),  # what the source says, and in how many shards it said so
        "quarantined": len(quarantined),
        "skipped": dict(sorted(why.items())),
    }
    dataset = get_dataset(config.dataset)
    manifests = {
        split: finish_store(stores[split], meta | {"split": split}, embodiment=dataset.robot, wrist=dataset.wrist)
        for split in sorted({row["split"] for row in episodes})
    }
    return {"stores": manifests, "quarantined": quarantined, "skipped": dict(why), "problems": dict(problems)}
