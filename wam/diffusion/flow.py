"""Rectified-flow conventions, fixed once for the whole project.

Noise level sigma in [0, 1]: **0 = clean data, 1 = pure noise**.

    x_sigma = (1 - sigma) x + sigma eps
    v       = d x_sigma / d sigma = eps - x

(Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747.)

A network predicts either the velocity v or the clean x. Sampling integrates sigma from 1 to 0. Released video trunks
embed 1000 sigma.
"""

from __future__ import annotations

from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array

_AnyArray = TypeVar("_AnyArray", Array, np.ndarray)


def expand(sigma: Array, like: Array) -> Array:
    """Appends axes to `sigma` until it broadcasts against `like` from the left."""
    return sigma.reshape(sigma.shape + (1,) * (like.ndim - sigma.ndim))


def add_noise(x: Array, eps: Array, sigma: Array) -> Array:
    """x_sigma; `sigma` covers the leading axes of `x`."""
    sigma = expand(sigma, x)
    return (1 - sigma) * x + sigma * eps


def target(x: Array, eps: Array, prediction: str) -> Array:
    """What the network is trained to output: `x` (clean data) or `velocity` (eps - x)."""
    return x if prediction == "x" else eps - x


def shift(t: _AnyArray, s: float) -> _AnyArray:
    """Timestep shift sigma = s t / (1 + (s - 1) t) (Esser et al. 2024, arXiv:2403.03206, eq. 23); s = 1 is identity."""
    return s * t / (1 + (s - 1) * t)


def velocity(x_sigma: Array, output: Array, sigma: Array, prediction: str) -> Array:
    """v of a network's output; of a predicted x it is (x_sigma - x_hat) / sigma, and 0 at sigma 0, where x is given."""
    if prediction == "velocity":
        return output
    sigma = expand(sigma, x_sigma)
    return jnp.where(sigma > 0, (x_sigma - output) / jnp.where(sigma > 0, sigma, 1.0), 0.0)


def clean(x_sigma: Array, output: Array, sigma: Array, prediction: str) -> Array:
    """x_hat of a network's output."""
    return output if prediction == "x" else x_sigma - expand(sigma, x_sigma) * output


def step(x_sigma: Array, output: Array, sigma: Array, sigma_next: Array, prediction: str) -> Array:
    """One Euler step from `sigma` to `sigma_next`. Where they are equal the sample stays as it is, bit for bit.

    For x-prediction the exact solution of the linear ODE with constant x_hat is used:
    x_next = x_hat + (sigma_next / sigma) (x_sigma - x_hat).
    """
    sigma, sigma_next = expand(sigma, x_sigma), expand(sigma_next, x_sigma)
    if prediction == "x":
        moved = output + sigma_next / jnp.where(sigma > 0, sigma, 1.0) * (x_sigma - output)
    else:
        moved = x_sigma + (sigma_next - sigma) * output
    return jnp.where(sigma == sigma_next, x_sigma, moved)
