"""`diffusers`' `AutoencoderKLWan` as it is released: frame groups one after the other, with its feature cache.

python -m tools.bench.peers.diffusers_vae SPEC.json      # started by the bench, see tools/bench/worker.py
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from tools.bench.peers.torch_side import TorchSide, configure
from tools.bench.worker import read_arrays, serve


def empty_model(config: dict[str, Any]) -> Any:
    """Without memory behind its weights: they are drawn elsewhere."""
    with torch.device("meta"):
        return AutoencoderKLWan(**config)


class DiffusersVAE(TorchSide):
    """A `worker.Side`: a step encodes or decodes the clip once, latents normalised as on our side."""

    def __init__(self, spec: dict[str, Any]):
        case = spec["case"]
        self.encode, self.output, self.done = case["direction"] == "encode", spec["output"], 0
        super().__init__(torch.device(spec["device"]), getattr(torch, case["dtype"]))
        self.checked_steps = spec["checked_steps"]
        configure(case["dtype"])
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


if __name__ == "__main__":
    serve(DiffusersVAE)
