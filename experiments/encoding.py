"""Encodes the windows of stores with a tokenizer that is there: what joins the writer of latents to the devices."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax import Array
from tqdm import tqdm

from data_pipelines import engines, latents
from data_pipelines.latent_writer import Encode, Job, make_jobs, open_windows, write_shard
from data_pipelines.latents import Plan
from data_pipelines.store import ClipStore
from data_pipelines.windows import Windows
from experiments.given_tokenizer import given_tokenizer
from experiments.recipe import Recipe, window_config
from wam.config import TokenizerConfig
from wam.tokenizers.video import VideoTokenizer


def make_encode(tokenizer: VideoTokenizer, devices: Sequence[jax.Device] | None = None) -> Encode:
    """Encodes batches on the given devices in turn, all local ones by default, without waiting for the result.

    Every device runs the same program on whole batches: how many there are changes no bit.
    """
    turns = itertools.cycle([(device, jax.device_put(tokenizer, device)) for device in devices or jax.local_devices()])
    program = jax.jit(lambda tokenizer, video, camera: tokenizer.encode(video, camera))

    def encode(video: np.ndarray, camera: np.ndarray) -> Array:
        device, own = next(turns)
        return program(own, *jax.device_put((video, camera), device))

    return encode


@functools.cache
def _worker(path: str, config: TokenizerConfig, image_size: tuple[int, int]) -> tuple[Encode, dict[str, Windows]]:
    """What a process loads once: the encoder of the tokenizer at `path`, and the windows of the stores it has met."""
    return make_encode(given_tokenizer(path, config, image_size).tokenizer), {}


def run_job(path: str, config: TokenizerConfig, image_size: tuple[int, int], job: Job) -> int:
    """Writes one shard, wherever an engine runs it; returns its windows."""
    encode, windows = _worker(path, config, image_size)
    if job.store not in windows:
        windows[job.store] = open_windows(job)
    return write_shard(job, windows[job.store], encode)


def write_latents(
    stores: Sequence[str | Path],
    path: str,
    recipe: Recipe,
    *,
    every: int = 1,
    dtype: str = "float16",
    batch_size: int = 16,
    shard_windows: int = 1024,
    engine: str = "local",
    workers: int = 1,
    options: str = "",
    progress: bool = True,
) -> dict[str, dict]:
    """Writes the latents of whole stores and returns {store: manifest}; what is there already is not written again.

    Args:
      stores: their directories.
      path: of the tokenizer, see `given_tokenizer`.
      recipe: how windows are cut, and what the tokenizer must be.
      every: only every so many-th window.
      dtype: on disk, one of `latents.DTYPES`.
      batch_size: windows encoded at once; it decides bits, like the kind of device.
      shard_windows: of one file; the unit of work that a restart repeats.
      engine: see `engines.run`.
      workers: its processes; a single local one is this process, with all its devices.
      options: of the engine.
      progress: show a bar.

    Raises:
      FileNotFoundError, ValueError: a store or the tokenizer is missing or does not fit, in one sentence.
      EngineError: the engine is not installed, or broke.
    """
    opened = [ClipStore(store) for store in stores]
    sizes = {tuple(store.manifest["image_size"]) for store in opened}
    if len(sizes) != 1:
        raise ValueError(f"latents are written of one or more stores of one image size, got {sorted(sizes) or 'none'}")
    height, width = sizes.pop()
    given = given_tokenizer(path, recipe.tokenizer, (height, width))
    views = tuple(recipe.config.data.views)
    cameras = given.table((*views, *sorted({c for store in opened for c in store.manifest["cameras"]} - set(views))))
    patches, channels = int(np.prod(given.tokenizer.grid)), given.tokenizer.gain.shape[-1]
    jobs: list[Job] = []
    for store in opened:
        config = window_config(recipe.config.data, cameras, store.directory.name,
                               control_hz=store.manifest["control_hz"])  # fmt: skip
        windows = Windows(store, config)
        shape = (given.tokenizer.latent_frames(len(config.frame_seconds)), patches, channels)
        plan = Plan(store.hash, given.facts, windows.pixel_facts, shape, dtype, every, batch_size, shard_windows)
        jobs += make_jobs(windows, plan)
    todo = [job for job in jobs if not job.finished]
    function = functools.partial(run_job, str(path), recipe.tokenizer, (height, width))
    done = engines.run(function, todo, engine, processes=workers, options=options)
    total, left = (sum(len(job.windows) for job in part) for part in (jobs, todo))
    with tqdm(total=total, initial=total - left, unit="window", desc="latents", disable=not progress) as bar:
        for count in done:
            bar.update(count)
    return {
        str(store.directory): latents.finish(
            Path(next(job.directory for job in jobs if job.store == str(store.directory))),
            [job.name for job in jobs if job.store == str(store.directory)],
        )
        for store in opened
    }
