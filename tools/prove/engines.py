"""Ingests the same videos on the process pool, on Apache Beam and on Ray, and compares every byte of the stores.

    python -m tools.prove.engines --workdir runs/engines [--beam_python PYTHON] [--ray_python PYTHON]

Beam and Ray run on their local runners. Each may have an interpreter of its own, since Beam pins versions that differ
from ours; the decoder, encoder and image library must be the same, which the manifests say. Nine synthetic videos, one
of them cut off, make four shards. The result goes to `tools/prove/results/engines.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tools" / "prove" / "results" / "engines.json"
VIDEOS, FRAMES, SIZE = 9, 90, (120, 160)


def write_videos(directory: Path) -> None:
    """Moving gradients with noise, at three frame rates; the last video is cut off."""
    directory.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    for k in range(VIDEOS):
        rng, rate = np.random.default_rng(k), (24, 30, 50)[k % 3]
        path = directory / f"{k}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=rate, options={"threads": "1", "g": "40"})
            stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
            stream.codec_context.time_base = Fraction(1, rate)
            for t in range(FRAMES + 11 * k):
                image = np.stack([2 * x + 3 * t, y + 5 * t + 20 * k, x + y], -1) + rng.integers(0, 20, (*SIZE, 3))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")))
            container.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def hashes(directory: Path) -> dict[str, str]:
    """Of every file of the stores but the directories of bookkeeping."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def ingest(python: str, videos: Path, out: Path, *arguments: str) -> float:
    """Seconds that the command took."""
    command = [
        python, "-m", "experiments.ingest", "--dataset=video", f"--path={videos}", f"--out={out}", "--name=videos",
        "--image_size=64", "--fps=10", "--validation=0.3", "--shard_frames=250", "--clip_seconds=3",
        "--overlap_seconds=1", "--max_bad=0.2", "--noprogress", *arguments,
    ]  # fmt: skip
    start = time.monotonic()
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    return round(time.monotonic() - start, 1)


def version(python: str, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "engines", help="new, or empty")
    parser.add_argument("--beam_python", default=sys.executable)
    parser.add_argument("--ray_python", default=sys.executable)
    arguments = parser.parse_args()
    workdir = arguments.workdir.resolve()
    if workdir.exists() and any(workdir.iterdir()):
        sys.exit(f"engines: {workdir} is not empty: choose another --workdir")
    write_videos(workdir / "videos")
    sides: dict[str, tuple[str, list[str], list[str]]] = {
        "one process": (sys.executable, ["--processes=1"], []),
        "two processes": (sys.executable, ["--processes=2"], []),
        "beam": (arguments.beam_python, ["--engine=beam", "--engine_options=--runner=DirectRunner"], ["apache-beam"]),
        "ray": (arguments.ray_python, ["--engine=ray", "--processes=2"], ["ray"]),
    }
    rows: dict[str, dict[str, Any]] = {}
    found = {}
    for name, (python, flags, packages) in sides.items():
        out = workdir / name.replace(" ", "_")
        seconds = ingest(python, workdir / "videos", out, *flags)
        found[name] = hashes(out)
        versions = {package: version(python, package) for package in (*packages, "av", "pillow", "array-record")}
        rows[name] = {"flags": " ".join(flags), "seconds": seconds, "files": len(found[name]), "versions": versions}
    reference = found["one process"]
    for name, files in found.items():
        rows[name]["equal"] = files == reference
    manifests = [json.loads(path.read_text()) for path in sorted((workdir / "one_process").rglob("manifest.json"))]

    from experiments.provenance import provenance

    about = provenance() | {"command": "python -m tools.prove.engines"}
    stores = [
        {key: manifest[key] for key in ("hash", "records", "episodes", "frames")}
        | {"shards": len(manifest["shards"]), "quarantined": manifest["meta"]["quarantined"]}
        for manifest in manifests
    ]
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"name": "engines", **about, "stores": stores, "engines": rows}, indent=1) + "\n")
    print(f"wrote {RESULT.relative_to(ROOT)}: {len(reference)} files, {rows}")
    if different := [name for name, row in rows.items() if not row["equal"]]:
        sys.exit(f"engines: the bytes of {', '.join(different)} differ from those of one process")


if __name__ == "__main__":
    main()
