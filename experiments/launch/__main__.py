r"""Launches a run, or a sweep of runs, on a cluster or on this machine.

    python -m experiments.launch --backend=slurm --config=experiments/configs/demo.py --workdir=runs/demo \
        --nodes=4 --gpus_per_node=8 --partition=gpu --dry_run
    python -m experiments.launch --backend=local --config=experiments/configs/demo.py --config.train.steps=500 \
        --workdir=runs/sweep --sweep='train.seed=0,1,2 * optimizer.learning_rate=1e-3,3e-4'

`--config=FILE` and `--config.KEY=VALUE` are those of the training; experiments/launch/sweep.py explains `--sweep`; what
follows `--` is passed to every run. Each run has its own workdir with a `launch.json`: effective config, git revision,
versions of all packages, and what was submitted. The same command again resumes.
"""

from __future__ import annotations

import functools
import sys

from absl import flags

from experiments import cli
from experiments.launch import options
from experiments.launch.launcher import BACKENDS, launch, split_arguments


def define_flags() -> None:
    flags.DEFINE_enum("backend", None, list(BACKENDS), "Where to run.")
    flags.DEFINE_string("workdir", None, "Directory of the run as its machines see it; of a sweep, the one above.")
    flags.DEFINE_string("local_workdir", "", "Where launch.json goes on this machine; by default the workdir itself "
                        "(slurm, local) or runs/NAME.")  # fmt: skip
    flags.DEFINE_multi_string("sweep", [], "'key=1,2 * key=3,4' or FILE.py; several multiply.")
    flags.DEFINE_bool("dry_run", False, "Print exactly what would be submitted, and do nothing.")
    flags.mark_flags_as_required(["backend", "workdir"])
    options.define_flags()
    flags.adopt_module_key_flags(options)


def main(argv: list[str], recipe: list[str], extra: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"launch: unknown argument {argv[1]!r}; arguments of the run itself follow `--`")
    given = flags.FLAGS
    try:
        launch(
            given.backend, recipe, given.workdir, options.from_flags(), sweeps=given.sweep, extra=extra,
            local_workdir=given.local_workdir, dry_run=given.dry_run,
        )  # fmt: skip
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"launch: {error}")


if __name__ == "__main__":
    own, recipe, extra = split_arguments(sys.argv[1:])
    sys.argv = ["launch", *own]
    define_flags()
    cli.run(functools.partial(main, recipe=recipe, extra=extra))
