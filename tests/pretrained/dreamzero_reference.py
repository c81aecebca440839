"""DreamZero's network under teacher forcing, written in torch from the facts: small, plain, with one dense mask.

Facts: names and shapes of the tensors, and what is computed, of the class `CausalWanModel` of the public source (main
release, whose state tokens are encoded states). One sequence: clean frames, noisy frames, actions, states, all through
the same blocks. Clean frames are of sigma 0, the others have a timestep each, a state that of its chunk's first action.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from wam.pretrained.dreamzero import DreamZeroConfig

PREFIX = "action_head.model."

IMAGE = 257
"""Tokens of the image: the reference cuts the context of its cross-attention there."""


def sines(position: Tensor, width: int) -> tuple[Tensor, Tensor]:
    rates = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = position.double()[..., None] * rates
    return angles.sin().float(), angles.cos().float()


def table(positions: Tensor, width: int) -> Tensor:
    """Rotations [L, width / 2], as complex numbers, of positions [L] on one axis."""
    rates = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = positions.double()[:, None] * rates
    return torch.polar(torch.ones_like(angles), angles)


def rotated(x: Tensor, rotations: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotations[:, None]).flatten(-2).float()


class Bank(nn.Module):
    def __init__(self, E: int, d_in: int, d_out: int):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.empty(E, d_in, d_out)), nn.Parameter(torch.empty(E, d_out))

    def forward(self, x: Tensor, which: Tensor) -> Tensor:
        return x @ self.W[which] + self.b[which][:, None]


class TwoLayers(nn.Module):
    def __init__(self, E: int, d_in: int, hidden: int, d_out: int):
        super().__init__()
        self.layer1, self.layer2 = Bank(E, d_in, hidden), Bank(E, hidden, d_out)

    def forward(self, x: Tensor, which: Tensor) -> Tensor:
        return self.layer2(functional.relu(self.layer1(x, which)), which)


class ActionEncoder(nn.Module):
    def __init__(self, E: int, action_dim: int, width: int):
        super().__init__()
        self.W1, self.W2, self.W3 = Bank(E, action_dim, width), Bank(E, 2 * width, width), Bank(E, width, width)

    def forward(self, actions: Tensor, time: Tensor, which: Tensor) -> Tensor:
        h = self.W1(actions, which)
        level = torch.cat(sines(time, h.shape[-1]), -1)
        return self.W3(functional.silu(self.W2(torch.cat([h, level], -1), which)), which)


class Scale(nn.Module):
    """RMSNorm over the whole width."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x**2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Attention(nn.Module):
    def __init__(self, c: DreamZeroConfig, image: bool = False):
        super().__init__()
        self.heads = c.num_attention_heads
        self.q, self.k, self.v, self.o = (nn.Linear(c.width, c.width) for _ in range(4))
        self.norm_q, self.norm_k = Scale(c.width), Scale(c.width)
        if image:
            self.k_img, self.v_img, self.norm_k_img = (
                nn.Linear(c.width, c.width),
                nn.Linear(c.width, c.width),
                Scale(c.width),
            )

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = torch.einsum("blnh,bmnh->bnlm", q, k) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return torch.einsum("bnlm,bmnh->blnh", scores.softmax(-1), v).flatten(-2)

    def among(self, x: Tensor, rotations: Tensor, mask: Tensor) -> Tensor:
        q, k = (rotated(self.split(norm(f(x))), rotations)
                for f, norm in ((self.q, self.norm_q), (self.k, self.norm_k)))  # fmt: skip
        return self.o(self.mix(q, k, self.split(self.v(x)), mask))

    def across(self, x: Tensor, text: Tensor, image: Tensor | None) -> Tensor:
        q = self.split(self.norm_q(self.q(x)))
        out = self.mix(q, self.split(self.norm_k(self.k(text))), self.split(self.v(text)))
        if image is not None:
            out = out + self.mix(q, self.split(self.norm_k_img(self.k_img(image))), self.split(self.v_img(image)))
        return self.o(out)


def plain_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)


class Block(nn.Module):
    def __init__(self, c: DreamZeroConfig):
        super().__init__()
        self.self_attn, self.cross_attn = Attention(c), Attention(c, image=c.image_dim is not None)
        self.norm3 = nn.LayerNorm(c.width, eps=1e-6) if c.cross_attn_norm else nn.Identity()
        self.ffn = nn.Sequential(nn.Linear(c.width, c.ffn_dim), nn.GELU("tanh"), nn.Linear(c.ffn_dim, c.width))
        self.modulation = nn.Parameter(torch.empty(1, 6, c.width))

    def forward(self, x, e, rotations, mask, text, image):
        e = (self.modulation[:, None] + e).unbind(2)
        x = x + e[2] * self.self_attn.among(plain_norm(x) * (1 + e[1]) + e[0], rotations, mask)
        x = x + self.cross_attn.across(self.norm3(x), text, image)
        return x + e[5] * self.ffn(plain_norm(x) * (1 + e[4]) + e[3])


class Head(nn.Module):
    def __init__(self, c: DreamZeroConfig):
        super().__init__()
        self.head = nn.Linear(c.width, c.out_channels * c.patch)
        self.modulation = nn.Parameter(torch.empty(1, 2, c.width))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale = (self.modulation[:, None] + e[:, :, None]).unbind(2)
        return self.head(plain_norm(x) * (1 + scale) + shift)


class ImageEmbedding(nn.Module):
    def __init__(self, c: DreamZeroConfig):
        super().__init__()
        d = c.image_dim
        self.proj = nn.Sequential(
            nn.LayerNorm(d), nn.Linear(d, d), nn.GELU(), nn.Linear(d, c.width), nn.LayerNorm(c.width)
        )


class ActionHeadModel(nn.Module):
    def __init__(self, c: DreamZeroConfig):
        super().__init__()
        E, D = c.embodiments, c.width
        self.config = c
        self.state_encoder = TwoLayers(E, c.state_dim, c.code_width, D)
        self.action_encoder = ActionEncoder(E, c.action_dim, D)
        self.action_decoder = TwoLayers(E, D, c.code_width, c.action_dim)
        self.patch_embedding = nn.Conv3d(c.in_channels, D, c.patch_size, c.patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(c.text_dim, D), nn.GELU("tanh"), nn.Linear(D, D))
        self.time_embedding = nn.Sequential(nn.Linear(c.freq_dim, D), nn.SiLU(), nn.Linear(D, D))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(D, 6 * D))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.num_layers))
        self.head = Head(c)
        if c.image_dim:
            self.img_emb = ImageEmbedding(c)

    def time(self, timesteps: Tensor) -> Tensor:
        sine, cosine = sines(timesteps, self.config.freq_dim)
        return self.time_embedding(torch.cat([cosine, sine], -1))

    def forward(self, noisy, clean, time, action, time_action, state, which, text, image, *, chunks: int):
        """Velocities of patches [B, F, h w, numbers] and of actions [B, M K, A].

        `noisy` and `clean` are [B, channels, F, H, W], `time` [B, F], `time_action` [B, M K], `state` [B, M, S].
        """
        noisy, clean = self.patch_embedding(noisy), self.patch_embedding(clean)
        (frames, h, w), (M, K) = noisy.shape[2:], (chunks, action.shape[1] // chunks)
        tokens, f = h * w, (frames - 1) // chunks
        place = torch.cartesian_prod(*(torch.arange(n) for n in (frames, h, w)))
        width = self.config.attention_head_dim
        sixth = 2 * (width // 6)
        of_video = torch.cat([table(place[:, i], n) for i, n in enumerate((width - 2 * sixth, sixth, sixth))], -1)
        rotations = torch.cat([of_video, of_video, table(torch.arange(M * K), width), table(torch.arange(M), width)])

        x = torch.cat([clean.flatten(2).mT, noisy.flatten(2).mT, self.action_encoder(action, time_action, which),
                       self.state_encoder(state, which)], 1)  # fmt: skip
        per_token = time.repeat_interleave(tokens, 1)
        e = self.time(torch.cat([torch.zeros_like(per_token), per_token, time_action, time_action[:, ::K]], 1))
        e0 = self.time_projection(e).unflatten(-1, (6, -1))
        text = self.text_embedding(text)
        image = None if image is None else self.img_emb.proj(image)
        mask = visible(frames, f, tokens, M, K)
        for block in self.blocks:
            x = block(x, e0, rotations, mask, text, image)
        half = frames * tokens
        video = self.head(x[:, half : 2 * half], e[:, half : 2 * half]).unflatten(1, (frames, tokens))
        return video, self.action_decoder(x[:, 2 * half : 2 * half + M * K], which)


def visible(frames: int, f: int, tokens: int, M: int, K: int) -> Tensor:
    """[L, L] bool, queries by keys. The first frame is block 0; others count from 1, f frames each."""
    block_of_frame = (torch.arange(frames) + f - 1) // f
    video = block_of_frame.repeat_interleave(tokens)
    blocks = torch.cat([video, video, torch.arange(1, M + 1).repeat_interleave(K), torch.arange(1, M + 1)])
    kind = torch.cat([torch.full((n,), i) for i, n in enumerate((len(video), len(video), M * K, M))])
    (q, k), (qb, kb) = (kind[:, None], kind[None]), (blocks[:, None], blocks[None])
    same = qb == kb
    clean = (q == 0) & (k == 0) & (kb <= qb)
    past = ((q == 1) | (q == 2)) & (qb > 0) & (k == 0) & (kb < qb)
    beside = ((q == 1) | (q == 2)) & (k > 0) & same
    return clean | past | beside | ((q == 3) & (k == 3) & same)


def reference(config: DreamZeroConfig, seed: int = 0) -> ActionHeadModel:
    """With random weights, none of them zero."""
    torch.manual_seed(seed)
    model = ActionHeadModel(config)
    with torch.no_grad():
        for name, x in model.named_parameters():
            scale = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            x.copy_(scale + 0.2 * torch.randn_like(x))
    return model


def checkpoint(model: ActionHeadModel) -> dict[str, Tensor]:
    """Its tensors as a checkpoint names them, with some of the frozen ones."""
    tensors = {PREFIX + name: x.detach() for name, x in model.state_dict().items()}
    frozen = ("text_encoder.token_embedding.weight", "image_encoder.model.visual.cls_embedding",
              "vae.model.conv1.weight", "vae.model.conv1.bias")  # fmt: skip
    return tensors | {f"action_head.{name}": torch.ones(2, 3) for name in frozen}


TINY = DreamZeroConfig(num_attention_heads=2, attention_head_dim=20, num_layers=2, ffn_dim=48, text_dim=12, freq_dim=16,
                       in_channels=7, out_channels=3, image_dim=10, added_kv_proj_dim=40, action_dim=5, state_dim=6,
                       code_width=24)  # fmt: skip
CASES = {
    "14B": TINY,
    "5B, two embodiments": dataclasses.replace(TINY, in_channels=3, embodiments=2),
    "without an image": dataclasses.replace(TINY, in_channels=3, image_dim=None, added_kv_proj_dim=None),
}
