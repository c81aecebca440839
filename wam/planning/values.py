"""`policy.value(observation, actions=...)`: how good would that be?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from wam.batch import Batch
from wam.diffusion import losses
from wam.inference import observed
from wam.models.joint_dit import JointDiT
from wam.planning.planner import Observation, check_value, lined_up
from wam.planning.scores import Rows
from wam.session import Memory, together
from wam.tokenizers.video import VideoTokenizer


def value(policy: Any, observation: Observation, memory: Memory | None = None, *, actions: np.ndarray | None = None,
          video: Mapping[str, np.ndarray] | None = None) -> float:  # fmt: skip
    """Discounted success in [0, 1], gamma ^ (seconds to success) as in `data.value`: Q(s, a), or V(s').

    Args:
      policy: of which this is a method.
      observation: as in `infer`.
      memory: of the session, as in `infer`.
      actions: [K, raw action dim], for the value of doing them.
      video: camera -> uint8 [n, h, w, 3], frames after the observation, for the value of what they show.

    Raises ValueError naming what is wrong; exactly one of `actions` and `video` is given.
    """
    check_value(policy)
    if (actions is None) == (video is None):
        raise ValueError("value: expected either `actions` or `video`")
    batch, _, rings = lined_up(policy, [observation], [memory], 1)
    robot, config = observation["embodiment"], policy.engine.config
    if actions is not None:
        row = {"action": batch["action"][0].copy()}
        encoded = policy.observations.actions(actions, robot, exactly=config.action_horizon)
        policy.observations.fill(row, encoded, observation)
        batch["action"] = row["action"][None]
    else:
        batch["future"] = policy.observations.pictures(video, robot, config.video_frames - 1, "video")[None]

    def run(model: JointDiT, tokenizer: VideoTokenizer, batch: Batch, rings: Any) -> Array:
        context, _ = observed(model, tokenizer, batch, together(rings) if policy.sessions else None)
        rows = Rows(model, context, batch)
        if "future" not in batch:
            return rows.value(action=batch["action"])
        return rows.value(video=future_of(tokenizer, batch, batch["future"], model))

    return float(policy.engine.jit(("value", video is not None), run)(batch, rings)[0])


def future_of(tokenizer: VideoTokenizer, batch: Batch, frames: Array, model: JointDiT) -> Array:
    """Latents [B, M, f, v, P, C] of frames uint8 [B, V, n, h, w, 3] that come after the observation."""
    clip = jnp.concatenate([batch["video"][:, :, -1:], frames], axis=2)
    return losses.future_latents(tokenizer.encode(clip, batch["camera"]), model.config)
