"""Does the model obey the actions? Forward and inverse dynamics on held-out windows.

Every sample is one sampler step, the conditional mean. Errors are pooled over windows per horizon step, then turned
into dB and averaged over the steps. `moving` pixels are those whose largest channel differs by more than 0.1 between
the observed and the target frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wam.batch import Batch
from wam.diffusion import sampler
from wam.observations import Embodiment
from wam.policy import Policy

MOVED = 0.1
CASES = ("true", "shuffled", "zero", "copy_last", "ceiling")


def same_task_shuffle(tasks: Sequence[str], seed: int = 0) -> np.ndarray:
    """Index of another window of the same task for each window (itself only if the task has a single one)."""
    rng, out = np.random.default_rng(seed), np.arange(len(tasks))
    names = np.asarray(tasks)
    for task in dict.fromkeys(tasks):
        members = rng.permutation(np.flatnonzero(names == task))
        out[members] = np.roll(members, 1)
    return out


def ssim(a: Array, b: Array) -> Array:
    """Structural similarity (Wang et al. 2004) of images [..., h, w, 3] in [0, 1]: 11x11 Gaussian, sd 1.5 -> [...]."""
    x = np.arange(11) - 5
    kernel = np.exp(-(x**2) / (2 * 1.5**2)) / np.exp(-(x**2) / (2 * 1.5**2)).sum()

    def band(size: int) -> Array:
        """[size - 10, size]: valid convolution with the kernel as a matrix."""
        return jnp.asarray(sum(np.eye(size - 10, size, k=i) * kernel[i] for i in range(11)), jnp.float32)

    rows, columns = band(a.shape[-3]), band(a.shape[-2])

    def blur(image: Array) -> Array:
        return jnp.einsum("yh,...hwc,xw->...yxc", rows, image, columns)

    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    value = ((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return value.mean((-3, -2, -1))


def _db(mse: np.ndarray) -> np.ndarray:
    return -10 * np.log10(np.maximum(mse, 1e-10))


def generate_all(policy: Policy, batch: Batch, program: sampler.Program, size: int, pixels: bool,
                 seed: int = 0) -> np.ndarray:  # fmt: skip
    """Generates for all rows in static batches; noise keyed by the sample ids and `seed`. Returns pixels or actions."""
    count = len(batch["source"])
    parts = []
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        part = {name: array[rows] for name, array in batch.items()}
        ids = np.concatenate([part["sample_id"], np.full((size, 1), seed, np.uint32)], 1)
        out = policy.generate(part, ids, program)
        value = policy.pixels(out, part) if pixels else out.action
        parts.append(np.asarray(value)[: count - start])
    return np.concatenate(parts)


def _still(robot: Embodiment) -> np.ndarray:
    """[A], normalised: the action that moves nothing; of absolute targets, which always move, the middle one."""
    spec, still = robot.spec, np.zeros(robot.spec.model_action_dim, np.float32)
    for rotation in spec.action_rotations:
        for k in (0, 4):  # the identity's ones
            if (dim := f"{rotation.name}_rot6d_{k}") in spec.model_action_names:
                still[spec.model_action_names.index(dim)] = 1
    is_target = np.array([kind == "absolute" for kind in spec.model_action_kinds], np.bool_)
    return np.where(is_target, 0, robot.normalizers[1].normalize(still))


def forward_dynamics(policy: Policy, batch: Batch, tasks: Sequence[str], size: int = 32) -> dict[str, Any]:
    """PSNR, SSIM and moving-pixel PSNR of the predicted frames with true, shuffled and zero actions.

    `batch` holds windows whose frames are all real. Errors are pooled over the predicted views. The result has the
    metrics and, under `frames`, the images {case: uint8 [n, v, T, h, w, 3]} including the real ones.
    """
    cfg = policy.config
    program = sampler.program("forward", 1)
    other = same_task_shuffle(tasks)
    zero = np.zeros_like(batch["action"])
    for row, index in enumerate(batch["embodiment"]):
        robot = policy.observations.table[int(index)]
        if robot.action is not None:
            zero[row, ..., : robot.spec.model_action_dim] = _still(robot)
    actions = {"true": batch["action"], "shuffled": batch["action"][other], "zero": zero * batch["action_mask"]}
    real = batch["video"][:, np.array(cfg.target_views)]
    first = real[:, :, :1]
    frames = {"real": real}
    for case, action in actions.items():
        predicted = generate_all(policy, {**batch, "action": action}, program, size, pixels=True)
        frames[case] = np.concatenate([first, predicted], axis=2)
    frames["copy_last"] = np.repeat(first, real.shape[2], axis=2)
    # The tokenizer's ceiling: video given, so that sampling returns the real latents.
    given = generate_all(policy, batch, sampler.program("inverse", 1), size, pixels=True)
    frames["ceiling"] = np.concatenate([first, given], axis=2)

    target = real[:, :, 1:].astype(np.float32) / 255
    moved = np.abs(target - first.astype(np.float32) / 255).max(-1) > MOVED
    similarity = jax.jit(ssim)
    per_frame: dict[str, dict[str, list[float]]] = {"psnr": {}, "ssim": {}, "moving": {}}
    moving_error = {}
    for case in CASES:
        guess = frames[case][:, :, 1:].astype(np.float32) / 255
        error = ((guess - target) ** 2).mean(-1)  # [n, v, T', h, w]
        pooled = (0, 1, 3, 4)
        per_frame["psnr"][case] = _db(error.mean(pooled)).tolist()
        per_frame["moving"][case] = _db((error * moved).sum(pooled) / np.maximum(1, moved.sum(pooled))).tolist()
        per_frame["ssim"][case] = np.asarray(similarity(guess, target)).mean((0, 1)).tolist()
        moving_error[case] = (error * moved).sum((1, 2, 3, 4))
    some = moved.any((1, 2, 3, 4))
    wins = (moving_error["true"] < moving_error["shuffled"])[some]
    means = {metric: {case: float(np.mean(v)) for case, v in cases.items()} for metric, cases in per_frame.items()}
    robot = policy.observations.table[int(batch["embodiment"].max())]
    return {
        **means,
        "per_frame": per_frame,
        "seconds": policy.frame_seconds(robot.spec.name)[1:].tolist(),
        "win_rate": float(wins.mean()),
        "windows": len(real),
        "moving_share": float(moved.mean()),
        "frames": frames,
    }


def explained(target: np.ndarray, guess: np.ndarray, mask: np.ndarray, dims: Sequence[int]) -> float:
    """R^2 over the masked steps of actions [n, M, K, A], all of `dims` together, against their mean action."""
    t, g, m = target[..., dims], guess[..., dims], mask[..., dims]
    mean = (t * m).sum((0, 1, 2)) / np.maximum(1, m.sum((0, 1, 2)))
    return float(1 - (((t - g) ** 2) * m).sum() / max(1e-9, (((t - mean) ** 2) * m).sum()))


def inverse_dynamics(policy: Policy, batch: Batch, tasks: Sequence[str], size: int = 32) -> dict[str, Any]:
    """R^2 of the actions inferred from the right video, from another window's video, and of the blind policy.

    Against the mean action of the same windows, over real steps: dimensions that add up (translation) together, and
    the gripper apart. Under `actions`: {inverse, policy}, normalised [n, K, A].
    """
    other = same_task_shuffle(tasks)
    swapped = np.concatenate([batch["video"][:, :, :1], batch["video"][other][:, :, 1:]], axis=2)
    program = sampler.program("inverse", 1)
    guesses = {
        "r2": generate_all(policy, batch, program, size, pixels=False),
        "r2_wrong_video": generate_all(policy, {**batch, "video": swapped}, program, size, pixels=False),
        "policy_r2": generate_all(policy, batch, sampler.program("policy", 1), size, pixels=False),
    }
    spec = policy.observations.table[int(batch["embodiment"].max())].spec
    moves = [i for i, kind in enumerate(spec.model_action_kinds) if kind != "gripper"]
    grips = [i for i, kind in enumerate(spec.model_action_kinds) if kind == "gripper"]
    target, mask = batch["action"], batch["action_mask"]
    out: dict[str, Any] = {name: explained(target, guess, mask, moves) for name, guess in guesses.items()}
    if grips and target[..., grips][mask[..., grips]].std() > 1e-3:  # a gripper that never moves explains nothing
        out["r2_gripper"] = explained(target, guesses["r2"], mask, grips)
    return {
        **out,
        "windows": len(target),
        "actions": {"inverse": guesses["r2"][:, 0], "policy": guesses["policy_r2"][:, 0]},
    }


def verdicts(forward: dict[str, Any], inverse: dict[str, Any]) -> list[str]:
    """What the numbers mean, in words; both are keyed by the kind of data (play, expert)."""
    out = []
    for kind, f in forward.items():
        gap = f["moving"]["true"] - f["moving"]["shuffled"]
        head = f"Forward dynamics on held-out {kind} data: true actions predict the moving pixels {gap:+.2f} dB "
        head += f"against shuffled ones (win rate {f['win_rate']:.2f}). "
        copies = [m for m in ("psnr", "moving") if f[m]["true"] <= f[m]["copy_last"]]
        if gap < 0.3 or f["win_rate"] < 0.6:
            head += "The model all but ignores the actions: on this data it is no world-action model."
        elif copies:
            head += f"The actions count, but copying the last frame is at least as good ({', '.join(copies)})."
        else:
            head += "The model obeys the actions and beats copying the last frame."
        out.append(head)
    for kind, i in inverse.items():
        text = f"Inverse dynamics on held-out {kind} data: R^2 {i['r2']:.2f} with the right video, "
        text += f"{i['r2_wrong_video']:.2f} with another window's. "
        text += "It reads the video." if i["r2"] - i["r2_wrong_video"] > 0.2 else "It all but ignores the video."
        out.append(text)
    return out
