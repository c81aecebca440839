"""Meta-World MT10 at 128 px with a 130M-parameter model, for one GPU.

    python -m experiments.collect  --config=experiments/configs/metaworld_mt10.py --out=runs/mt10/data
    python -m experiments.train    --config=experiments/configs/metaworld_mt10.py --workdir=runs/mt10
    python -m experiments.evaluate --checkpoint=runs/mt10 --report

Not trained here: checked by shape (`jax.eval_shape`) only, so no result is claimed. The goal
marker is drawn, because reach, push and pick-place cannot be solved without seeing the goal.
"""

from ml_collections import ConfigDict

from experiments.configs import demo

TASKS = (
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "window-close",
)


def get_config() -> ConfigDict:
    config = demo.get_config()
    config.collect.tasks = TASKS
    config.collect.episodes = {
        "train": {"expert": 100, "play": 50, "ego": 20},
        "validation": {"expert": 8, "play": 8},
        "test": {"expert": 20, "play": 20},
    }
    config.sim.render.update(size=128, goal_marker=True)
    config.data.frame_seconds = (0.0, 0.05, 0.1, 0.15, 0.2)
    config.data.threads = 8
    config.tokenizer.update(frames_per_latent=2, channels=192)
    config.model.update(
        size="small",
        dtype="bfloat16",
        remat="full",
        scan_layers=True,
        text_attention=True,
        lead_width=256,
        target_views=(0,),
    )
    config.objective.drop_text = 0.05
    config.optimizer.update(learning_rate=3e-4, weight_decay=0.01, warmup_steps=1000, ema_decay=0.999)
    config.train.update(steps=50_000, batch_size=256, log_every=100, eval_every=2500, checkpoint_every=2500)
    config.evaluate.update(episodes=50, max_steps=500, swap=("window-open", "window-close"))
    return config
