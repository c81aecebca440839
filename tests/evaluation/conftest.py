"""A run directory with everything an evaluated run leaves, made up: no training, no simulator."""

import json
import pathlib

import numpy as np
import pytest

TASKS = ("reach", "push", "drawer-open", "button-press", "door-open", "window-close")
MODES = ("joint", "async", "independent", "policy", "forward", "inverse", "video")
SOURCES = ("expert", "play", "egocentric")
NAMES = ("x", "y", "z", "gripper")
CASES = {"true": 29.0, "shuffled": 26.0, "zero": 26.2, "copy_last": 24.0, "ceiling": 34.0}
TRAIN = {"steps": 2000, "seconds": 431.2, "step_ms_median": 201.3, "data_wait_share": 0.012, "parameters": 4_210_000}
HORIZON = 16
HZ = 80.0


def scene(positions: np.ndarray, size: int = 48, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """uint8 [n, size, size, 3]: a table, a red puck and a dark gripper at each of the positions [n, 2] in 0..1."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[0:size, 0:size] / size
    frames = np.empty((len(positions), size, size, 3), np.float32)
    for frame, (x, y) in zip(frames, positions, strict=True):
        frame[:] = np.array([214, 196, 170]) - 40 * yy[..., None]
        frame[yy < 0.3] = (120, 140, 160)
        frame[np.hypot(xx - 0.7, yy - 0.65) < 0.07] = (190, 40, 30)
        frame[np.hypot(xx - x, (yy - y) * 1.4) < 0.09] = (40, 44, 52)
        frame[(abs(xx - x) < 0.025) & (yy < y)] = (80, 86, 96)
    frames += noise * rng.standard_normal(frames.shape)
    return np.clip(frames, 0, 255).astype(np.uint8)


def path(n: int, rng: np.random.Generator) -> np.ndarray:
    start, end = rng.uniform(0.2, 0.5, 2), rng.uniform(0.5, 0.8, 2)
    return start + (end - start) * np.linspace(0, 1, n)[:, None] ** 1.3


def success(successes: int, episodes: int) -> dict:
    p = successes / episodes
    return {"success": p, "successes": successes, "episodes": episodes, "ci95": [max(0, p - 0.15), min(1, p + 0.1)],
            "outcomes": [int(i < successes) for i in range(episodes)]}  # fmt: skip


def write_metrics(folder: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    rates = {"policy": 0.95, "joint": 0.9, "random": 0.05, "blind_replay": 0.4, "swapped_instruction": 0.5}
    closed = {}
    for name, rate in rates.items():
        tasks = {task: success(int(rng.binomial(20, rate)), 20) for task in TASKS}
        closed[name] = success(sum(t["successes"] for t in tasks.values()), 20 * len(TASKS)) | {"tasks": tasks}
    decay = np.array([1.0, 0.9])
    kind = {
        "psnr": CASES,
        "ssim": {case: value / 36 for case, value in CASES.items()},
        "moving": {case: value - 8 for case, value in CASES.items()},
        "per_frame": {
            metric: {case: ((value - shift) * scale * decay).tolist() for case, value in CASES.items()}
            for metric, shift, scale in (("psnr", 0, 1), ("ssim", 0, 1 / 36), ("moving", 8, 1))
        },
        "seconds": [0.1, 0.2],
        "win_rate": 0.93,
        "windows": 128,
    }
    metrics = {
        "closed_loop": closed,
        "forward_dynamics": {"expert": kind, "play": kind | {"win_rate": 0.81}},
        "inverse_dynamics": {
            "expert": {"r2": 0.88, "r2_wrong_video": 0.05, "policy_r2": 0.71, "r2_gripper": 0.93},
            "play": {"r2": 0.42, "r2_wrong_video": -0.31, "policy_r2": 0.01, "r2_gripper": 0.12},
        },
        "consistency": {
            "expert": {"r2": 0.83, "r2_wrong_video": -0.71, "error": 0.2, "error_wrong_video": 0.7, "windows": 128},
            "play": {"r2": 0.41, "r2_wrong_video": -0.6, "error": 0.4, "error_wrong_video": 0.8, "windows": 128},
        },
        "tokenizer": {"psnr": 34.1},
        "train": TRAIN,
        "phases": {"collect": 161.0, "train": 431.2, "evaluate": 120.5},
        "verdicts": [
            "The dynamics obey: the moving region of expert data is predicted 3.0 dB better with true actions.",
            "Inverse dynamics reads the video: R² 0.88 with the right video, 0.05 with another's.",
        ],
        "seed": 0,
        "split": "validation",
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))


def write_open_loop(folder: pathlib.Path) -> None:
    dims = {name: {"policy": 0.02 * i, "mean": 0.05, "hold": 0.06} for i, name in enumerate(NAMES, 1)}
    row = {"embodiment": "sawyer_metaworld", "windows": 160, "episodes": 12, "skill": 0.61, "skill_ci95": [0.52, 0.70]}
    (folder / "open_loop.json").write_text(
        json.dumps({"mode": "policy", "steps": 2, "split": "validation", "checkpoint_step": 2000,
                    "sources": {"expert": {**row, "dims": dims}}, "left_out": {"ego": "has no actions"}})
    )  # fmt: skip


def write_training(folder: pathlib.Path) -> None:
    rng = np.random.default_rng(1)
    lines = []
    for step in range(0, 2000, 10):
        for split in ("train", "validation") if step % 200 == 0 else ("train",):
            level = (0.15 + np.exp(-step / 300)) * (1.1 if split == "validation" else 1.0)
            row = {"step": step, "seconds": step * 0.2, "split": split}
            if split == "train":
                row |= {"learning_rate": 1e-3 * min(1, step / 100) * (1.001 - step / 2000), "grad_norm": 3 * level}
                row |= {"step_ms": 200.0, "data_wait_share": 0.01}
            for index, term in enumerate(("loss", "video", "action", "policy", "inverse")):
                row[term] = level * (1 + 0.3 * index) * rng.uniform(0.85, 1.15)
            for term in ("video", "action"):
                for index, mode in enumerate(MODES):
                    row[f"{term}/mode/{mode}"] = level * (1 + 0.1 * index) * rng.uniform(0.8, 1.2)
                for index in range(5):
                    row[f"{term}/sigma/{index}"] = level * (1.5 - 0.2 * index) * rng.uniform(0.8, 1.2)
                for index, source in enumerate(SOURCES):
                    row[f"{term}/source/{source}"] = level * (1 + 0.2 * index) * rng.uniform(0.8, 1.2)
            lines.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "mixture.json").write_text(
        json.dumps(
            {
                "weights": {"expert": 0.55, "play": 0.3, "egocentric": 0.15},
                "history": [{"step": 0, "weights": {"expert": 0.55, "play": 0.3, "egocentric": 0.15}}],
                "asked": {"expert": 0.55, "play": 0.3, "egocentric": 0.15},
                "realised": {"expert": 0.5503, "play": 0.2986, "egocentric": 0.1511},
                "drawn": {"expert": 35220, "play": 19110, "egocentric": 9670},
                "windows": {"expert": 9000, "play": 6000, "egocentric": 9000},
                "epochs": {"expert": 3.913, "play": 3.185, "egocentric": 1.074},
                "action_free": 0.1511,
                "modes": {mode: 64000 // 7 + 900 * index for index, mode in enumerate(MODES)},
            }
        )
    )


def write_dynamics(folder: pathlib.Path, kind: str, windows: int = 8, frames: int = 3) -> None:
    rng = np.random.default_rng(2)
    paths = [path(frames, rng) for _ in range(windows)]
    real = np.stack([scene(p) for p in paths])
    action = rng.uniform(-1, 1, (windows, HORIZON, len(NAMES))).astype(np.float32)
    np.savez_compressed(
        folder / f"dynamics_{kind}.npz",
        real=real,
        true=np.stack([scene(p + 0.01, noise=5) for p in paths]),
        shuffled=np.stack([scene(p[:1] + 0.6 * (p[0] - p), noise=5) for p in paths]),
        zero=np.stack([scene(np.repeat(p[:1], frames, 0), noise=5) for p in paths]),
        ceiling=np.stack([scene(p, noise=2) for p in paths]),
        copy_last=np.repeat(real[:, :1], frames, 1),
        task=np.array([TASKS[i % len(TASKS)] for i in range(windows)]),
        seconds=np.linspace(0, HORIZON / HZ, frames, dtype=np.float32),
        action=action,
        inverse=action + 0.1 * rng.standard_normal(action.shape).astype(np.float32),
        policy=action + 0.3 * rng.standard_normal(action.shape).astype(np.float32),
    )


def write_episode(folder: pathlib.Path, mode: str, task: str, steps: int = 96) -> None:
    rng = np.random.default_rng(3)
    where = path(steps + 1, rng)
    executed = np.concatenate([np.sin(np.arange(steps)[:, None] / (6 + np.arange(3))), np.ones((steps, 1))], 1)
    chunk_step = np.arange(0, steps, HORIZON)
    ahead = chunk_step[:, None] + np.arange(HORIZON)
    arrays = {
        "frames": scene(where[::4]),
        "frame_step": np.arange(0, steps + 1, 4),
        "predicted": (executed[np.minimum(ahead, steps - 1)] + 0.05).astype(np.float32),
        "executed": executed.astype(np.float32),
        "chunk_step": chunk_step,
        "success": task != TASKS[1],
        "instruction": f"{task} <now> & then stop",
        "layout_index": 0,
        "action_names": np.array(NAMES),
    }
    if mode == "joint":
        at = np.minimum(chunk_step[:, None] + np.array([8, 16]), steps)
        arrays["imagined"] = np.stack([scene(where[index], noise=6) for index in at])
        arrays["imagined_seconds"] = np.array([0.1, 0.2], np.float32)
    np.savez_compressed(folder / f"episode_{mode}_{task}.npz", **arrays)


def write_run(folder: pathlib.Path) -> pathlib.Path:
    """Fills `folder` with the files of a complete run and returns it."""
    (folder / "eval").mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "asked": {"train": {"steps": 3000, "seed": 0}, "collect": {"tasks": list(TASKS)}},
                "config": {"train": {"steps": 2000, "seed": 0}, "collect": {"tasks": list(TASKS)}},
                "git": "0123456789ab+",
                "versions": {"python": "3.11.9", "jax": "0.10.2", "flax": "0.12.8"},
                "chip": "cpu",
                "date": "2030-01-02",
                "cores": 2,
                "command": "python -m experiments.train --config=experiments/configs/demo.py --workdir=runs/demo",
            }
        )
    )
    (folder / "phases.json").write_text(
        json.dumps({"collect": 161.0, "train": 431.2, "evaluate": 120.5, "total": 712.7})
    )
    write_metrics(folder)
    write_training(folder)
    write_open_loop(folder)
    for kind in ("expert", "play"):
        write_dynamics(folder / "eval", kind)
    for mode in ("policy", "joint"):
        for task in TASKS[:3]:
            write_episode(folder / "eval", mode, task)
    return folder


@pytest.fixture(scope="session")
def complete_run(tmp_path_factory) -> pathlib.Path:
    """A run directory with every file; shared, so tests that write copy it first."""
    return write_run(tmp_path_factory.mktemp("runs") / "demo")
