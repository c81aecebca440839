"""The demo in one sampler step a modality: consistency distillation of a trained demo.

    python -m experiments.train    --config=experiments/configs/demo_distilled.py --workdir=runs/demo_distilled
    python -m experiments.evaluate --checkpoint=runs/demo_distilled --steps=1

`demo_distilled.py:two` is the same in two steps, evaluated with --steps=2. The teacher is runs/demo (another:
--config.distill.teacher=DIR, with --config.data.root=DIR/data). A step is about 5/3 of the demo's arithmetic:
teacher and target network are run forwards as well.

Expect no more than the teacher's success: the demo's policy solved as many validation layouts in one step as in two or
five (55 of 60 each). What is bought is the answer of its long program in one step. One seed, 480 steps on a busy
machine: on held-out demonstrations one step of the student ends 36 % nearer to where the teacher's eight steps end from
the same noise than one step of the teacher does (root mean squares of normalised actions, 0.137 against 0.216), its
video 22 % nearer, in forward dynamics 44 %. In closed loop 53 of 60 in policy mode (paired difference -3 points, 95 %
[-12, 5]) and 52 in joint mode (-5, [-12, 2]). A student stopped early, while its learning rate is high, is worse.
With seeds, on test layouts:
`python -m tools.prove.distill`.
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
