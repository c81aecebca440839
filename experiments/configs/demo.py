"""The demo: one language-conditioned world-action model on six Meta-World tasks, on two CPU cores in minutes.

    tools/demo.sh

or, step by step,

    python -m experiments.collect  --config=experiments/configs/demo.py --out=runs/demo/data
    python -m experiments.train    --config=experiments/configs/demo.py --workdir=runs/demo --budget_minutes=6
    python -m experiments.evaluate --checkpoint=runs/demo --report

Three of the tasks need sight (blind replay of the mean demonstration solves under half of their episodes, see
experiments/results/screen_blind.json); the two faucet tasks start from the same picture, so that only the instruction
tells them apart (the goal marker is not drawn).
"""

from ml_collections import ConfigDict

TASKS = (
    "button-press-topdown",
    "button-press-topdown-wall",
    "window-open",
    "drawer-open",
    "faucet-open",
    "faucet-close",
)


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "sim": {
                "name": "metaworld",
                "cameras": ("corner2", "topview"),
                "render": {"size": 64, "shadows": False, "multisample": 0, "goal_marker": False},
            },
            "collect": {
                "tasks": TASKS,
                "ego_camera": "gripperPOV",
                "frame_stride": 4,
                "episodes": {
                    "train": {"expert": 50, "play": 40, "ego": 10},
                    "validation": {"expert": 4, "play": 4},
                    "test": {"expert": 8, "play": 8},
                },
            },
            "data": {
                "root": "",  # where the stores are; empty: <workdir>/data
                "frame_seconds": (0.0, 0.1, 0.2),
                "views": ("corner2", "topview"),
                "weights": {"expert": 0.55, "play": 0.37, "ego": 0.08},
                "threads": 2,
            },
            "tokenizer": {"patch": 16, "frames_per_latent": 1, "channels": 128, "power": 0.5},
            "text": {"tokens": 6, "dim": 64},
            "model": {"size": "tiny"},
            "objective": {
                "modes": (("joint", 0.3), ("forward", 0.4), ("inverse", 0.3)),
                "policy_draws": 4,
            },
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 100},
            "mesh": {"data": -1, "fsdp": 1},
            "train": {"steps": 2000, "batch_size": 32, "seed": 0},
            "evaluate": {
                "episodes": 20,
                "max_steps": 250,
                "execute_steps": 16,
                "swap": ("faucet-open", "faucet-close"),
            },
        }
    )
