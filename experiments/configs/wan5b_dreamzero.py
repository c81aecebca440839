"""After DreamZero (arXiv:2602.15922) on Wan 2.2 TI2V-5B: one expert for video, state and actions, on MT50 at 320 px.

    python -m tools.import_weights --from wan2.2-5b --src RELEASE/transformer --out weights/wan2.2-5b
    python -m experiments.collect --config=experiments/configs/wan5b_dreamzero.py --out=runs/wan5b_dreamzero/data
    python -m experiments.train   --config=experiments/configs/wan5b_dreamzero.py --workdir=runs/wan5b_dreamzero
    python tools/plan.py          --config=experiments/configs/wan5b_dreamzero.py --mesh data=1,fsdp=32

    parameters  5.00 B, all trained (`released`: 5.61 B); 849 tokens a sample
    step        3.19 PFLOP for 128 samples: 0.25 s on 32 H100 at 40 % MFU (v5p 0.54 s, GB200 0.10 s)
    a device    6.2 GB, of them 3.0 GB activations (remat full): fits an H100 and a v6e

As there: one transformer for all tokens, tuned whole; video and actions share sigma, shifted by 5, and see each other;
every control step is a token; 48 actions a chunk; both losses weigh one; batches of 128. As here, and not there: the
state stands at sigma 0, actions at fractional times of the video's axis, and linear maps encode and decode them.
`wan5b_dreamzero.py:released` does as there, with room for 32 action and 64 state dimensions and one set of encoders for
all robots, and starts from a checkpoint of DreamZero (tools.import_weights --from dreamzero-5b --out
weights/dreamzero-5b). It wants an `image` (tokens of CLIP) in every batch, which the stores do not hold yet.

Data: two cameras, side by side for the trunk; 13 frames at 20 Hz, that is four latent frames.

Built, planned and its step traced by shape. Not trained here, so no result is claimed.
"""

from ml_collections import ConfigDict

from experiments.configs import wan1b_finetune, wan5b
from wam.pretrained.dreamzero import RELEASED, SWITCHES

VARIANTS = ("released",)


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", *VARIANTS):
        raise ValueError(f"unknown variant {variant!r}; choose from {', '.join(VARIANTS)}")
    config = wan1b_finetune.wan(wan5b.get_config(), "wan2.2-5b")
    dreamzero(config)
    config.model.update(action_width=3072, action_mlp=14336)
    if variant == "released":
        released(config, "dreamzero-5b")
    config.mesh.update(data=-1, fsdp=32)
    return config


def dreamzero(config: ConfigDict) -> None:
    """What DreamZero's training has in common on both of its trunks."""
    config.model.update(topology="shared", steps_per_token=1, lead_width=0, inverse_width=0)
    config.objective.update(
        modes={**dict.fromkeys(config.objective.modes, 0.0), "joint": 1.0},
        joint_video_sees_action=1.0,
        policy_draws=0,
        video_weight=1.0,
        action_weight=1.0,
        video_shift=5.0,
        action_shift=5.0,
    )
    config.optimizer.update(learning_rate=1e-5)
    config.train.update(steps=100_000, batch_size=128, accumulate=1)


def released(config: ConfigDict, name: str) -> None:
    """What a checkpoint of DreamZero has beyond `dreamzero`."""
    checkpoint = RELEASED[name]
    config.data.update(action_dim=checkpoint.action_dim, state_dim=checkpoint.state_dim)
    fields = checkpoint.model_fields()
    sizes = ("code_width", "shared_codecs", "guide_channels", "image_dim")
    config.model.update(**SWITCHES, **{size: fields[size] for size in sizes})
    config.finetune.trunk = f"weights/{name}"
