"""A side of a comparison that computes nothing, for the tests of `tools.bench.worker`: no jax, no PyTorch."""

from __future__ import annotations

from tools.bench.worker import serve


class FakeSide:
    note = "nothing happens here"

    def __init__(self, spec):
        if spec.get("lacks"):
            __import__(spec["lacks"])
        print("a library says hello on standard output")
        self.done = 0

    def step(self):
        self.done += 1
        return {"loss": float(self.done)}

    def steps(self, count):
        self.done += count

    def matmul(self, size):
        return float(size)

    def peak_bytes(self):
        return None


if __name__ == "__main__":
    serve(FakeSide)
