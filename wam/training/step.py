"""The training step: a pure function of (state, batch). No configuration access, logging or placement inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from wam.batch import Batch
from wam.config import ObjectiveConfig, OptimizerConfig
from wam.diffusion import losses
from wam.diffusion.modes import MODES, Draws, draw
from wam.tokenizers.video import VideoTokenizer
from wam.training.augment import OFF, Augmentation
from wam.training.finetune import combined, rate_factors
from wam.training.optimizer import learning_rate, make_optimizer
from wam.training.state import Apply, Fixed, Networks, Terms, TrainState, expert_norms, update_ema

Metrics = dict[str, Any]


def latents_of(batch: Batch, tokenizer: VideoTokenizer | None) -> Array:
    """[B, V, F, P, C]: precomputed latents, or pixels encoded on the device."""
    if "latents" in batch:
        return batch["latents"]
    assert tokenizer is not None, "a batch of pixels needs a tokenizer"
    return tokenizer.encode(batch["video"], batch["camera"])


def microbatches(batch: Batch, count: int) -> Batch:
    """Every field [B, ...] -> [count, B / count, ...]; each part takes rows of every device, so none moves."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch)


def denoising(objective: ObjectiveConfig) -> Terms:
    """The loss terms of ordinary training: `losses.loss_terms` of the network that trains."""

    def terms(networks: Networks, batch: Batch, latents: Array, draws: Draws) -> dict[str, losses.Term]:
        return losses.loss_terms(networks.trained, batch, latents, draws, with_video=objective.with_video)

    return terms


def networks(apply: Apply, params: Any, ema: Any, fixed: Fixed) -> Networks:
    """The networks of parameters that train (or their average), completed by what does not."""
    trained, average = (apply.model(combined(of, fixed.frozen)) for of in (params, ema))
    return Networks(trained, average, None if fixed.teacher is None else apply.model(fixed.teacher))


def make_train_step(
    apply: Apply,
    objective: ObjectiveConfig,
    optimizer: OptimizerConfig,
    *,
    sources: int,
    accumulate: int = 1,
    learning_rates: Sequence[tuple[str, float]] = (),
    augment: Augmentation = OFF,
    terms: Terms | None = None,
) -> Callable[[TrainState, Batch, Fixed], tuple[TrainState, Metrics]]:
    """`train_step(state, batch, fixed) -> (state, metrics)`, to be jitted with a donated state.

    The gradient is that of the whole batch, also when `accumulate` microbatches make it one after the other: their
    errors are divided by the active elements of all. A step whose loss or gradient is not finite changes no parameter.
    `learning_rates` are factors by pattern of a parameter's path. `augment` changes pixels before they are encoded.
    `terms` are the losses, by default those of `denoising`.
    """
    transform = make_optimizer(optimizer)
    terms_of = terms or denoising(objective)

    def train_step(state: TrainState, batch: Batch, fixed: Fixed) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        config = apply.model(combined(state.params, fixed.frozen)).config

        def inputs(part: Batch):
            return latents_of(augment(key, part), fixed.tokenizer), draw(key, part, config, objective)

        latents, draws = inputs(batch)
        whole = losses.targets(batch, latents, draws, config, with_video=objective.with_video)
        of = losses.denominators({name: target.counts() for name, target in whole.items()})

        def gradient(part: Batch) -> tuple[Any, Metrics]:
            """Gradients and metrics of a part of the batch; they add up to those of the whole."""
            latents, draws = inputs(part)

            def loss_fn(params):
                terms = terms_of(networks(apply, params, state.ema, fixed), part, latents, draws)
                return losses.total_loss(terms, of, objective), terms

            (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
            return grads, {
                "loss": loss,
                "samples": jax.nn.one_hot(part["source"], sources).sum(0),
                "action_free": (~part["action_mask"].any((1, 2, 3))).sum().astype(jnp.float32),
                "modes": jax.nn.one_hot(draws.mode, len(MODES)).sum(0),
                "terms": losses.breakdown(terms, part, draws, objective.sigma_bins, sources),
            }

        grads, metrics = _added_up(gradient, batch, accumulate)
        directions, opt_state = transform.update(grads, state.opt_state, state.params)
        rate = learning_rate(optimizer, state.step, state.steps)
        factors = rate_factors(state.params, learning_rates)
        params = jax.tree.map(lambda p, d, factor: p - factor * rate * d, state.params, directions, factors)
        ema = update_ema(state.ema, params, state.step, optimizer.ema_decay)

        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        new = state._replace(params=params, ema=ema, opt_state=opt_state)
        new = jax.tree.map(lambda n, old: jnp.where(finite, n, old), new, state)
        return new._replace(step=state.step + 1), metrics | {
            "finite": finite,
            "grad_norm": norm,
            "norms": {"grad": expert_norms(grads), "param": expert_norms(new.params)},
            "learning_rate": rate,
            "sample_id": batch["sample_id"],
        }

    return train_step


def _added_up(gradient: Callable[[Batch], Any], batch: Batch, count: int) -> Any:
    """The sum of `gradient` over `count` microbatches, one after the other."""
    if count == 1:
        return gradient(batch)
    parts = microbatches(batch, count)
    start = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts))
    )
    return jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, gradient(part)), None), start, parts)[0]


def make_eval_step(
    apply: Apply, objective: ObjectiveConfig, *, seed: int, sources: int, terms: Terms | None = None
) -> Callable[[Any, Batch, Array, Fixed], Metrics]:
    """`eval_step(ema, batch, is_valid, fixed) -> metrics` with noise fixed by the sample ids, whatever the step."""
    terms_of = terms or denoising(objective)
    from_objective = ObjectiveConfig(**{**objective.__dict__, "drop_text": 0.0, "drop_state": 0.0, "drop_history": 0.0})

    def eval_step(ema: Any, batch: Batch, is_valid: Array, fixed: Fixed) -> Metrics:
        of = networks(apply, ema, ema, fixed)
        draws = draw(jax.random.key(seed), batch, of.trained.config, from_objective)
        terms = terms_of(of, batch, latents_of(batch, fixed.tokenizer), draws)
        valid = is_valid.astype(jnp.float32)
        terms = {name: losses.Term(t.error * valid, t.count * valid) for name, t in terms.items()}
        counts = losses.denominators({name: t.count for name, t in terms.items()})
        return {
            "loss": losses.total_loss(terms, counts, objective),
            "terms": losses.breakdown(terms, batch, draws, objective.sigma_bins, sources),
        }

    return eval_step
