"""`diffusers`' `WanTransformer3DModel` with our flow loss: another network of the same width, depth and token count.

    python -m tools.bench.peers.wan SPEC.json      # started by the bench, see tools/bench/worker.py

It denoises all latent frames, and every token sees every token. Ours observes the first frame, which sees itself alone,
and has a state and an action token besides; so the losses cannot be equal, and each side reports the FLOPs it does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tools.bench.peers.torch_side import configure
from tools.bench.peers.torch_train import TorchTrain, on_device
from tools.bench.worker import read_arrays, serve
from wam.config import ModelConfig, build


class WanLoss(nn.Module):
    """Mean squared error of the velocity over all frames."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.wan = WanTransformer3DModel(
            patch_size=(1, 1, 1),
            num_attention_heads=config.heads,
            attention_head_dim=config.head_dim,
            in_channels=config.latent_channels,
            out_channels=config.latent_channels,
            text_dim=config.text_dim,
            freq_dim=config.time_width,
            ffn_dim=config.video_mlp,
            num_layers=config.depth,
        )

    def compile_parts(self, mode: str) -> None:
        """Its own recipe: one program for all its equal blocks."""
        self.wan.compile_repeated_blocks(dynamic=False, mode=mode)

    def forward(self, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        clean, noise, sigma = batch["latents"], draws["noise"], draws["sigma"]
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None, None])
        velocity = self.wan(noisy, 1000.0 * sigma, batch["text"], return_dict=False)[0]
        return {"loss": ((velocity.float() - (noise - clean)) ** 2).mean()}


class WanTrain(TorchTrain):
    """Reports the FLOPs of a step, 3 times those that PyTorch counts in a forward pass, once."""

    def step(self) -> dict[str, float]:
        metrics = super().step()
        if self.done == 2:  # not in the first step, which is timed
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                self._forward()
            metrics["flops"] = 3.0 * counter.get_total_flops()
            metrics["parameters"] = float(sum(p.numel() for p in self.parameters))
        return metrics


def make(spec: dict[str, Any]) -> TorchTrain:
    torch.manual_seed(0)
    configure(spec["model"]["dtype"])
    config = build(ModelConfig, spec["model"])
    batch = read_arrays(spec)["batch"]
    latents = batch["latents"][:, 0]  # [B, F, P, C] -> [B, C, F, rows, columns]
    B, F, _, C = latents.shape
    latents = np.ascontiguousarray(np.moveaxis(latents.reshape(B, F, *config.grid, C), -1, 1))
    model = WanLoss(config).to(spec["device"])
    decays = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    rng = np.random.default_rng(spec["seed"])
    draws: list[dict[str, np.ndarray]] = [
        {"noise": rng.standard_normal(latents.shape, np.float32), "sigma": rng.random((B,), np.float32)}
        for _ in range(spec["checked_steps"])
    ]
    inputs = on_device({"latents": latents, "text": batch["text"]}, spec["device"])
    return WanTrain(spec, model, [decays, others], inputs, [on_device(d, spec["device"]) for d in draws], autocast=True)


if __name__ == "__main__":
    serve(make)
