"""The teacher of a distilled run: what its student takes over from it, and whether the two fit together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.differences import differences
from experiments.fitted import Fitted
from wam.config import ModelConfig, TextConfig, build, to_dict
from wam.fingerprint import named_leaves
from wam.training.distill import Teacher, read_teacher
from wam.training.distill_config import DistillConfig

SAME = ("tokenizer", "embodiments", "cameras")
"""Assets (see `recipe.assets`) in which student and teacher are equal, beside network and text encoder."""
HOW = ("scan_layers", "remat", "attention", "attention_chunk", "dtype")
"""Fields of `ModelConfig` that say how a network is computed, and not which one it is."""


def inherit_fitted(config: DistillConfig, workdir: Path) -> None:
    """Gives a new run the statistics and the tokenizer of its teacher: its parameters mean nothing with others.

    Raises:
        FileNotFoundError: the teacher's run directory lacks them.
    """
    if not config.teacher or (workdir / "fitted.json").exists():
        return
    if not (Path(config.teacher) / "fitted.json").exists():
        raise FileNotFoundError(
            f"distill.teacher {config.teacher} has no fitted.json: name the run directory of a teacher, trained by "
            "experiments.train"
        )
    Fitted.load(Path(config.teacher)).save(workdir)


def load_teacher(config: DistillConfig, assets: Mapping[str, Any], fitted: Fitted) -> Teacher | None:
    """The teacher of a run with these `recipe.assets`; None if it has none.

    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint, it is damaged, or its network, tokenizer, text
            encoder, cameras, robots or normalisers are others than the student's.
    """
    if not config.teacher:
        return None
    teacher = read_teacher(config)

    def of(assets: Mapping[str, Any]) -> dict[str, Any]:
        # Through the dataclasses: a teacher that is older than a field has its default.
        model = {name: value for name, value in to_dict(build(ModelConfig, assets["model"])).items() if name not in HOW}
        text = to_dict(build(TextConfig, assets["text"]))
        return json.loads(json.dumps({"model": model, "text": text, **{name: assets[name] for name in SAME}}))

    if changed := differences(of(teacher.assets), of(assets)):
        raise ValueError(f"distill.teacher {config.teacher} does not fit this run ({changed})")
    there, here = named_leaves(teacher.tokenizer), named_leaves(fitted.tokenizer.to_state()[1])
    if other := [name for name in here if name not in there or not np.array_equal(there[name], here[name])]:
        raise ValueError(
            f"distill.teacher {config.teacher} reads other latents: {other[0]} of its tokenizer is not that of this run"
        )
    return teacher
