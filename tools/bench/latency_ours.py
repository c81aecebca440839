"""Our side of `tools.bench.latency`: one compiled call from the observation on the host to the answer on the host.

python -m tools.bench.latency_ours SPEC.json      # started by the bench, see tools/bench/latency_side.py
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from tools.bench import latency_cases as cases
from tools.bench.latency_cases import Program
from tools.bench.latency_exchange import noise, observation, tokenizer
from tools.bench.latency_side import Result, serve
from tools.bench.ours import nest
from tools.bench.worker import Answer, converse, read_arrays
from wam.batch import Batch
from wam.config import ModelConfig, TokenizerConfig, build, to_dict
from wam.diffusion import flow, losses
from wam.models.dynamics_paths import Constant
from wam.models.joint_dit import JointDiT, create
from wam.models.layers import EmbodimentBank, Linear
from wam.models.streams import Context, Noisy, Observation, observe
from wam.tokenizers.patch_pca import PatchPCA
from wam.training.state import Apply

Streams = dict[str, Array]
"""`video` and `action`, noisy or given, as far as they are present."""


def cast(model: JointDiT) -> None:
    """Weights that every call would round to the compute dtype, rounded once: half the bytes of every step."""
    for _, module in nnx.iter_graph(model):
        if isinstance(module, (Linear, EmbodimentBank)) and module.dtype != jnp.float32:
            for variable in (module.kernel, module.bias):
                if variable is not None:
                    variable[...] = variable[...].astype(module.dtype)


class Network:
    """The answers of a network as pure functions of (parameters, tokenizer, batch, noise)."""

    def __init__(self, config: ModelConfig, apply: Apply):
        self.config, self.apply = config, apply
        scanned = dataclasses.replace(config, scan_layers=True)
        self.scanned = Apply(nnx.split(nnx.eval_shape(lambda: create(scanned)), nnx.Param, Constant)[0],
                             apply.constants)  # fmt: skip

    def answer(self, program: Program, params: Any, tokens: PatchPCA, batch: Batch, noise: Batch) -> dict[str, Array]:
        model = (self.scanned if program.form == cases.SCANNED else self.apply).model(params)
        latents = tokens.encode(batch["video"], batch["camera"])
        seen = self.observation(batch, latents)
        context = model.context(seen)
        start = {"action": batch["action"] if program.mode == "forward" else noise["action"]}
        if program.with_video:
            start["video"] = noise["video"]
        sigma = jnp.linspace(1.0, 0.0, program.steps + 1)

        def step(i: Any, x: Streams) -> Streams:
            now = context
            if program.form == cases.RECOMPUTED:
                now = model.context(jax.lax.optimization_barrier((seen, x))[0])
            return self.step(model, program, now, batch, x, sigma[i], sigma[i + 1])

        if program.form == cases.UNROLLED:
            x = start
            for i in range(program.steps):
                x = step(i, x)
        else:
            x = jax.lax.fori_loop(0, program.steps, step, start)
        out = {} if program.mode == "forward" else {"actions": x["action"][0, 0]}
        if program.with_video:
            out["pixels"] = self.pixels(tokens, x["video"], batch, latents)[0]
        return out

    def observation(self, batch: Batch, latents: Array) -> Observation:
        return observe(batch, latents, self.config.chunks, self.config.frames_per_chunk)

    def step(self, model: JointDiT, program: Program, context: Context, batch: Batch, x: Streams, sigma: Array,
             then: Array) -> Streams:  # fmt: skip
        """One Euler step; given actions have sigma 0."""
        cfg, given = self.config, program.mode == "forward"
        sees_video, sees_action = program.sees
        noisy = Noisy(
            video=x.get("video"),
            sigma_video=jnp.full((1, cfg.chunks, cfg.frames_per_chunk), sigma),
            frame_mask=losses.frame_masks(batch, cfg),
            action=x["action"],
            action_mask=batch["action_mask"],
            sigma_action=jnp.full((1, cfg.chunks), 0.0 if given else sigma),
            action_sees_video=jnp.full((1,), float(sees_video)),
            video_sees_action=jnp.full((1,), float(sees_action)),
        )
        out = model.denoise(context, noisy)
        new = {} if given else {"action": flow.step(x["action"], out.action, sigma, then, "velocity")}
        if out.video is not None:
            new["video"] = flow.step(x["video"], out.video, sigma, then, cfg.video_prediction)
        return x | new

    def pixels(self, tokens: PatchPCA, video: Array, batch: Batch, observed: Array) -> Array:
        """[1, M, f, v, P, C] -> uint8 [1, v, T - 1, h, w, 3]."""
        cfg, targets = self.config, np.array(self.config.target_views)
        latents = jnp.moveaxis(video, 3, 1).reshape(1, len(targets), -1, cfg.patches, cfg.latent_channels)
        frames = tokens.decode(latents, batch["camera"][:, targets], history=observed[:, targets])
        return jnp.round(frames * 255).astype(jnp.uint8)


class OurLatency:
    """A `latency_side.Side`."""

    def __init__(self, spec: dict[str, Any]):
        self.spec, self.note = spec, ""
        config = build(ModelConfig, spec["model"])
        jax.config.update("jax_default_matmul_precision", "highest" if config.dtype == "float32" else "tensorfloat32")
        arrays = read_arrays(spec)
        graph, *_ = nnx.split(nnx.eval_shape(lambda: create(config)), nnx.Param, Constant)
        apply = Apply(graph, nest(arrays["constants"]))
        self.saved = arrays
        model = apply.model(jax.device_put(nest(arrays["params"])))
        cast(model)
        self.params = nnx.to_pure_dict(nnx.split(model, nnx.Param, Constant)[1])
        self.network = Network(config, apply)
        self.tokens = jax.device_put(patch_pca(config, spec["patch"], arrays["tokenizer"]))
        self.batch, self.noise = arrays["batch"], arrays["noise"]

    def call(self, name: str) -> Callable[[], Any]:
        if name.startswith("Policy.infer"):
            return self.policy(Program.named(name.removeprefix("Policy.infer, ")))
        return self.stages()[name]() if name in cases.STAGES else self.program(Program.named(name))

    def program(self, program: Program) -> Callable[[], Result]:
        run = jax.jit(lambda *arrays: self.network.answer(program, *arrays))
        if self.network.config.attention == "cudnn" and not self.note:
            text = run.lower(self.params, self.tokens, self.batch, self.noise).compile().as_text() or ""
            if not (calls := text.count("__cudnn$fmha")):
                raise RuntimeError("cuDNN attention was asked for and is not in our compiled answer")
            self.note = f"{calls} cuDNN attention calls in our compiled answer of {program.name}"
        return lambda: jax.device_get(run(self.params, self.tokens, self.batch, self.noise))

    def stages(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        """What makes the call of each stage: it compiles what comes before, which is not timed."""
        net, batch, noise = self.network, jax.device_put(self.batch), jax.device_put(self.noise)
        model, tokens = net.apply.model, self.tokens

        def ready(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
            run = jax.jit(function)
            return lambda: jax.block_until_ready(run(*arguments))

        def latents() -> Array:
            return ready(lambda t, b: t.encode(b["video"], b["camera"]), tokens, batch)()

        def context(p: Any, b: Batch, x: Array) -> Context:
            return model(p).context(net.observation(b, x))

        def step(program: Program) -> Callable[[], Any]:
            x = {n: a for n, a in noise.items() if n == "action" or program.with_video}
            now, then = jnp.float32(1.0), jnp.float32(0.5)
            return ready(lambda p, c, b, *rest: net.step(model(p), program, c, b, *rest), self.params,
                         ready(context, self.params, batch, latents())(), batch, x, now, then)  # fmt: skip

        def to_host() -> Callable[[], Any]:
            made = jax.jit(jnp.copy)  # an array that was fetched before would come from its copy on the host
            action = noise["action"]
            return lambda: np.asarray(made(action))

        return {
            "host to device": lambda: lambda: jax.block_until_ready(jax.device_put((self.batch, self.noise["action"]))),
            "tokenise": lambda: ready(lambda t, b: t.encode(b["video"], b["camera"]), tokens, batch),
            "context": lambda: ready(context, self.params, batch, latents()),
            "policy step": lambda: step(Program("policy", 1)),
            "joint step": lambda: step(Program("joint", 1)),
            "detokenise": lambda: ready(net.pixels, tokens, noise["video"], batch, latents()),
            "device to host": to_host,
        }

    def policy(self, program: Program) -> Callable[[], Any]:
        """`Policy.infer`: an observation as a robot has it in, a chunk in the robot's units out, two-view pixels."""
        from wam.checkpoint import Inference
        from wam.config import TextConfig
        from wam.diffusion import sampler
        from wam.embodiment import EmbodimentSpec
        from wam.policy import Policy

        config = self.network.config
        names = tuple(f"dim {i}" for i in range(config.state_dim))
        robot = EmbodimentSpec("robot", ("delta",) * config.action_dim, names, names[: config.action_dim], 80.0)
        bounds = {"low": [-1.0] * config.state_dim, "high": [1.0] * config.state_dim}
        views = [f"camera {i}" for i in range(config.views)]
        entry = {"spec": robot.to_json(), "state": bounds, "action": bounds, "views": views, "action_hz": 80.0,
                 "frame_seconds": [0.1 * i for i in range(config.video_frames)]}  # fmt: skip
        about, arrays = self.tokens.to_state()
        assets = {"model": to_dict(config), "tokenizer": about,
                  "cameras": [f"camera {i}" for i in range(config.cameras)],
                  "text": to_dict(TextConfig(tokens=self.spec["text_tokens"], dim=config.text_dim)),
                  "embodiments": [{"spec": EmbodimentSpec("none", (), (), (), 1.0).to_json()}, entry]}  # fmt: skip
        policy = Policy(Inference(0, self.params, self.network.apply.constants, arrays, assets))
        observation = policy.example_observation() | {"instruction": "open the faucet"}
        observation["images"] = dict(zip(views, self.batch["video"][0, :, 0], strict=True))
        standard = sampler.program(program.mode, program.steps)
        return lambda: policy.infer(observation, mode=program.mode, program=standard)


def patch_pca(config: ModelConfig, patch: int, arrays: dict[str, np.ndarray]) -> PatchPCA:
    about = TokenizerConfig(patch=patch, frames_per_latent=config.frames_per_latent, channels=config.latent_channels)
    return PatchPCA(about, config.grid, {n: a for n, a in arrays.items() if n != "gain"}, arrays["gain"])


def by_shape(spec: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
    """Compiles the answers of a case without its weights: does it fit, and how long does compiling take?"""
    config = build(ModelConfig, spec["model"])

    def split() -> tuple[Any, Any]:
        model = create(config)
        cast(model)
        return tuple(map(nnx.to_pure_dict, nnx.split(model, nnx.Param, Constant)[1:]))  # type: ignore[return-value]

    params, constants = jax.eval_shape(split)
    graph, *_ = nnx.split(nnx.eval_shape(lambda: create(config)), nnx.Param, Constant)
    arrays = (params, patch_pca(config, spec["patch"], tokenizer(config, spec["patch"], 0)), observation(config, spec),
              noise(config, 0))  # fmt: skip

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        program = Program.named(request["call"])
        # The constants are few and of any value here.
        fixed = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), constants)
        network = Network(config, Apply(graph, fixed))
        start = time.perf_counter()
        compiled = jax.jit(lambda *a: network.answer(program, *a)).lower(*arrays).compile()
        memory = compiled.memory_analysis()
        sizes = {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes} if memory else {}
        return {"first": time.perf_counter() - start, **sizes}

    return {"note": "", "parameters": sum(x.size for x in jax.tree.leaves(params))}, answer


def main() -> None:
    import json
    import sys
    from pathlib import Path

    if json.loads(Path(sys.argv[1]).read_text()).get("by_shape"):
        converse(by_shape)
    else:
        serve(OurLatency)


if __name__ == "__main__":
    main()
