"""The training step: a pure function of (state, batch). No configuration access, logging or placement inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from wam.batch import Batch
from wam.config import ObjectiveConfig, OptimizerConfig
from wam.diffusion import losses
from wam.diffusion.modes import MODES, draw
from wam.tokenizers.patch_pca import PatchPCA
from wam.training.optimizer import learning_rate, make_optimizer
from wam.training.state import Apply, TrainState, update_ema

Metrics = dict[str, Any]


def latents_of(batch: Batch, tokenizer: PatchPCA) -> Array:
    """[B, V, F, P, C]: precomputed latents, or pixels encoded on the device."""
    return batch["latents"] if "latents" in batch else tokenizer.encode(batch["video"], batch["camera"])


def make_train_step(apply: Apply, tokenizer: PatchPCA, objective: ObjectiveConfig, optimizer: OptimizerConfig, *,
                    sources: int) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:  # fmt: skip
    """`train_step(state, batch) -> (state, metrics)`, to be jitted with a donated state."""
    transform = make_optimizer(optimizer)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        config = apply.model(state.params).config
        draws = draw(key, batch, config, objective)
        latents = latents_of(batch, tokenizer)

        def loss_fn(params):
            terms = losses.loss_terms(apply.model(params), batch, latents, draws, with_video=objective.with_video)
            return losses.total_loss(terms, objective), terms

        (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        directions, opt_state = transform.update(grads, state.opt_state, state.params)
        rate = learning_rate(optimizer, state.step, state.steps)
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, directions)
        ema = update_ema(state.ema, params, state.step, optimizer.ema_decay)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": rate,
            "samples": jax.nn.one_hot(batch["source"], sources).sum(0),
            "modes": jax.nn.one_hot(draws.mode, len(MODES)).sum(0),
            "terms": losses.breakdown(terms, batch, draws, objective.sigma_bins, sources),
        }
        return state._replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state), metrics

    return train_step


def make_eval_step(apply: Apply, tokenizer: PatchPCA, objective: ObjectiveConfig, *, seed: int,
                   sources: int) -> Callable[[Any, Batch, Array], Metrics]:  # fmt: skip
    """`eval_step(ema, batch, is_valid) -> metrics` with noise fixed by the sample ids, whatever the training step."""
    from_objective = ObjectiveConfig(**{**objective.__dict__, "drop_text": 0.0, "drop_state": 0.0, "drop_history": 0.0})

    def eval_step(ema: Any, batch: Batch, is_valid: Array) -> Metrics:
        model = apply.model(ema)
        draws = draw(jax.random.key(seed), batch, model.config, from_objective)
        latents = latents_of(batch, tokenizer)
        terms = losses.loss_terms(model, batch, latents, draws, with_video=objective.with_video)
        valid = is_valid.astype(jnp.float32)
        terms = {name: losses.Term(t.error * valid, t.count * valid) for name, t in terms.items()}
        return {
            "loss": losses.total_loss(terms, objective),
            "terms": losses.breakdown(terms, batch, draws, objective.sigma_bins, sources),
        }

    return eval_step
