"""The cross-entropy method over any dynamics and any energy (Rubinstein 1999), as V-JEPA 2-AC plans with it.

Each iteration draws samples around a mean, keeps the elites of least energy, and moves mean and standard deviation
towards theirs (V-JEPA 2-AC, arXiv:2506.09985, and its released planner). Compiled as one loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Latent = TypeVar("Latent")


@dataclasses.dataclass(frozen=True)
class CemSettings:
    samples: int = 400
    elites: int = 10
    iterations: int = 10
    momentum_mean: float = 0.15
    """Share of the old mean that stays."""
    momentum_std: float = 0.15
    std: float = 1.0
    """Of the first samples."""
    low: float | tuple[float, ...] = -1.0
    """Samples are clipped to [low, high]: one number, or one an action dimension."""
    high: float | tuple[float, ...] = 1.0

    def __post_init__(self):
        if not 1 <= self.elites <= self.samples:
            raise ValueError(f"cem.elites: expected 1 to samples ({self.samples}), got {self.elites}")
        if self.iterations < 1:
            raise ValueError(f"cem.iterations: expected at least 1, got {self.iterations}")
        for name in ("momentum_mean", "momentum_std"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"cem.{name}: expected a share in [0, 1), got {getattr(self, name)}")
        if self.std <= 0:
            raise ValueError(f"cem.std: expected a positive number, got {self.std}")
        if not np.less(self.low, self.high).all():
            raise ValueError(f"cem.low and cem.high: expected low < high, got {self.low} and {self.high}")


V_JEPA_2_AC = CemSettings()
"""Of the released planner, but for its clips, which are of its robot (0.05 m an axis, 0.75 for the gripper)."""

CPU = CemSettings(samples=48, elites=6, iterations=4)


class Found(NamedTuple):
    """What `cem` ends with, for each of B searches."""

    action: Array  # [B, ..., A]: the last mean, as V-JEPA 2-AC executes it
    energy: Array  # [B, iterations]: mean over the elites
    best: Array  # [B, iterations]: least
    std: Array  # [B, ..., A]


def cem(energy: Callable[[Array], Array], start: Array, keys: Array, settings: CemSettings) -> Found:
    """Minimises `energy` over actions of the shape of `start` [B, ..., A], B searches side by side.

    Args:
      energy: [B, samples, ..., A] -> [B, samples]; a sample whose energy is NaN is never elite.
      start: first means; they are clipped as samples are, and each is the first sample of its search.
      keys: [B], of the samples; equal keys give equal answers, whatever searches stand beside.
      settings: see there.
    """
    low, high = (jnp.asarray(bound, jnp.float32) for bound in (settings.low, settings.high))
    shape, m, s = start.shape[1:], settings.momentum_mean, settings.momentum_std

    def draw(key: Array) -> Array:
        return jax.random.normal(key, (settings.samples, *shape)).at[0].set(0.0)  # the mean competes

    def iterate(carry: tuple[Array, Array], keys: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        mean, std = carry
        samples = jnp.clip(mean[:, None] + std[:, None] * jax.vmap(draw)(keys), low, high)
        energies = energy(samples)
        least, index = jax.lax.top_k(-jnp.where(jnp.isnan(energies), jnp.inf, energies), settings.elites)
        elites = jax.vmap(lambda of_search, chosen: of_search[chosen])(samples, index)
        mean = m * mean + (1 - m) * elites.mean(1)
        std = s * std + (1 - s) * elites.std(1)
        return (mean, std), (-least.mean(-1), -least[:, 0])

    begin = (jnp.clip(start, low, high), jnp.full(start.shape, settings.std, jnp.float32))
    every = jax.vmap(lambda key: jax.random.split(key, settings.iterations), out_axes=1)(keys)
    (mean, std), (energies, best) = jax.lax.scan(iterate, begin, every)
    return Found(mean, energies.T, best.T, std)


def final_energy(
    f: Callable[[Latent, Array], Latent], energy: Callable[[Latent], Array], latents: Latent
) -> Callable[[Array], Array]:
    """Energy of action sequences [B, S, H, A]: of the latents to which `f(latent, action)` leads, step by step.

    `f` and `energy` are of one latent and one action [A]; they are mapped over samples and searches. `latents` are
    those of B searches.
    """

    def one(latent: Latent, actions: Array) -> Array:
        def step(latent: Latent, action: Array) -> tuple[Latent, Any]:
            return f(latent, action), None

        return energy(jax.lax.scan(step, latent, actions)[0])

    return lambda actions: jax.vmap(jax.vmap(one, (None, 0)))(latents, actions)
