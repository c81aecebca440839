"""`Trainer`: a model, its objective and a mesh put together; what commands, benches and proofs train with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wam.batch import Batch
from wam.config import ModelConfig, ObjectiveConfig, OptimizerConfig
from wam.models.joint_dit import JointDiT
from wam.pretrained.imported import load_trunk
from wam.pretrained.mapping import flatten
from wam.tokenizers.video import VideoTokenizer
from wam.training import sharding
from wam.training.augment import OFF, Augmentation
from wam.training.distill import Teacher, check_teacher, distilling
from wam.training.finetune import check_imported, divide, frozen_paths, started
from wam.training.finetune_config import FinetuneConfig
from wam.training.optimizer import make_optimizer
from wam.training.state import Apply, Fixed, TrainState, build, count, init_state, logical_axes, split
from wam.training.step import Metrics, denoising, make_eval_step, make_train_step


class Trainer:
    """Jitted, sharded steps. Parameters, EMA and moments are born where they live: no device ever holds all of them.

    Args:
      model: the network's shape.
      objective, optimizer: what is minimised, and how.
      tokenizer: pixels to latents; None when batches hold latents.
      mesh: from `sharding.make_mesh`.
      batch_size: rows of a global batch.
      sources: number of data sources, for metrics.
      accumulate: microbatches of a step.
      finetune: what the parameters start from, and which of them train.
      augment: of the training images.
      teacher: where parameters start from, and what they learn from in place of the data's velocities.
      prepare: writes what was fitted on data into a fresh model's constants.

    Raises:
      ValueError: the mesh does not divide the batch, the heads, the MLPs or the patches; the teacher is a network of
        another shape.
    """

    def __init__(self, model: ModelConfig, objective: ObjectiveConfig, optimizer: OptimizerConfig,
                 tokenizer: VideoTokenizer | None, mesh: Mesh, *, batch_size: int, sources: int, accumulate: int = 1,
                 prepare: Callable[[JointDiT], None] | None = None,
                 finetune: FinetuneConfig | None = None,
                 augment: Augmentation = OFF,
                 teacher: Teacher | None = None):  # fmt: skip
        sharding.check_mesh(mesh.shape, model, batch_size, accumulate)
        self.mesh, self.model, self.batch_size, self._prepare = mesh, model, batch_size, prepare
        self.finetune = finetune = finetune or FinetuneConfig()
        self._transform = make_optimizer(optimizer)
        self.apply, shapes = self._graph()
        self.parameters = count(shapes)
        self._shapes = {path: x.shape for path, x in flatten(shapes).items()}
        self._frozen_paths = frozen_paths(finetune, self._shapes)
        self._placed = sharding.param_shardings(logical_axes(model, finetune.lora), shapes, mesh)
        params, self._frozen_shardings = divide(self._placed, self._frozen_paths)
        self.shardings = sharding.state_shardings(params, self._transform, mesh)
        self.rows = sharding.batch_sharding(mesh)
        everywhere = NamedSharding(mesh, PartitionSpec())
        self.fixed = Fixed({}, jax.device_put(tokenizer, everywhere))
        fixed: Any = Fixed(self._frozen_shardings, everywhere)  # type: ignore[arg-type]  # shardings of what is fixed
        self.terms = denoising(objective)
        if teacher is not None:
            check_teacher(teacher, self._shapes, finetune)
            self.terms = distilling(teacher.config, objective)
            self.fixed = self.fixed._replace(teacher=jax.device_put(teacher.params, self._placed))
            fixed = fixed._replace(teacher=self._placed)
        step = make_train_step(self.apply, objective, optimizer, sources=sources, accumulate=accumulate,
                               learning_rates=finetune.learning_rates, augment=augment,
                               terms=self.terms)  # fmt: skip
        self._step = jax.jit(
            step, donate_argnums=0, in_shardings=(self.shardings, self.rows, fixed),
            out_shardings=(self.shardings, everywhere),
        )  # fmt: skip
        evaluate = make_eval_step(self.apply, objective, seed=0, sources=sources, terms=self.terms)
        self._evaluate = jax.jit(evaluate, in_shardings=(params, self.rows, self.rows, fixed), out_shardings=everywhere)

    def _fresh(self, seed: int) -> tuple[Apply, Any]:
        model = build(self.model, self.finetune.lora, seed)
        if self._prepare is not None:
            self._prepare(model)
        return split(model)

    def _graph(self) -> tuple[Apply, Any]:
        """(apply with real constants, shapes of the parameters), without making a parameter."""
        found: list[Any] = []

        def build() -> tuple[Any, Any]:
            apply, params = self._fresh(0)
            found.append(apply.graph)
            return apply.constants, params

        _, shapes = jax.eval_shape(build)
        constants = jax.jit(lambda: build()[0])()
        return Apply(found[0], constants), shapes

    def init(self, *, steps: int, seed: int) -> TrainState:
        """The state before step 0 of a run of `steps` steps. What does not train is put into `self.fixed`.

        Raises:
          FileNotFoundError, ValueError: the imported trunk is missing, or does not fit the model.
        """
        given: dict[str, Array] = {}
        if self.finetune.trunk:
            given = load_trunk(self.finetune.trunk, self._shapes, flatten(self._placed))
            check_imported(self._frozen_paths, given)
        elif self.fixed.teacher is not None:
            given = jax.tree.map(jnp.copy, flatten(self.fixed.teacher))  # of which the state takes possession
        with jax.set_mesh(self.mesh):
            start = jax.jit(lambda given: self._initial(given, steps=steps, seed=seed), donate_argnums=0,
                            out_shardings=(self.shardings, self._frozen_shardings))  # fmt: skip
            state, frozen = start(given)
        self.fixed = self.fixed._replace(frozen=frozen)
        return state

    def _initial(self, given: dict[str, Array], *, steps: int, seed: int) -> tuple[TrainState, Any]:
        params = started(self._fresh(seed)[1], given, self.finetune)
        trained, frozen = divide(params, self._frozen_paths)
        return init_state(trained, self._transform, steps=steps, seed=seed), frozen

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One training step on a placed batch; `state` is donated."""
        with jax.set_mesh(self.mesh):
            return self._step(state, batch, self.fixed)

    def evaluate(self, ema: Any, batch: Batch, is_valid: Array) -> Metrics:
        """Losses of a placed batch with fixed noise; rows that are not valid do not count."""
        with jax.set_mesh(self.mesh):
            return self._evaluate(ema, batch, is_valid, self.fixed)

    def lower(self, batch: Batch) -> jax.stages.Lowered:
        """The training step before compilation, for batches shaped like `batch`: to look at its cost and memory."""
        state, frozen = jax.eval_shape(lambda: self._initial({}, steps=1, seed=0))
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
        with jax.set_mesh(self.mesh):
            return self._step.lower(state, batch, self.fixed._replace(frozen=frozen))

    def place(self, rows: Any) -> Any:
        """This process's rows of a batch (or of a mask) -> global arrays."""

        def place(x: Any) -> Array:
            return jax.make_array_from_process_local_data(self.rows, x, (self.batch_size, *x.shape[1:]))

        return jax.tree.map(place, rows)
