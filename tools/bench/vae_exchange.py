"""Writes what both sides of a case start from: weights by `diffusers`' names, and the input.

    python -m tools.bench.vae_exchange SPEC.json      # started by the bench

One .npz whose names begin with params/ or batch/. Weights are drawn so that activations keep their size, none is zero.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from tools.bench.vae_cases import Case
from wam.pretrained.mapping import flatten
from wam.pretrained.wan_vae import entries
from wam.tokenizers.wan_tokenizer import shapes


def weights(case: Case, seed: int) -> dict[str, np.ndarray]:
    """Every tensor of the released file, random."""
    rng = np.random.default_rng(seed)
    ours = flatten(shapes(case.config))
    out = {}
    for entry in entries(case.config):
        shape = entry.layout.theirs(np.broadcast_to(np.float32(0), ours[entry.ours].shape)).shape
        array = rng.standard_normal(shape, np.float32)
        if entry.ours.endswith("kernel"):
            array *= np.float32(np.prod(shape[1:]) ** -0.5)
        else:
            array = np.float32(0.1) * array + np.float32(entry.ours.endswith("scale"))
        out[entry.theirs] = array
    return out


def inputs(case: Case, seed: int) -> np.ndarray:
    """Pixels in [-1, 1], or normalised latents."""
    rng = np.random.default_rng(seed + 1)
    if case.direction == "encode":
        return rng.uniform(-1, 1, case.input_shape).astype(np.float32)
    return rng.standard_normal(case.input_shape, np.float32)


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    case = Case(**spec["case"])
    arrays = {f"params/{name}": array for name, array in weights(case, spec["seed"]).items()}
    np.savez(spec["arrays"], **arrays, **{"batch/x": inputs(case, spec["seed"])})  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
