"""After DreamZero (arXiv:2602.15922) on Wan 2.1 14B: as `wan5b_dreamzero`, on MT50 at 352 px. A pod.

    python -m tools.import_weights --from wan2.1-14b --src RELEASE/transformer --out weights/wan2.1-14b
    python -m experiments.collect --config=experiments/configs/wan14b_dreamzero.py --out=runs/wan14b_dreamzero/data
    python -m experiments.train   --config=experiments/configs/wan14b_dreamzero.py --workdir=runs/wan14b_dreamzero
    python tools/plan.py          --config=experiments/configs/wan14b_dreamzero.py --mesh data=4,fsdp=32

    parameters  14.3 B, all trained (`i2v`: 16.4 B, `released`: 16.5 B); 3,921 tokens a sample
    step        41.2 PFLOP for 128 samples: 0.81 s on 128 H100 at 40 % MFU (v5p 1.75 s, GB200 0.32 s)
    a device    14 GB, of them 5.2 GB activations (remat full): fits an H100 and a v6e

The text-to-video trunk: what is observed stands in the context. `wan14b_dreamzero.py:i2v` has the image-to-video trunk
that DreamZero starts from. It wants a `guide` (mask and latents of the first frame) and an `image` (tokens of CLIP) in
every batch, which the stores do not hold yet, so that variant is built and planned only. So is
`wan14b_dreamzero.py:released`, which does all else as DreamZero does (see `wan5b_dreamzero`) and starts from one of its
checkpoints, in weights/dreamzero-14b.

Built, planned and its step traced by shape. Not trained here, so no result is claimed.
"""

from ml_collections import ConfigDict

from experiments.configs import wan1b_finetune, wan5b_dreamzero, wan14b
from wam.pretrained.wan_trunk import RELEASED

VARIANTS = ("i2v", "released")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", *VARIANTS):
        raise ValueError(f"unknown variant {variant!r}; choose from {', '.join(VARIANTS)}")
    release = "wan2.1-14b-i2v" if variant else "wan2.1-14b"
    config = wan1b_finetune.wan(wan14b.get_config(), release)
    wan5b_dreamzero.dreamzero(config)
    fields = RELEASED[release].model_fields()
    config.model.update(action_width=5120, action_mlp=13824, guide_channels=fields["guide_channels"],
                        image_dim=fields["image_dim"])  # fmt: skip
    if variant == "released":
        wan5b_dreamzero.released(config, "dreamzero-14b")
    config.mesh.update(data=-1, fsdp=32)
    return config
