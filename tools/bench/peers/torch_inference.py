"""Answers of the PyTorch `JointDiT`: the context once, then Euler steps that read its keys and values.

What a mode leaves out is not built: a stream, a direct path, a block of keys that a closed gate would hide.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tools.bench.latency_cases import Program
from tools.bench.peers.torch_joint import Fixed, Given, JointDiT, Seen, Tensors, bias
from tools.bench.peers.torch_layers import EmbodimentBank, Linear
from wam.config import ModelConfig, ObjectiveConfig

WHOLE = 4
"""Layers up to which a step is compiled whole: with more it takes too long."""


class Context(NamedTuple):
    """An observation as every step reads it."""

    given: Given
    fixed: Fixed
    """Without the noisy streams' modulation."""
    layers: list[Seen]
    current: Tensor
    frame_mask: Tensor
    state: Tensor


class Tokenizer(nn.Module):
    """`PatchPCA`: patches minus their mean, on principal components."""

    def __init__(self, arrays: Tensors, grid: tuple[int, int], patch: int):
        super().__init__()
        self.grid, self.patch = grid, patch
        for name, array in arrays.items():
            self.register_buffer(name, array)

    def encode(self, video: Tensor, camera: Tensor) -> Tensor:
        """[B, V, 1, h, w, 3] uint8 -> [B, V, 1, P, C]."""
        rows, columns = self.grid
        x = (video.float() / 255).unflatten(4, (columns, self.patch)).unflatten(3, (rows, self.patch))
        patches = x.permute(0, 1, 2, 3, 5, 4, 6, 7).flatten(5).flatten(3, 4)
        return ((patches - self.mean_first[camera][:, :, None]) @ self.basis_first) * self.scale_first

    def decode(self, latents: Tensor, camera: Tensor) -> Tensor:
        """Later frames [B, v, f, P, C] -> uint8 [B, v, f r, h, w, 3]."""
        patches = latents / self.scale_group @ self.basis_group.T + self.mean_group[camera][:, :, None]
        x = patches.unflatten(3, self.grid).unflatten(-1, (-1, self.patch, self.patch, 3))
        x = x.permute(0, 1, 2, 5, 3, 6, 4, 7, 8)  # [B, v, f, r, rows, p, columns, p, 3]
        x = x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return (x.clamp(0, 1) * 255).round().to(torch.uint8)


class Answers(JointDiT):
    """The network of `torch_joint` with its two parts apart."""

    def __init__(self, config: ModelConfig):
        super().__init__(config, ObjectiveConfig())

    def compile_parts(self, mode: str) -> None:
        """The context and a step whole where layers are few; else each layer apart: equal ones share one program."""
        torch._dynamo.config.recompile_limit = 64  # first, middle and last layers, with and without video
        names = ["context", "denoise"]
        if len(self.layers) > WHOLE:
            names = ["embed_context", "embed_noisy", "advance", "places"]
            for layer in self.layers:
                layer.observe = torch.compile(layer.observe, dynamic=False, mode=mode)
                layer.denoise = torch.compile(layer.denoise, dynamic=False, mode=mode)
        for name in names:
            setattr(self, name, torch.compile(getattr(self, name), dynamic=False, mode=mode))

    def context(self, batch: Tensors) -> Context:
        """Everything that no step changes; `batch` has the latents of the observed frame."""
        B = len(batch["embodiment"])
        kept = {f"drop_{name}": torch.zeros(B, dtype=torch.bool, device=batch["state"].device)
                for name in ("text", "state", "history")}  # fmt: skip
        given = self.embed_context(batch, kept)
        _, current, frame_mask, state = self._observed(batch, kept)
        views = batch["view_mask"].repeat_interleave(self.config.patches, 1)
        seen = torch.cat([views, batch["state_mask"].any(-1)], 1)
        action, video = (seen.new_ones(B, n) for n in (self.config.action_tokens, self._video_tokens()))
        masks = {"history": views, "text": given.text_mask, "policy": torch.cat([seen, action], 1),
                 "both": torch.cat([seen, action, video], 1)}  # fmt: skip
        biases = {name: bias(mask, given.history.dtype) for name, mask in masks.items()}
        fixed = Fixed(given.text, given.modulation, {}, self.places(batch, 1), biases)
        history, token, layers = given.history, given.state, []
        for layer in self.layers:
            history, token, found = layer.observe(history, token, fixed)
            layers.append(found)
        return Context(given, fixed, layers, current, frame_mask, state)

    def _video_tokens(self) -> int:
        return self.config.frames_per_chunk * len(self.config.target_views) * self.config.patches

    def denoise(self, program: Program, context: Context, batch: Tensors, video: Tensor | None, action: Tensor,
                sigma: Tensor, then: Tensor) -> tuple[Tensor | None, Tensor]:  # fmt: skip
        """One Euler step of video [B, f, v, P, C] and actions [B, K, A]; given actions have sigma 0."""
        x, a, conditions, noisy = self.embed_noisy(program, context, batch, video, action, sigma)
        # Noisy streams see the whole context and each other; actions that are given, themselves alone.
        biases = context.fixed.biases
        alone = "both" if program.sees[0] else "policy"
        biases = biases | {"action": biases[alone], "video": biases["both"]}
        fixed = context.fixed._replace(noisy=noisy, biases=biases)
        for layer, seen in zip(self.layers, context.layers, strict=True):
            x, a = layer.denoise(x, a, seen, fixed, program.sees[0])
        return self.advance(program, batch, video, action, x, a, conditions, sigma, then)

    def embed_noisy(self, program: Program, context: Context, batch: Tensors, video: Tensor | None, action: Tensor,
                    sigma: Tensor) -> tuple[Tensor | None, Tensor, Tensors, Tensors]:  # fmt: skip
        """Tokens of video and actions, the streams' conditions and modulations."""
        mask, given = batch["action_mask"][:, 0], context.given
        sigma_action = torch.zeros_like(sigma) if program.mode == "forward" else sigma
        conditions = {"action": self.sigma["action"].condition(sigma_action[:, None]) + given.instruction["action"]}
        a = self._encode_actions(action * mask, batch["embodiment"])
        x = None
        if video is not None:
            gate = (1 - sigma_action) * mask.any((1, 2))
            code = self.forward_path.code(action, mask, batch, context.state, gate)
            frames = sigma[:, None].expand(-1, video.shape[1])
            x, conditions["video"] = self.embed_video(batch, given, video, context.current, frames, code)
            if program.sees[0]:
                estimate = self.inverse_path.estimate(video, context.current, context.frame_mask, context.state)
                a = a + self.inverse_path.tokens(estimate * mask, 1 - sigma).to(a.dtype)
        return x, a[:, None], conditions, {n: self.sigma[n].modulation(c) for n, c in conditions.items()}

    def advance(self, program: Program, batch: Tensors, video: Tensor | None, action: Tensor, x: Tensor | None,
                a: Tensor, conditions: Tensors, sigma: Tensor, then: Tensor
                ) -> tuple[Tensor | None, Tensor]:  # fmt: skip
        """Tokens after the layers to outputs, and the Euler step."""
        if program.mode != "forward":
            decoded = self.action_out(self.action_norm(a, conditions["action"]), batch["embodiment"])
            velocity = decoded.unflatten(-1, (self.config.steps_per_token, -1)).flatten(2, 3)[:, 0]
            action = action + (then - sigma)[:, None, None] * velocity
        if video is None or x is None:
            return None, action
        out = self.video_head(x, conditions["video"]).unflatten(2, (len(self.config.target_views), -1))
        if self.config.video_prediction == "x":
            return out + (then / sigma)[:, None, None, None, None] * (video - out), action
        return video + (then - sigma)[:, None, None, None, None] * out, action

    def cast(self) -> None:
        """Weights that every call would round to the compute dtype, rounded once."""
        for module in self.modules():
            if isinstance(module, (Linear, EmbodimentBank)) and module.dtype != torch.float32:
                module.to(module.dtype)
