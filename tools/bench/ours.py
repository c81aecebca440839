"""Our side of `tools.bench.train`: `wam.training.trainer.Trainer`, one device, the batch already on it.

python -m tools.bench.ours SPEC.json      # started by the bench, see tools/bench/worker.py
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tools.bench.harness import matmul_rate
from tools.bench.worker import read_arrays, serve
from wam.config import MeshConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, build
from wam.models.joint_dit import JointDiT
from wam.training.sharding import make_mesh
from wam.training.trainer import Trainer

SOURCES = 3  # of `wam.batch.fake_batch`


def nest(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """{"blocks/video/q/kernel": array} -> nested dicts."""
    out: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, leaf = name.split("/")
        branch = out
        for part in path:
            branch = branch.setdefault(part, {})
        branch[leaf] = array
    return out


def write_constants(model: JointDiT, constants: dict[str, np.ndarray]) -> None:
    for name, array in constants.items():
        variable: Any = functools.reduce(getattr, name.split("/"), model)
        variable[...] = jnp.asarray(array)


class OurTrain:
    """A `worker.Side`."""

    def __init__(self, spec: dict[str, Any]):
        config = build(ModelConfig, spec["model"])
        self.dtype = jnp.dtype(config.dtype)
        # As on the PyTorch side: full float32 where losses are compared, TF32 for float32 parts of a bfloat16 network.
        jax.config.update("jax_default_matmul_precision", "highest" if config.dtype == "float32" else "tensorfloat32")
        arrays = read_arrays(spec)
        self.trainer = Trainer(
            config, build(ObjectiveConfig, spec["objective"]), build(OptimizerConfig, spec["optimizer"]), None,
            make_mesh(MeshConfig(), jax.devices()[:1]), batch_size=spec["batch_size"], sources=SOURCES,
            prepare=lambda model: write_constants(model, arrays["constants"]),
        )  # fmt: skip
        state = self.trainer.init(steps=spec["steps"], seed=spec["seed"])
        params = jax.device_put(nest(arrays["params"]), self.trainer.shardings.params)
        self.state = state._replace(params=params, ema=jax.tree.map(jnp.copy, params))
        self.batch = self.trainer.place(arrays["batch"])
        self.gpu = jax.default_backend() == "gpu"
        self.cudnn = self.gpu and config.attention == "cudnn"
        self.done, self.note = 0, ""

    def step(self) -> dict[str, float]:
        if self.done == 1 and self.cudnn:
            self.note = self._attention_note()  # not before the first step: that one is timed, compilation included
        self.done += 1
        self.state, metrics = self.trainer.step(self.state, self.batch)
        terms = {name: t["all"][0] / jnp.maximum(1.0, t["all"][1]) for name, t in metrics["terms"].items()}
        return {name: float(metrics[name]) for name in ("loss", "grad_norm")} | jax.tree.map(float, terms)

    def _attention_note(self) -> str:
        """How many attention calls are cuDNN's; RuntimeError when none is."""
        text = self.trainer.lower(self.batch).compile().as_text()
        calls = (text or "").count("__cudnn$fmha")
        if not calls:
            raise RuntimeError("cuDNN attention was asked for and is not in our compiled step")
        return f"{calls} cuDNN attention calls in our compiled step"

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.state, metrics = self.trainer.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def matmul(self, size: int) -> float:
        a = jnp.ones((size, size), self.dtype)
        product = jax.jit(jnp.matmul)
        return matmul_rate(size, lambda: product(a, a).block_until_ready())

    def peak_bytes(self) -> int | None:
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"] if self.gpu else None


if __name__ == "__main__":
    serve(OurTrain)
