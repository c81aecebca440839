"""Our side of `tools.bench.tokenizer`: `WanTokenizer` on whole clips, input and weights already on the device.

python -m tools.bench.vae_ours SPEC.json      # started by the bench, see tools/bench/worker.py
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tools.bench.harness import matmul_rate
from tools.bench.vae_cases import Case
from tools.bench.worker import read_arrays, serve
from wam.pretrained.mapping import to_ours
from wam.pretrained.wan_vae import entries
from wam.tokenizers.wan_tokenizer import WanTokenizer


class OurVAE:
    """A `worker.Side`: a step encodes or decodes the clip once."""

    note = ""

    def __init__(self, spec: dict[str, Any]):
        self.case, self.output, self.done = Case(**spec["case"]), spec["output"], 0
        self.dtype = jnp.dtype(self.case.dtype)
        jax.config.update(
            "jax_default_matmul_precision", "highest" if self.case.dtype == "float32" else "tensorfloat32"
        )
        arrays = read_arrays(spec)
        params = to_ours(entries(self.case.config), arrays["params"])
        self.tokenizer = jax.device_put(WanTokenizer(self.case.config, (0, 0), params))  # the grid matters to tokens
        self.x = jax.device_put(arrays["batch"]["x"])
        encode = self.case.direction == "encode"
        self.run = jax.jit(
            lambda t, x: t.encode_pixels(x) if encode else jnp.clip(t.decode_cells(x), -1.0, 1.0)
        )  # fmt: skip

    def step(self) -> dict[str, float]:
        result = np.asarray(self.run(self.tokenizer, self.x))
        if not self.done:
            np.save(self.output, result)
        self.done += 1
        return {"rms": float(np.sqrt(np.mean(result**2)))}

    def steps(self, count: int) -> None:
        for _ in range(count):
            result = self.run(self.tokenizer, self.x)
        result.block_until_ready()

    def matmul(self, size: int) -> float:
        a = jnp.ones((size, size), self.dtype)
        product = jax.jit(jnp.matmul)
        return matmul_rate(size, lambda: product(a, a).block_until_ready())

    def peak_bytes(self) -> int | None:
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"] if jax.default_backend() == "gpu" else None


if __name__ == "__main__":
    serve(OurVAE)
