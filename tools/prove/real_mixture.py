"""Trains one small model on three robots and on video without actions, and measures it on episodes it never saw.

    python -m tools.prove.real_mixture --workdir runs/real_mixture [--samples ../shared/samples]

Bridge (RLDS), GR-1 (LeRobot v2 with modalities) and DROID's cameras are ingested, Meta-World is collected, recipe
`experiments/configs/real_mixture.py` is trained, and the open-loop error on the held-out episodes is compared with that
of the training mean. Everything by the commands of a user; what is done is not done again when the program is started
again. The result goes to `tools/prove/results/real_mixture.json`. It fails if a loss does not fall, if a robot's error
is not below that of the mean, or if a held-out episode is among those trained on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.prove.survive import ENV, ROOT

RESULT = ROOT / "tools" / "prove" / "results" / "real_mixture.json"
CONFIG = "experiments/configs/real_mixture.py"
BRIDGE, GR1, DROID = "bridge_octo_debug/1.0.0", "lerobot_v2_groot_gr1_sim", "dreamzero_droid"
HELD_OUT = {
    "bridge": [f"bridge_dataset/train-00000/{i}" for i in range(4, 25, 5)],
    "gr1": [f"{GR1}/episode_000004"],
    "droid": ["exterior_image_2_left.mp4"],
}
"""Fixed before anything was trained."""
INGESTED = {"bridge": ("bridge", BRIDGE), "gr1": ("gr1_relative", GR1), "droid": ("video", DROID)}
"""source -> (dataset, where it is among the samples)"""


def commands(samples: Path, workdir: Path, steps: int | None) -> dict[str, list[str]]:
    """What a user types, in order."""
    data = workdir / "data"
    # First what wants a directory of its own; ingests join it.
    out = {"collect expert": ["collect", f"--config={CONFIG}", f"--out={data}"]}
    out |= {
        f"ingest {name}": [
            "ingest", f"--dataset={dataset}", f"--path={samples / path}", f"--out={data}", f"--name={name}",
            "--image_size=64", f"--validation={','.join(HELD_OUT[name])}", "--noprogress",
        ]
        for name, (dataset, path) in INGESTED.items()
    }  # fmt: skip
    out["train"] = ["train", f"--config={CONFIG}", f"--workdir={workdir}", "--noprogress"]
    if steps is not None:
        out["train"].append(f"--config.train.steps={steps}")
    return out


def run(arguments: list[str]) -> float:
    """Runs a command of `experiments`; seconds it took."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", f"experiments.{arguments[0]}", *arguments[1:]], cwd=ROOT, env=ENV)
    if done.returncode:
        raise SystemExit(f"real_mixture: {arguments[0]} failed with exit code {done.returncode}")
    return round(time.monotonic() - start, 1)


def digests(samples: Path, data: Path) -> dict[str, Any]:
    """What is equal to what, by content: records of Bridge's two files, and episodes of the two sides of each store."""
    from data_pipelines.sources.rlds import Rlds

    files = []
    for split in ("train", "val"):
        source = Rlds(samples / BRIDGE, split=split, layout="bridge_dataset")
        files.append([source.digest(i) for i in range(len(source))])
    train, val = (set(file) for file in files)
    out: dict[str, Any] = {
        "bridge_files": {"train": len(files[0]), "val": len(files[1]), "distinct": len(train | val),
                         "in_both": len(train & val)},
    }  # fmt: skip
    for name in INGESTED:
        sides: dict[str, set[str]] = {"train": set(), "validation": set()}
        for job in (data / "train" / name / "jobs").glob("*.json"):
            for episode in json.loads(job.read_text())["episodes"]:
                sides[episode["split"]].add(episode["digest"])
        out[name] = {**{side: len(found) for side, found in sides.items()},
                     "in_both": len(sides["train"] & sides["validation"])}  # fmt: skip
    return out


def losses(workdir: Path) -> dict[str, dict[str, dict[str, float]]]:
    """source -> term -> the first and the last average, of training and of the validation windows."""
    from wam.training.metrics import read_rows

    rows = read_rows(workdir)
    out: dict[str, dict[str, dict[str, float]]] = {}
    for split in ("train", "validation"):
        of = [row for row in rows if row["split"] == split]
        for key in of[0]:
            term, _, source = key.partition("/source/")
            if source and term != "inverse":
                values = out.setdefault(source, {}).setdefault(term, {})
                values |= {f"{split}_first": of[0][key], f"{split}_last": of[-1][key]}
    return out


def open_loop(workdir: Path, arguments: list[str]) -> dict[str, Any]:
    run(["evaluate", f"--checkpoint={workdir}", "--open_loop", *arguments])
    return json.loads((workdir / "open_loop.json").read_text())


def verdicts(found: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    wrong = [
        f"the {term} loss of {source} went from {of['train_first']:.3f} to {of['train_last']:.3f}"
        for source, terms in found["losses"].items()
        for term, of in terms.items()
        if not of["train_last"] < of["train_first"]
    ]
    wrong += [
        f"{source}: skill {row['skill']:.3f} over the mean, 95 % {row['skill_ci95']}"
        for source, row in found["open_loop"]["sources"].items()
        if not row["skill"] > 0
    ]
    return wrong + [
        f"{of['in_both']} held-out episodes of {name} were trained on"
        for name, of in found["digests"].items()
        if name != "bridge_files" and of["in_both"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "real_mixture")
    parser.add_argument("--samples", type=Path, default=ROOT.parent / "shared" / "samples")
    parser.add_argument("--steps", type=int, help="of the training; by default the recipe's")
    arguments = parser.parse_args()
    workdir, samples = arguments.workdir.resolve(), arguments.samples.resolve()
    if not samples.is_dir():
        sys.exit(f"real_mixture: there are no samples in {samples}; give --samples")
    seconds = {name: run(command) for name, command in commands(samples, workdir, arguments.steps).items()}
    chunk = open_loop(workdir, [])
    mean = open_loop(workdir, ["--steps=1"])
    inverse = open_loop(workdir, ["--mode=inverse"])

    from experiments.provenance import provenance

    mixture = json.loads((workdir / "mixture.json").read_text())
    record = json.loads((workdir / "config.json").read_text())
    found = {
        "name": "real_mixture",
        **provenance(),
        "command": "python -m tools.prove.real_mixture" + (f" --steps={arguments.steps}" if arguments.steps else ""),
        "seed": record["config"]["train"]["seed"],
        "steps": record["steps"],
        "batch_size": record["config"]["train"]["batch_size"],
        "parameters": json.loads((workdir / "train.json").read_text())["parameters"],
        "seconds": seconds,
        "held_out": HELD_OUT,
        "digests": digests(samples, workdir / "data"),
        "shares": {key: mixture[key] for key in ("asked", "realised", "windows", "epochs", "action_free")},
        "losses": losses(workdir),
        "open_loop": chunk,
        "one_sampler_step": {name: _short(row) for name, row in mean["sources"].items()},
        "inverse_dynamics": {name: _short(row) for name, row in inverse["sources"].items()},
    }
    found["failed"] = verdicts(found)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(f"wrote {RESULT.relative_to(ROOT)}")
    if found["failed"]:
        sys.exit(f"real_mixture: {'; '.join(found['failed'])}")


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("normalised", "skill", "skill_ci95")}


if __name__ == "__main__":
    main()
