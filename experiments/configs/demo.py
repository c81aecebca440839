"""The demo: one language-conditioned world-action model on six Meta-World tasks, on two CPU cores in minutes.

    tools/demo.sh

or, step by step,

    python -m experiments.collect  --config=experiments/configs/demo.py --out=runs/demo/data
    python -m experiments.train    --config=experiments/configs/demo.py --workdir=runs/demo --budget_minutes=8
    python -m experiments.evaluate --checkpoint=runs/demo --report

Four of the tasks were chosen because blind replay of the mean demonstration solves under half of their validation
episodes (experiments/results/screen_blind.json); the two faucet tasks start from the same picture, so that only the
instruction tells them apart (the goal marker is not drawn).
"""

from ml_collections import ConfigDict

from wam.config import (
    MeshConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TextConfig,
    TokenizerConfig,
    TrainConfig,
    model_options,
    to_dict,
)
from wam.training.augment_config import AugmentConfig
from wam.training.distill_config import DistillConfig
from wam.training.finetune_config import FinetuneConfig

TASKS = (
    "button-press-topdown",
    "window-open",
    "plate-slide",
    "door-unlock",
    "faucet-open",
    "faucet-close",
)


ABLATIONS = ("action_only", "no_play", "no_ego")
VARIANTS = (*ABLATIONS, "history")


def get_config(variant: str = "") -> ConfigDict:
    """The recipe, or with `demo.py:VARIANT` one of its ablations, or `history`, whose chunks see those before them."""
    config = _demo()
    if variant == "action_only":
        # The policy alone on demonstrations: no future video, no dynamics, nothing to learn from play or ego.
        config.objective.update(with_video=False, modes={**dict.fromkeys(config.objective.modes, 0.0), "policy": 1.0})
        del config.data.weights["play"], config.data.weights["ego"]
    elif variant == "history":
        # Four chunks of 0.1 s; a chunk of actions reaches one further. Asked again whenever a chunk has passed.
        config.data.update(frame_seconds=tuple(i / 20 for i in range(9)), chunks=4)
        config.train.batch_size = 16
    elif variant in ("no_play", "no_ego"):
        del config.data.weights[variant.removeprefix("no_")]
    elif variant:
        raise ValueError(f"unknown variant {variant!r} of the demo; choose from {', '.join(VARIANTS)}")
    if "ego" not in config.data.weights:
        config.data.wrist = ()  # nothing else is filmed by it
    return config


def _demo() -> ConfigDict:
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
                    "train": {"expert": 50, "play": 60, "ego": 10},
                    "validation": {"expert": 4, "play": 4},
                    "test": {"expert": 8, "play": 8},
                },
            },
            "data": {
                "root": "",  # where the stores are; empty: <workdir>/data
                "latents": "",  # of which tokenizer, see experiments/latents.py; empty: the tokenizer reads pixels
                "frame_seconds": (0.0, 0.1, 0.2),
                "views": ("corner2", "topview"),
                "wrist": ("gripperPOV",),  # cameras that move with a hand: `augment` leaves them alone
                "action_horizon": 16,
                "action_hz": 80.0,
                "chunks": 1,
                "validation_windows": 64,
                "weights": {"expert": 0.62, "play": 0.32, "ego": 0.06},
                "threads": 2,
                "streams": 0,  # the data are dealt out into; 0: as many as groups of processes read when the run begins
            },
            "tokenizer": to_dict(TokenizerConfig(patch=16, frames_per_latent=2, channels=128, power=0.5)),
            "text": to_dict(TextConfig(tokens=6, dim=64)),
            "model": {
                "size": "tiny",
                **model_options(),
                "target_views": (0, 1),
                "inverse_width": 512,
                "inverse_channels": 16,
                # Two cores: the modulation hears the instruction, and unrolled layers run a sixth faster.
                "text_attention": False,
                "scan_layers": False,
            },
            "objective": to_dict(
                ObjectiveConfig(
                    policy_draws=4,
                    # Normalised actions have a standard deviation near 0.5, latents one of 1: even them out.
                    action_weight=3.0,
                    policy_weight=4.0,
                    inverse_weight=3.0,
                    drop_text=0.0,
                    drop_state=0.0,
                )
            ),
            # Strong for a short training: otherwise inverse dynamics learn the clips by heart.
            "optimizer": to_dict(OptimizerConfig(learning_rate=1e-3, weight_decay=1.0)),
            "finetune": to_dict(FinetuneConfig()),
            "augment": to_dict(AugmentConfig()),
            "distill": to_dict(DistillConfig()),
            "mesh": to_dict(MeshConfig()),
            "train": to_dict(TrainConfig(steps=2000, batch_size=32)),
            "evaluate": {
                "episodes": 40,
                "max_steps": 250,
                "execute_steps": 8,
                "demonstrations": 25,  # whose mean blind replay plays, for each task
                "swap": ("faucet-open", "faucet-close"),
            },
        }
    )
