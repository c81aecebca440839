"""The demo with what acting in the loop asks for: a value trained on rollouts, flash programs, frozen prefixes.

    tools/demo.sh                                  # runs/demo: the data and the first policy
    python -m experiments.rollouts --checkpoint=runs/demo --out=runs/demo/data --split=train,validation --perturb=0.5
    python -m experiments.train    --config=experiments/configs/demo_value.py --workdir=runs/value --budget_minutes=8
    python -m experiments.evaluate --checkpoint=runs/value --planner=best_of_n:value --n=8 --split=validation

Trained jointly from scratch on demonstrations, play and rollouts of a first policy. The query costs one token a chunk
and takes no samples away: it learns from every forward and inverse sample whose outcome is known. A bigger policy would
be finetuned instead (Cosmos Policy, arXiv:2601.16163, does so on its rollouts).

With `demo_value.py:rollouts_only` the value learns from rollouts alone. Demonstrations always succeed, also after the
random actions mixed into them, and a value that learns from both takes random actions for good ones: after 600 steps
Q(s, a) was 0.53 for random chunks and 0.34 for the policy's.
"""

from ml_collections import ConfigDict

from experiments.configs import demo

VARIANTS = ("rollouts_only",)


def get_config(variant: str = "") -> ConfigDict:
    config = demo.get_config()
    config.data.root = "runs/demo/data"
    config.data.weights = {"expert": 0.5, "play": 0.26, "ego": 0.04, "rollouts": 0.2}
    config.data.value = {"gamma": 0.5, "kinds": ("expert", "rollout")}
    config.model.value_bins = 51
    # For flash programs, whose actions are clean before the video is: a half of what is joint in the demo.
    config.objective.modes.update({"joint": 0.15, "async": 0.15})
    # For real-time chunking: up to three of a chunk's four action tokens may be decided already.
    config.objective.prefix_tokens = 3
    if variant == "rollouts_only":
        config.data.weights = {"expert": 0.42, "play": 0.24, "ego": 0.04, "rollouts": 0.3}
        # A steeper discount tells chunks of a fifth of a second apart.
        config.data.value = {"gamma": 0.2, "kinds": ("rollout",)}
        config.objective.value_weight = 1.0
    elif variant:
        raise ValueError(f"unknown variant {variant!r} of demo_value; choose from {', '.join(VARIANTS)}")
    return config
