"""What every side in PyTorch does alike: settings, threads, waiting for the device, the ceiling, the peak."""

from __future__ import annotations

import time

import torch

from tools.bench.harness import cores, matmul_rate


class TorchSide:
    """A `worker.Side` but for `step`; a subclass takes its steps in `_step`.

    Args:
      device: cpu or cuda.
      dtype: in which most is computed, and the ceiling measured.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype, self.note = device, dtype, ""

    def _step(self) -> object:
        raise NotImplementedError

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

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

        def multiply() -> None:
            a @ a
            self._wait()

        self._wait()
        return matmul_rate(size, multiply)

    def peak_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None


def configure(dtype: str) -> None:
    """Threads and matmul precision, as on our side."""
    torch.set_num_threads(cores())
    torch.set_float32_matmul_precision("highest" if dtype == "float32" else "high")
