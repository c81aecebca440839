"""The shape of Wan 2.1 1.3B on Meta-World MT50 at 256 px, 2,100 tokens a sample: eight GPUs.

    python -m experiments.collect --config=experiments/configs/base.py --out=runs/base/data
    python -m experiments.train   --config=experiments/configs/base.py --workdir=runs/base
    python tools/plan.py          --config=experiments/configs/base.py --mesh data=1,fsdp=8

PLAN

Not trained here, and too large for it: built by shape, planned, and compiled nowhere, so no result is claimed.
"""

from ml_collections import ConfigDict

from experiments.configs import small


def get_config() -> ConfigDict:
    config = small.get_config()
    config.sim.render.size = 256
    config.model.update(size="base", remat="full", lead_width=32)
    config.mesh.update(data=-1, fsdp=8)
    config.objective.update(video_shift=3.0)
    config.optimizer.update(learning_rate=1e-4, warmup_steps=2000, ema_decay=0.9995)
    config.train.update(steps=100_000, batch_size=256)
    return config
