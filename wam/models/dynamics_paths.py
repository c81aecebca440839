"""Direct, frame-aligned paths between actions and video, beside attention.

Attention alone does not find the few action tokens in a short training: a forward model then ignores the actions and
an inverse model ignores the video. So each direction gets a short, aligned connection:

- `ForwardPath`: where the actions up to a future frame *lead* (the state plus the accumulated action) becomes a code
  that enters that frame's tokens per patch position, and its modulation.
- `InversePath`: the actions are regressed from the change of the latents per patch position, and this estimate enters
  the action tokens.

Each is multiplied by the visibility bit of its direction, by (1 - sigma) of the stream it reads, and by the masks.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from wam.config import ModelConfig
from wam.models.layers import Linear, zero_init


class Constant(nnx.Variable):
    """An array fitted on data: saved with the checkpoint, never trained."""


class Embodiments(nnx.Module):
    """Constants per embodiment that give accumulated actions a physical meaning. Filled by `set`, row by row."""

    def __init__(self, config: ModelConfig):
        E, A, S = config.embodiments, config.action_dim, config.state_dim
        frames = config.frames_per_chunk * config.frames_per_latent
        self.center = Constant(jnp.zeros((E, A)))  # action = normalised * scale + center
        self.scale = Constant(jnp.ones((E, A)))
        self.adds_up = Constant(jnp.ones((E, A)))  # 1: deltas accumulate; 0: the latest value holds
        self.lead = Constant(jnp.zeros((E, frames, A + 1, S)))  # (accumulated action, 1) -> normalised displacement

    def set(self, row: int, *, center, scale, adds_up, lead) -> None:
        """Writes one embodiment; arrays shorter than the padded dimensions fill the front."""
        for variable, value in ((self.center, center), (self.scale, scale), (self.adds_up, adds_up)):
            variable[...] = variable[...].at[row, : len(value)].set(jnp.asarray(value, jnp.float32))
        lead = jnp.asarray(lead, jnp.float32)
        padded = self.lead[...].at[row].set(0.0)
        a, s = lead.shape[1] - 1, lead.shape[2]
        padded = padded.at[row, :, :a, :s].set(lead[:, :-1]).at[row, :, -1, :s].set(lead[:, -1])
        self.lead[...] = padded


class Leads(NamedTuple):
    """Per predicted video frame: accumulated action [B, M, T', A] (normalised) and expected state [B, M, T', S]."""

    accumulated: Array
    state: Array


def accumulate(constants: Embodiments, action: Array, mask: Array, action_time: Array, frame_time: Array,
               state: Array, embodiment_B: Array) -> Leads:  # fmt: skip
    """Where the actions before each frame lead.

    `action` [B, M, K, A] is normalised and possibly noisy, `mask` its bool mask; `action_time` [B, M, K] and
    `frame_time` [B, M, T'] are the seconds of the steps and of the chunk's predicted frames; `state` [B, M, S] is the
    normalised state at the chunk's start.
    """
    onehot = jax.nn.one_hot(embodiment_B, constants.center.shape[0])
    scale, center, adds_up = (onehot @ c[...] for c in (constants.scale, constants.center, constants.adds_up))
    raw = (action * scale[:, None, None] + center[:, None, None]) * mask
    # Steps that began before the frame; half a millisecond forgives float32 seconds.
    before = (action_time[:, :, None, :] < frame_time[..., None] - 5e-4).astype(jnp.float32)  # [B, M, T', K]
    latest = before - jnp.pad(before[..., 1:], ((0, 0), (0, 0), (0, 0), (0, 1)))
    summed = jnp.einsum("BMTK,BMKA->BMTA", before, raw)
    held = jnp.einsum("BMTK,BMKA->BMTA", latest, raw)
    adds_up = adds_up[:, None, None]
    total = adds_up * summed + (1 - adds_up) * held
    with_bias = jnp.concatenate([total, jnp.ones((*total.shape[:-1], 1))], axis=-1)
    displacement = jnp.einsum("BMTA,BE,ETAS->BMTS", with_bias, onehot, constants.lead[...])
    per_step = jnp.where(adds_up > 0, np.sqrt(action.shape[2]), 1.0)
    return Leads(total / (scale[:, None, None] * per_step), state[:, :, None] + displacement)


class ForwardPath(nnx.Module):
    """Actions to video. Zero-initialised outputs: a no-op for a trunk pretrained without it."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        r, width, H = config.frames_per_latent, config.video_width, config.lead_width
        A, S = config.action_dim, config.state_dim
        positions = len(config.target_views) * config.patches
        frequencies = np.random.default_rng(0).normal(0.0, config.lead_scale, (S, config.lead_fourier))
        self.frequencies = Constant(jnp.asarray(frequencies, jnp.float32))
        self.encode = Linear(r * (A + S + 2 * config.lead_fourier) + S, H, rngs=rngs, axes=(None, None))
        init = zero_init((None, None, "embed"))
        self.positions = nnx.Param(init(rngs.params(), (positions, H, width), jnp.float32))
        self.shared = Linear(H, width, rngs=rngs, axes=(None, "embed"), zero=True)
        self.condition = Linear(H, width, rngs=rngs, axes=(None, "embed"), zero=True)
        self.frames_per_latent = r

    def code(self, leads: Leads, state: Array, gate: Array) -> Array:
        """[B, M, f, H]: one code per latent frame, scaled by `gate` [B, M]."""
        phase = leads.state @ self.frequencies[...]
        features = jnp.concatenate([leads.accumulated, leads.state, jnp.sin(phase), jnp.cos(phase)], axis=-1)
        B, M, T, Z = features.shape
        features = features.reshape(B, M, T // self.frames_per_latent, self.frames_per_latent * Z)
        start = jnp.broadcast_to(state[:, :, None], (*features.shape[:3], state.shape[-1]))
        return jax.nn.silu(self.encode(jnp.concatenate([features, start], -1))) * gate[:, :, None, None]

    def __call__(self, code_BMfH: Array) -> tuple[Array, Array]:
        """Additions to the frame's tokens [B, M, f, positions, D] and to its condition [B, M, f, D].

        The biases are left out of the products so that a closed gate adds exactly nothing.
        """
        tokens = jnp.einsum("BMfH,pHD->BMfpD", code_BMfH, self.positions[...])
        tokens = tokens + (code_BMfH @ self.shared.kernel[...])[:, :, :, None]
        return tokens, code_BMfH @ self.condition.kernel[...]


class InversePath(nnx.Module):
    """Video to actions: a regression from latent differences per patch position, read by the action tokens.

    The regression learns from its own loss alone: where the action tokens read it, it is `frozen`. Gradients of the
    denoised actions would make it learn clips by heart.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        C, c, f = config.latent_channels, config.inverse_channels, config.frames_per_chunk
        positions = len(config.target_views) * config.patches
        self.future = Linear(C, c, rngs=rngs, axes=(None, None))
        self.current = Linear(C, c, rngs=rngs, axes=(None, None))
        # Starts as a difference; the two maps may part where the tokenizer encodes first and later frames differently.
        self.current.kernel[...] = self.future.kernel[...]
        self.hidden = Linear(f * positions * c + config.state_dim, config.inverse_width, rngs=rngs, axes=(None, None))
        actions = config.action_horizon * config.action_dim
        self.direct = Linear(config.inverse_width, actions, rngs=rngs, axes=(None, None))
        per_token = config.steps_per_token * config.action_dim
        self.to_tokens = Linear(per_token, config.action_width, rngs=rngs, axes=(None, "embed"), zero=True)
        self.action_tokens, self.action_dim = config.action_tokens, config.action_dim

    def frozen(self) -> InversePath:
        """The same map with constant weights; gradients still reach its inputs."""
        graph, weights = nnx.split(self)
        return nnx.merge(graph, jax.tree.map(jax.lax.stop_gradient, weights))

    def estimate(self, future: Array, current: Array, mask: Array, state: Array) -> Array:
        """Normalised actions [B, M, K, A]; never an answer itself.

        From latents [B, M, f, p, C], the observation [B, M, p, C], the mask of frames and views [B, M, f, p] and the
        state [B, M, S].
        """
        change = self.future(future) - self.current(current)[:, :, None]
        change = change * mask[..., None]
        flat = change.reshape(*change.shape[:2], -1)
        out = self.direct(jax.nn.gelu(self.hidden(jnp.concatenate([flat, state], axis=-1))))
        return out.reshape(*out.shape[:2], -1, self.action_dim)

    def __call__(self, estimate_BMKA: Array, gate_BM: Array) -> Array:
        """Additions to the action tokens [B, M, Ka, D]; `gate` is visibility times (1 - sigma_video)."""
        seen = estimate_BMKA * gate_BM[..., None, None]
        seen = seen.reshape(*seen.shape[:2], self.action_tokens, -1)
        return seen @ self.to_tokens.kernel[...]
