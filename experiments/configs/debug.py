"""Seconds, not minutes: every part of the demo at its smallest, with groups of r = 2 frames. Used by the tests.

    python -m experiments.collect --config=experiments/configs/debug.py --out=runs/debug/data
    python -m experiments.train   --config=experiments/configs/debug.py --workdir=runs/debug

Expected result: it runs. Twenty steps teach nothing.
"""

from ml_collections import ConfigDict

from experiments.configs import demo


def get_config() -> ConfigDict:
    config = demo.get_config()
    config.collect.tasks = ("faucet-open", "faucet-close")
    config.collect.episodes = {
        "train": {"expert": 2, "play": 1, "ego": 1},
        "validation": {"expert": 1, "play": 1},
        "test": {"expert": 1, "play": 1},
    }
    config.collect.episodes_per_shard = 2
    config.sim.render.size = 32
    config.data.frame_seconds = (0.0, 0.05, 0.1, 0.15, 0.2)
    config.data.validation_windows = 8
    config.data.threads = 1
    config.tokenizer.update(patch=16, frames_per_latent=2, channels=16, fit_frames=300)
    config.text.update(tokens=4, dim=16)
    config.model.update(
        size="debug", time_width=32, lead_width=16, lead_fourier=4, inverse_width=16, inverse_channels=4,
        text_attention=True, scan_layers=True,
    )  # fmt: skip
    config.objective.update(policy_draws=2)
    config.optimizer.update(warmup_steps=5)
    config.train.update(steps=20, batch_size=8, log_every=1, eval_every=10, checkpoint_every=10)
    config.evaluate.update(episodes=2, max_steps=130, demonstrations=2)
    return config
