"""A case of the latency bench that compiles in seconds."""

import json

import numpy as np

from tools.bench.latency_cases import Case, fields

TINY = Case(
    "debug",
    fields(time_width=32, lead_width=8, lead_fourier=4, inverse_width=16, inverse_channels=4, grid=(2, 2),
           latent_channels=8, frames_per_latent=2, latent_frames=3, views=2, target_views=(0, 1), cameras=3,
           action_horizon=8, steps_per_token=2, text_dim=8),
    text_tokens=3, executed=4, patch=4,
)  # fmt: skip


def spec_of(case, folder, **more):
    """The spec of a case whose arrays lie in the folder."""
    from tools.bench import latency_exchange as exchange
    from tools.bench.exchange import flatten, weights
    from wam.config import ModelConfig, build

    spec = case.spec("xla", "cpu") | {"arrays": str(folder / "arrays.npz"), "compile": None, **more}
    config = build(ModelConfig, spec["model"])
    params, constants = weights(config, 0)
    arrays = params | constants
    parts = {"tokenizer": exchange.tokenizer(config, spec["patch"], 0), "batch": exchange.observation(config, spec),
             "noise": exchange.noise(config, 0)}  # fmt: skip
    for name, tree in parts.items():
        arrays |= dict(flatten(tree, name))
    np.savez(spec["arrays"], **arrays)
    return json.loads(json.dumps(spec))
