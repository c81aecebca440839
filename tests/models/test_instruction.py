"""How the instruction reaches the network: through the modulation always, through cross-attention where configured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import random_model, small_batch, small_config
from wam.models.streams import Noisy, observe


def actions(config, batch):
    model, latents = random_model(config), jax.random.normal(jax.random.key(0), (6, 2, 3, 4, 8))
    K, A = config.action_horizon, config.action_dim
    noisy = Noisy(
        None, jnp.ones((6, 1, 2)), jnp.ones((6, 1, 2), bool), jax.random.normal(jax.random.key(2), (6, 1, K, A)),
        batch["action_mask"], jnp.full((6, 1), 0.3), jnp.zeros(6), jnp.zeros(6),
    )  # fmt: skip
    answer = jax.jit(lambda batch: model.denoise(model.context(observe(batch, latents, 1, 2)), noisy).action)
    return lambda **changes: np.asarray(answer({**batch, **changes}))


@pytest.mark.parametrize("text_attention", [True, False])
def test_instruction_is_heard_with_and_without_cross_attention(text_attention):
    config = small_config(latent_frames=3, text_attention=text_attention)
    batch = small_batch(config)
    batch["text_mask"][:] = True
    answer = actions(config, batch)
    text = batch["text"]
    assert np.abs(answer(text=text + 1.0) - answer()).max() > 1e-3
    # Two tokens pulled apart about their mean: the pooled instruction, and with it the modulation, stays as it was.
    apart = text + np.array([1.0, -1.0, 0.0], np.float32)[:, None]
    change = np.abs(answer(text=apart) - answer()).max()
    assert change > 1e-3 if text_attention else change < 1e-5
    names = {str(path) for path, _ in jax.tree_util.tree_flatten_with_path(_params(config))[0]}
    assert any("text_q" in name for name in names) == text_attention


def _params(config):
    from wam.training.state import split

    return jax.eval_shape(lambda: split(random_model(config))[1])
