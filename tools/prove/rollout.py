"""A session with memory, from training to imagined rollouts: what it costs, whether it acts, how far it sees.

    python -m tools.prove.rollout --data runs/demo/data [--workdir runs/history] [--steps 1500] [--seed 0]

Trains `experiments/configs/demo.py:history` (chunks of 0.1 s that see the three before them) on collected demo data
(`experiments.collect`), by the command of a user; a training that was stopped goes on. Then, on the validation split:

cost         milliseconds of a chunk early and late in a session, against computing all of its past again
closed_loop  success with memory, and with the same checkpoint asked without
imagined     PSNR of open-loop rollouts under the true actions, chunk by chunk, against those of another window and
             against repeating the last real frame

The result goes to `tools/prove/results/rollout.json`. It fails if late chunks cost more than early ones, or if true
actions do not predict better than others in the mean over the rollout.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tools.prove.survive import ENV, ROOT

RESULT = ROOT / "tools" / "prove" / "results" / "rollout.json"
CONFIG = "experiments/configs/demo.py:history"
LENGTHS = (1, 4, 16, 64)
"""Chunks of a session at which its cost is measured."""


def train(workdir: Path, data: Path, steps: int, seed: int) -> None:
    command = [sys.executable, "-m", "experiments.train", f"--config={CONFIG}", f"--workdir={workdir}",
               f"--config.data.root={data.resolve()}", f"--config.train.steps={steps}",
               f"--config.train.seed={seed}"]  # fmt: skip
    if subprocess.run(command, cwd=ROOT, env=ENV).returncode:
        sys.exit("rollout: the training failed")


def cost(policy: Any, repeats: int = 20) -> list[dict[str, Any]]:
    """Milliseconds of `infer` after so many chunks, and of computing a past of so many chunks again; interleaved."""
    import jax

    from wam.inference import newest
    from wam.models.history import empty, remember
    from wam.session import Memory

    rng = np.random.default_rng(0)
    observation, frames = policy.example_observation(), policy.sessions.frames
    size = policy.tokenizer.image_size
    clip = {camera: rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8) for camera in policy.cameras}
    later = {**observation, "images": clip}
    memories: dict[int, Memory] = {}
    memory = policy.infer(observation)[1]
    for length in range(1, max(LENGTHS) + 1):
        if length in LENGTHS:
            memories[length] = memory
        memory = policy.infer(later, memory)[1]

    def again(length: int, model: Any, tokenizer: Any, batch: Any) -> Any:
        """Keys and values of `length` chunks, one after the other, as without a memory."""
        latents = tokenizer.encode(batch["video"], batch["camera"])
        obs, ring = newest(batch, latents, model.config), empty(model.config, 1)
        return jax.lax.fori_loop(0, length, lambda _, kept: remember(kept, model.context(obs, kept)), ring)

    row, _ = policy.sessions.row(later, memories[LENGTHS[0]])
    batch = {name: np.asarray(value)[None] for name, value in row.items()}
    recompute = {n: policy.engine.jit(("again", n), functools.partial(again, n)) for n in LENGTHS}
    taken: dict[tuple[str, int], list[float]] = {}
    for turn in range(repeats + 2):
        for n in LENGTHS:
            cases = {"memory": lambda n=n: policy.infer(later, memories[n]), "again": lambda n=n: recompute[n](batch)}
            for name, call in cases.items():
                start = time.perf_counter()
                jax.block_until_ready(jax.tree.leaves(call()))
                if turn >= 2:  # compiled and warm
                    taken.setdefault((name, n), []).append(1000 * (time.perf_counter() - start))
    names = {"with_memory_ms": "memory", "past_computed_again_ms": "again"}
    return [{"chunks": n} | {name: _spread(taken[case, n]) for name, case in names.items()} for n in LENGTHS]


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    return {"median": round(float(middle), 2), "p10": round(float(low), 2), "p90": round(float(high), 2)}


def closed_loop(workdir: Path, episodes: int, seed: int) -> dict[str, Any]:
    from experiments.evaluate import Evaluation
    from wam.diffusion.sampler import program
    from wam.evaluation.closed_loop import run_policy, summarize

    evaluation = Evaluation(workdir, tasks=None, episodes=episodes, steps=None, seed=seed, split="validation",
                            workers=2)  # fmt: skip
    policy, way = evaluation.policy, program("policy", 2)

    def forgetful(observations: Any, ids: Any, _memories: Any, **options: Any) -> Any:
        return policy.infer_many(observations, ids, None, program=way, **options)

    found = {}
    for name, answer in (("with_memory", None), ("without", forgetful)):
        played = run_policy(policy, evaluation.make_env, evaluation.layouts, way, "policy", evaluation.settings,
                            progress=f"rollout {name}", answer=answer)  # fmt: skip
        found[name] = summarize(played)
    return found


def imagined(policy: Any, data: Path, chunks: int, windows: int) -> dict[str, Any]:
    """dB of every chunk of rollouts in mode forward, pooled over windows of held-out expert clips."""
    from data_pipelines.store import ClipStore

    store = ClipStore(data / "validation" / "expert")
    robot = policy.embodiment(policy.embodiments[0])
    steps, n = policy.chunk_steps(robot.spec.name), policy.sessions.frames
    need = chunks * steps
    clips: list[Any] = [store.low_dim(i)[:2] for i in range(len(store))]  # state and action
    starts = [(i, s) for i, (_, action) in enumerate(clips) for s in range(0, len(action) - need + 1, need)]
    rng = np.random.default_rng(0)
    chosen = [starts[i] for i in rng.permutation(len(starts))[:windows]]
    actions = [clips[i][1][s : s + need] for i, s in chosen]
    errors: dict[str, list[np.ndarray]] = {"true": [], "other": [], "copy_last": []}
    for number, (i, s) in enumerate(chosen):
        clip = store[i]
        at = np.searchsorted(clip.frame_step, s + np.arange(0, need + 1, steps // n))
        real = {c: clip.frames[c][at].astype(np.float32) / 255 for c in policy.imagined}
        observation = {"images": {c: clip.frames[c][at[0]] for c in policy.cameras}, "state": clips[i][0][s],
                       "instruction": clip.meta["instruction"], "embodiment": robot.spec.name}  # fmt: skip
        other = actions[(number + len(actions) // 2) % len(actions)]
        for case, given in (("true", actions[number]), ("other", other)):
            dream, _ = policy.imagine(observation, chunks=chunks, mode="forward", actions=given)
            errors[case].append(_errors({c: v.astype(np.float32) / 255 for c, v in dream.video.items()}, real, chunks))
        errors["copy_last"].append(_errors({c: v[:1] for c, v in real.items()}, real, chunks))
    table = {case: [round(float(-10 * np.log10(x)), 2) for x in np.mean(rows, 0)] for case, rows in errors.items()}
    wins = [float(a.mean() < b.mean()) for a, b in zip(errors["true"], errors["other"], strict=True)]
    return {"windows": len(chosen), "chunk_seconds": steps / robot.action_hz, "psnr": table,
            "win_rate": round(float(np.mean(wins)), 3)}  # fmt: skip


def _errors(made: dict[str, np.ndarray], real: dict[str, np.ndarray], chunks: int) -> np.ndarray:
    """[chunks]: mean squared error of the frames after the first, over all cameras."""
    squared = [((made[c] - real[c][1:]) ** 2).mean((1, 2, 3)).reshape(chunks, -1).mean(1) for c in real]
    return np.mean(squared, axis=0)


def rows(costs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the README: what a chunk costs after so many others."""
    return [
        {
            "chunks before": row["chunks"],
            "a chunk with memory, ms": row["with_memory_ms"],
            "all chunks before computed again, ms": row["past_computed_again_ms"],
        }
        for row in costs
    ]


def note(found: dict[str, Any]) -> str:
    dream, played = found["imagined"], found["closed_loop"]
    psnr = {case: np.mean(of) for case, of in dream["psnr"].items()}
    won = {name: f"{of['successes']} of {of['episodes']}" for name, of in played.items()}
    return (
        f"Median (10th to 90th percentile), {found['cores']} cores, a memory of {found['window']} chunks. The same "
        f"checkpoint solves {won['with_memory']} validation episodes with memory and {won['without']} without. "
        f"Imagined rollouts of {len(dream['psnr']['true'])} chunks of {dream['chunk_seconds']:.2g} s reach "
        f"{psnr['true']:.1f} dB under the true actions, {psnr['other']:.1f} under those of another window, and "
        f"{psnr['copy_last']:.1f} is what repeating the last real frame gives (pooled over {dream['windows']} windows; "
        f"true actions win in {dream['win_rate']:.0%})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="What `experiments.collect` made for the demo.")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "history")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=10, help="Layouts a task.")
    parser.add_argument("--chunks", type=int, default=6, help="Of an imagined rollout.")
    parser.add_argument("--windows", type=int, default=48, help="Imagined rollouts.")
    arguments = parser.parse_args()
    if not (arguments.data / "validation" / "expert").is_dir():
        sys.exit(f"rollout: {arguments.data} holds no collected data; run experiments.collect with the demo's recipe")
    workdir = arguments.workdir.resolve()
    train(workdir, arguments.data, arguments.steps, arguments.seed)

    from experiments.provenance import provenance
    from wam.policy import load_policy

    policy = load_policy(workdir)
    found: dict[str, Any] = {
        "name": "rollout",
        **provenance(),
        "command": f"python -m tools.prove.rollout --data DATA --steps {arguments.steps} --seed {arguments.seed} "
        f"--episodes {arguments.episodes} --chunks {arguments.chunks} --windows {arguments.windows}",
        "train": json.loads((workdir / "train.json").read_text()),
        "window": policy.config.window,
        "imagined": imagined(policy, arguments.data, arguments.chunks, arguments.windows),
        "closed_loop": closed_loop(workdir, arguments.episodes, arguments.seed),
        "cost": cost(policy),
    }
    early, late = (found["cost"][i]["with_memory_ms"]["median"] for i in (1, -1))
    true, other = (np.mean(found["imagined"]["psnr"][case]) for case in ("true", "other"))
    failed = []
    if late > 1.25 * early:
        failed.append(f"a chunk takes {early} ms after {LENGTHS[1]} chunks and {late} ms after {LENGTHS[-1]}")
    if true <= other:
        failed.append(f"rollouts under true actions reach {true:.2f} dB, under others {other:.2f}")
    found |= {"failed": failed, "rows": rows(found["cost"]), "note": note(found)}
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({key: found[key] for key in ("cost", "imagined")}, indent=1))
    print(f"rollout: wrote {RESULT.relative_to(ROOT)}")
    if failed:
        sys.exit(f"rollout: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
