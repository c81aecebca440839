"""The expert block: one transformer layer of one expert, split at the attention so that experts can join there.

It is the Wan 2.x block (LayerNorm without affine, six-way modulation, q/k RMSNorm over the full attention width, 3-D
RoPE, text cross-attention behind an affine norm, tanh-GELU MLP), so released trunks load into it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from wam.models.attention import Keys, apply_rope, attend
from wam.models.layers import LayerNorm, Linear, RMSNorm, layer_norm, modulate


class QKV(NamedTuple):
    q: Array  # [B, L, N, H], rotated
    k: Array  # [B, L, N, H], rotated
    v: Array  # [B, L, N, H]


class ExpertBlock(nnx.Module):
    def __init__(self, width: int, mlp: int, heads: int, head_dim: int, *, rngs: nnx.Rngs, text: bool = True,
                 dtype=jnp.float32):  # fmt: skip
        inner = heads * head_dim
        linear: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.q = Linear(width, inner, axes=("embed", "heads"), **linear)
        self.k = Linear(width, inner, axes=("embed", "heads"), **linear)
        self.v = Linear(width, inner, axes=("embed", "heads"), **linear)
        self.out = Linear(inner, width, axes=("heads", "embed"), **linear)
        self.q_norm, self.k_norm = RMSNorm(inner, rngs=rngs), RMSNorm(inner, rngs=rngs)
        if text:
            self.text_norm = LayerNorm(width, rngs=rngs)
            self.text_q = Linear(width, inner, axes=("embed", "heads"), **linear)
            self.text_k = Linear(width, inner, axes=("embed", "heads"), **linear)
            self.text_v = Linear(width, inner, axes=("embed", "heads"), **linear)
            self.text_out = Linear(inner, width, axes=("heads", "embed"), **linear)
            self.text_q_norm, self.text_k_norm = RMSNorm(inner, rngs=rngs), RMSNorm(inner, rngs=rngs)
        self.up = Linear(width, mlp, axes=("embed", "mlp"), **linear)
        self.down = Linear(mlp, width, axes=("mlp", "embed"), **linear)

        def table(_key, shape, dtype):
            # Gates start open (1), shifts and scales at 0: the block is an ordinary pre-norm layer at step 0.
            return jnp.zeros(shape, dtype).at[jnp.array([2, 5])].set(1.0)

        init = nnx.with_partitioning(table, (None, "embed"))
        self.table = nnx.Param(init(rngs.params(), (6, width), jnp.float32))
        self.heads = heads

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.heads, -1)

    def modulation(self, condition_6D: Array) -> tuple[Array, ...]:
        """Six arrays [..., D] from the sigma's modulation [..., 6, D] plus the block's own table."""
        mod = condition_6D + self.table[...]
        return tuple(mod[..., i, :] for i in range(6))

    def qkv(self, x_BLD: Array, shift: Array, scale: Array, angles_BLh: Array) -> QKV:
        h = modulate(layer_norm(x_BLD), shift.astype(x_BLD.dtype), scale.astype(x_BLD.dtype))
        q = apply_rope(self._split(self.q_norm(self.q(h))), angles_BLh)
        k = apply_rope(self._split(self.k_norm(self.k(h))), angles_BLh)
        return QKV(q, k, self._split(self.v(h)))

    def text_keys(self, text_BLD: Array, mask_BL: Array) -> Keys:
        k = self._split(self.text_k_norm(self.text_k(text_BLD)))
        return Keys(k, self._split(self.text_v(text_BLD)), mask_BL)

    def finish(self, x_BLD: Array, attended_BLNH: Array, mod: tuple[Array, ...], text: Keys | None,
               backend: str) -> Array:  # fmt: skip
        """Everything after the joint attention: output projection, cross-attention to a text if there is one, MLP."""
        _, _, gate_attention, shift, scale, gate_mlp = (m.astype(x_BLD.dtype) for m in mod)
        merged = attended_BLNH.reshape(*attended_BLNH.shape[:2], -1)
        x_BLD = x_BLD + gate_attention * self.out(merged)
        if text is not None:
            q = self._split(self.text_q_norm(self.text_q(self.text_norm(x_BLD))))
            attended = attend(q, [text], backend="xla" if backend == "chunked" else backend)
            x_BLD = x_BLD + self.text_out(attended.reshape(*attended.shape[:2], -1))
        h = modulate(layer_norm(x_BLD), shift, scale)
        return x_BLD + gate_mlp * self.down(jax.nn.gelu(self.up(h), approximate=True))


class OutputHead(nnx.Module):
    """Final modulated norm and linear map; zero-initialised, so an untrained network outputs zero."""

    def __init__(self, width: int, d_out: int, *, rngs: nnx.Rngs):
        init = nnx.with_partitioning(nnx.initializers.zeros_init(), (None, "embed"))
        self.table = nnx.Param(init(rngs.params(), (2, width), jnp.float32))
        self.linear = Linear(width, d_out, rngs=rngs, axes=("embed", None), zero=True) if d_out else None

    def norm(self, x_BLD: Array, condition: Array) -> Array:
        """Modulated norm; `condition` broadcasts against x [B, L, D]."""
        shift, scale = condition + self.table[...][0], condition + self.table[...][1]
        return modulate(layer_norm(x_BLD.astype(jnp.float32)), shift, scale)

    def __call__(self, x_BLD: Array, condition: Array) -> Array:
        assert self.linear is not None, "a head with d_out = 0 only normalises"
        return self.linear(self.norm(x_BLD, condition))
