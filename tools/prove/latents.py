"""Encodes the same stores to latents in one process and on Ray's actors, and compares every byte.

    python -m tools.prove.latents --workdir runs/latents [--ray_python PYTHON]

Ray runs on its local runner, with two actors that each load the tokenizer once. The stores are the videos of
`tools.prove.engines`, the tokenizer is fitted on them as a run does. The result goes to
`tools/prove/results/latents.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.prove.engines import ROOT, hashes, ingest, version, write_videos

RESULT = ROOT / "tools" / "prove" / "results" / "latents.json"
RECIPE = '''"""Video alone, of one camera, at ten frames a second."""

from experiments.configs import debug


def get_config():
    config = debug.get_config()
    config.data.weights = {"videos": 1.0}
    config.data.update(views=("ego",), frame_seconds=(0.0, 0.1, 0.2))
    config.model.target_views = (0,)
    return config
'''


def fit(recipe: Path, root: Path, run: Path) -> None:
    """Writes the assets of a run that trains this recipe: its tokenizer among them."""
    import importlib.util

    from experiments.recipe import Recipe, load_data

    spec = importlib.util.spec_from_file_location("recipe", recipe)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run.mkdir()
    load_data(Recipe.of(module.get_config()), root, run)


def encode(python: str, recipe: Path, run: Path, root: Path, *arguments: str) -> float:
    """Seconds that the command took."""
    stores = [f"--store={root / split / 'videos'}" for split in ("train", "validation")]
    command = [
        python, "-m", "experiments.latents", f"--config={recipe}", f"--tokenizer={run}", "--shard_windows=60", *stores,
        *arguments,
    ]  # fmt: skip
    start = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return round(time.monotonic() - start, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "latents", help="new, or empty")
    parser.add_argument("--ray_python", default=sys.executable)
    arguments = parser.parse_args()
    workdir = arguments.workdir.resolve()
    if workdir.exists() and any(workdir.iterdir()):
        sys.exit(f"latents: {workdir} is not empty: choose another --workdir")
    write_videos(workdir / "videos")
    ingest(sys.executable, workdir / "videos", workdir / "one_process")
    shutil.copytree(workdir / "one_process", workdir / "ray")
    recipe = workdir / "recipe.py"
    recipe.write_text(RECIPE)
    fit(recipe, workdir / "one_process", workdir / "run")
    sides: dict[str, tuple[str, list[str], list[str]]] = {
        "one process": (sys.executable, [], []),
        "ray": (arguments.ray_python, ["--engine=ray", "--workers=2"], ["ray"]),
    }
    rows: dict[str, dict[str, Any]] = {}
    for name, (python, flags, packages) in sides.items():
        root = workdir / name.replace(" ", "_")
        seconds = encode(python, recipe, workdir / "run", root, *flags)
        files = {path: digest for path, digest in hashes(root).items() if "/latents/" in path}
        versions = {package: version(python, package) for package in (*packages, "jax", "numpy", "array-record")}
        rows[name] = {"flags": " ".join(flags), "seconds": seconds, "files": len(files), "versions": versions}
        rows[name]["equal"] = files == {p: d for p, d in hashes(workdir / "one_process").items() if "/latents/" in p}
    manifests = [json.loads(path.read_text()) for path in sorted((workdir / "ray").rglob("latents/*/manifest.json"))]

    from experiments.provenance import provenance

    about = provenance() | {"command": "python -m tools.prove.latents"}
    windows = {"windows": sum(m["records"] for m in manifests), "shards": sum(len(m["shards"]) for m in manifests)}
    RESULT.write_text(json.dumps({"name": "latents", **about, **windows, "engines": rows}, indent=1) + "\n")
    print(f"wrote {RESULT.relative_to(ROOT)}: {windows}, {rows}")
    if not rows["ray"]["equal"] or not rows["ray"]["files"]:
        sys.exit("latents: the bytes of Ray differ from those of one process")


if __name__ == "__main__":
    main()
