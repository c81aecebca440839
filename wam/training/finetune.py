"""What of a network trains, from where it starts, and how fast: `FinetuneConfig` applied to its parameters.

Frozen parameters are a tree of their own beside the training state. The step takes them as an argument and returns none
of them, so they stay bit for bit what they were; gradients, moments, EMA and checkpoints are those of the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wam.models.lora import LEAVES, merge
from wam.pretrained.imported import load_trunk, trunk_config
from wam.pretrained.mapping import flatten, unflatten
from wam.pretrained.released import trunk_shapes
from wam.training.finetune_config import FinetuneConfig

Tree = dict[str, Any]


def frozen_paths(config: FinetuneConfig, paths: Collection[str]) -> set[str]:
    """Which parameters do not train: those that `freeze` names, adapters apart, and the kernels under adapters.

    Raises:
      ValueError: a pattern of `freeze` or `learning_rates` fits no parameter, or none is left to train.
    """
    for name, patterns in (("freeze", config.freeze), ("learning_rates", [p for p, _ in config.learning_rates])):
        for pattern in patterns:
            if not any(fnmatchcase(path, pattern) for path in paths):
                raise ValueError(f"finetune.{name}: {pattern!r} fits no parameter, as {min(paths)!r} is one")
    adapted = {path.removesuffix(LEAVES[0]) + "kernel" for path in paths if path.endswith(LEAVES[0])}
    named = {path for path in paths if any(fnmatchcase(path, pattern) for pattern in config.freeze)}
    frozen = {path for path in named | adapted if not path.endswith(LEAVES)}
    if frozen == set(paths):
        raise ValueError("finetune.freeze leaves no parameter to train")
    return frozen


def check_imported(frozen: Collection[str], imported: Collection[str]) -> None:
    """ValueError unless every frozen parameter comes from the imported trunk."""
    if fresh := sorted(set(frozen) - set(imported)):
        raise ValueError(
            f"finetune would freeze {fresh[0]!r}, which does not come from the trunk and would never be trained; let "
            "finetune.freeze and finetune.lora name what the trunk holds"
        )


def divide(params: Tree, frozen: Collection[str]) -> tuple[Tree, Tree]:
    """(what trains, what does not), both nested like `params`."""
    flat = flatten(params)
    trained = {path: x for path, x in flat.items() if path not in frozen}
    return unflatten(trained), unflatten({path: x for path, x in flat.items() if path in frozen})


def combined(trained: Tree, frozen: Tree | None) -> Tree:
    """The parameters of the whole network: the inverse of `divide`."""
    return unflatten({**flatten(trained), **flatten(frozen)}) if frozen else trained


def rate_factors(params: Tree, learning_rates: Sequence[tuple[str, float]]) -> Tree:
    """The factor on the learning rate of every parameter, like `params`."""
    factors = {
        path: next((factor for pattern, factor in learning_rates if fnmatchcase(path, pattern)), 1.0)
        for path in flatten(params)
    }
    return unflatten(factors)


def narrowed(wide: Array, shape: Sequence[int]) -> Array:
    """`wide` interpolated linearly along every axis that is longer or shorter in `shape`, first and last kept."""
    for axis, size in enumerate(shape):
        if wide.shape[axis] != size:
            place = np.linspace(0, wide.shape[axis] - 1, size)
            low = np.minimum(place.astype(int), wide.shape[axis] - 2)
            part = jnp.asarray((place - low).reshape(-1, *(1,) * (wide.ndim - axis - 1)), wide.dtype)
            wide = jnp.take(wide, low, axis) * (1 - part) + jnp.take(wide, low + 1, axis) * part
    return wide


def interpolated_action_expert(flat: Mapping[str, Array]) -> dict[str, Array]:
    """The action expert's parameters made of the video expert's, by dotted path.

    Fast-WAM (arXiv:2603.16666) starts its narrow action expert by interpolating the video expert's weights. Here every
    axis that differs (the residual width, the MLP's) is resampled linearly, ends aligned; a kernel whose input narrows
    from d to d' is scaled by sqrt(d / d'), which keeps the variance of its output. Heads are equal in both experts, so
    queries and keys start out comparable with the video's. Encoders and decoders of actions stay fresh.
    """
    made = {}
    for path, x in flat.items():
        wide = flat.get(path.replace(".action.", ".video."))
        if ".action." not in path or wide is None:
            continue
        # The six modulation vectors stand one behind the other.
        parts = 6 if ".project." in path else 1
        x_new = narrowed(wide.reshape(*wide.shape[:-1], parts, -1), (*x.shape[:-1], parts, x.shape[-1] // parts))
        x_new = x_new.reshape(x.shape)
        made[path] = x_new * float(np.sqrt(wide.shape[-2] / x.shape[-2])) if path.endswith(".kernel") else x_new
    return made


def started(params: Tree, given: Mapping[str, Array], config: FinetuneConfig) -> Tree:
    """Fresh parameters with the imported ones in their places, and an action expert after them where that is asked."""
    flat = {**flatten(params), **given}
    if config.action_expert == "interpolated":
        made = interpolated_action_expert(flat)
        if not made:
            raise ValueError("finetune.action_expert 'interpolated' needs an action expert: model.topology 'dual'")
        flat |= made
    return unflatten(flat)


def complete(trained: Tree, config: FinetuneConfig) -> Tree:
    """A checkpoint's parameters as inference needs them: with the trunk's frozen ones, and the adapters merged.

    Raises:
      FileNotFoundError, ValueError: the trunk is not where the run had it, or does not fit.
    """
    if not config.trunk:
        return trained
    flat, shapes = flatten(trained), trunk_shapes(trunk_config(config.trunk))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    given = load_trunk(config.trunk, shapes, dict.fromkeys(shapes, here))
    frozen = {path: given[path] for path in given.keys() - flat.keys()}
    return unflatten(merge({**frozen, **flat}, config.lora))
