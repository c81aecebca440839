"""A side of the latency bench that computes nothing: no jax, no PyTorch."""

from __future__ import annotations

import time

import numpy as np

from tools.bench.latency_side import serve


class FakeLatency:
    def __init__(self, spec):
        self.note = ""

    def call(self, name):
        if name == "nothing":
            raise KeyError(name)
        self.note = "compiled"

        def run():
            time.sleep(0.001)
            return {"actions": np.ones((2, 3))}

        return run


if __name__ == "__main__":
    serve(FakeLatency)
