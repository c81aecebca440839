"""The PyTorch side of `tools.bench.train`: the training step around any module that returns a loss.

    python -m tools.bench.peers.torch_train SPEC.json      # started by the bench, see tools/bench/worker.py

AdamW (fused), clipping by the global norm, warm-up and cosine, weight decay on matrices only, EMA with a ramp: the same
maths as `wam/training/{optimizer,step}.py`. Parameters, moments and EMA are float32.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tools.bench.peers.torch_joint import JointDiT
from tools.bench.peers.torch_layers import load
from tools.bench.peers.torch_side import TorchSide, configure
from tools.bench.worker import read_arrays, serve
from wam.config import ModelConfig, ObjectiveConfig, OptimizerConfig, build

CUDNN_OP = "aten::_scaled_dot_product_cudnn_attention"


class TorchTrain(TorchSide):
    """A `worker.Side`: `model(batch, draws)` returns {"loss", ...}; `groups` are parameters with and without decay."""

    def __init__(self, spec: dict[str, Any], model: nn.Module, groups: list[list[nn.Parameter]],
                 batch: dict[str, Tensor], draws: list[dict[str, Tensor]], autocast: bool = False):  # fmt: skip
        self.bf16 = spec["model"]["dtype"] == "bfloat16"
        super().__init__(torch.device(spec["device"]), torch.bfloat16 if self.bf16 else torch.float32)
        self.config, self.horizon = build(OptimizerConfig, spec["optimizer"]), spec["steps"]
        self.groups, self.batch, self.draws = groups, batch, draws
        self.parameters = [p for group in groups for p in group]
        self.ema = [p.detach().clone() for p in self.parameters]
        decays = [{"params": group, "weight_decay": self.config.weight_decay * (i == 0)}
                  for i, group in enumerate(groups)]  # fmt: skip
        self.optimizer = torch.optim.AdamW(decays, lr=0.0, betas=(self.config.b1, self.config.b2), fused=True)
        self.model = model
        if spec["compile"]:
            model.compile_parts(spec["compile"])
        self.autocast = autocast and self.bf16
        self.done, self.checked_steps = 0, spec["checked_steps"]
        # Compiled programs have their number of threads built in.
        self.choose_threads = self.device.type == "cpu" and not spec["compile"]

    def _forward(self) -> dict[str, Tensor]:
        draws = self.draws[self.done % len(self.draws)]
        with contextlib.ExitStack() as stack:
            if self.device.type == "cuda" and self.bf16:
                # PyTorch's own choice on Hopper is slower by up to two; other kernels only where cuDNN refuses a shape.
                order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
                stack.enter_context(sdpa_kernel(order, set_priority=True))
            if self.autocast:
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            return self.model(self.batch, draws)

    def _step(self) -> dict[str, Tensor]:
        config = self.config
        out = self._forward()
        out["loss"].backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (config.clip_norm / norm).clamp(max=1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.done, self.horizon)
        self.optimizer.step()
        self.optimizer.zero_grad()
        kept = min(config.ema_decay, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.parameters, 1 - kept)
        self.done += 1
        return {name: value.detach() for name, value in out.items()} | {"grad_norm": norm}

    def step(self) -> dict[str, float]:
        if self.done == 1 and self.device.type == "cuda" and self.bf16:
            self.note = self._attention_note()  # not before the first step: that one is timed
        start = time.perf_counter()
        out = {name: float(value) for name, value in self._step().items()}
        if self.done == self.checked_steps and self.choose_threads:
            self._choose_threads(time.perf_counter() - start)
        return out

    def _attention_note(self) -> str:
        """Which attention ran; RuntimeError if cuDNN's never did."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            self._forward()
        calls = {event.key: event.count for event in profile.key_averages()}
        total = calls.get("aten::scaled_dot_product_attention", 0)
        if not calls.get(CUDNN_OP):
            raise RuntimeError("cuDNN attention was asked for and did not run on the PyTorch side")
        return f"cuDNN attention in {calls[CUDNN_OP]} of {total} PyTorch attention calls"


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    warmup = min(config.warmup_steps, max(1, steps // 4))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1.0, steps - warmup))
    low, high = config.final_learning_rate, config.learning_rate
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * done))


def on_device(arrays: dict[str, np.ndarray], device: str) -> dict[str, Tensor]:
    """Tensors of the fields that a model reads; ids of 32 unsigned bits, which PyTorch has few operations for, stay."""
    return {
        name: torch.from_numpy(array.astype(np.int64) if array.dtype == np.int32 else array).to(device)
        for name, array in arrays.items()
        if array.dtype != np.uint32
    }


def make(spec: dict[str, Any]) -> TorchTrain:
    torch.manual_seed(0)
    configure(spec["model"]["dtype"])
    arrays = read_arrays(spec)
    model = JointDiT(build(ModelConfig, spec["model"]), build(ObjectiveConfig, spec["objective"]))
    groups = load(model, arrays["params"])
    constants = {name.replace("embodiments/", "forward_path/"): value for name, value in arrays["constants"].items()}
    for name, value in constants.items():
        model.get_buffer(name.replace("/", ".")).copy_(torch.from_numpy(value))
    model.to(spec["device"])
    batch = on_device(arrays["batch"], spec["device"])
    draws = on_device(arrays["draws"], spec["device"])  # every field [steps, ...]
    count = len(draws["sigma_video"])
    return TorchTrain(spec, model, groups, batch, [{n: v[i] for n, v in draws.items()} for i in range(count)])


if __name__ == "__main__":
    serve(make)
