"""The demo with what acting in the loop asks for: a value trained on rollouts, flash programs, frozen prefixes.

    tools/demo.sh                                  # runs/demo: the data and the first policy
    python -m experiments.rollouts --checkpoint=runs/demo --out=runs/demo/data --split=train,validation --perturb=0.5
    python -m experiments.train    --config=experiments/configs/demo_value.py --workdir=runs/value --budget_minutes=8
    python -m experiments.evaluate --checkpoint=runs/value --planner=best_of_n:value --n=8 --split=validation

Trained jointly from scratch on demonstrations, play and rollouts of a first policy. The query costs one token a chunk
and takes no samples away: it learns from every forward and inverse sample whose outcome is known. A bigger policy would
be finetuned instead (Cosmos Policy, arXiv:2601.16163, does so on its rollouts).

The value learns from rollouts alone: demonstrations always succeed, also after the random actions mixed into them.
"""

from ml_collections import ConfigDict

from experiments.configs import demo


def get_config() -> ConfigDict:
    config = demo.get_config()
    config.data.root = "runs/demo/data"
    config.data.weights = {"expert": 0.42, "play": 0.24, "ego": 0.04, "rollouts": 0.3}
    # Close to the chance of success: a steep discount prefers haste.
    config.data.value = {"gamma": 0.9, "kinds": ("rollout",)}
    config.model.value_bins = 51
    # For flash programs, whose actions are clean before the video is: a half of what is joint in the demo.
    config.objective.modes.update({"joint": 0.15, "async": 0.15})
    # For real-time chunking: up to three of a chunk's four action tokens may be decided already.
    config.objective.prefix_tokens = 3
    return config
