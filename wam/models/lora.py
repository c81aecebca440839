"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) on linear maps: y = x W + b + (alpha / rank) (x A) B.

The term is computed beside the product with W and never added to W while training, so that a frozen W needs no gradient
and no second copy, under scan and remat as without. `merge` adds it to W afterwards, `unmerge` takes it off again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from wam.models.layers import Linear

LEAVES = ("lora_a", "lora_b")
Lora = Sequence[tuple[str, int, float]]
"""(pattern of linear maps, rank, alpha), as in `FinetuneConfig`."""


class AdaptedLinear(Linear):
    """A `Linear`, or a stack of them, with a low-rank term; B is zero, so that at first it computes what it did."""

    def __init__(self, base: Linear, rank: int, alpha: float, *, rngs: nnx.Rngs):
        self.kernel, self.bias, self.dtype = base.kernel, base.bias, base.dtype
        *stack, d_in, d_out = base.kernel.shape
        *names, axis_in, axis_out = base.kernel.get_metadata().get("out_sharding") or (None,) * (len(stack) + 2)

        def uniform(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -1, 1) / np.sqrt(d_in)

        a = nnx.with_partitioning(uniform, (*names, axis_in, None))
        b = nnx.with_partitioning(nnx.initializers.zeros_init(), (*names, None, axis_out))
        self.lora_a = nnx.Param(a(rngs.params(), (*stack, d_in, rank), jnp.float32))
        self.lora_b = nnx.Param(b(rngs.params(), (*stack, rank, d_out), jnp.float32))
        self.scale = alpha / rank

    def __call__(self, x: Array) -> Array:
        a, b = self.lora_a[...].astype(self.dtype), self.lora_b[...].astype(self.dtype)
        return super().__call__(x) + self.scale * ((x.astype(self.dtype) @ a) @ b)


def adapt(model: nnx.Module, lora: Lora, *, seed: int = 0) -> None:
    """Puts adapters on every linear map whose path a pattern fits, in place.

    Raises:
      ValueError: a pattern fits none.
    """
    if not lora:
        return
    found = [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, Linear)]
    rngs, used = nnx.Rngs(seed), set()
    with nnx.use_eager_sharding(False):
        for path, linear in sorted(found, key=lambda item: [str(part) for part in item[0]]):
            fitting = [entry for entry in lora if fnmatchcase(".".join(map(str, path)), entry[0])]
            if fitting:
                used.add(fitting[0][0])
                *parents, name = path
                owner: Any = model
                for part in parents:
                    owner = owner[part] if isinstance(owner, nnx.Dict) else getattr(owner, str(part))
                setattr(owner, str(name), AdaptedLinear(linear, *fitting[0][1:], rngs=rngs))
    if unused := [pattern for pattern, *_ in lora if pattern not in used]:
        raise ValueError(f"finetune.lora: {unused[0]!r} fits no linear map, or an earlier pattern fits all it would")


def scale_of(path: str, lora: Lora) -> float:
    """alpha / rank of the adapter on the linear map at `path`."""
    return next(alpha / rank for pattern, rank, alpha in lora if fnmatchcase(path, pattern))


def merge(flat: Mapping[str, Array], lora: Lora) -> dict[str, Array]:
    """Parameters by dotted path with every adapter added to its kernel, and gone: those of a model without adapters."""
    return {path: x for path, x in _moved(flat, lora, flat, 1.0).items() if not path.endswith(LEAVES)}


def unmerge(flat: Mapping[str, Array], lora: Lora, adapters: Mapping[str, Array]) -> dict[str, Array]:
    """The inverse of `merge`: kernels without the adapters' term, and the adapters beside them."""
    return _moved(flat, lora, adapters, -1.0) | dict(adapters)


def _moved(flat: Mapping[str, Array], lora: Lora, adapters: Mapping[str, Array], sign: float) -> dict[str, Array]:
    new = dict(flat)
    for name, a in adapters.items():
        if name.endswith(LEAVES[0]):
            path = name.removesuffix(f".{LEAVES[0]}")
            term = sign * scale_of(path, lora) * (a @ adapters[f"{path}.{LEAVES[1]}"])
            new[f"{path}.kernel"] = flat[f"{path}.kernel"] + term
    return new
