"""Writes a trunk back as a model of diffusers: imported weights as they came, or those of a run after its training.

    python -m tools.export_weights --from weights/wan2.1-1.3b --out exported
    python -m tools.export_weights --from runs/wan1b --out exported --dtype bfloat16

A run must have begun from an imported trunk; its EMA weights are written, adapters merged. `--dtype source` gives each
tensor the dtype it had in the release: imported weights then come out bit for bit, trained ones are rounded. What was
imported from DreamZero comes out under its own names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from wam.config import build
from wam.pretrained import imported
from wam.pretrained.mapping import flatten
from wam.pretrained.provenance import PROVENANCE
from wam.pretrained.tensor_files import TensorFiles
from wam.training.finetune_config import FinetuneConfig

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "source": None}


def weights_of(source: Path) -> tuple[Path, Mapping[str, Any]]:
    """(directory of the imported trunk, weights by dotted path) of imported weights, or of a run that began from some.

    Raises:
      ValueError, FileNotFoundError: `source` is neither.
    """
    if (source / PROVENANCE).is_file():
        return source, TensorFiles(source)
    if not (source / "checkpoints").is_dir():
        raise FileNotFoundError(f"{source} is neither imported weights nor the directory of a run")
    from wam.checkpoint import read_inference
    from wam.training.finetune import complete

    saved = read_inference(source)
    finetune = build(FinetuneConfig, saved.assets.get("finetune", {}))
    if not finetune.trunk:
        raise ValueError(
            f"the run in {source} did not begin from an imported trunk: there is no format to export it to"
        )
    return Path(finetune.trunk), flatten(complete(saved.params, finetune))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="export_weights", description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", required=True, type=Path, help="imported weights, or a run")
    parser.add_argument("--out", required=True, type=Path, help="directory to write, which must not exist")
    parser.add_argument("--dtype", default="source", choices=DTYPES, help="of the tensors (default: source)")
    args = parser.parse_args(argv)
    try:
        trunk, params = weights_of(args.source)
        config = imported.trunk_config(trunk)
        dtypes = DTYPES[args.dtype] or imported.source_dtypes(trunk, imported.trunk_entries(config))
        imported.export_trunk(config, params, args.out, dtypes)
    except (ValueError, OSError) as error:
        sys.exit(f"export_weights: {error}")
    print(f"export_weights: {len(imported.trunk_entries(config))} tensors into {args.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
