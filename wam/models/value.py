"""The value query: one token a chunk whose output says how good what it looks at is.

It looks at what `visibility.TABLE` says: with the bit `value_sees_video` at the future video (a state value, V(s'));
without it at the state and the actions (an action value, Q(s, a)). Nobody looks at it, so that its presence changes no
other output. Two readings by one query follow Cosmos Policy (arXiv:2601.16163), which masks its inputs to the same end.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array

from wam.config import ModelConfig
from wam.models.blocks import OutputHead


class ValueQuery(nnx.Module):
    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        if config.value_bins < 2:
            raise ValueError(f"model.value_bins is {config.value_bins}; it needs two at least (0: no query)")
        width = config.action_width
        # Unit scale: the blocks' norms would blow up the gradient of a token near zero.
        init = nnx.with_partitioning(nnx.initializers.normal(1.0), ("embed",))
        self.token = nnx.Param(init(rngs.params(), (width,), jnp.float32))
        self.head = OutputHead(width, config.value_bins, rngs=rngs)

    def tokens(self, rows: int, chunks: int, dtype: jnp.dtype) -> Array:
        """[B, M, 1, D]"""
        return jnp.broadcast_to(self.token[...].astype(dtype), (rows, chunks, 1, self.token.shape[0]))

    def __call__(self, x_BM1D: Array, condition: Array) -> Array:
        """Logits over the bins, [B, M, bins]."""
        return self.head(x_BM1D, condition)[:, :, 0]
