"""The direct paths between actions and video of the PyTorch peer, as in `wam/models/dynamics_paths.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tools.bench.peers.torch_layers import Linear
from wam.config import ModelConfig

Tensors = dict[str, Tensor]


class ForwardPath(nn.Module):
    """Where the actions up to a frame lead, as a code that enters the frame's tokens and condition."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        r, width, H = config.frames_per_latent, config.video_width, config.lead_width
        A, S, E = config.action_dim, config.state_dim, config.embodiments
        self.encode = Linear(r * (A + S + 2 * config.lead_fourier) + S, H)
        self.positions = nn.Parameter(torch.zeros(len(config.target_views) * config.patches, H, width))
        self.shared, self.condition = Linear(H, width), Linear(H, width)
        self.frames_per_latent = r
        self.register_buffer("frequencies", torch.zeros(S, config.lead_fourier))
        for name in ("center", "scale", "adds_up"):
            self.register_buffer(name, torch.zeros(E, A))
        self.register_buffer("lead", torch.zeros(E, config.frames_per_chunk * r, A + 1, S))

    def code(self, action: Tensor, mask: Tensor, batch: Tensors, state: Tensor, gate: Tensor) -> Tensor:
        """[B, f, H] from noisy actions [B, K, A] and the state [B, S]."""
        embodiment = batch["embodiment"]
        scale, center, adds_up = (c[embodiment][:, None] for c in (self.scale, self.center, self.adds_up))
        raw = (action * scale + center) * mask
        before = (batch["action_time"] < batch["video_time"][:, 1:, None] - 5e-4).float()  # [B, T', K]
        latest = before - F.pad(before[..., 1:], (0, 1))
        total = adds_up * (before @ raw) + (1 - adds_up) * (latest @ raw)
        displacement = torch.einsum("BTA,BTAS->BTS", F.pad(total, (0, 1), value=1.0), self.lead[embodiment])
        per_step = torch.where(adds_up > 0, action.shape[1] ** 0.5, 1.0)
        expected = state[:, None] + displacement
        phase = expected @ self.frequencies
        features = torch.cat([total / (scale * per_step), expected, phase.sin(), phase.cos()], -1)
        features = features.unflatten(1, (-1, self.frames_per_latent)).flatten(2)
        start = state[:, None].expand(-1, features.shape[1], -1)
        return F.silu(self.encode(torch.cat([features, start], -1))) * gate[:, None, None]

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.einsum("BfH,pHD->BfpD", code, self.positions) + F.linear(code, self.shared.weight)[:, :, None]
        return tokens, F.linear(code, self.condition.weight)


class InversePath(nn.Module):
    """Actions regressed from the change of the latents per patch position."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        C, c, K, A = config.latent_channels, config.inverse_channels, config.action_horizon, config.action_dim
        positions = len(config.target_views) * config.patches
        self.future, self.current = Linear(C, c), Linear(C, c)
        self.hidden = Linear(config.frames_per_chunk * positions * c + config.state_dim, config.inverse_width)
        self.direct = Linear(config.inverse_width, K * A)
        self.to_tokens = Linear(config.steps_per_token * A, config.action_width)
        self.action_dim, self.action_tokens = A, config.action_tokens

    def estimate(self, video: Tensor, current: Tensor, frame_mask: Tensor, state: Tensor) -> Tensor:
        """[B, K, A] from latents [B, f, v, P, C], the observation [B, v P, C], masks [B, f] and the state [B, S]."""
        change = (self.future(video.flatten(2, 3)) - self.current(current)[:, None]) * frame_mask[:, :, None, None]
        hidden = self.hidden(torch.cat([change.flatten(1), state], -1))
        return self.direct(F.gelu(hidden, approximate="tanh")).unflatten(-1, (-1, self.action_dim))

    def frozen_estimate(self, *inputs: Tensor) -> Tensor:
        """The estimate as the action tokens read it: its inputs are data, so nothing here needs a gradient."""
        with torch.no_grad():
            return self.estimate(*inputs)

    def tokens(self, estimate: Tensor, gate: Tensor) -> Tensor:
        seen = (estimate * gate[:, None, None]).unflatten(1, (self.action_tokens, -1)).flatten(2)
        return F.linear(seen, self.to_tokens.weight)
