"""Does the model's own video show the actions it proposes? Self-consistency of joint imagination, without any label.

The joint mode proposes actions and the video of what they will do. Inverse dynamics of that video, decoded to pixels
and encoded again as if a camera had filmed it, should give the same actions back; from the imagined video of another
window it should not. A gap between the two says that video and actions tell one story, not that the story is true:
`world_model` compares with what happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wam.batch import Batch
from wam.diffusion import sampler
from wam.evaluation.world_model import explained, generate_all, same_task_shuffle
from wam.policy import DEFAULT_STEPS, Policy


def self_consistency(policy: Policy, batch: Batch, tasks: Sequence[str], *, steps: int = DEFAULT_STEPS["joint"],
                     size: int = 32) -> dict[str, Any]:  # fmt: skip
    """R^2 of the proposed actions, inferred from the imagined video of the same window and of another one.

    Args:
        policy: trained for joint and inverse mode.
        batch: windows of pixels as in training; only their observations are used.
        tasks: of each window; the other window is of the same task.
        steps: sampler steps of joint mode.
        size: windows sampled at once; no influence on the result.

    Returns:
        `r2`, `r2_wrong_video` (both against the mean proposed action, grippers left out), `error` and
        `error_wrong_video` (root mean squares, normalised) and `windows`; under `actions` {proposed, inferred},
        normalised [n, K, A]; under `imagined` uint8 [n, v, T - 1, h, w, 3].

    Raises:
        ValueError: the batch holds latents, so that there are no pixels to show the imagined video as.
    """
    if "video" not in batch:
        raise ValueError("self-consistency shows imagined pixels to inverse dynamics: the batch holds latents alone")
    joint, inverse = sampler.program("joint", steps), sampler.program("inverse", 1)
    proposed = generate_all(policy, batch, joint, size, pixels=False)
    imagined = generate_all(policy, batch, joint, size, pixels=True)  # the same samples: noise is keyed by the window

    def inferred(frames: np.ndarray) -> np.ndarray:
        video = np.array(batch["video"])
        video[:, np.array(policy.config.target_views), 1:] = frames
        return generate_all(policy, {**batch, "video": video}, inverse, size, pixels=False)

    guesses = {"": inferred(imagined), "_wrong_video": inferred(imagined[same_task_shuffle(tasks)])}
    spec = policy.observations.table[int(batch["embodiment"].max())].spec
    moves = [i for i, kind in enumerate(spec.model_action_kinds) if kind != "gripper"]
    mask = np.broadcast_to(batch["action_mask"], proposed.shape)
    out: dict[str, Any] = {"windows": len(proposed)}
    for name, guess in guesses.items():
        out[f"r2{name}"] = explained(proposed, guess, mask, moves)
        squares = ((proposed - guess) ** 2 * mask)[..., moves]
        out[f"error{name}"] = float(np.sqrt(squares.sum() / max(1, mask[..., moves].sum())))
    return {**out, "actions": {"proposed": proposed[:, 0], "inferred": guesses[""][:, 0]}, "imagined": imagined}


def verdict(kind: str, found: dict[str, Any]) -> str:
    """What the numbers mean, in words."""
    head = f"Imagination on held-out {kind} data: the actions proposed are read back from the model's own video with "
    head += f"R^2 {found['r2']:.2f}, from another window's with {found['r2_wrong_video']:.2f}. "
    if found["r2"] - found["r2_wrong_video"] < 0.2:
        return head + "Video and actions are all but independent."
    return head + ("They tell one story." if found["r2"] > 0.5 else "They agree in part.")
