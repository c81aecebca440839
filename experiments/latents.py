r"""Encodes the windows of stores once, so that training reads latents and neither decodes nor encodes anything.

    python -m experiments.latents --config=RECIPE.py --tokenizer=runs/demo --store=DATA/train/expert [--store=...]
    python -m experiments.train   --config=RECIPE.py --workdir=runs/other --config.data.root=DATA \
                                  --config.data.latents=runs/demo

The tokenizer is that of a run (its directory), or an imported autoencoder (that of `tokenizer.path`). Latents belong to
windows: how those are cut (`data.frame_seconds`, `data.views`) comes from the recipe, so take the one that trains. They
lie inside the store, one directory a tokenizer and cut, so that several do not disturb each other. All stores of a run,
those of validation too, need them. Interrupted, it continues with the shard where it stopped.

Every device of this machine encodes, batch by batch. With `--engine=ray --workers=N --engine_options='{"num_gpus": 1}'`
shards are dealt out to N actors that each load the tokenizer once; the stores must lie where all of them see them.
"""

from __future__ import annotations

import sys

from absl import flags
from ml_collections import config_flags

from data_pipelines.engines import EngineError
from data_pipelines.latents import DTYPES
from experiments import cli
from experiments.encoding import write_latents
from experiments.recipe import Recipe

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe; see experiments/configs.", lock_config=True)
_STORES = flags.DEFINE_multi_string("store", None, "A store, ROOT/SPLIT/NAME; give the flag once for each.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "A run directory, or an imported autoencoder.")
_EVERY = flags.DEFINE_integer("every", 1, "Only every so many-th window of a store.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float16", list(DTYPES), "On disk.")
_BATCH = flags.DEFINE_integer("batch_size", 16, "Windows a device encodes at once.", lower_bound=1)
_SHARD = flags.DEFINE_integer("shard_windows", 1024, "Windows of a shard.", lower_bound=1)
_ENGINE = flags.DEFINE_enum("engine", "local", ["local", "ray"], "What runs the shards.")
_WORKERS = flags.DEFINE_integer("workers", 1, "Actors, or processes; a single one uses all devices.", lower_bound=1)
_OPTIONS = flags.DEFINE_string("engine_options", "", 'Of Ray, as JSON: {"address": "auto", "num_gpus": 1}.')


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"latents: unknown argument {argv[1]!r}; see --help")
    assert _TOKENIZER.value is not None  # required flags
    assert _STORES.value is not None
    try:
        manifests = write_latents(
            _STORES.value, _TOKENIZER.value, Recipe.of(_CONFIG.value), every=_EVERY.value, dtype=_DTYPE.value,
            batch_size=_BATCH.value, shard_windows=_SHARD.value, engine=_ENGINE.value, workers=_WORKERS.value,
            options=_OPTIONS.value,
        )  # fmt: skip
    except (ValueError, OSError, EngineError) as error:
        sys.exit(f"latents: {error}")
    for store, manifest in manifests.items():
        size = sum(shard["bytes"] for shard in manifest["shards"].values())
        print(f"latents: {store}: {manifest['records']:,} windows, {size / 1e6:.1f} MB, {manifest['plan']['dtype']}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "store", "tokenizer"])
    cli.run(main)
