"""`diffusers`' `AutoencoderKLWan` as it is released: frame groups one after the other, with its feature cache.

python -m tools.bench.peers.diffusers_vae SPEC.json      # started by the bench, see tools/bench/worker.py
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from tools.bench.worker import read_arrays, serve


def empty_model(config: dict[str, Any]) -> Any:
    """Without memory behind its weights: they are drawn elsewhere."""
    with torch.device("meta"):
        return AutoencoderKLWan(**config)


class DiffusersVAE:
    """A `worker.Side`: a step encodes or decodes the clip once, latents normalised as on our side."""

    def __init__(self, spec: dict[str, Any]):
        case = spec["case"]
        self.encode, self.output, self.done = case["direction"] == "encode", spec["output"], 0
        self.device, self.dtype = torch.device(spec["device"]), getattr(torch, case["dtype"])
        self.checked_steps, self.note = spec["checked_steps"], ""
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        torch.set_float32_matmul_precision("highest" if case["dtype"] == "float32" else "high")
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = case["dtype"] != "float32"
        arrays = read_arrays(spec)
        self.model = empty_model(spec["diffusers"])
        self.model.load_state_dict({n: torch.from_numpy(a) for n, a in arrays["params"].items()}, assign=True)
        self.model.to(self.device, self.dtype).eval().requires_grad_(False)
        self.x = torch.from_numpy(arrays["batch"]["x"]).permute(0, 4, 1, 2, 3).contiguous().to(self.device)
        self.mean, self.std = (
            torch.tensor(spec["diffusers"][f"latents_{name}"], device=self.device).view(1, -1, 1, 1, 1)
            for name in ("mean", "std")
        )

    @torch.no_grad()
    def _step(self) -> Tensor:
        if self.encode:
            return (self.model.encode(self.x.to(self.dtype)).latent_dist.mode().float() - self.mean) / self.std
        return self.model.decode((self.x * self.std + self.mean).to(self.dtype)).sample.float()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def step(self) -> dict[str, float]:
        start = time.perf_counter()
        result = self._step().permute(0, 2, 3, 4, 1).cpu().numpy()
        seconds = time.perf_counter() - start
        if not self.done:
            np.save(self.output, result)
        self.done += 1
        if self.done == self.checked_steps and self.device.type == "cpu":
            self._choose_threads(seconds)
        return {"rms": float(np.sqrt(np.mean(result**2)))}

    def _choose_threads(self, seconds: float) -> None:
        """One thread, where a step takes less than `seconds` with it: where cores are shared, threads wait in turns."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        start = time.perf_counter()
        self._step()
        if time.perf_counter() - start > seconds:
            torch.set_num_threads(threads)
        self.note = f"PyTorch uses {torch.get_num_threads()} of {threads} threads, which is faster"

    def steps(self, count: int) -> None:
        for _ in range(count):
            self._step()
        self._wait()

    def matmul(self, size: int) -> float:
        a = torch.ones(size, size, dtype=self.dtype, device=self.device)
        seconds = []
        for _ in range(4):
            self._wait()
            start = time.perf_counter()
            a @ a
            self._wait()
            seconds.append(time.perf_counter() - start)
        return 2e-12 * size**3 / min(seconds)

    def peak_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None


if __name__ == "__main__":
    serve(DiffusersVAE)
