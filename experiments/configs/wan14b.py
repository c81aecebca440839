"""The shape of Wan 2.1 14B on Meta-World MT50 at 352 px, 3,900 tokens a sample: a pod.

    python -m experiments.collect --config=experiments/configs/wan14b.py --out=runs/wan14b/data
    python -m experiments.train   --config=experiments/configs/wan14b.py --workdir=runs/wan14b
    python tools/plan.py          --config=experiments/configs/wan14b.py --mesh data=8,fsdp=32

    parameters  16.4 B: video 14.2 B, action 2.0 B, other 0.2 B; 3,933 tokens a sample
    step        78.7 PFLOP for 256 samples: 0.78 s on 256 H100 at 40 % MFU (v5p 1.7 s, GB200 0.31 s)
    a device    38 GB, of them 28 GB activations (remat dots): fits an H100; a v6e with --config.model.remat=full

Fewer devices work on more rows each: on 32 (`--mesh fsdp=32`) set --config.model.remat=full. Not trained here, so no
result is claimed: built, planned and its training step traced by shape, and nothing more.
"""

from ml_collections import ConfigDict

from experiments.configs import small


def get_config() -> ConfigDict:
    config = small.get_config()
    config.sim.render.size = 352
    config.model.update(size="wan14b")
    config.mesh.update(data=-1, fsdp=32)
    config.objective.update(video_shift=5.0)
    config.optimizer.update(learning_rate=5e-5, warmup_steps=2000, ema_decay=0.9999)
    config.train.update(steps=100_000, batch_size=256)
    return config
