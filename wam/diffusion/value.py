"""Values as distributions: two-hot targets over bins on [0, 1], their cross-entropy, and the expectation back.

The value of a chunk is gamma^t, t seconds from its start to success (0 once the task is solved), and 0 where the
episode fails: a probability-like number whatever the length of an episode. As a class between two neighbouring bins
(Schrittwieser et al. 2020, arXiv:1911.08265; Farebrother et al. 2024, arXiv:2403.03950) its gradient does not depend on
its scale, and an outcome that may go either way is not averaged away before the read-out.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from wam.batch import Batch
from wam.diffusion.modes import Draws


def two_hot(value: Array, bins: int) -> Array:
    """[...] in [0, 1] -> [..., bins]: weights on the two nearest of `bins` even places from 0 to 1, mean `value`."""
    place = jnp.clip(value, 0.0, 1.0) * (bins - 1)
    return jnp.maximum(0.0, 1.0 - jnp.abs(place[..., None] - jnp.arange(bins)))


def expectation(logits: Array) -> Array:
    """[..., bins] -> [...] in [0, 1]; inverts `two_hot`."""
    return jax.nn.softmax(logits) @ jnp.linspace(0.0, 1.0, logits.shape[-1])


class ValueTarget(NamedTuple):
    """What the value query is compared with; has the face of `losses.Target`."""

    value: Array  # [B, M] in [0, 1]
    mask: Array  # [B, M] bool

    def counts(self) -> Array:
        return self.mask.sum(-1).astype(jnp.float32)

    def error(self, logits: Array) -> Array:
        """[B]: cross-entropy in nats, summed over the active chunks."""
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        entropy = -(two_hot(self.value, logits.shape[-1]) * log_p).sum(-1)
        return jnp.where(self.mask, entropy, 0.0).sum(-1)


def value_target(batch: Batch, draws: Draws) -> ValueTarget:
    """Counts where the outcome is known and what the query reads is clean."""
    video = (draws.value_sees_video[:, None] > 0) & (draws.sigma_video.max(-1) == 0)
    action = (draws.value_sees_video[:, None] == 0) & (draws.sigma_action == 0) & batch["action_mask"].any((2, 3))
    return ValueTarget(batch["value"], batch["value_mask"] & (video | action))
