"""Open-loop error: how far are the actions that a policy would take from those that were taken, on held-out windows?

Three answers to every window are compared with what was done:

    policy   a chunk sampled by the checkpoint
    mean     the mean action of the source's training windows: what one knows without looking
    hold     to stay: no increments, targets where the joints are; the mean where a dimension has no such value

Errors are mean squares over real steps and dimensions in the model's normalised space, where every dimension counts
alike, and mean absolutes per dimension in the robot's own units. `skill` = 1 - error / error of the mean: 0 is no
better than not looking, 1 is exact. Its 95 % interval is a bootstrap over episodes. Where there is one episode, it is
one over stretches of a chunk's length: neighbours are alike, so it is too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wam.batch import Batch
from wam.diffusion.sampler import Program
from wam.evaluation.world_model import generate_all
from wam.observations import Embodiment
from wam.policy import Policy

CASES = ("policy", "mean", "hold")
RESAMPLES = 2000


def hold(robot: Embodiment, state: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The normalised action that stays where the robot is.

    Args:
        robot: of the checkpoint.
        state: raw [n, state_dim].
        mean: [A], normalised; taken for targets whose present value the state does not have.

    Returns:
        f32 [n, A]
    """
    spec, seen = robot.spec, robot.spec.encode_state(state)
    _, normalizer = robot.normalizers
    out = np.broadcast_to(normalizer.denormalize(mean), (len(state), len(mean))).astype(np.float32)
    # A gripper's state and action are in the same units only where both ranges are declared.
    same = {g.name for g in spec.state_grippers} & {g.name for g in spec.action_grippers}
    for dim, (name, kind) in enumerate(zip(spec.model_action_names, spec.model_action_kinds, strict=True)):
        if kind == "delta":
            out[:, dim] = 0
        elif kind == "relative":
            out[:, dim] = name.endswith(("_rot6d_0", "_rot6d_4"))  # the identity's ones
        elif name in spec.model_state_names and (kind == "absolute" or name in same):
            out[:, dim] = seen[:, spec.model_state_names.index(name)]
    return normalizer.normalize(out)


def open_loop(policy: Policy, batch: Batch, episodes: Sequence[str], starts: Sequence[float], mean: np.ndarray,
              program: Program, *, seed: int = 0, size: int = 32) -> dict[str, Any]:  # fmt: skip
    """Errors of the first chunk of every window; all windows are of one robot.

    Args:
        policy: the checkpoint.
        batch: n windows as in training.
        episodes: n names, of the episode each window is from.
        starts: n times in seconds, from the episode's beginning.
        mean: [A] of the model's action, not normalised.
        program: any that generates actions.
        seed: joins the sample ids as the key of the noise.
        size: windows sampled at once; no influence on the result.

    Returns:
        JSON-able, but for `chunks`: {real, policy, mean, hold}, raw f32 [n, K, action_dim].
    """
    if program.action != "generated":
        raise ValueError(f"mode {program.name!r} generates no actions to compare")
    robot = policy.observations.table[int(batch["embodiment"][0])]
    spec, (_, normalizer) = robot.spec, robot.normalizers
    A, n = spec.model_action_dim, len(episodes)
    state, real = robot.decode_state(batch["state"][:, 0]), batch["action"][:, 0, :, :A]
    mask = batch["action_mask"][:, 0, :, :A].astype(np.float64)
    centre = normalizer.normalize(np.asarray(mean, np.float32))
    answers = {
        "policy": generate_all(policy, batch, program, size, pixels=False, seed=seed)[:, 0, :, :A],
        "mean": np.broadcast_to(centre, real.shape),
        "hold": np.broadcast_to(hold(robot, state, centre)[:, None], real.shape),
    }
    squares = {case: ((answers[case] - real) ** 2 * mask).sum((1, 2)) for case in CASES}
    unit, units = _units(episodes, starts, float(batch["action_time"][0, 0, -1]) + 1e-6)
    raw = {name: robot.decode_action(answer, state) for name, answer in (("real", real), *answers.items())}
    steps = mask[..., :1]
    absolute = {case: (np.abs(raw[case] - raw["real"]) * steps).sum((0, 1)) / steps.sum() for case in CASES}
    return {
        "embodiment": spec.name,
        "windows": n,
        "episodes": len(set(episodes)),
        "unit": unit,
        "units": len(set(units)),
        "normalised": {case: float(squares[case].sum() / mask.sum()) for case in CASES},
        "skill": _skill(squares["policy"], squares["mean"]),
        "skill_ci95": _interval(squares["policy"], squares["mean"], units),
        "skill_over_hold": _skill(squares["policy"], squares["hold"]),
        "skill_over_hold_ci95": _interval(squares["policy"], squares["hold"], units),
        "dims": {
            name: {case: float(absolute[case][dim]) for case in CASES} for dim, name in enumerate(spec.action_names)
        },
        "chunks": raw,
    }


def _units(episodes: Sequence[str], starts: Sequence[float], chunk: float) -> tuple[str, list[tuple[str, int]]]:
    """What is resampled, and of which one each window is."""
    if len(set(episodes)) > 1:
        return "episode", [(episode, 0) for episode in episodes]
    return "stretch", [(episode, int(start / chunk)) for episode, start in zip(episodes, starts, strict=True)]


def _skill(error: np.ndarray, reference: np.ndarray) -> float:
    return float(1 - error.sum() / max(float(reference.sum()), 1e-12))


def _interval(error: np.ndarray, reference: np.ndarray, units: Sequence[tuple[str, int]]) -> list[float]:
    """95 % of the skill over resampled units; the draws are fixed."""
    _, inverse = np.unique([f"{episode}\n{stretch}" for episode, stretch in units], return_inverse=True)
    sums = np.stack([np.bincount(inverse, weights) for weights in (error, reference)])  # [2, units]
    drawn = np.random.default_rng(0).integers(0, sums.shape[1], (RESAMPLES, sums.shape[1]))
    above, below = sums[:, drawn].sum(-1)
    return np.quantile(1 - above / np.maximum(below, 1e-12), (0.025, 0.975)).tolist()


def table(result: dict[str, Any]) -> str:
    """A line for every source, then the dimensions of each in the robot's units, the largest errors first."""
    head = f"{'source':12s} {'robot':18s} {'windows':>7s} {'policy':>8s} {'mean':>8s} {'hold':>8s} {'skill':>7s}  95 %"
    lines = [head + " (mean squares, normalised; skill over the mean)"]
    for name, row in result["sources"].items():
        low, high = row["skill_ci95"]
        errors = " ".join(f"{row['normalised'][case]:8.4f}" for case in CASES)
        lines.append(
            f"{name:12s} {row['embodiment']:18s} {row['windows']:7d} {errors} {row['skill']:7.3f}  "
            f"[{low:.3f}, {high:.3f}] over {row['units']} {row['unit']}{'s' if row['unit'] == 'episode' else 'es'}"
        )
    lines += [f"{name:12s} left out: {reason}" for name, reason in result["left_out"].items()]
    for name, row in result["sources"].items():
        lines.append(f"\n{name}: mean absolute error in the robot's units" + ", of the 8 that the mean misses most")
        dims = sorted(row["dims"].items(), key=lambda item: -item[1]["mean"])[:8]
        lines += [f"  {dim:24s} " + "  ".join(f"{case} {of[case]:9.4g}" for case in CASES) for dim, of in dims]
    return "\n".join(lines)
