"""The shape of Wan 2.1 1.3B on Meta-World MT50 at 256 px, 2,100 tokens a sample: eight GPUs.

    python -m experiments.collect --config=experiments/configs/base.py --out=runs/base/data
    python -m experiments.train   --config=experiments/configs/base.py --workdir=runs/base
    python tools/plan.py          --config=experiments/configs/base.py --mesh data=1,fsdp=8

    parameters  1.69 B: video 1.41 B, action 0.25 B, other 0.03 B; 2,109 tokens a sample
    step        4.43 PFLOP for 256 samples: 1.4 s on eight H100 at 40 % MFU (v5p 3.0 s, GB200 0.55 s)
    a device    38 GB, of them 32 GB activations (remat dots, 4 microbatches): fits an H100; v5e and v6e with remat full

Not trained here, so no result is claimed: built, planned and its training step traced by shape, and nothing more.
"""

from ml_collections import ConfigDict

from experiments.configs import small


def get_config() -> ConfigDict:
    config = small.get_config()
    config.sim.render.size = 256
    config.model.update(size="base")
    config.mesh.update(data=-1, fsdp=8)
    config.objective.update(video_shift=3.0)
    config.optimizer.update(learning_rate=1e-4, warmup_steps=2000, ema_decay=0.9995)
    config.train.update(steps=100_000, batch_size=256, accumulate=4)
    return config
