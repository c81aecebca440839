"""A policy that continues what a robot is executing: what stands behind the executor's requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from wam.batch import Batch
from wam.diffusion.sampler import Program
from wam.inference import Rows, line_up, sampled
from wam.models.joint_dit import JointDiT
from wam.policy import Policy
from wam.serving.background import Request
from wam.serving.executor import STRATEGIES, ExecutorConfig
from wam.tokenizers.video import VideoTokenizer


class Continuation:
    """Answers requests of executors by one policy: `infer` for one robot, `answer` for many at once."""

    def __init__(self, policy: Policy, strategy: str, program: Program | None = None):
        """`program`: by default the policy's; guidance corrects in every step, and about five make it strong.

        Raises ValueError for an unknown strategy, a program without actions, or a checkpoint that cannot do it.
        """
        if strategy not in STRATEGIES:
            raise ValueError(f"unknown strategy {strategy!r}; choose from {', '.join(STRATEGIES)}")
        self.policy, self.strategy = policy, strategy
        self.program = program or policy.program("policy")
        if self.program.action != "generated":
            raise ValueError(f"program {self.program.name!r} makes no actions to execute")
        if policy.sessions is not None:
            raise ValueError(
                "chunks of this checkpoint see earlier ones, at fixed times; an executor asks whenever it is due"
            )
        objective, k = policy.assets["config"]["objective"], policy.config.steps_per_token
        self.longest_prefix = k * objective.get("prefix_tokens", 0)
        if strategy == "frozen_prefix" and not self.longest_prefix:
            raise ValueError(
                "frozen_prefix: this checkpoint was trained without prefixes; set objective.prefix_tokens and train, "
                "or choose guided"
            )
        self._asked = 0

    def config(self, embodiment: str, **options: Any) -> ExecutorConfig:
        """The executor's configuration for a robot of the checkpoint; `options` are further fields."""
        cfg = self.policy.config
        return ExecutorConfig(
            control_hz=self.policy.embodiment(embodiment).action_hz, horizon=cfg.action_horizon, strategy=self.strategy,
            steps_per_token=cfg.steps_per_token,
            longest_prefix=self.longest_prefix if self.strategy == "frozen_prefix" else None, **options,
        )  # fmt: skip

    def infer(self, request: Request) -> np.ndarray:
        """f32 [K, raw dim] for one robot; every request has noise of its own."""
        self._asked += 1
        return self.answer([request], np.array([[0, 0, self._asked]], np.uint32))[0]

    def answer(self, requests: Sequence[Request], ids: np.ndarray, batch_size: int | None = None) -> list[np.ndarray]:
        """f32 [K, raw dim] for every request, padded to `batch_size`; `ids` [n, 3] as in `Policy.infer_many`."""
        if self.strategy == "guided":
            return self._guided(requests, ids, batch_size or len(requests))
        prefixes = None
        if self.strategy == "frozen_prefix":
            prefixes = [request.planned[: request.frozen] for request in requests]
        chunks, _ = self.policy.infer_many([request.observation for request in requests], ids, program=self.program,
                                           prefixes=prefixes, batch_size=batch_size)  # fmt: skip
        return [chunk.actions for chunk in chunks if chunk.actions is not None]

    def _guided(self, requests: Sequence[Request], ids: np.ndarray, size: int) -> list[np.ndarray]:
        policy = self.policy
        rows = [self._row(request) for request in requests]
        pad = [min(i, len(rows) - 1) for i in range(size)]
        batch = {name: np.stack([rows[i][name] for i in pad]) for name in rows[0]}
        way, programs = line_up([self.program] * size)

        def run(model: JointDiT, tokenizer: VideoTokenizer, batch: Batch, ids: Array, programs: Rows) -> Array | None:
            return sampled(model, tokenizer, way, batch, ids, programs)[0].action

        compiled = policy.engine.jit(("guided", way), run)
        actions = np.asarray(compiled(batch, jnp.asarray(ids[pad], jnp.uint32), programs))
        return [policy.raw_actions(a[0], r.observation) for a, r in zip(actions, requests, strict=False)]

    def _row(self, request: Request) -> Batch:
        """A row whose actions are the rest of the old chunk."""
        observations, observation = self.policy.observations, request.observation
        row = observations.row(observation)
        planned = observations.actions(request.planned, observation["embodiment"], "planned")
        observations.fill(row, planned, observation)
        return row | {"frozen": np.int32(request.frozen), "overlap": np.int32(len(planned))}
