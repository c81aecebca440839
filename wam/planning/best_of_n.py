"""Best of N: propose chunks, imagine what each leads to, keep the one that is judged best.

As in Cosmos Policy (arXiv:2601.16163), but all of it in one compiled call: N proposals on one context, K futures of
each, M values of each future. Two ways to judge:

- `value`: V(s') of every imagined future, and with `action_value` also Q(s, a) of the proposal.
- `agreement`: inverse dynamics read the actions off the imagined video; the closer to the proposal the better. It needs
  no reward and no rollouts.
"""

from __future__ import annotations

import dataclasses
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
from wam.planning.planner import Choice, candidate_keys, check_value
from wam.planning.scores import AGGREGATES, Rows
from wam.tokenizers.video import VideoTokenizer

SCORES = ("value", "agreement")


@dataclasses.dataclass(frozen=True)
class BestOfN:
    n: int = 8
    """Proposals N. The first is what the policy would do by the same program and key."""
    futures: int = 3
    """K imagined futures of each proposal."""
    score: str = "value"
    action_value: bool = False
    """With `value`: beside V(s') of every future also Q(s, a), so M is 2. The two-hot output gives an expectation at
    once, so there is nothing to average over further draws, as there is where values are denoised."""
    aggregate: str = "majority"
    """Over the K M scores of a proposal: `majority`, `mean` or `mean_minus_std`."""
    proposals: Program = dataclasses.field(default_factory=lambda: sampler.program("policy", 2))
    """By which they are sampled: of mode policy or joint."""
    dynamics: Program = dataclasses.field(default_factory=lambda: sampler.program("forward", 1))
    inverse: Program = dataclasses.field(default_factory=lambda: sampler.program("inverse", 1))

    def __post_init__(self):
        for name in ("n", "futures"):
            if getattr(self, name) < 1:
                raise ValueError(f"best_of_n.{name}: expected at least 1, got {getattr(self, name)}")
        if self.score not in SCORES:
            raise ValueError(f"best_of_n.score: unknown {self.score!r}; choose from {', '.join(SCORES)}")
        if self.aggregate not in AGGREGATES:
            raise ValueError(f"best_of_n.aggregate: unknown {self.aggregate!r}; choose from {', '.join(AGGREGATES)}")
        if self.proposals.mode not in ("policy", "joint"):
            raise ValueError(f"best_of_n.proposals: expected mode policy or joint, got {self.proposals.mode!r}")
        for name, mode in (("dynamics", "forward"), ("inverse", "inverse")):
            if getattr(self, name).mode != mode:
                raise ValueError(f"best_of_n.{name}: expected mode {mode}, got {getattr(self, name).mode!r}")

    def check(self, policy: Any) -> None:
        """ValueError if the checkpoint was not trained for what the planner asks of it."""
        policy.check_trained(self.proposals.name)
        policy.check_trained(self.dynamics.name)
        if self.score == "value":
            check_value(policy)
        else:
            policy.check_trained(self.inverse.name)

    def fields(self, *_: Any) -> Batch:
        """None: an observation is enough."""
        return {}

    def search(self, model: JointDiT, tokenizer: VideoTokenizer, batch: Batch, keys: Array, ring: Ring | None
               ) -> tuple[Choice, Context]:  # fmt: skip
        """See `planner.Planner`. Info: `scores` [B, N], `judged` [B, N, K M], `chosen` [B]."""
        B, N, K = keys.shape[0], self.n, self.futures
        context, _ = observed(model, tokenizer, batch, ring)
        proposers = Rows(model, repeat(context, N), repeat_rows(batch, N))
        of_candidate = candidate_keys(keys, N)
        action = proposers.act(self.proposals, of_candidate)
        dreamers = Rows(model, repeat(proposers.context, K), repeat_rows(proposers.batch, K))
        of_future = candidate_keys(_fresh(of_candidate, 0), K)
        tried = repeat_rows(action, K)
        video = dreamers.imagine(self.dynamics, of_future, tried)
        if self.score == "value":
            judged = dreamers.value(video=video)
        else:
            judged = dreamers.agreement(self.inverse, _fresh(of_future, 1), tried, video)
        judged = judged.reshape(B, N, K)
        if self.score == "value" and self.action_value:
            judged = jnp.concatenate([judged, proposers.value(action=action).reshape(B, N, 1)], axis=-1)
        scores = AGGREGATES[self.aggregate](judged)
        chosen = scores.argmax(-1)
        best = jnp.take_along_axis(action.reshape(B, N, *action.shape[1:]), chosen[:, None, None, None, None], 1)[:, 0]
        return Choice(best, {"scores": scores, "judged": judged, "chosen": chosen}), context


def _fresh(keys: Array, use: int) -> Array:
    """Keys [B] of another use, so that no two streams share their noise."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 1_000_003 + use))(keys)
