"""How good a chunk is, by the model's own judgement: values, and agreement of two of its modes; and their aggregation.

All of it reads clean streams in one call of the network, on the context that the chunk was made with.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from wam.batch import Batch
from wam.diffusion import losses, sampler, value
from wam.diffusion.sampler import Program, Sampled
from wam.inference import begin, line_up, predictor
from wam.models.joint_dit import JointDiT
from wam.models.streams import Context, Noisy


class Rows(NamedTuple):
    """What chunks are judged on: a context and the batch it was made of, a row for every chunk."""

    model: JointDiT
    context: Context
    batch: Batch

    def act(self, program: Program, keys: Array) -> Array:
        """Chunks [B, M, K, A] by a program of mode policy or joint."""
        action = self._run(program, keys).action
        assert action is not None  # as the mode says
        return action

    def imagine(self, program: Program, keys: Array, action: Array) -> Array:
        """Videos [B, M, f, v, P, C] of given chunks, by a program of mode forward."""
        video = self._run(program, keys, action=action).video
        assert video is not None
        return video

    def read_off(self, program: Program, keys: Array, video: Array) -> Array:
        """The chunks that lead to given videos, by a program of mode inverse."""
        action = self._run(program, keys, video=video).action
        assert action is not None
        return action

    def _run(self, program: Program, keys: Array, *, action: Array | None = None, video: Array | None = None
             ) -> Sampled:  # fmt: skip
        way, rows = line_up([program] * keys.shape[0])
        batch = self.batch if action is None else {**self.batch, "action": action}
        config = self.model.config
        first, held = begin(keys, config, way, rows, batch, video)
        return sampler.sample(
            predictor(self.model, self.context, batch, rows.schedule), first, rows.schedule, held,
            video_prediction=config.video_prediction, solver=way.solver, reuse=way.reuse,
        )  # fmt: skip

    def value(self, *, action: Array | None = None, video: Array | None = None) -> Array:
        """[B] in [0, 1]: V(s') of a clean future video, or Q(s, a) of clean actions; exactly one is given.

        It is of the first chunk of a row. The query reads what it is trained on, see `Mode.value_sees_video`.
        """
        if (action is None) == (video is None):
            raise ValueError("value: expected either `action` or `video`")
        frames, off = losses.frame_masks(self.batch, self.model.config), jnp.zeros(self.batch["action"].shape[0])
        noisy = Noisy(
            video=video, sigma_video=jnp.zeros(frames.shape), frame_mask=frames,
            action=action, action_mask=self.batch["action_mask"], sigma_action=jnp.zeros(frames.shape[:2]),
            action_sees_video=off, video_sees_action=off,
            value_sees_video=jnp.full_like(off, float(video is not None)),
        )  # fmt: skip
        logits = self.model.denoise(self.context, noisy).value
        assert logits is not None  # the query is present
        return value.expectation(logits)[:, 0]

    def agreement(self, program: Program, keys: Array, action: Array, video: Array) -> Array:
        """[B], at most 0: minus the mean squared distance of `action` to what inverse dynamics read off `video`.

        The mean is over active elements, in normalised units. Free of any reward: an imagined video from which other
        actions are read than it was imagined for is not to be trusted, nor is its chunk.
        """
        read = self.read_off(program, keys, video)
        mask = self.batch["action_mask"]
        axes = tuple(range(1, mask.ndim))
        squares = jnp.where(mask, (read - action) ** 2, 0.0).sum(axes)
        return -squares / jnp.maximum(1, mask.sum(axes))


def majority(scores: Array) -> Array:
    """[..., S] -> [...]: the mean of the bigger of two clusters, which the widest gap separates; of all if equally big.

    After the majority mean of Cosmos Policy (arXiv:2601.16163): one odd future out of several does not decide.
    """
    S = scores.shape[-1]
    if S < 3:
        return scores.mean(-1)
    ordered = jnp.sort(scores, -1)
    below = 1 + jnp.argmax(jnp.diff(ordered), -1)[..., None]  # members of the lower cluster
    lower = jnp.arange(S) < below
    chosen = jnp.where(2 * below == S, True, jnp.where(2 * below > S, lower, ~lower))
    return (ordered * chosen).sum(-1) / chosen.sum(-1)


def mean_minus_std(scores: Array, beta: float = 1.0) -> Array:
    """[..., S] -> [...]: pessimistic about chunks whose futures disagree."""
    return scores.mean(-1) - beta * scores.std(-1)


AGGREGATES = {"majority": majority, "mean": lambda scores: scores.mean(-1), "mean_minus_std": mean_minus_std}
