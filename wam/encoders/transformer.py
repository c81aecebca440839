"""The pre-norm transformer stack that all encoders share."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from wam.encoders.config import StackConfig
from wam.models.layers import LayerNorm, Linear, RMSNorm
from wam.models.placement import ROWS, constrain
from wam.models.rotary import rotate_pairs

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class Rotation(NamedTuple):
    """Cosines and sines [L, H] or [B, L, H], one per element of a head."""

    cos: Array
    sin: Array

    def __call__(self, x_BLNH: Array) -> Array:
        return rotate_pairs(x_BLNH, self.cos[..., None, :], self.sin[..., None, :])


def norm_of(config: StackConfig, *, rngs: nnx.Rngs, width: int = 0) -> LayerNorm | RMSNorm:
    width = width or config.width
    if config.norm == "rms":
        return RMSNorm(width, rngs=rngs, eps=config.eps, axis="embed")
    return LayerNorm(width, rngs=rngs, eps=config.eps)


class Attention(nnx.Module):
    """`one_kernel`: queries, keys and values are one linear map."""

    def __init__(self, config: StackConfig, *, rngs: nnx.Rngs, one_kernel: bool = False):
        self.config = config
        inner = config.heads * config.head_dim
        dtype = jnp.dtype(config.dtype)

        def project(outputs: int) -> Linear:
            bias = config.qkv_bias
            return Linear(config.width, outputs, rngs=rngs, axes=("embed", "heads"), bias=bias, dtype=dtype)

        if one_kernel:
            self.qkv = project(3 * inner)
        else:
            self.q, self.k, self.v = project(inner), project(inner), project(inner)
        self.out = Linear(inner, config.width, rngs=rngs, axes=("heads", "embed"), bias=config.bias, dtype=dtype)
        self.one_kernel = one_kernel

    def __call__(self, x_BLD: Array, context_BTD: Array, *, mask_BT: Array | None = None, bias_NLT: Array | None = None,
                 rotation: Rotation | None = None) -> Array:  # fmt: skip
        """x attends to the tokens of `context` that the mask leaves; softmax in float32."""
        config = self.config
        q, k, v = (y.reshape(*y.shape[:-1], config.heads, config.head_dim) for y in self._project(x_BLD, context_BTD))
        if rotation is not None:
            q, k = rotation(q), rotation(k)
        if bias_NLT is not None:
            bias_NLT = bias_NLT[None].astype(q.dtype if config.attention == "cudnn" else jnp.float32)
        attended_BLNH = jax.nn.dot_product_attention(
            q,
            k,
            v,
            bias=bias_NLT,
            mask=None if mask_BT is None else mask_BT[:, None, None, :].astype(bool),
            scale=1 / math.sqrt(config.head_dim) if config.scaled else 1.0,
            is_causal=config.causal,
            implementation=cast("Literal['xla', 'cudnn']", config.attention),
        )
        return self.out(attended_BLNH.reshape(*x_BLD.shape[:-1], -1))

    def _project(self, x_BLD: Array, context_BTD: Array) -> tuple[Array, Array, Array]:
        if not self.one_kernel:
            return self.q(x_BLD), self.k(context_BTD), self.v(context_BTD)
        q, _, _ = jnp.split(self.qkv(x_BLD), 3, axis=-1)
        _, k, v = jnp.split(self.qkv(context_BTD), 3, axis=-1)
        return q, k, v


class MLP(nnx.Module):
    def __init__(self, config: StackConfig, *, rngs: nnx.Rngs):
        def linear(d_in: int, d_out: int, axes: tuple[str, str]) -> Linear:
            return Linear(d_in, d_out, rngs=rngs, axes=axes, bias=config.bias, dtype=jnp.dtype(config.dtype))

        self.gate = linear(config.width, config.mlp, ("embed", "mlp")) if config.gated == "apart" else None
        self.up = linear(config.width, config.mlp * (2 if config.gated == "one" else 1), ("embed", "mlp"))
        self.down = linear(config.mlp, config.width, ("mlp", "embed"))
        self.gated, self.activation = config.gated, config.activation

    def __call__(self, x_BLD: Array) -> Array:
        act, up = ACTIVATIONS[self.activation], self.up(x_BLD)
        if self.gated == "none":
            return self.down(act(up))
        gate, up = jnp.split(up, 2, axis=-1) if self.gate is None else (self.gate(x_BLD), up)
        return self.down(act(gate) * up)


def distance_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """[L, T] int32 bucket of every (query, key): T5's bidirectional buckets (Raffel et al. 2020, arXiv:1910.10683).

    Keys to the right take the upper half. Within a half, the first half of the buckets hold one distance each, the
    others grow logarithmically up to `max_distance`.
    """
    half, exact = buckets // 2, buckets // 4
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    far = np.log(np.maximum(np.abs(distance), 1) / exact) / math.log(max_distance / exact) * (half - exact)
    # The margin puts distances that lie exactly on a boundary into the bucket they open, whatever the rounding.
    far = np.minimum(exact + np.floor(far + 1e-6).astype(np.int32), half - 1)
    near = np.abs(distance) < exact
    return (np.where(near, np.abs(distance), far) + np.where(distance > 0, half, 0)).astype(np.int32)


def _relative_table(config: StackConfig, rngs: nnx.Rngs) -> nnx.Param:
    init = nnx.with_partitioning(nnx.initializers.normal(0.02), (None, "heads"))
    return nnx.Param(init(rngs.params(), (config.buckets, config.heads), jnp.float32))


class Layer(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: StackConfig, *, rngs: nnx.Rngs):
        self.attention_norm, self.mlp_norm = norm_of(config, rngs=rngs), norm_of(config, rngs=rngs)
        self.attention, self.mlp = Attention(config, rngs=rngs), MLP(config, rngs=rngs)
        self.relative_bias = _relative_table(config, rngs) if config.relative_bias == "layer" else None
        ones = nnx.with_partitioning(nnx.initializers.ones_init(), ("embed",))

        def scale() -> nnx.Param | None:
            return nnx.Param(ones(rngs.params(), (config.width,), jnp.float32)) if config.layer_scale else None

        self.attention_scale, self.mlp_scale = scale(), scale()

    def __call__(self, x_BLD: Array, *, mask_BL: Array | None, bias_NLL: Array | None, buckets: np.ndarray | None,
                 rotation: Rotation | None) -> Array:  # fmt: skip
        if self.relative_bias is not None:
            bias_NLL = jnp.moveaxis(self.relative_bias[...][buckets], -1, 0)
        h = self.attention_norm(x_BLD)
        h = self.attention(h, h, mask_BT=mask_BL, bias_NLT=bias_NLL, rotation=rotation)
        x_BLD = x_BLD + _scaled(h, self.attention_scale)
        return constrain(x_BLD + _scaled(self.mlp(self.mlp_norm(x_BLD)), self.mlp_scale), ROWS)


def _scaled(x: Array, scale: nnx.Param | None) -> Array:
    return x if scale is None else x * scale[...].astype(x.dtype)


class Stack(nnx.Module):
    """`depth` layers with their parameters stacked on a leading axis, scanned or unrolled."""

    def __init__(self, config: StackConfig, *, rngs: nnx.Rngs):
        self.config = config

        @nnx.split_rngs(splits=config.depth)
        @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def layers(rngs: nnx.Rngs) -> Layer:
            return Layer(config, rngs=rngs)

        self.layers = layers(rngs)
        self.relative_bias = _relative_table(config, rngs) if config.relative_bias == "shared" else None

    def __call__(self, x_BLD: Array, *, mask_BL: Array | None = None, rotation: Rotation | None = None,
                 depth: int | None = None) -> Array:  # fmt: skip
        """Runs the first `depth` layers (all by default); tokens where the mask is False are seen by none."""
        config = self.config
        depth = config.depth if depth is None else depth
        if not 0 <= depth <= config.depth:
            raise ValueError(f"the encoder has {config.depth} layers, asked for the tokens after {depth}")
        buckets = bias_NLL = None
        if config.relative_bias != "none":
            buckets = distance_buckets(x_BLD.shape[1], config.buckets, config.max_distance)
        if self.relative_bias is not None:
            bias_NLL = jnp.moveaxis(self.relative_bias[...][buckets], -1, 0)
        graph, stacked = nnx.split(self.layers)

        def layer(x_BLD: Array, state) -> tuple[Array, None]:
            run = nnx.merge(graph, state)
            return run(x_BLD, mask_BL=mask_BL, bias_NLL=bias_NLL, buckets=buckets, rotation=rotation), None

        if config.remat:
            layer = jax.checkpoint(layer, prevent_cse=not config.scan_layers)
        if config.scan_layers:
            if depth < config.depth:
                stacked = jax.tree.map(lambda p: p[:depth], stacked)
            return jax.lax.scan(layer, x_BLD, stacked)[0]
        for i in range(depth):
            x_BLD, _ = layer(x_BLD, jax.tree.map(operator.itemgetter(i), stacked))
        return x_BLD


def structure(kind: Callable[..., nnx.Module], config: StackConfig) -> tuple[Any, dict[str, Any]]:
    """The static graph of a module and its parameters by shape, a nested dict; nothing is allocated.

    `nnx.merge(graph, params)` is the module with a dict of arrays like it.
    """
    with nnx.use_eager_sharding(False):
        graph, state = nnx.split(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))))
    return graph, nnx.to_pure_dict(state)


def frozen(params: Any, config: StackConfig) -> Any:
    """Parameters of a module that is not trained, on the device: kernels and embeddings in the dtype it computes in.

    The results are the same as with float32 ones, which are rounded to that dtype where they are used.
    """
    dtype = jnp.dtype(config.dtype)

    def place(path: tuple[Any, ...], x: Any) -> Array:
        used = dtype if path[-1].key in ("kernel", "embedding") else jnp.float32
        return jnp.asarray(x, used)

    return jax.tree_util.tree_map_with_path(place, params)
