"""CEM over the model's own forward dynamics, with a goal image: find actions whose imagined end looks like the goal.

The energy is V-JEPA 2-AC's: the mean absolute difference (L1) of the last imagined latent frame to that of the goal,
over the cameras whose future the model denoises. One chunk is searched; forward dynamics imagine all of it in one call.

An image of the goal is what a user has to give, `observation["goal"]`. What stands in it besides the goal, such as the
arm, counts as well: goals are best taken from an episode of the same scene.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from wam.batch import Batch
from wam.diffusion import sampler
from wam.diffusion.sampler import Program
from wam.inference import observed, repeat, repeat_rows
from wam.models.history import Ring
from wam.models.joint_dit import JointDiT
from wam.models.streams import Context
from wam.planning.cem import CPU, CemSettings, cem
from wam.planning.planner import Choice, Observation
from wam.planning.scores import Rows
from wam.planning.values import future_of
from wam.tokenizers.video import VideoTokenizer

STARTS = ("policy", "zero")


@dataclasses.dataclass(frozen=True)
class ModelCEM:
    start: str = "policy"
    """Around what is searched: the policy's chunk, or zero (in normalised units, so the middle of each action's range):
    then planning is by forward dynamics alone."""
    settings: CemSettings = CPU
    """In normalised units."""
    hold: int = 4
    """Control steps that share one change: K / hold x A numbers are searched. It divides the chunk."""
    proposals: Program = dataclasses.field(default_factory=lambda: sampler.program("policy", 2))
    dynamics: Program = dataclasses.field(default_factory=lambda: sampler.program("forward", 1))

    def __post_init__(self):
        if self.start not in STARTS:
            raise ValueError(f"cem.start: unknown {self.start!r}; choose from {', '.join(STARTS)}")
        if self.dynamics.mode != "forward" or self.proposals.mode not in ("policy", "joint"):
            raise ValueError(
                f"cem: expected dynamics of mode forward and proposals of mode policy or joint, got "
                f"{self.dynamics.mode!r} and {self.proposals.mode!r}"
            )

    def check(self, policy: Any) -> None:
        """ValueError if the checkpoint was not trained for what the planner asks of it, or `hold` does not fit."""
        horizon = policy.engine.config.action_horizon
        if self.hold < 1 or horizon % self.hold:
            raise ValueError(f"cem.hold: expected a divisor of the chunk's {horizon} steps, got {self.hold}")
        policy.check_trained(self.dynamics.name)
        if self.start == "policy":
            policy.check_trained(self.proposals.name)

    def fields(self, policy: Any, observation: Observation) -> Batch:
        """uint8 [V, 1, h, w, 3]; ValueError for a goal that is missing or of another size."""
        if "goal" not in observation:
            raise ValueError("the observation lacks 'goal', images {camera: uint8 [h, w, 3]} of what is to be reached")
        return {"goal": policy.observations.pictures(observation["goal"], observation["embodiment"], 1,
                                                     "observation.goal")}  # fmt: skip

    def search(self, model: JointDiT, tokenizer: VideoTokenizer, batch: Batch, keys: Array, ring: Ring | None
               ) -> tuple[Choice, Context]:  # fmt: skip
        """See `planner.Planner`. Info: `energy` (of the elites) and `best`, [B, iterations]."""
        config, S = model.config, self.settings.samples
        context, _ = observed(model, tokenizer, batch, ring)
        batch = dict(batch)
        goal = self._goal(model, tokenizer, batch, batch.pop("goal"))  # [B, v, P, C]
        rows = Rows(model, context, batch)
        base = jnp.zeros_like(batch["action"])
        if self.start == "policy":
            base = rows.act(self.proposals, keys)
        seen = batch["view_mask"][:, jnp.array(config.target_views)]  # [B, v]

        many = Rows(model, repeat(context, S), repeat_rows(batch, S))
        # One noise for all samples of a search: they differ in their actions alone.
        noise, goals, weight = repeat_rows((keys, goal, seen / jnp.maximum(1, seen.sum(-1, keepdims=True))), S)
        low, high = (jnp.asarray(bound, jnp.float32) for bound in (self.settings.low, self.settings.high))

        def whole(change: Array) -> Array:
            """Changes [B, ..., M, K / hold, A] -> chunks."""
            around = base.reshape(base.shape[0], *(1,) * (change.ndim - base.ndim), *base.shape[1:])
            return jnp.clip(around + jnp.repeat(change, self.hold, axis=-2), low, high)

        def energy(change: Array) -> Array:
            tried = whole(change)
            video = many.imagine(self.dynamics, noise, tried.reshape(-1, *tried.shape[2:]))
            apart = jnp.abs(video[:, -1, -1] - goals).mean((-2, -1))  # [B S, v]
            return (apart * weight).sum(-1).reshape(tried.shape[:2])

        B, M, K, A = base.shape
        # What is searched is a change; the chunk it makes is clipped.
        changes = dataclasses.replace(self.settings, low=-math.inf, high=math.inf)
        of_search = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)
        found = cem(energy, jnp.zeros((B, M, K // self.hold, A)), of_search, changes)
        return Choice(whole(found.action), {"energy": found.energy, "best": found.best}), context

    def _goal(self, model: JointDiT, tokenizer: VideoTokenizer, batch: Batch, image: Array) -> Array:
        """[B, v, P, C]: the latent frame of a scene that has come to rest at the goal."""
        frames = jnp.repeat(image, model.config.video_frames - 1, axis=2)
        return future_of(tokenizer, batch, frames, model)[:, -1, -1]
