"""Collects a data set from a simulator into stores. Interrupted, it continues where it stopped.

    python -m experiments.collect --config=experiments/configs/demo.py --out=runs/demo/data

Reads two parts of the config: `config.collect` (fields of `CollectConfig`) and `config.sim` (name, cameras, render).
Any of them can be set on the command line, for instance `--config.collect.episodes.train.expert=10`.
"""

from __future__ import annotations

import dataclasses
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from data_pipelines.collect.collect import CollectConfig, collect
from data_pipelines.collect.summary import table
from experiments import cli
from wam.envs import env_factory
from wam.envs.metaworld import SPLIT_SEEDS

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe; see experiments/configs.", lock_config=True)
_OUT = flags.DEFINE_string("out", None, "Directory of the collection, new or to be continued.")


def collect_config(config: ConfigDict) -> CollectConfig:
    """The part of a recipe that collection reads; ValueError names what is missing or unknown."""
    for part in ("collect", "sim"):
        if part not in config:
            raise ValueError(f"the config has no `{part}`: collection needs config.collect and config.sim")
    fields = dict(
        config.collect.to_dict(), layout_seeds=dict(SPLIT_SEEDS), cameras=tuple(config.sim.get("cameras", ()))
    )
    fields["tasks"] = tuple(fields.get("tasks", ()))
    try:
        return CollectConfig(**fields)
    except TypeError as error:
        raise ValueError(f"config.collect: {str(error).removeprefix('CollectConfig.__init__() ')}") from None


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"unknown argument {argv[1]!r}: everything is set with --config... and --out")
    config = _CONFIG.value
    try:
        sim = config.get("sim", ConfigDict()).to_dict()
        make_env = env_factory(sim.get("name"), sim.get("render", {}))
        simulator = {"name": sim["name"], "render": dataclasses.asdict(make_env.keywords["render"])}
        result = collect(_OUT.value, collect_config(config), make_env, simulator)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"collect: {error}")
    print(table(result))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "out"])
    cli.run(main)
