"""Our side of `tools.bench.latency`: one compiled call from the observation on the host to the answer on the host.

python -m tools.bench.latency_ours SPEC.json      # started by the bench, see tools/bench/latency_side.py
"""

from __future__ import annotations

import dataclasses
import functools
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
from wam.diffusion import sampler
from wam.diffusion.sampler import Held, Sample, Sampled, sample
from wam.inference import Engine, Rows, line_up, observed, predictor, served
from wam.models.dynamics_paths import Constant
from wam.models.joint_dit import JointDiT, create
from wam.models.streams import Context, observe
from wam.tokenizers.patch_pca import PatchPCA
from wam.tokenizers.video import VideoTokenizer
from wam.training.state import Apply


def row(program: Program) -> sampler.Program:
    """The library's program of this name."""
    return sampler.program(program.mode, program.steps)


def answer(program: Program, model: JointDiT, tokenizer: VideoTokenizer, batch: Batch, noise: Batch, rows: Rows
           ) -> dict[str, Array]:  # fmt: skip
    """What `Policy.infer` computes, from given noise; as written in `wam/inference.py`, but for the other forms."""
    config, schedule = model.config, rows.schedule
    context, latents = observed(model, tokenizer, batch)
    seen = observe(batch, latents, config.chunks, config.frames_per_chunk)

    def predict(x: Sample, *sigmas: Array) -> Sample:
        now = context
        if program.form == cases.RECOMPUTED:  # the barrier lets nothing leave the loop
            now = model.context(jax.lax.optimization_barrier((seen, x))[0])
        return predictor(model, now, batch, schedule)(x, *sigmas)

    start = Sample(noise["video"] if program.with_video else None,
                   batch["action"] if program.mode == "forward" else noise["action"])  # fmt: skip
    if program.form == cases.UNROLLED:
        out = start
        for i in range(program.steps):
            one = schedule._replace(sigma_video=schedule.sigma_video[i : i + 2],
                                    sigma_action=schedule.sigma_action[i : i + 2])  # fmt: skip
            done = sample(predict, out, one, Held(), video_prediction=config.video_prediction)
            out = Sample(done.video, done.action)
    else:
        done = sample(predict, start, schedule, Held(), video_prediction=config.video_prediction)
        out = Sample(done.video, done.action)
    found = {} if program.mode == "forward" or out.action is None else {"actions": out.action[0, 0]}
    if out.video is not None:
        found["pixels"] = pixels(config, tokenizer, out.video, batch, latents)[0]
    return found


def pixels(config: ModelConfig, tokenizer: VideoTokenizer, video: Array, batch: Batch, observed: Array) -> Array:
    """[1, M, f, v, P, C] -> uint8 [1, v, T - 1, h, w, 3]."""
    targets = np.array(config.target_views)
    latents = jnp.moveaxis(video, 3, 1).reshape(1, len(targets), -1, config.patches, config.latent_channels)
    frames = tokenizer.decode(latents, batch["camera"][:, targets], history=observed[:, targets])
    return jnp.round(frames * 255).astype(jnp.uint8)


def engine_of(config: ModelConfig, arrays: dict[str, dict[str, np.ndarray]], tokenizer: VideoTokenizer) -> Engine:
    graph, *_ = nnx.split(nnx.eval_shape(lambda: create(config)), nnx.Param, Constant)
    params, constants = (jax.device_put(nest(arrays[name])) for name in ("params", "constants"))
    return Engine(Apply(graph, constants), params, tokenizer, config)


class OurLatency:
    """A `latency_side.Side`."""

    def __init__(self, spec: dict[str, Any]):
        self.spec, self.note = spec, ""
        config = self.config = build(ModelConfig, spec["model"])
        jax.config.update("jax_default_matmul_precision", "highest" if config.dtype == "float32" else "tensorfloat32")
        self.arrays = read_arrays(spec)
        self.tokens = jax.device_put(patch_pca(config, spec["patch"], self.arrays["tokenizer"]))
        self.engine = engine_of(config, self.arrays, self.tokens)
        self.batch, self.noise = self.arrays["batch"], self.arrays["noise"]

    def call(self, name: str) -> Callable[[], Any]:
        if name.startswith("Policy.infer"):
            return self.policy(Program.named(name.removeprefix("Policy.infer, ")))
        return self.stages()[name]() if name in cases.STAGES else self.program(Program.named(name))

    def program(self, program: Program) -> Callable[[], Result]:
        engine = self.engine
        if program.form == cases.SCANNED:
            engine = engine_of(dataclasses.replace(self.config, scan_layers=True), self.arrays, self.tokens)
        _, rows = line_up([row(program)])
        run = engine.jit(program, functools.partial(answer, program))
        if self.config.attention == "cudnn" and not self.note:
            self.note = self._attention_note(program, rows)
        return lambda: jax.device_get(run(self.batch, self.noise, rows))

    def _attention_note(self, program: Program, rows: Rows) -> str:
        """How many attention calls are cuDNN's; RuntimeError when none is."""
        arrays = (self.engine.params, self.tokens, self.batch, self.noise, rows)
        if not (calls := compiled(self.engine.apply, program, arrays).as_text().count("__cudnn$fmha")):
            raise RuntimeError("cuDNN attention was asked for and is not in our compiled answer")
        return f"{calls} cuDNN attention calls in our compiled answer of {program.name}"

    def stages(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        """What makes the call of each stage: it compiles what comes before, which is not timed."""
        batch, noise, config = jax.device_put(self.batch), jax.device_put(self.noise), self.config

        def ready(name: str, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
            run = self.engine.jit(name, function)
            return lambda: jax.block_until_ready(run(*arguments))

        def tokenise() -> Callable[[], Array]:
            return ready("tokenise", lambda _, t, b: t.encode(b["video"], b["camera"]), batch)

        def context() -> Callable[[], Context]:
            # Of latents, which are a batch's as well: then nothing is tokenised.
            seen = {n: x for n, x in batch.items() if n != "video"} | {"latents": tokenise()()}
            return ready("context", lambda m, t, b: observed(m, t, b)[0], seen)

        def step(mode: str) -> Callable[[], Sample]:
            program = Program(mode, 1)
            _, rows = line_up([row(program)])
            x = Sample(noise["video"] if program.with_video else None, noise["action"])

            def one(m: JointDiT, _: Any, c: Context, b: Batch, x: Sample, rows: Rows) -> Sampled:
                predict = predictor(m, c, b, rows.schedule)
                return sample(predict, x, rows.schedule, Held(), video_prediction=config.video_prediction)

            return ready(f"{mode} step", one, context()(), batch, x, rows)

        def to_host() -> Callable[[], Any]:
            made = jax.jit(jnp.copy)  # an array that was fetched before would come from its copy on the host
            action = noise["action"]
            return lambda: np.asarray(made(action))

        def detokenise() -> Callable[[], Array]:
            return ready("detokenise", lambda _, *rest: pixels(config, *rest), noise["video"], batch, tokenise()())

        return {
            "host to device": lambda: lambda: jax.block_until_ready(jax.device_put((self.batch, self.noise["action"]))),
            "tokenise": tokenise,
            "context": context,
            "policy step": lambda: step("policy"),
            "joint step": lambda: step("joint"),
            "detokenise": detokenise,
            "device to host": to_host,
        }

    def policy(self, program: Program) -> Callable[[], Any]:
        """`Policy.infer`: an observation as a robot has it in, a chunk in the robot's units out, two-view pixels."""
        from wam.checkpoint import Inference
        from wam.config import TextConfig
        from wam.embodiment import EmbodimentSpec
        from wam.policy import Policy

        config = self.config
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
                  "embodiments": [{"spec": EmbodimentSpec("none", (), (), (), 1.0).to_json()}, entry],
                  "config": {"objective": {"modes": {"joint": 1.0, "forward": 1.0}, "policy_draws": 1,
                                           "with_video": True}}}  # fmt: skip
        params, constants = (jax.device_put(nest(self.arrays[name])) for name in ("params", "constants"))
        policy = Policy(Inference(0, params, constants, arrays, assets))
        observation = policy.example_observation() | {"instruction": "open the faucet"}
        observation["images"] = dict(zip(views, self.batch["video"][0, :, 0], strict=True))
        standard = row(program)
        return lambda: policy.infer(observation, program=standard)


def patch_pca(config: ModelConfig, patch: int, arrays: dict[str, np.ndarray]) -> PatchPCA:
    about = TokenizerConfig(patch=patch, frames_per_latent=config.frames_per_latent, channels=config.latent_channels)
    return PatchPCA(about, config.grid, {n: a for n, a in arrays.items() if n != "gain"}, arrays["gain"])


def compiled(apply: Apply, program: Program, arrays: tuple[Any, ...]) -> Any:
    """The answer for arrays, or shapes, ahead of time."""
    return jax.jit(lambda p, *rest: answer(program, apply.model(p), *rest)).lower(*arrays).compile()


def by_shape(spec: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
    """Compiles the answers of a case without its weights: does it fit, and how long does compiling take?"""
    config = build(ModelConfig, spec["model"])
    model = nnx.eval_shape(lambda: served(create(config)))
    graph, *states = nnx.split(model, nnx.Param, Constant)
    params, constants = map(nnx.to_pure_dict, states)
    apply = Apply(graph, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), constants))
    tokens = patch_pca(config, spec["patch"], tokenizer(config, spec["patch"], 0))

    def say(request: dict[str, Any]) -> dict[str, Any]:
        program = Program.named(request["call"])
        arrays = (params, tokens, observation(config, spec), noise(config, 0), line_up([row(program)])[1])
        start = time.perf_counter()
        memory = compiled(apply, program, arrays).memory_analysis()
        sizes = {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes} if memory else {}
        return {"first": time.perf_counter() - start, **sizes}

    return {"note": "", "parameters": sum(x.size for x in jax.tree.leaves(params))}, say


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
