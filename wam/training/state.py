"""The training state: plain dicts of arrays, so that nothing of the module system crosses the jit boundary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from wam.batch import Batch
from wam.config import ModelConfig
from wam.diffusion.losses import Term
from wam.diffusion.modes import Draws
from wam.models.dynamics_paths import Constant
from wam.models.joint_dit import JointDiT, create
from wam.models.lora import Lora, adapt
from wam.tokenizers.video import VideoTokenizer


class TrainState(NamedTuple):
    step: Array  # [] int32, steps taken
    steps: Array  # [] int32, steps in all: the horizon of the schedule
    seed: Array  # [] uint32, of every random draw of the training
    params: Any  # nested dict, float32
    ema: Any  # like params; what evaluation and policies read
    opt_state: Any


class Fixed(NamedTuple):
    """What a step reads and no step changes: an argument of the compiled steps, no constant in them."""

    frozen: Any = None
    """Parameters that do not train, and that the state does not hold."""
    tokenizer: VideoTokenizer | None = None
    """Pixels to latents; None when batches hold latents."""
    teacher: Any = None
    """All parameters of the network that a student learns from; None where none is distilled."""


class Apply(NamedTuple):
    """What turns a dict of parameters back into a model: the static graph and the fitted constants."""

    graph: Any
    constants: Any

    def model(self, params: Any) -> JointDiT:
        return nnx.merge(self.graph, params, self.constants)


class Networks(NamedTuple):
    """What a loss may run."""

    trained: JointDiT
    average: JointDiT
    """The moving average of it: no gradient reaches it."""
    teacher: JointDiT | None


Terms = Callable[[Networks, Batch, Array, Draws], dict[str, Term]]
"""(networks, batch, its latents, draws) -> loss terms: what a step minimises."""


def split(model: JointDiT) -> tuple[Apply, Any]:
    """(apply, params) with params and constants as plain nested dicts."""
    graph, *states = nnx.split(model, nnx.Param, Constant)
    params, constants = map(nnx.to_pure_dict, states)
    return Apply(graph, constants), params


def build(config: ModelConfig, lora: Lora = (), seed: int = 0) -> JointDiT:
    """A fresh model, with adapters where `lora` asks for them."""
    model = create(config, seed)
    adapt(model, lora, seed=seed)
    return model


def logical_axes(config: ModelConfig, lora: Lora = ()) -> Any:
    """Logical axis names per parameter, a dict like the parameters with tuples as leaves."""
    model = nnx.eval_shape(lambda: build(config, lora))
    specs = nnx.get_partition_spec(nnx.state(model, nnx.Param))
    return nnx.to_pure_dict(specs)


def init_state(params: Any, optimizer: optax.GradientTransformation, *, steps: int, seed: int) -> TrainState:
    copy = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.int32(0), jnp.int32(steps), jnp.uint32(seed), params, copy, optimizer.init(params))


def update_ema(ema: Any, params: Any, step: Array, decay: float) -> Any:
    """Exponential moving average whose decay ramps up as (1 + step) / (10 + step)."""
    kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: e * kept + p * (1 - kept), ema, params)


def expert_norms(params: Any) -> dict[str, Array]:
    """Norm of the parameters (or gradients) of every expert's blocks; `other` is all the rest."""
    parts = {**params.get("blocks", {}), "other": {name: value for name, value in params.items() if name != "blocks"}}
    return {name: optax.tree.norm(part) for name, part in parts.items()}


def count(params: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(params))
