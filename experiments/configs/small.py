"""Meta-World MT50 at 192 px with the 130M-parameter model and 1,200 tokens a sample: one node of eight GPUs.

    python -m experiments.collect --config=experiments/configs/small.py --out=runs/small/data
    python -m experiments.train   --config=experiments/configs/small.py --workdir=runs/small
    python tools/plan.py          --config=experiments/configs/small.py --mesh data=8

    parameters  171 M: video 118 M, action 44 M, other 10 M; 1,213 tokens a sample
    step        208 TFLOP for 256 samples: 66 ms on eight H100 at 40 % MFU (v6e 71 ms)
    a device    19 GB, of them 16 GB activations (remat dots): fits an H100; a v5e with --config.model.remat=full

TPUs have no cuDNN attention: add --config.model.attention=xla there. The window of 0.6 s is the longest that collected
clips serve. Not trained here, so no result is claimed: built and planned by shape, and a few steps of the narrowed
recipe run on a CPU in the tests.
"""

from ml_collections import ConfigDict

from experiments.configs import metaworld_mt50


def get_config() -> ConfigDict:
    config = metaworld_mt50.get_config()
    config.sim.render.size = 192
    # 13 frames at 20 Hz: the first alone, then three groups of r = 4, as causal video tokenizers make them.
    config.data.frame_seconds = tuple(round(0.05 * i, 2) for i in range(13))
    config.data.action_horizon = 48
    config.tokenizer.update(patch=16, frames_per_latent=4, channels=64)
    config.text.update(tokens=16)
    config.model.update(
        size="small",
        dtype="bfloat16",
        attention="cudnn",
        remat="dots",
        target_views=(0, 1),
        video_prediction="velocity",
        # The paths' weights grow with patches x width: narrow here, where attention has the time to learn.
        lead_width=32,
        inverse_width=256,
        inverse_channels=8,
    )
    config.mesh.update(data=-1, fsdp=1)
    config.optimizer.update(learning_rate=3e-4, warmup_steps=1000, ema_decay=0.999)
    config.train.update(steps=100_000, batch_size=256, keep_latest=2, keep_every=20_000)
    return config
