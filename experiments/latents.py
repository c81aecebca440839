r"""Encodes the windows of stores once, so that training reads latents and neither decodes nor encodes anything.

    python -m experiments.latents --config=RECIPE.py --tokenizer=runs/demo --store=DATA/train/expert [--store=...]
    python -m experiments.train   --config=RECIPE.py --workdir=runs/other --config.data.root=DATA \
                                  --config.data.latents=runs/demo

The tokenizer is that of a run (its directory), or an imported autoencoder (that of `tokenizer.path`). Latents belong to
windows: how those are cut (`data.frame_seconds`, `data.views`) comes from the recipe, so take the one that trains. They
lie inside the store, one directory a tokenizer and cut, so that several do not disturb each other. All stores of a run,
those of validation too, need them. Interrupted, it continues with the shard where it stopped.

Every device of this machine encodes, batch by batch. With `--engine=ray` shards are dealt out to actors that each load
the tokenizer once, on as many machines as the Ray cluster has; the stores must lie where all of them see them.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax import Array
from ml_collections import config_flags
from tqdm import tqdm

from data_pipelines import latents
from data_pipelines.latent_writer import Encode, Job, make_jobs, open_windows, write_shard
from data_pipelines.latents import DTYPES, Plan
from data_pipelines.store import ClipStore
from data_pipelines.windows import Windows
from experiments import cli
from experiments.given_tokenizer import given_tokenizer
from experiments.recipe import Recipe, window_config
from wam.config import TokenizerConfig
from wam.tokenizers.video import VideoTokenizer

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe; see experiments/configs.", lock_config=True)
_STORES = flags.DEFINE_multi_string("store", None, "A store, ROOT/SPLIT/NAME; give the flag once for each.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "A run directory, or an imported autoencoder.")
_EVERY = flags.DEFINE_integer("every", 1, "Only every so many-th window of a store.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float16", list(DTYPES), "On disk.")
_BATCH = flags.DEFINE_integer("batch_size", 16, "Windows a device encodes at once.", lower_bound=1)
_SHARD = flags.DEFINE_integer("shard_windows", 1024, "Windows of a shard.", lower_bound=1)
_ENGINE = flags.DEFINE_enum("engine", "local", ["local", "ray"], "What runs the shards.")
_ACTORS = flags.DEFINE_integer("actors", 0, "Of Ray; 0: one an accelerator of the cluster.", lower_bound=0)


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


def load_encode(path: str, config: TokenizerConfig, image_size: tuple[int, int]) -> Encode:
    """`make_encode` of the tokenizer at `path`: what a worker of another process calls."""
    return make_encode(given_tokenizer(path, config, image_size).tokenizer)


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
    actors: int = 0,
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
      engine: `local` or `ray`.
      actors: of Ray; 0: one an accelerator of the cluster.
      progress: show a bar.

    Raises:
      FileNotFoundError, ValueError: a store or the tokenizer is missing or does not fit, in one sentence.
      ImportError: Ray is asked for and not installed.
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
    if engine == "ray":
        from experiments.latents_ray import run_jobs

        load = functools.partial(load_encode, path, recipe.tokenizer, (height, width))
        done: Iterable[int] = run_jobs(todo, load, actors=actors)
    else:
        done = _run_here(todo, lambda: make_encode(given.tokenizer))
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


def _run_here(jobs: Sequence[Job], load: Callable[[], Encode]) -> Iterator[int]:
    """One shard after the other in this process; yields the windows of each."""
    encode = load() if jobs else None
    windows: dict[str, Windows] = {}
    for job in jobs:
        assert encode is not None  # there are jobs
        if job.store not in windows:
            windows[job.store] = open_windows(job)
        yield write_shard(job, windows[job.store], encode)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"latents: unknown argument {argv[1]!r}; see --help")
    assert _TOKENIZER.value is not None  # required flags
    assert _STORES.value is not None
    try:
        manifests = write_latents(
            _STORES.value, _TOKENIZER.value, Recipe.of(_CONFIG.value), every=_EVERY.value, dtype=_DTYPE.value,
            batch_size=_BATCH.value, shard_windows=_SHARD.value, engine=_ENGINE.value, actors=_ACTORS.value,
        )  # fmt: skip
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"latents: {error}")
    for store, manifest in manifests.items():
        size = sum(shard["bytes"] for shard in manifest["shards"].values())
        print(f"latents: {store}: {manifest['records']:,} windows, {size / 1e6:.1f} MB, {manifest['plan']['dtype']}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "store", "tokenizer"])
    cli.run(main)
