"""After Fast-WAM (arXiv:2603.16666) on Wan 2.2 TI2V-5B: the future video is there in training alone; MT50 at 320 px.

    python -m tools.import_weights --from wan2.2-5b --src RELEASE/transformer --out weights/wan2.2-5b
    python -m experiments.collect --config=experiments/configs/fast_wam.py --out=runs/fast_wam/data
    python -m experiments.train   --config=experiments/configs/fast_wam.py --workdir=runs/fast_wam
    python tools/plan.py          --config=experiments/configs/fast_wam.py --mesh data=1,fsdp=32

    parameters  6.02 B, all trained: video 5.00 B, action 1.02 B; 665 tokens a sample
    step        2.42 PFLOP for 128 samples: 0.19 s on 32 H100 at 40 % MFU (v5p 0.41 s, GB200 0.08 s)
    a device    6.4 GB, of them 2.5 GB activations (remat full): fits an H100 and a v6e

As there: a video expert of 5B and an action expert 1024 wide that starts from the video expert's weights, interpolated;
actions see the observed frame, the state and themselves, never noisy video, and the video no actions; a chunk of 32
actions and a frame every fourth step (9 frames, three latent ones); both shifts 5, both losses weigh one. As here: the
actions are learned from the draws that share the context pass, and the state is a token rather than a word of the text.

Data: two cameras, side by side for the trunk.

Built, planned and its step traced by shape; tuning with an interpolated action expert was run on a small random trunk,
on CPUs, in the tests. Not trained here, so no result is claimed.
"""

from ml_collections import ConfigDict

from experiments.configs import wan1b_finetune, wan5b


def get_config() -> ConfigDict:
    config = wan1b_finetune.wan(wan5b.get_config(), "wan2.2-5b")
    config.data.frame_seconds = tuple(round(0.05 * i, 2) for i in range(9))
    config.data.action_horizon = 32
    config.model.update(steps_per_token=1, lead_width=0, inverse_width=0)
    config.finetune.action_expert = "interpolated"
    config.objective.update(
        # Every sample trains the video without actions; its draws train the actions without the video.
        modes={**dict.fromkeys(config.objective.modes, 0.0), "video": 1.0},
        policy_draws=1,
        video_weight=1.0,
        policy_weight=1.0,
        video_shift=5.0,
        action_shift=5.0,
    )
    config.mesh.update(data=-1, fsdp=32)
    config.train.update(steps=30_000, batch_size=128)
    return config
