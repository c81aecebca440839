"""Bytes a training step needs on each device, by shape: for any configuration and mesh, with no device at hand.

Parameters, gradients, moments, EMA and the batch follow from their shapes and from the rules that place them, so they
are exact. Activations are what differentiation keeps of a forward pass, found by tracing the loss at the shapes one
device holds (its rows, heads, MLP columns and patches), plus the working set of one layer. The compiler fuses some of
it and pads the rest, so this is a model; `tests/training/test_memory.py` holds it to XLA's own account.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import Var

from wam.batch import BatchSpec
from wam.config import ModelConfig, ObjectiveConfig
from wam.diffusion import losses, modes
from wam.models.flops import attention_pairs, stream_tokens
from wam.models.joint_dit import create
from wam.models.lora import Lora
from wam.pretrained.mapping import flatten
from wam.training import sharding, state
from wam.training.finetune import divide, frozen_paths
from wam.training.finetune_config import FinetuneConfig

ACTIVATIONS_WITHIN = 1.5
"""The activations of a compiled step are expected within this factor, either way. XLA's account on CPU devices, in
float32 with `xla` attention, is within 1.25 (a CPU computes bfloat16 in float32 and keeps both); no accelerator's
account has been compared yet."""


@dataclasses.dataclass(frozen=True)
class DeviceBytes:
    """What one device holds at the peak of a training step."""

    params: int
    gradients: int
    moments: int
    ema: int
    batch: int
    activations: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Setting:
    """All that decides the bytes of a training step. `mesh` maps every axis to its size."""

    model: ModelConfig
    objective: ObjectiveConfig
    spec: BatchSpec
    mesh: Mapping[str, int]
    batch_size: int
    accumulate: int = 1
    finetune: FinetuneConfig = dataclasses.field(default_factory=FinetuneConfig)

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def rows(self) -> int:
        """Samples that one device works on at a time."""
        return self.batch_size // (self.mesh["data"] * self.mesh["fsdp"] * self.accumulate)

    def local(self) -> ModelConfig:
        """The model as wide as one device sees its activations."""
        model, tensor, context = self.model, self.mesh["tensor"], self.mesh["context"]
        split = {
            name: getattr(model, name) // tensor
            for name in ("heads", "video_mlp", "action_mlp")
            if getattr(model, name) % tensor == 0
        }
        grid = model.grid if context == 1 else (1, model.patches // context)
        return dataclasses.replace(model, **split, grid=grid)


def device_bytes(setting: Setting) -> DeviceBytes:
    """Bytes of one device; ValueError where the mesh does not divide what it splits."""
    sharding.check_mesh(setting.mesh, setting.model, setting.batch_size, setting.accumulate)
    params = param_bytes(setting.model, setting.mesh, setting.finetune)
    trained = param_bytes(setting.model, setting.mesh, setting.finetune, frozen=False)
    samples = setting.rows * setting.accumulate
    batch = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in setting.spec.fields(samples).values())
    return DeviceBytes(
        params=params,
        # Microbatches one after the other: their sum, and that of the microbatch in hand.
        gradients=trained * (2 if setting.accumulate > 1 else 1),
        moments=2 * trained,
        ema=trained,
        batch=batch,
        activations=activation_bytes(setting),
    )


def param_counts(model: ModelConfig, finetune: FinetuneConfig | None = None) -> dict[str, int]:
    """Parameters of each expert, those that train where `finetune` says which; `other` are what none has to itself."""
    counts = {"video": 0, "action": 0, "other": 0}
    shapes, _ = _shapes(model) if finetune is None else _trained(model, finetune)
    for path, shape in jax.tree_util.tree_leaves_with_path(shapes):
        keys = [getattr(key, "key", None) for key in path]
        counts[next((key for key in keys if key in counts), "other")] += shape.size
    return counts


def param_bytes(model: ModelConfig, mesh: Mapping[str, int], finetune: FinetuneConfig | None = None, *,
                frozen: bool = True) -> int:  # fmt: skip
    """Bytes of the parameters on one device; without the `frozen` ones also those of a moment and of the EMA."""
    finetune = finetune or FinetuneConfig()
    shapes, axes = _shapes(model, finetune.lora) if frozen else _trained(model, finetune)
    specs = sharding.param_specs(axes, shapes, mesh)
    is_spec = lambda x: isinstance(x, jax.sharding.PartitionSpec)  # noqa: E731

    def local(spec, shape) -> int:
        ways = math.prod(mesh[axis] for axis in spec if axis is not None)
        return shape.size // ways * shape.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(local, specs, shapes, is_leaf=is_spec)))


def activation_bytes(setting: Setting) -> int:
    """What is kept for the backward pass, what one layer needs while at work, and the latents and noise of the loss."""
    model, local, rows = setting.model, setting.local(), setting.rows
    streams = setting.objective.with_video, setting.objective.policy_draws, setting.spec.text_tokens
    kept, whole = _kept(local, *streams), _kept(dataclasses.replace(local, remat="none"), *streams)
    context, weights = setting.mesh["context"], 0
    if model.attention == "xla" and context > 1:
        # A device's queries meet all keys: their weights shrink with the queries alone.
        pairs = sum(attention_pairs(local, setting.objective).values()) * (context - 1)
        weights = rows * pairs * local.heads * (4 + jnp.dtype(model.dtype).itemsize)
    layers = model.depth if model.remat == "none" else 0
    # Parameters cast to the compute dtype stay sharded; those of the layer at work are gathered.
    fixed = kept.fixed // setting.mesh["fsdp"]
    gathered = _layer_params(local) * jnp.dtype(model.dtype).itemsize if setting.mesh["fsdp"] > 1 else 0
    working = rows * whole.per_row // model.depth + weights + gathered
    return fixed + rows * (kept.per_row + _inputs(local, setting.objective)) + layers * weights + working


@dataclasses.dataclass(frozen=True)
class Kept:
    """Bytes that differentiation keeps of a forward pass: for each sample, and whatever their number."""

    per_row: int
    fixed: int


_ROWS = 10_007
"""Samples of the trace: a prime that no other size is a multiple of, so that what grows with the rows is told apart."""


@functools.cache
def _kept(model: ModelConfig, with_video: bool, draws: int, text_tokens: int) -> Kept:
    """Traces the loss and adds up what its pullback holds, the inputs apart (parameters are counted elsewhere)."""
    # Scanned layers trace fast. Chunked attention keeps what flash attention does, and traces on any machine.
    model = dataclasses.replace(model, scan_layers=True)
    if model.attention != "xla":
        model = dataclasses.replace(model, attention="chunked", attention_chunk=1)
    objective = ObjectiveConfig(with_video=with_video, policy_draws=draws)
    spec = dataclasses.replace(
        model.batch_spec(0, 0, text_tokens), latent=(model.latent_frames, model.patches, model.latent_channels)
    )
    batch = {name: jax.ShapeDtypeStruct(*field) for name, field in spec.fields(_ROWS).items()}
    apply, params = state.split(nnx.eval_shape(lambda: create(model)))
    drawn = jax.eval_shape(lambda b: modes.draw(jax.random.key(0), b, model, objective), batch)

    def pullback(params: Any, constants: Any, batch: Any, drawn: Any) -> Any:
        def loss(params):
            given = apply._replace(constants=constants).model(params)
            terms = losses.loss_terms(given, batch, batch["latents"], drawn, with_video=with_video)
            return sum(term.error.sum() for term in terms.values())

        return jax.tree.leaves(jax.vjp(loss, params)[1])

    jaxpr = jax.make_jaxpr(pullback)(params, apply.constants, batch, drawn).jaxpr
    given = {id(var) for var in (*jaxpr.invars, *jaxpr.constvars)}
    held: dict[int, Any] = {id(var): var.aval for var in jaxpr.outvars if isinstance(var, Var) and id(var) not in given}
    per_row = fixed = 0
    for aval in held.values():
        if any(size and size % _ROWS == 0 for size in aval.shape):
            per_row += aval.size // _ROWS * aval.dtype.itemsize
        else:
            fixed += aval.size * aval.dtype.itemsize
    return Kept(per_row, fixed)


def _inputs(model: ModelConfig, objective: ObjectiveConfig) -> int:
    """Bytes of one sample's latents and noise in float32."""
    frame = model.patches * model.latent_channels
    latents = model.views * model.latent_frames * frame
    noise = stream_tokens(model, objective).video * model.latent_channels
    actions = model.chunks * model.action_horizon * model.action_dim * (1 + objective.policy_draws)
    return 4 * (latents + noise + actions)


@functools.cache
def _shapes(model: ModelConfig, lora: Lora = ()) -> tuple[Any, Any]:
    """(shapes, logical axes) of the parameters."""
    _, params = state.split(nnx.eval_shape(lambda: state.build(model, lora)))
    return params, state.logical_axes(model, lora)


def _trained(model: ModelConfig, finetune: FinetuneConfig) -> tuple[Any, Any]:
    """(shapes, logical axes) of the parameters that train."""
    shapes, axes = _shapes(model, finetune.lora)
    frozen = frozen_paths(finetune, flatten(shapes))
    return divide(shapes, frozen)[0], divide(axes, frozen)[0]


def _layer_params(model: ModelConfig) -> int:
    """Parameters of one layer, all experts."""
    return sum(x.size for x in jax.tree.leaves(_shapes(model)[0]["blocks"])) // model.depth
