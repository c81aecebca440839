"""The shape of Wan 2.2 TI2V-5B on Meta-World MT50 at 320 px, 3,300 tokens a sample: four nodes of eight GPUs.

    python -m experiments.collect --config=experiments/configs/wan5b.py --out=runs/wan5b/data
    python -m experiments.train   --config=experiments/configs/wan5b.py --workdir=runs/wan5b
    python tools/plan.py          --config=experiments/configs/wan5b.py --mesh data=1,fsdp=32

    parameters  6.08 B: video 4.98 B, action 1.02 B, other 0.09 B; 3,261 tokens a sample
    step        23.7 PFLOP for 256 samples: 1.9 s on 32 H100 at 40 % MFU (v5p 4.0 s, GB200 0.74 s)
    a device    23 GB, of them 19 GB activations (remat full): fits an H100; a v6e with --config.train.accumulate=2

Not trained here, so no result is claimed: built, planned and its training step traced by shape, and nothing more.
"""

from ml_collections import ConfigDict

from experiments.configs import small


def get_config() -> ConfigDict:
    config = small.get_config()
    config.sim.render.size = 320
    config.model.update(size="wan5b", remat="full")
    config.mesh.update(data=-1, fsdp=32)
    config.objective.update(video_shift=5.0)
    config.optimizer.update(learning_rate=1e-4, warmup_steps=2000, ema_decay=0.9999)
    config.train.update(steps=100_000, batch_size=256)
    return config
