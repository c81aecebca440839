"""The demo in one sampler step a modality: consistency distillation of a trained demo.

    python -m experiments.train    --config=experiments/configs/demo_distilled.py --workdir=runs/demo_distilled
    python -m experiments.evaluate --checkpoint=runs/demo_distilled --steps=1

`demo_distilled.py:two` is the same in two steps. The teacher is runs/demo (another: --config.distill.teacher=DIR, with
--config.data.root=DIR/data).
"""

from ml_collections import ConfigDict

from experiments.configs import demo

VARIANTS = ("two",)


def get_config(variant: str = "") -> ConfigDict:
    """One sampler step of every stream, or with `demo_distilled.py:two` two."""
    if variant not in ("", *VARIANTS):
        raise ValueError(f"unknown variant {variant!r} of demo_distilled; choose from {', '.join(VARIANTS)}")
    config = demo.get_config()
    steps = 2 if variant == "two" else 1
    config.data.root = "runs/demo/data"
    config.distill.update(teacher="runs/demo", teacher_steps=8, video_steps=steps, action_steps=steps)
    # Joint mode is sampled with both bits on.
    config.objective.joint_video_sees_action = 1.0
    config.optimizer.update(learning_rate=3e-4, warmup_steps=20, ema_decay=0.99)
    config.train.update(steps=600, eval_every=200, checkpoint_every=200, best_metric="")
    return config
