"""`JointDiT` (one chunk) and its losses in PyTorch, by hand: the same network, not a port of the code.

Written as a PyTorch user would for speed: layers in a ModuleList, `scaled_dot_product_attention`, noise-level groups
modulated by broadcasting, and nothing computed whose result is not read (the state's queries, the last layer of the
context after its keys).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tools.bench.peers.torch_layers import (
    EmbodimentBank,
    ExpertBlock,
    Keys,
    Linear,
    OutputHead,
    Rotary,
    RotaryEmbedding,
    SigmaEmbedder,
    attend,
    modulated_norm,
)
from tools.bench.peers.torch_paths import ForwardPath, InversePath
from wam.config import ModelConfig, ObjectiveConfig

Tensors = dict[str, Tensor]
EXPERTS = ("video", "action")


class Tokens(NamedTuple):
    """Tokens [B, G, n, D] on their way through the layers."""

    history: Tensor
    state: Tensor
    video: Tensor
    action: Tensor
    """The chunk, then its further draws, one group each."""


class Fixed(NamedTuple):
    """What every layer reads and none changes; per expert or per stream."""

    text: Tensors
    """Empty without text attention."""
    clean: Tensors
    """Modulation [B, 1, 6, D] of the context."""
    noisy: Tensors
    """Modulation [B, G, 6, D] of the noisy streams that are present."""
    places: dict[str, Rotary]
    biases: Tensors
    """Additive attention biases, see `JointDiT._biases`."""


class Seen(NamedTuple):
    """Keys and values of the context in one layer, and of the text by expert."""

    history: Keys
    state: Keys
    text: dict[str, Keys]


class Layer(nn.ModuleDict):
    """One layer of both experts: the context, then the noisy streams that see it."""

    def __init__(self, config: ModelConfig, *, last: bool):
        widths = {"video": (config.video_width, config.video_mlp), "action": (config.action_width, config.action_mlp)}
        dtype = getattr(torch, config.dtype)
        super().__init__(
            per_expert(config, lambda n: ExpertBlock(*widths[n], config.heads, config.head_dim, dtype,
                                                     text=config.text_attention))
        )  # fmt: skip
        self.action_tokens, self.last = config.action_tokens, last

    def forward(self, tokens: Tokens, fixed: Fixed) -> Tokens:
        history, state, seen = self.observe(tokens.history, tokens.state, fixed)
        return Tokens(history, state, *self.denoise(tokens.video, tokens.action, seen, fixed))

    def observe(self, history: Tensor, state: Tensor, fixed: Fixed) -> tuple[Tensor, Tensor, Seen]:
        """The context after this layer (not after the last: nothing reads it), and what of it others see."""
        biases, places, dtype = fixed.biases, fixed.places, history.dtype
        texts = {n: self[n].text_keys(text) for n, text in fixed.text.items()}
        mod = {n: self[n].modulation(fixed.clean[n], dtype) for n in EXPERTS}
        h = modulated_norm(history, *mod["video"][:2])
        history_keys = self["video"].keys_of(h, places["history"])
        state_keys = self["action"].keys_of(modulated_norm(state, *mod["action"][:2]), places["state"])
        if not self.last:
            attended = attend(self["video"].queries(h, places["history"]), [history_keys], biases["history"])
            history = self["video"].finish(history, attended, mod["video"], texts.get("video"), biases["text"])
            # A state token sees itself alone: the softmax over one key is the value.
            state = self["action"].finish(state, state_keys.v, mod["action"], texts.get("action"), biases["text"])
        return history, state, Seen(history_keys, state_keys, texts)

    def denoise(self, video: Tensor | None, action: Tensor, seen: Seen, fixed: Fixed,
                imagine: bool = True) -> tuple[Tensor | None, Tensor]:  # fmt: skip
        """Noisy video, where there is any, and the action chunk, which may see it, with its further draws, if any."""
        biases, places = fixed.biases, fixed.places
        xs = {n: x for n, x in zip(EXPERTS, (video, action), strict=True) if x is not None}
        mod = {n: self[n].modulation(fixed.noisy[n], x.dtype) for n, x in xs.items()}
        hs = {n: modulated_norm(x, *mod[n][:2]) for n, x in xs.items()}
        q = {n: self[n].queries(h, places[n]) for n, h in hs.items()}
        keys = {n: self[n].keys_of(h, places[n]) for n, h in hs.items()}
        Ka, context = self.action_tokens, [seen.history, seen.state]
        chunk, more = keys["action"].take(slice(0, Ka)), keys["action"].take(slice(Ka, None))
        imagined = [keys["video"]] if "video" in keys else []
        visible = [*context, chunk, *(imagined if imagine else [])]
        attended = {"action": attend(q["action"][:, :, :Ka], visible, biases["action"])}
        if action.shape[1] > 1:
            draws = attend(q["action"][:, :, Ka:], [*context, more], biases["draw"])
            attended["action"] = torch.cat([attended["action"], draws], 2)
        if imagined:
            attended["video"] = attend(q["video"], [*context, *imagined, chunk], biases["video"])
        out = {n: self[n].finish(x, attended[n], mod[n], seen.text.get(n), biases["text"]) for n, x in xs.items()}
        return out.get("video"), out["action"]


def per_expert(config: ModelConfig, make: Callable[[str], nn.Module]) -> nn.ModuleDict:
    """A module for either expert; one and the same where they share their weights."""
    video = make("video")
    return nn.ModuleDict({"video": video, "action": video if config.topology == "shared" else make("action")})


class Given(NamedTuple):
    """The context on its way into the layers, and what the noisy streams read of it beside its keys."""

    history: Tensor
    state: Tensor
    text: Tensors
    text_mask: Tensor
    instruction: Tensors
    """[B, 1, D], joins the condition of every noise level."""
    modulation: Tensors
    """[B, 1, 6, D], of sigma 0."""


class JointDiT(nn.Module):
    def __init__(self, config: ModelConfig, objective: ObjectiveConfig):
        super().__init__()
        if config.chunks != 1 or not (config.lead_width and config.inverse_width):
            raise ValueError("the PyTorch peer is written for one chunk and both paths")
        self.config, self.objective = config, objective
        dtype = getattr(torch, config.dtype)
        widths = {"video": config.video_width, "action": config.action_width}

        self.layers = nn.ModuleList(Layer(config, last=i == config.depth - 1) for i in range(config.depth))
        self.sigma = per_expert(config, lambda n: SigmaEmbedder(config.time_width, widths[n]))
        read = config.text_attention
        self.text_in = (
            per_expert(config, lambda n: Linear(config.text_dim, widths[n], dtype)) if read else nn.ModuleDict()
        )
        self.text_condition = per_expert(config, lambda n: Linear(config.text_dim, widths[n]))
        C, Dv, Da = config.latent_channels, config.video_width, config.action_width
        k, A, E = config.steps_per_token, config.action_dim, config.embodiments
        self.history_in, self.video_in = Linear(C, Dv, dtype), Linear(2 * C, Dv, dtype)
        self.view_embedding = nn.Parameter(torch.zeros(config.cameras, config.patches, Dv))
        self.frame_embedding = nn.Parameter(torch.zeros(config.frames_per_chunk, 1, Dv))
        self.action_in = EmbodimentBank(E, k * A, Da, dtype)
        self.action_embedding = nn.Parameter(torch.zeros(1, config.action_tokens, Da))
        self.state_in = EmbodimentBank(E, config.state_dim, Da, dtype)
        self.null_text = nn.Parameter(torch.zeros(config.text_dim))
        self.null_state, self.null_history = nn.Parameter(torch.zeros(Da)), nn.Parameter(torch.zeros(Dv))
        self.video_head, self.action_norm = OutputHead(Dv, C), OutputHead(Da, 0)
        self.action_out = EmbodimentBank(E, Da, k * A)
        self.forward_path, self.inverse_path = ForwardPath(config), InversePath(config)
        self.first, self.last = self.embed, self.losses  # replaced where they are compiled
        self.rotary = RotaryEmbedding(config.head_dim)
        self.register_buffer("context_gain", torch.ones(2, C))
        rows, columns = torch.meshgrid(*(torch.arange(n).float() for n in config.grid), indexing="ij")
        self.register_buffer("patch_positions", torch.stack([rows.ravel(), columns.ravel()], -1))

    # ------------------------------------------------------------------ inputs

    def _grid_rotary(self, seconds: Tensor, views: int) -> Rotary:
        """Positions of whole frames [B, frames] seen from `views` cameras, in the order (frame, view, patch)."""
        B, frames = seconds.shape
        P = len(self.patch_positions)
        time = (seconds * self.config.latent_rate)[:, :, None, None, None].expand(B, frames, views, P, 1)
        grid = self.patch_positions.expand(B, frames, views, P, 2)
        return self.rotary(torch.cat([time, grid], -1).flatten(1, 3))

    def _time_rotary(self, seconds: Tensor) -> Rotary:
        return self.rotary(F.pad((seconds * self.config.latent_rate)[..., None], (0, 2)))

    def _text(self, batch: Tensors, drop: Tensor) -> tuple[Tensor, Tensor]:
        """Instruction [B, L, D] and mask; a dropped or empty one is a single null token."""
        mask = batch["text_mask"]
        empty = drop | ~mask.any(-1)
        text = torch.where(empty[:, None, None], self.null_text, batch["text"])
        only_first = torch.arange(mask.shape[1], device=mask.device) == 0
        return text, torch.where(empty[:, None], only_first, mask)

    def _observed(self, batch: Tensors, draws: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Future latents [B, f, v, P, C], the current frame [B, v P, C], masks of frames [B, f], the state [B, S]."""
        targets, latents = list(self.config.target_views), batch["latents"]
        future = latents[:, targets, 1:].transpose(1, 2)
        current = latents[:, targets, 0].flatten(1, 2) * ~draws["drop_history"][:, None, None]
        frame_mask = batch["frame_mask"][:, 1:].unflatten(1, (self.config.frames_per_chunk, -1)).all(-1)
        state = batch["state"][:, 0] * batch["state_mask"][:, 0] * ~draws["drop_state"][:, None]
        return future, current, frame_mask, state

    def _encode_actions(self, action: Tensor, embodiment: Tensor) -> Tensor:
        """[B, ..., K, A] -> [B, ..., Ka, D]."""
        tokens = action.unflatten(-2, (-1, self.config.steps_per_token)).flatten(-2)
        x = self.action_in(tokens, embodiment)
        return x + self.action_embedding[0].to(x.dtype)

    # ------------------------------------------------------------------ forward

    def compile_parts(self, mode: str) -> None:
        """torch.compile of everything, each layer apart: equal layers share one program, so it takes minutes less."""
        for layer in self.layers:
            layer.compile(dynamic=False, mode=mode)
        self.first = torch.compile(self.embed, dynamic=False, mode=mode)
        self.last = torch.compile(self.losses, dynamic=False, mode=mode)

    def forward(self, batch: Tensors, draws: Tensors) -> Tensors:
        """The loss and its terms. `batch` is a `wam.batch` batch with latents, `draws` the step's random choices."""
        tokens, fixed, conditions = self.first(batch, draws)
        for layer in self.layers:
            tokens = layer(tokens, fixed)
        return self.last(batch, draws, tokens.video, tokens.action, conditions)

    def embed(self, batch: Tensors, draws: Tensors) -> tuple[Tokens, Fixed, Tensors]:
        """Tokens of every stream, what the layers read beside them, and the noisy streams' conditions [B, G, D]."""
        R = draws["policy_sigma"].shape[-1]
        action, action_mask = batch["action"][:, 0], batch["action_mask"][:, 0]
        future, current, frame_mask, known_state = self._observed(batch, draws)

        # Noise.
        noise_video, noise_action = draws["noise_video"][:, 0], draws["noise_action"][:, 0]
        sigma_video, sigma_action = draws["sigma_video"][:, 0], draws["sigma_action"]
        policy_noise, policy_sigma = draws["policy_noise"][:, 0], draws["policy_sigma"][:, 0]
        video = torch.lerp(future, noise_video, sigma_video[:, :, None, None, None])
        noisy_action = torch.lerp(action, noise_action, sigma_action[:, :, None])
        repeated = torch.lerp(action[:, None].expand_as(policy_noise), policy_noise, policy_sigma[:, :, None, None])

        # Noisy streams: video frames; the action chunk and its further draws.
        given = self.embed_context(batch, draws)
        gate = draws["video_sees_action"] * (1 - sigma_action[:, 0]) * action_mask.any((1, 2))
        code = self.forward_path.code(noisy_action, action_mask, batch, known_state, gate)
        x, video_condition = self.embed_video(batch, given, video, current, sigma_video, code)
        estimate = self.inverse_path.frozen_estimate(video, current, frame_mask, known_state) * action_mask
        seen = draws["action_sees_video"] * (1 - sigma_video.amax(-1))
        a = self._encode_actions(noisy_action * action_mask, batch["embodiment"])
        a = a + self.inverse_path.tokens(estimate, seen).to(a.dtype)
        more = self._encode_actions(repeated * action_mask[:, None], batch["embodiment"])
        a = torch.cat([a[:, None], more], 1)  # [B, 1 + R, Ka, D]
        action_condition = self.sigma["action"].condition(torch.cat([sigma_action, policy_sigma], 1))
        action_condition = action_condition + given.instruction["action"]

        # Who is where, and who sees whom.
        places = self.places(batch, 1 + R)
        biases = self._biases(batch, draws, x.shape[1] * x.shape[2], R, given.text_mask, x.dtype)
        conditions = {"video": video_condition, "action": action_condition}
        noisy = {n: self.sigma[n].modulation(condition) for n, condition in conditions.items()}
        return (Tokens(given.history, given.state, x, a), Fixed(given.text, given.modulation, noisy, places, biases),
                conditions)  # fmt: skip

    def embed_context(self, batch: Tensors, draws: Tensors) -> Given:
        """The observed frame, the state, the instruction."""
        state = batch["state"][:, 0] * batch["state_mask"][:, 0]
        text, text_mask = self._text(batch, draws["drop_text"])
        pooled = (text_mask[:, None] / text_mask.sum(-1)[:, None, None]) @ text
        instruction = {n: linear(pooled) for n, linear in self.text_condition.items()}  # [B, 1, D]
        text_in = {n: linear(text) for n, linear in self.text_in.items()}
        clean = torch.zeros_like(state[:, :1])
        modulation = {n: e.modulation(e.condition(clean) + instruction[n]) for n, e in self.sigma.items()}
        history = self.history_in(batch["latents"][:, :, 0] * self.context_gain[0])
        view = self.view_embedding[batch["camera"]].to(history.dtype)
        history = torch.where(draws["drop_history"][:, None, None, None], self.null_history.to(history.dtype), history)
        history = (history + view).flatten(1, 2)[:, None]  # [B, 1, V P, D]
        state_token = self.state_in(state[:, None], batch["embodiment"])
        state_token = torch.where(draws["drop_state"][:, None, None], self.null_state.to(state_token.dtype),
                                  state_token)[:, None]  # fmt: skip
        return Given(history, state_token, text_in, text_mask, instruction, modulation)

    def embed_video(self, batch: Tensors, given: Given, video: Tensor, current: Tensor, sigma: Tensor,
                    code: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Tokens [B, f, v P, D] of noisy frames with sigma [B, f] that see where the actions lead; their condition."""
        x = video.flatten(2, 3)
        x = self.video_in(torch.cat([x, current[:, None].expand_as(x)], -1))
        target_view = self.view_embedding[batch["camera"][:, list(self.config.target_views)]].flatten(1, 2)
        x = x + target_view[:, None].to(x.dtype) + self.frame_embedding.to(x.dtype)
        lead, shift = self.forward_path(code)
        condition = self.sigma["video"].condition(sigma) + given.instruction["video"]
        return x + lead.to(x.dtype), condition + shift

    def places(self, batch: Tensors, chunks: int) -> dict[str, Rotary]:
        """Of every stream; the action chunk and its draws are `chunks` times the same."""
        cfg = self.config
        seconds = batch["video_time"][:, :: cfg.frames_per_latent]
        step_seconds = batch["action_time"][:, 0].unflatten(1, (-1, cfg.steps_per_token)).mean(-1)
        return {
            "history": self._grid_rotary(seconds[:, :1], batch["camera"].shape[1]),
            "state": self._time_rotary(batch["action_time"][:, 0, :1]),
            "video": self._grid_rotary(seconds[:, 1:], len(cfg.target_views)),
            "action": self._time_rotary(step_seconds.repeat(1, chunks)),
        }

    def _biases(self, batch: Tensors, draws: Tensors, video_tokens: int, R: int, text_mask: Tensor,
                dtype: torch.dtype) -> Tensors:  # fmt: skip
        """Additive biases [B, 1, 1 or L, T] per query block: missing views and states, closed gates, other draws."""
        Ka = self.config.action_tokens
        history = batch["view_mask"].repeat_interleave(self.config.patches, 1)
        context = torch.cat([history, batch["state_mask"].any(-1)], 1)
        B = len(context)
        ones = torch.ones_like(context[:, :1])
        by_video = (draws["video_sees_action"] > 0)[:, None].expand(B, Ka)
        by_action = (draws["action_sees_video"] > 0)[:, None].expand(B, video_tokens)
        group = torch.arange(R, device=context.device).repeat_interleave(Ka)
        own = (group[:, None] == group[None]).expand(B, R * Ka, R * Ka)
        masks = {
            "history": history,
            "text": text_mask,
            "video": torch.cat([context, ones.expand(B, video_tokens), by_video], 1),
            "action": torch.cat([context, ones.expand(B, Ka), by_action], 1),
            "draw": torch.cat([context[:, None].expand(B, R * Ka, -1), own], 2),
        }
        return {name: bias(mask, dtype) for name, mask in masks.items()}

    def losses(self, batch: Tensors, draws: Tensors, video: Tensor, action: Tensor, conditions: Tensors) -> Tensors:
        """The weighted loss and its terms, from the tokens that leave the layers."""
        cfg, objective = self.config, self.objective
        targets = list(cfg.target_views)
        future, current, frame_mask, known_state = self._observed(batch, draws)
        predicted = self.video_head(video, conditions["video"]).unflatten(2, (len(targets), -1))
        decoded = self.action_out(self.action_norm(action, conditions["action"]), batch["embodiment"])
        decoded = decoded.unflatten(-1, (cfg.steps_per_token, -1)).flatten(2, 3)  # [B, 1 + R, K, A]
        direct = self.inverse_path.estimate(future, current, frame_mask, known_state)

        actions, action_mask = batch["action"][:, 0], batch["action_mask"][:, 0]
        copied = action_mask & batch["imitate"][:, :, None]
        mask = torch.where(draws["imitates"][:, None, None], copied, action_mask) & draws["action_on"][:, None, None]
        view = batch["view_mask"][:, targets]
        video_mask = frame_mask[:, :, None] & view[:, None] & draws["video_on"][:, None, None]
        target = future if cfg.video_prediction == "x" else draws["noise_video"][:, 0] - future
        seen = frame_mask.any(-1) & view.any(-1)
        terms = {
            "video": mean(predicted - target, video_mask[..., None, None]),
            "action": mean(decoded[:, 0] - (draws["noise_action"][:, 0] - actions), mask),
            "policy": mean(decoded[:, 1:] - (draws["policy_noise"][:, 0] - actions[:, None]), copied[:, None]),
            "inverse": mean(direct - actions, action_mask & seen[:, None, None]),
        }
        weights = {"video": objective.video_weight, "action": objective.action_weight,
                   "policy": objective.policy_weight, "inverse": objective.inverse_weight}  # fmt: skip
        return terms | {"loss": sum(weights[name] * value for name, value in terms.items())}


def bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive bias [B, 1, 1 or L, T] of a mask of keys [B, T] or of queries and keys [B, L, T]."""
    mask = mask[:, None] if mask.ndim == 3 else mask[:, None, None]
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -1e9)


def mean(error: Tensor, mask: Tensor) -> Tensor:
    """Mean square over the active elements of the whole batch."""
    mask = mask.expand(error.shape)
    return torch.where(mask, error**2, 0.0).sum() / mask.sum().clamp(min=1)
