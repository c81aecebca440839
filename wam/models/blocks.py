"""The expert block: one transformer layer of one expert, split at the attention so that experts can join there.

It is the Wan 2.x block (LayerNorm without affine, six-way modulation, q/k RMSNorm over the full attention width, 3-D
RoPE, text cross-attention behind an affine norm, tanh-GELU MLP), so released trunks load into it. Image-to-video trunks
also attend to the tokens of one image, with keys and values of their own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from wam.models.attention import Keys, attend
from wam.models.layers import LayerNorm, Linear, RMSNorm, layer_norm, modulate
from wam.models.placement import place_tokens
from wam.models.rotary import apply_rope


class QKV(NamedTuple):
    q: Array  # [B, G, n, N, H], rotated
    k: Array  # [B, G, n, N, H], rotated
    v: Array  # [B, G, n, N, H]


class ExpertBlock(nnx.Module):
    """Tokens are [B, G, n, D]: G groups of n tokens; modulation is [B, G, 1, ...] where a group has one sigma."""

    def __init__(self, width: int, mlp: int, heads: int, head_dim: int, *, rngs: nnx.Rngs, text: bool = True,
                 text_norm: bool = True, image: bool = False, dtype=jnp.float32):  # fmt: skip
        inner = heads * head_dim
        linear: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.q = Linear(width, inner, axes=("embed", "heads"), **linear)
        self.k = Linear(width, inner, axes=("embed", "heads"), **linear)
        self.v = Linear(width, inner, axes=("embed", "heads"), **linear)
        self.out = Linear(inner, width, axes=("heads", "embed"), **linear)
        self.q_norm, self.k_norm = RMSNorm(inner, rngs=rngs), RMSNorm(inner, rngs=rngs)
        if text:
            self.text_norm = LayerNorm(width, rngs=rngs) if text_norm else None
            self.text_q = Linear(width, inner, axes=("embed", "heads"), **linear)
            self.text_k = Linear(width, inner, axes=("embed", "heads"), **linear)
            self.text_v = Linear(width, inner, axes=("embed", "heads"), **linear)
            self.text_out = Linear(inner, width, axes=("heads", "embed"), **linear)
            self.text_q_norm, self.text_k_norm = RMSNorm(inner, rngs=rngs), RMSNorm(inner, rngs=rngs)
        if image:
            self.image_k = Linear(width, inner, axes=("embed", "heads"), **linear)
            self.image_v = Linear(width, inner, axes=("embed", "heads"), **linear)
            self.image_k_norm = RMSNorm(inner, rngs=rngs)
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

    def qkv(self, x_BGnD: Array, shift: Array, scale: Array, angles_BGnh: Array) -> QKV:
        h = modulate(layer_norm(x_BGnD), shift.astype(x_BGnD.dtype), scale.astype(x_BGnD.dtype))
        q = apply_rope(self._split(self.q_norm(self.q(h))), angles_BGnh)
        k = apply_rope(self._split(self.k_norm(self.k(h))), angles_BGnh)
        return QKV(q, k, self._split(self.v(h)))

    def text_keys(self, text_BLD: Array) -> tuple[Array, Array]:
        """Keys and values [B, 1, Lt, N, H] of the instruction's tokens, as one group."""
        text_BGnD = text_BLD[:, None]
        k = self._split(self.text_k_norm(self.text_k(text_BGnD)))
        return k, self._split(self.text_v(text_BGnD))

    def image_keys(self, image_BLD: Array) -> tuple[Array, Array]:
        """Keys and values [B, 1, Li, N, H] of the image's tokens, as one group."""
        image_BGnD = image_BLD[:, None]
        k = self._split(self.image_k_norm(self.image_k(image_BGnD)))
        return k, self._split(self.image_v(image_BGnD))

    def finish(self, x_BGnD: Array, attended_BGnNH: Array, mod: tuple[Array, ...], text: Keys | None, backend: str, *,
               patches: bool, image: Keys | None = None) -> Array:  # fmt: skip
        """Everything after the joint attention: output projection, cross-attention to what there is to read, MLP.

        Text and image are attended to one by one, with the same queries, and the two results added (as in Wan 2.1 I2V).
        """
        _, _, gate_attention, shift, scale, gate_mlp = (m.astype(x_BGnD.dtype) for m in mod)
        x_BGnD = x_BGnD + gate_attention * self.out(_merge(attended_BGnNH))
        if text is not None:
            h = x_BGnD if self.text_norm is None else self.text_norm(x_BGnD)
            q = self._split(self.text_q_norm(self.text_q(h)))
            backend = "xla" if backend == "chunked" else backend
            attended = attend(q, [text], backend=backend, patches=patches)
            if image is not None:
                attended = attended + attend(q, [image], backend=backend, patches=patches)
            x_BGnD = x_BGnD + self.text_out(_merge(attended))
        h = modulate(layer_norm(x_BGnD), shift, scale)
        x_BGnD = x_BGnD + gate_mlp * self.down(jax.nn.gelu(self.up(h), approximate=True))
        return place_tokens(x_BGnD, patches=patches)


def _merge(x_NH: Array) -> Array:
    """Heads side by side: [..., N, H] -> [..., N H]."""
    return x_NH.reshape(*x_NH.shape[:-2], -1)


class OutputHead(nnx.Module):
    """Final modulated norm and linear map; zero-initialised, so an untrained network outputs zero."""

    def __init__(self, width: int, d_out: int, *, rngs: nnx.Rngs):
        init = nnx.with_partitioning(nnx.initializers.zeros_init(), (None, "embed"))
        self.table = nnx.Param(init(rngs.params(), (2, width), jnp.float32))
        self.linear = Linear(width, d_out, rngs=rngs, axes=("embed", None), zero=True) if d_out else None

    def norm(self, x_BGnD: Array, condition: Array) -> Array:
        """Modulated norm; `condition` broadcasts against x [B, G, n, D]."""
        shift, scale = condition + self.table[...][0], condition + self.table[...][1]
        return modulate(layer_norm(x_BGnD.astype(jnp.float32)), shift, scale)

    def __call__(self, x_BGnD: Array, condition: Array) -> Array:
        assert self.linear is not None, "a head with d_out = 0 only normalises"
        return self.linear(self.norm(x_BGnD, condition))
