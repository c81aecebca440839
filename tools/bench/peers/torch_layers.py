"""Layers of the PyTorch peer: what `wam/models/{layers,blocks,attention}.py` compute, as PyTorch would write it.

Names and shapes of parameters follow ours, so that weights are copied by name (`load`). Tokens are [B, G, n, D]: G
noise-level groups of n tokens, modulated per group by broadcasting.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

EPS = 1e-6


class Linear(nn.Linear):
    """Computes in `dtype`, keeps float32 parameters."""

    def __init__(self, d_in: int, d_out: int, dtype: torch.dtype = torch.float32):
        super().__init__(d_in, d_out)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), self.weight.to(self.dtype), self.bias.to(self.dtype))


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.scale.shape, self.scale.to(x.dtype), EPS)


class LayerNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale.to(x.dtype), self.bias.to(x.dtype), EPS)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


class SigmaEmbedder(nn.Module):
    """sigma [...] -> condition [..., D] -> six modulation vectors [..., 6, D], in float32."""

    def __init__(self, sinusoid_width: int, width: int):
        super().__init__()
        self.input, self.hidden = Linear(sinusoid_width, width), Linear(width, width)
        self.project = Linear(width, 6 * width)
        half = sinusoid_width // 2
        frequencies = 10000.0 ** (-np.arange(half) / half)
        self.register_buffer("frequencies", torch.tensor(frequencies, dtype=torch.float32))

    def condition(self, sigma: Tensor) -> Tensor:
        angles = 1000.0 * sigma[..., None] * self.frequencies  # in this order: a thousand radians round visibly
        return self.hidden(F.silu(self.input(torch.cat([angles.cos(), angles.sin()], -1))))

    def modulation(self, condition: Tensor) -> Tensor:
        return self.project(F.silu(condition)).unflatten(-1, (6, -1))


class EmbodimentBank(nn.Module):
    """One linear map per embodiment, weights [E, in, out]."""

    def __init__(self, embodiments: int, d_in: int, d_out: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(embodiments, d_in, d_out))
        self.bias = nn.Parameter(torch.zeros(embodiments, d_out))
        self.dtype = dtype

    def forward(self, x: Tensor, embodiment: Tensor) -> Tensor:
        kernel, bias = self.kernel[embodiment].to(self.dtype), self.bias[embodiment].to(self.dtype)
        flat = x.to(self.dtype).flatten(1, -2)
        return torch.baddbmm(bias[:, None], flat, kernel).unflatten(1, x.shape[1:-1])


class Rotary(NamedTuple):
    """Cosines and sines [B, 1, L, H/2] of the tokens' positions."""

    cos: Tensor
    sin: Tensor


class RotaryEmbedding(nn.Module):
    """3-D rotary embedding of positions (time, row, column) [B, L, 3], the head split as in Wan 2.x."""

    def __init__(self, head_dim: int):
        super().__init__()
        spatial = 2 * (head_dim // 6)
        sizes = (head_dim - 2 * spatial, spatial, spatial)
        frequencies = np.concatenate([10000.0 ** (-np.arange(0, size, 2) / size) for size in sizes])
        self.register_buffer("frequencies", torch.tensor(frequencies, dtype=torch.float32))
        self.register_buffer("axis", torch.tensor(np.repeat(np.arange(3), [size // 2 for size in sizes])))

    def forward(self, positions: Tensor) -> Rotary:
        angles = (positions[..., self.axis] * self.frequencies)[:, None]
        return Rotary(angles.cos(), angles.sin())


def rotate(x: Tensor, by: Rotary) -> Tensor:
    """Rotates consecutive pairs of the head dimension of [B, N, L, H], in float32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.stack([even * by.cos - odd * by.sin, odd * by.cos + even * by.sin], -1)
    return out.flatten(-2).to(x.dtype)


class Keys(NamedTuple):
    """Keys and values [B, N, L, H]."""

    k: Tensor
    v: Tensor

    def take(self, tokens: slice) -> Keys:
        return Keys(self.k[:, :, tokens], self.v[:, :, tokens])


def attend(q: Tensor, blocks: list[Keys], bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(H) + bias) v over the joined blocks; [B, N, L, H]."""
    k, v = (torch.cat(parts, 2) if len(parts) > 1 else parts[0] for parts in zip(*blocks, strict=True))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class ExpertBlock(nn.Module):
    """`text`: with cross-attention to the instruction."""

    def __init__(self, width: int, mlp: int, heads: int, head_dim: int, dtype: torch.dtype, *, text: bool = True):
        super().__init__()
        inner = heads * head_dim
        self.q, self.k, self.v = (Linear(width, inner, dtype) for _ in range(3))
        self.out = Linear(inner, width, dtype)
        self.q_norm, self.k_norm = RMSNorm(inner), RMSNorm(inner)
        if text:
            self.text_norm = LayerNorm(width)
            self.text_q, self.text_k, self.text_v = (Linear(width, inner, dtype) for _ in range(3))
            self.text_out = Linear(inner, width, dtype)
            self.text_q_norm, self.text_k_norm = RMSNorm(inner), RMSNorm(inner)
        self.up, self.down = Linear(width, mlp, dtype), Linear(mlp, width, dtype)
        self.table = nn.Parameter(torch.zeros(6, width))
        self.heads = heads

    def split(self, x: Tensor) -> Tensor:
        """[B, ..., N H] -> [B, N, L, H]."""
        return x.flatten(1, -2).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def merge(self, x: Tensor, like: Tensor) -> Tensor:
        """[B, N, L, H] -> [B, G, n, N H]."""
        return x.transpose(1, 2).flatten(2).unflatten(1, like.shape[1:3])

    def modulation(self, condition: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """[B, G, 6, D] -> six [B, G, 1, D]."""
        return (condition + self.table)[:, :, None].to(dtype).unbind(-2)

    def queries(self, h: Tensor, by: Rotary) -> Tensor:
        return rotate(self.split(self.q_norm(self.q(h))), by)

    def keys_of(self, h: Tensor, by: Rotary) -> Keys:
        return Keys(rotate(self.split(self.k_norm(self.k(h))), by), self.split(self.v(h)))

    def text_keys(self, text: Tensor) -> Keys:
        return Keys(self.split(self.text_k_norm(self.text_k(text))), self.split(self.text_v(text)))

    def finish(self, x: Tensor, attended: Tensor, mod: tuple[Tensor, ...], text: Keys | None,
               text_bias: Tensor) -> Tensor:  # fmt: skip
        _, _, gate_attention, shift, scale, gate_mlp = mod
        x = x + gate_attention * self.out(self.merge(attended, x))
        if text is not None:
            q = self.split(self.text_q_norm(self.text_q(self.text_norm(x))))
            x = x + self.text_out(self.merge(attend(q, [text], text_bias), x))
        h = F.gelu(self.up(modulated_norm(x, shift, scale)), approximate="tanh")
        return x + gate_mlp * self.down(h)


class OutputHead(nn.Module):
    """Final modulated norm and linear map, in float32; without `d_out` it only normalises."""

    def __init__(self, width: int, d_out: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(2, width))
        self.linear = Linear(width, d_out) if d_out else None

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, G, n, D] with one condition [B, G, D] a group."""
        shift, scale = ((condition + row)[:, :, None] for row in self.table.unbind(0))
        h = modulated_norm(x.float(), shift, scale)
        return h if self.linear is None else self.linear(h)


@torch.no_grad()
def load(model: nn.Module, params: dict[str, np.ndarray]) -> list[list[nn.Parameter]]:
    """Copies our parameters {"blocks/video/q/kernel": array} by name; stacked layers are unstacked.

    Returns the parameters with and without weight decay. Raises ValueError when a parameter of either side has no
    partner: then these are two different networks.
    """
    mine = dict(model.named_parameters())
    groups: list[list[nn.Parameter]] = [[], []]
    for name, array in params.items():
        *path, leaf = name.split("/")
        stacked = path[:1] == ["blocks"]
        for layer in range(len(array)) if stacked else [0]:
            where = ["layers", str(layer), *path[1:]] if stacked else path
            owner = ".".join([*where, ""])
            transposed = leaf == "kernel" and f"{owner}kernel" not in mine  # nn.Linear keeps [out, in]
            parameter = mine.pop(owner + ("weight" if transposed else leaf), None)
            value = torch.from_numpy(array[layer] if stacked else array)
            value = value.T if transposed else value
            if parameter is None or parameter.shape != value.shape:
                raise ValueError(f"the peer has no parameter for {name} {list(value.shape)}")
            parameter.copy_(value)
            groups[leaf not in ("kernel", "positions")].append(parameter)
    if mine:
        raise ValueError(f"no weights came for {', '.join(mine)} of the peer")
    return groups
