"""Small layers shared by the blocks: linear maps, norms, sigma embedding, embodiment banks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

PRODUCT = "product"
"""Name of every linear map's output, by which a remat policy keeps it."""


def dense_init(axes: tuple[str | None, ...]):
    """Xavier-uniform kernel with logical axis names for sharding."""
    return nnx.with_partitioning(nnx.initializers.xavier_uniform(), axes)


def zero_init(axes: tuple[str | None, ...]):
    return nnx.with_partitioning(nnx.initializers.zeros_init(), axes)


class Linear(nnx.Module):
    """y = x W + b with W [in, out]; computes in `dtype`, keeps float32 parameters."""

    def __init__(self, d_in: int, d_out: int, *, rngs: nnx.Rngs, axes=("embed", "mlp"), zero=False, bias=True,
                 dtype=jnp.float32):  # fmt: skip
        init = zero_init(axes) if zero else dense_init(axes)
        self.kernel = nnx.Param(init(rngs.params(), (d_in, d_out), jnp.float32))
        self.bias = nnx.Param(zero_init(axes[-1:])(rngs.params(), (d_out,), jnp.float32)) if bias else None
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        y = checkpoint_name(x.astype(self.dtype) @ self.kernel[...].astype(self.dtype), PRODUCT)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis, in float32."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, eps: float = 1e-6, axis: str = "heads"):
        init = nnx.with_partitioning(nnx.initializers.ones_init(), (axis,))
        self.scale = nnx.Param(init(rngs.params(), (width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...]).astype(x.dtype)


def layer_norm(x: Array, eps: float = 1e-6) -> Array:
    """LayerNorm without affine parameters, in float32."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    return (y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """LayerNorm with affine parameters, in float32."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, eps: float = 1e-6):
        ones = nnx.with_partitioning(nnx.initializers.ones_init(), ("embed",))
        self.scale = nnx.Param(ones(rngs.params(), (width,), jnp.float32))
        self.bias = nnx.Param(zero_init(("embed",))(rngs.params(), (width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        return (layer_norm(x.astype(jnp.float32), self.eps) * self.scale[...] + self.bias[...]).astype(x.dtype)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """Adaptive LayerNorm's affine part (Peebles & Xie 2023, arXiv:2212.09748)."""
    return x * (1 + scale) + shift


def sinusoid(sigma: Array, width: int) -> Array:
    """Sinusoidal embedding [..., width] of 1000 sigma (Vaswani et al. 2017), cosines first as in released trunks."""
    half = width // 2
    frequencies = jnp.asarray(10000.0 ** (-np.arange(half) / half), jnp.float32)
    angles = 1000.0 * sigma.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class SigmaEmbedder(nnx.Module):
    """sigma [...] -> condition [..., D] and its six modulation vectors [..., 6, D], in float32 (as in Wan 2.x)."""

    def __init__(self, sinusoid_width: int, width: int, *, rngs: nnx.Rngs):
        self.input = Linear(sinusoid_width, width, rngs=rngs, axes=(None, "embed"))
        self.hidden = Linear(width, width, rngs=rngs, axes=("embed", None))
        self.project = Linear(width, 6 * width, rngs=rngs, axes=("embed", "mlp"), zero=True)
        self.sinusoid_width = sinusoid_width

    def condition(self, sigma: Array) -> Array:
        return self.hidden(jax.nn.silu(self.input(sinusoid(sigma, self.sinusoid_width))))

    def modulation(self, condition: Array) -> Array:
        out = self.project(jax.nn.silu(condition))
        return out.reshape(*out.shape[:-1], 6, condition.shape[-1])


class EmbodimentBank(nnx.Module):
    """One linear map per embodiment: weights [E, in, out], gathered by embodiment index."""

    def __init__(self, embodiments: int, d_in: int, d_out: int, *, rngs: nnx.Rngs, zero=False, dtype=jnp.float32):
        def kernel(key, shape, dtype):
            fan = np.sqrt(6 / (d_in + d_out))
            return jax.random.uniform(key, shape, dtype, -fan, fan)

        init = nnx.initializers.zeros_init() if zero else kernel
        init = nnx.with_partitioning(init, ("embodiment", None, "embed"))
        self.kernel = nnx.Param(init(rngs.params(), (embodiments, d_in, d_out), jnp.float32))
        bias = nnx.with_partitioning(nnx.initializers.zeros_init(), ("embodiment", "embed"))
        self.bias = nnx.Param(bias(rngs.params(), (embodiments, d_out), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Array, embodiment_B: Array) -> Array:
        """x [B, ..., in] -> [B, ..., out], by one-hot products: no scatter in the backward pass."""
        onehot_BE = jax.nn.one_hot(embodiment_B, self.kernel.shape[0], dtype=self.dtype)
        kernel_Bio = jnp.einsum("BE,Eio->Bio", onehot_BE, self.kernel[...].astype(self.dtype))
        bias_Bo = onehot_BE @ self.bias[...].astype(self.dtype)
        flat = x.reshape(x.shape[0], -1, x.shape[-1]).astype(self.dtype)
        y = jnp.einsum("Bni,Bio->Bno", flat, kernel_Bio) + bias_Bo[:, None, :]
        return y.reshape(*x.shape[:-1], -1)


def round_weights(model: nnx.Module) -> None:
    """Rounds the weights of linear maps to the dtype in which they compute, as every call would: half the bytes."""
    for _, module in nnx.iter_graph(model):
        if isinstance(module, Linear | EmbodimentBank) and module.dtype != jnp.float32:
            for weight in (module.kernel, module.bias):
                if weight is not None:
                    weight.set_value(weight[...].astype(module.dtype))
