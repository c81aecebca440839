"""How one stream gets from sigma to sigma_next: second order, beside the Euler step of `wam.diffusion.flow`.

Every row has sigmas of its own. A step of no length leaves its row as it is, bit for bit, and a row that stood still
starts afresh: what a multistep formula remembers is what the row came from in consecutive steps.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from wam.diffusion import flow

NEAR = 1e-6
"""log((1 - sigma) / sigma) is taken this far from 0 and 1, as released schedulers do."""


def heun(x: Array, output: Array, predicted: Array, output_next: Array, sigma: Array, sigma_next: Array,
         prediction: str) -> Array:  # fmt: skip
    """The Euler step `predicted`, repeated with the mean of the velocities at both of its ends.

    Heun's method as in Karras et al. 2022 (arXiv:2206.00364, alg. 1), in sigma and for the flow's ODE dx = v dsigma.
    As there, a step to sigma 0 stays the Euler step: the velocity of a predicted x is 0 / 0 there, and a velocity
    network is trained on noisy samples alone. One such step leaves the method second order.
    """
    first = flow.velocity(x, output, sigma, prediction)
    second = flow.velocity(predicted, output_next, sigma_next, prediction)
    moved = x + flow.expand(sigma_next - sigma, x) * (first + second) / 2
    return jnp.where(flow.expand(heun_corrects(sigma, sigma_next), x), moved, predicted)


def heun_corrects(sigma: Array, sigma_next: Array) -> Array:
    """[B] bool: rows whose step takes a second call of the network."""
    return (sigma_next < sigma) & (sigma_next > 0)


class Past(NamedTuple):
    """What UniPC remembers of a stream: the start of the last step, x_hat there, and x_hat one step earlier."""

    x: Array
    clean: Array
    clean_before: Array


def unipc(x: Array, output: Array, past: Past, sigmas: tuple[Array, Array, Array, Array],
          prediction: str) -> tuple[Array, Past]:  # fmt: skip
    """One step of UniPC-2 (Zhao et al. 2023, arXiv:2302.04867), one call of the network a step.

    In x-prediction with B_2(h) = e^h - 1 ("bh2"), the half log-SNR of a flow, lambda = log((1 - sigma) / sigma), in the
    place of time. The output at the sample that the last step predicted first corrects this sample (UniC), then
    predicts the next (UniP). First order where there is no step before, and in the step to sigma 0, where lambda is
    infinite; there nothing is corrected either. So from noise to data it is of second order, as Heun's method is with
    twice the calls; between the ends the corrector gains one more.

    Args:
      x: the sample as the last step predicted it.
      output: the network's, for `x`.
      past: of the last step; of any content before the first.
      sigmas: each [B]: two steps ago, one step ago, now, next. Before the first step they equal the first.
      prediction: `x` or `velocity`.
    """
    sigma_before, sigma_last, sigma, sigma_next = sigmas
    clean = flow.clean(x, output, sigma, prediction)
    moves, moved, moved_before = sigma_next < sigma, sigma_last > sigma, sigma_before > sigma_last
    w_before, w_next = _corrector(sigma_before, sigma_last, sigma, moved_before)
    corrected = _advance(past.x, sigma_last, sigma, past.clean, (w_before, past.clean_before), (w_next, clean))
    x = jnp.where(flow.expand(moves & moved, x), corrected, x)
    w_before = jnp.where(moved & (sigma_next > 0), 0.5 / _ratio(sigma_last, sigma, sigma_next), 0.0)
    predicted = _advance(x, sigma, sigma_next, clean, (w_before, past.clean))
    return jnp.where(flow.expand(moves, x), predicted, x), Past(x, clean, past.clean)


def _advance(x: Array, sigma: Array, sigma_next: Array, clean: Array, *others: tuple[Array, Array]) -> Array:
    """Exact where x_hat is constant: x_next = (s' / s) x + (a' - a s' / s) x_hat with a = 1 - s and s' the next s.

    The mean x_hat of the step is `clean` + sum of weight * (other - clean) over (weight [B], other).
    """
    ratio = jnp.where(sigma > 0, sigma_next / jnp.where(sigma > 0, sigma, 1.0), 1.0)
    gain = flow.expand((1 - sigma_next) - (1 - sigma) * ratio, x)
    mean = clean + sum(flow.expand(weight, x) * (other - clean) for weight, other in others)
    return flow.expand(ratio, x) * x + gain * mean


def _half_log_snr(sigma: Array) -> Array:
    sigma = jnp.clip(sigma, NEAR, 1 - NEAR)
    return jnp.log1p(-sigma) - jnp.log(sigma)


def _length(sigma: Array, sigma_next: Array) -> Array:
    """h of a step; 1 for one of no length, which nobody reads."""
    return jnp.where(sigma_next < sigma, _half_log_snr(sigma_next) - _half_log_snr(sigma), 1.0)


def _ratio(sigma_before: Array, sigma: Array, sigma_next: Array) -> Array:
    """r: where the sample before stands in units of this step's h; negative."""
    return -_length(sigma_before, sigma) / _length(sigma, sigma_next)


def _corrector(sigma_before: Array, sigma: Array, sigma_next: Array, second: Array) -> tuple[Array, Array]:
    """Weights [B] of x_hat before and after the step in UniC; `second` [B]: of order 2, otherwise 1.

    Order 2 solves rho_1 + rho_2 = b_1 and r rho_1 + rho_2 = b_2 with b_k = x phi_{k+1}(x) k! / (e^x - 1) at x = -h,
    phi_1(x) = (e^x - 1) / x and phi_{k+1}(x) = (phi_k(x) - 1 / k!) / x.
    """
    x, r = -_length(sigma, sigma_next), _ratio(sigma_before, sigma, sigma_next)
    scale = jnp.expm1(x)
    b_1 = (scale / x - 1) / scale
    b_2 = 2 * ((scale / x - 1) / x - 0.5) / scale
    rho = (b_1 - b_2) / (1 - r)
    return jnp.where(second, rho / r, 0.0), jnp.where(second, b_1 - rho, 0.5)
