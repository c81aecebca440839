"""A small Wan trunk on disk, made without the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from wam.pretrained import loading, wan_trunk
from wam.pretrained.released import trunk_shapes
from wam.pretrained.wan_trunk import WanConfig
from wam.pretrained.writing import Piece, write_tensors

CONFIG = WanConfig(num_attention_heads=2, attention_head_dim=16, num_layers=2, ffn_dim=40, text_dim=8, freq_dim=16,
                   in_channels=2, out_channels=2)  # fmt: skip


def random_trunk(config: WanConfig = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    """Our parameters by dotted path."""
    rng = np.random.default_rng(seed)
    return {path: 0.2 * rng.normal(size=shape).astype(np.float32) for path, shape in trunk_shapes(config).items()}


def pieces(config: WanConfig = CONFIG, dtype: Any = np.float32, naming: str = "diffusers") -> list[Piece]:
    return loading.to_foreign(wan_trunk.entries(config, naming), random_trunk(config), np.dtype(dtype))


def release(directory: Path, *, config: WanConfig = CONFIG, made: list[Piece] | None = None,
            shard_bytes: int = 10**9) -> Path:  # fmt: skip
    """The directory of a release, with `made` in place of its tensors."""
    directory.mkdir(parents=True)
    write_tensors(directory, "diffusion_pytorch_model", pieces(config) if made is None else made,
                  shard_bytes=shard_bytes)  # fmt: skip
    (directory / "config.json").write_text(json.dumps(wan_trunk.to_json(config)))
    return directory
