"""`python -m experiments.evaluate --checkpoint DIR --open_loop`: errors on the held-out stores of every robot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

WINDOWS = 512
"""Most windows of a source; they are spread evenly over it."""


def evaluate_open_loop(workdir: Path, *, mode: str, steps: int | None, split: str, seed: int) -> dict[str, Any]:
    """Writes `open_loop.json`, and chunks beside the real ones into `eval/open_loop_SOURCE.npz`.

    Returns:
        {"sources": {source: see `wam.evaluation.open_loop`}, "left_out": {source: why}, and the settings}.

    Raises:
        FileNotFoundError: no checkpoint, or no store of the split.
        ValueError: held-out clips that were trained on, or no source with actions to copy.
    """
    from experiments.held_out import batch_of, check_held_out, data_root, mean_action, windows_of
    from experiments.recipe import open_stores
    from experiments.run_record import write_json
    from wam.diffusion.sampler import program
    from wam.evaluation.open_loop import open_loop
    from wam.policy import DEFAULT_STEPS, load_policy

    policy = load_policy(workdir, unroll=False)
    root, names = data_root(policy, workdir), tuple(policy.assets["sources"])
    held_out, train = open_stores(root, split, names), open_stores(root, "train", names)
    steps = steps or DEFAULT_STEPS.get(mode, 1)
    result: dict[str, Any] = {
        "checkpoint_step": policy.step, "mode": mode, "steps": steps, "split": split, "seed": seed, "sources": {},
        "left_out": {},
    }  # fmt: skip
    for name in names:
        if name not in held_out or name not in train:
            result["left_out"][name] = f"has no {split if name in train else 'train'} store"
            continue
        windows = windows_of(policy, held_out[name], name)
        copied = [i for i in range(len(windows)) if windows.low_dim(i)["imitate"][0]]
        if not copied:
            robot = windows.embodiment
            result["left_out"][name] = "nothing in it may be copied" if robot.action_dim else "has no actions"
            continue
        check_held_out(held_out[name], train[name])
        chosen = [copied[i] for i in np.linspace(0, len(copied) - 1, min(WINDOWS, len(copied))).astype(int)]
        metas = [windows.meta(i) for i in chosen]
        batch, mean = batch_of(policy, windows, name, chosen), mean_action(windows_of(policy, train[name], name))
        episodes = [meta["episode"] for meta in metas]
        starts = [meta["start_step"] / windows.control_hz for meta in metas]
        row = open_loop(policy, batch, episodes, starts, mean, program(mode, steps), seed=seed)
        _save_chunks(workdir / "eval" / f"open_loop_{name}.npz", row.pop("chunks"), metas, row["dims"])
        result["sources"][name] = row
    if not result["sources"]:
        raise ValueError(f"{root / split} has no source with actions to compare: {result['left_out']}")
    write_json(workdir / "open_loop.json", result)
    return result


def _save_chunks(path: Path, chunks: dict[str, np.ndarray], metas: list[dict], dims: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    arrays: dict[str, Any] = dict(chunks)
    np.savez_compressed(path, **arrays, episode=np.array([meta["episode"] for meta in metas]),
                        start_step=np.array([meta["start_step"] for meta in metas]),
                        action_names=np.array(list(dims)))  # fmt: skip
