"""The shape of Wan 2.1 14B on Meta-World MT50 at 352 px, 3,900 tokens a sample: a pod.

    python -m experiments.collect --config=experiments/configs/wan14b.py --out=runs/wan14b/data
    python -m experiments.train   --config=experiments/configs/wan14b.py --workdir=runs/wan14b
    python tools/plan.py          --config=experiments/configs/wan14b.py --mesh data=8,fsdp=32

PLAN

Not trained here, and too large for it: built by shape, planned, and compiled nowhere, so no result is claimed.
"""

from ml_collections import ConfigDict

from experiments.configs import small


def get_config() -> ConfigDict:
    config = small.get_config()
    config.sim.render.size = 352
    config.model.update(size="wan14b", remat="full", lead_width=32)
    config.mesh.update(data=-1, fsdp=32)
    config.objective.update(video_shift=5.0)
    config.optimizer.update(learning_rate=5e-5, warmup_steps=2000, ema_decay=0.9999)
    config.train.update(steps=100_000, batch_size=256)
    return config
