"""The PyTorch side of `tools.bench.latency`: eager, compiled, or compiled and captured in a CUDA graph.

    python -m tools.bench.peers.torch_latency SPEC.json      # started by the bench, see tools/bench/latency_side.py

A CUDA graph holds the whole answer, from the pixels to the last step: capturing each compiled part alone (the compile
mode "reduce-overhead") leaves the launches between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tools.bench import latency_cases as cases
from tools.bench.latency_cases import Program
from tools.bench.latency_side import Result, seconds_of, serve
from tools.bench.peers.torch_inference import Answers, Tokenizer
from tools.bench.peers.torch_joint import Tensors
from tools.bench.peers.torch_layers import load
from tools.bench.peers.torch_side import configure
from tools.bench.worker import read_arrays
from wam.config import ModelConfig, build

COMPILED, CAPTURED = "default", "cuda graph"
"""Ways of compiling beside none."""


class TorchLatency:
    """A `latency_side.Side`."""

    def __init__(self, spec: dict[str, Any]):
        torch.manual_seed(0)
        self.config, self.device, self.compile = build(ModelConfig, spec["model"]), spec["device"], spec["compile"]
        configure(self.config.dtype)
        arrays = read_arrays(spec)
        self.model = Answers(self.config)
        load(self.model, arrays["params"])
        for name, value in arrays["constants"].items():
            buffer = self.model.get_buffer(name.replace("embodiments/", "forward_path/").replace("/", "."))
            buffer.copy_(torch.from_numpy(value))
        self.model.to(self.device).eval().requires_grad_(False)
        self.model.cast()
        tensors = {name: torch.from_numpy(array) for name, array in arrays["tokenizer"].items()}
        self.tokens = Tokenizer(tensors, self.config.grid, spec["patch"]).to(self.device)
        read = arrays["batch"] | {f"noise/{name}": array for name, array in arrays["noise"].items()}
        self.host = {name: torch.from_numpy(array.astype(np.int64) if array.dtype == np.int32 else array)
                     for name, array in read.items()}  # fmt: skip
        self.note = ""
        if self.device == "cpu":
            self._choose_threads(self._quietly(self.program(cases.MAIN)))  # compiled programs have theirs built in
        if self.compile:
            self.model.compile_parts(COMPILED)
            for name in ("encode", "decode"):
                setattr(self.tokens, name, torch.compile(getattr(self.tokens, name), dynamic=False))

    def call(self, name: str) -> Callable[[], Any]:
        run = self.stages()[name]() if name in cases.STAGES else self.program(Program.named(name))
        return self._quietly(run)

    def _quietly(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Without what only training needs."""

        def quietly() -> Any:
            with torch.inference_mode(), self._attention():
                return run()

        return quietly

    def _attention(self) -> Any:
        """PyTorch's own choice on Hopper is slower by up to two; other kernels only where cuDNN refuses a shape."""
        if self.device != "cuda" or self.config.dtype != "bfloat16":
            return torch.inference_mode()
        order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        return sdpa_kernel(order, set_priority=True)

    def _choose_threads(self, run: Callable[[], Any]) -> None:
        """One thread, where a call takes less time with it: where cores are shared, threads wait in turns."""
        threads, seconds = torch.get_num_threads(), {}
        for count in (threads, 1):
            torch.set_num_threads(count)
            seconds[count] = min(seconds_of(run, 3, 2.0))
        torch.set_num_threads(min(seconds, key=lambda count: seconds[count]))
        self.note = f"PyTorch uses {torch.get_num_threads()} of {threads} threads, which is faster"

    def _wait(self, result: Any) -> Any:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return result

    # ---------------------------------------------------------------- answers

    def answer(self, program: Program, batch: Tensors) -> Tensors:
        """Everything between the two copies."""
        latents = self.tokens.encode(batch["video"], batch["camera"])
        context = self.model.context(batch | {"latents": latents})
        video = batch["noise/video"][:, 0] if program.with_video else None
        action = (batch["action"] if program.mode == "forward" else batch["noise/action"])[:, 0]
        sigma = torch.linspace(1.0, 0.0, program.steps + 1, device=action.device)[:, None]
        for i in range(program.steps):
            video, action = self.model.denoise(program, context, batch, video, action, sigma[i], sigma[i + 1])
        out = {} if program.mode == "forward" else {"actions": action[0]}
        if video is not None:
            out["pixels"] = self._pixels(video, batch)[0]
        return out

    def _pixels(self, video: Tensor, batch: Tensors) -> Tensor:
        targets = list(self.config.target_views)
        return self.tokens.decode(video.transpose(1, 2), batch["camera"][:, targets])

    def program(self, program: Program) -> Callable[[], Result]:
        needed = {name: x for name, x in self.host.items() if name != "noise/video" or program.with_video}
        if self.compile == CAPTURED:
            return self._captured(program, needed)

        def run() -> Result:
            batch = {name: x.to(self.device) for name, x in needed.items()}
            return {name: x.cpu().numpy() for name, x in self.answer(program, batch).items()}

        return run

    def _captured(self, program: Program, host: Tensors) -> Callable[[], Result]:
        pinned = {name: x.pin_memory() for name, x in host.items()}
        batch = {name: x.to(self.device) for name, x in pinned.items()}
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.inference_mode(), self._attention():
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.answer(program, batch)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                out = self.answer(program, batch)

        def run() -> Result:
            for name, x in pinned.items():
                batch[name].copy_(x, non_blocking=True)
            graph.replay()
            return {name: x.cpu().numpy() for name, x in out.items()}

        return run

    # ----------------------------------------------------------------- stages

    def stages(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        """What makes the call of each stage: it computes what comes before, which is not timed."""
        batch = {name: x.to(self.device) for name, x in self.host.items()}

        def latents() -> Tensor:
            return self.tokens.encode(batch["video"], batch["camera"])

        @torch.inference_mode()
        def ready() -> Tensors:
            return batch | {"latents": latents()}

        def step(program: Program) -> Callable[[], Any]:
            with torch.inference_mode(), self._attention():
                context = self.model.context(ready())
            video = batch["noise/video"][:, 0] if program.with_video else None
            action = batch["noise/action"][:, 0]
            now, then = torch.ones(1, device=self.device), torch.full((1,), 0.5, device=self.device)
            return lambda: self._wait(self.model.denoise(program, context, batch, video, action, now, then))

        def context() -> Callable[[], Any]:
            seen = ready()
            return lambda: self._wait(self.model.context(seen))

        def to_device() -> Callable[[], Any]:
            needed = {name: x for name, x in self.host.items() if name != "noise/video"}
            return lambda: self._wait({name: x.to(self.device) for name, x in needed.items()})

        return {
            "host to device": to_device,
            "tokenise": lambda: lambda: self._wait(latents()),
            "context": context,
            "policy step": lambda: step(Program("policy", 1)),
            "joint step": lambda: step(Program("joint", 1)),
            "detokenise": lambda: lambda: self._wait(self._pixels(batch["noise/video"][:, 0], batch)),
            "device to host": lambda: lambda: batch["noise/action"].cpu().numpy(),
        }


if __name__ == "__main__":
    serve(TorchLatency)
