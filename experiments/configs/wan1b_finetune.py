"""Wan 2.1 1.3B (text to video) as the video expert, tuned with a fresh action expert on Meta-World MT50 at 256 px.

    python -m tools.import_weights --from wan2.1-1.3b --src RELEASE/transformer --out weights/wan2.1-1.3b
    python -m experiments.collect --config=experiments/configs/wan1b_finetune.py --out=runs/wan1b/data
    python -m experiments.train   --config=experiments/configs/wan1b_finetune.py --workdir=runs/wan1b
    python tools/plan.py          --config=experiments/configs/wan1b_finetune.py --mesh data=1,fsdp=8

    parameters  1.70 B, all trained: video 1.42 B, action 0.26 B, other 0.03 B (`lora`: 0.31 B trained); 2,109 tokens
    step        2.36 PFLOP for 128 samples: 0.75 s on eight H100 at 40 % MFU (v5p 1.6 s, GB200 0.30 s)
    a device    12 GB, of them 6.7 GB activations (remat full, 2 microbatches): fits an H100 and a v6e; `lora` 8.9 GB

Data: two cameras, side by side for the trunk; 13 frames at 20 Hz, that is four latent frames, and 48 actions.
`wan1b_finetune.py:lora` trains adapters of rank 16 in place of the video expert's weights.

Built, planned and its step traced by shape; both ways of tuning were run on a small random trunk on CPUs, in the
tests. Not trained here, so no result is claimed.
"""

from ml_collections import ConfigDict

from experiments.configs import base
from wam.pretrained.wan_trunk import RELEASED, SWITCHES

VARIANTS = ("lora",)
VIDEO = ("blocks.video.*", "sigma.video.*", "text_in.video.*", "video_in.*", "video_head.*")
"""What the trunk fills of the network."""


def get_config(variant: str = "") -> ConfigDict:
    config = wan(base.get_config(), "wan2.1-1.3b")
    config.mesh.update(data=-1, fsdp=8)
    # The trunk moves a tenth as fast as what is new.
    config.finetune.learning_rates = tuple((pattern, 0.1) for pattern in VIDEO)
    config.train.update(steps=30_000, batch_size=128, accumulate=2)
    if variant == "lora":
        config.finetune.update(
            lora=(("blocks.video.*", 16, 16.0),),
            freeze=("blocks.video.*", "sigma.video.*", "text_in.video.*"),
            learning_rates=(),
        )
    elif variant:
        raise ValueError(f"unknown variant {variant!r}; choose from {', '.join(VARIANTS)}")
    return config


def wan(config: ConfigDict, release: str) -> ConfigDict:
    """The recipe with a released trunk as its video expert, and latents and text as that trunk knows them."""
    trunk = RELEASED[release]
    side = 32 if trunk.out_channels == 48 else 16  # pixels of a token: a patch of 2 x 2 cells of 8 or 16
    config.tokenizer.update(
        kind="wan_vae", path=f"weights/{'wan2.2' if side == 32 else 'wan2.1'}-vae", dtype="bfloat16",
        patch=side, frames_per_latent=4, channels=trunk.patch * trunk.out_channels,
    )  # fmt: skip
    config.text.update(kind="pretrained", path="weights/umt5-xxl", dtype="bfloat16", tokens=512, dim=trunk.text_dim)
    config.model.update(**SWITCHES, remat="full")
    config.finetune.trunk = f"weights/{release}"
    config.optimizer.update(learning_rate=1e-4, warmup_steps=1000, weight_decay=0.01, ema_decay=0.999)
    return config
