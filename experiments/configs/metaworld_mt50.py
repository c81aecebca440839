"""All fifty Meta-World tasks, otherwise as `metaworld_mt10`.

    python -m experiments.collect  --config=experiments/configs/metaworld_mt50.py --out=runs/mt50/data
    python -m experiments.train    --config=experiments/configs/metaworld_mt50.py --workdir=runs/mt50
    python -m experiments.evaluate --checkpoint=runs/mt50 --report

Not trained here: checked by shape (`jax.eval_shape`) only, so no result is claimed.
"""

from ml_collections import ConfigDict

from experiments.configs import metaworld_mt10
from wam.envs.metaworld import TASKS


def get_config() -> ConfigDict:
    config = metaworld_mt10.get_config()
    config.collect.tasks = TASKS
    config.train.steps = 150_000
    return config
