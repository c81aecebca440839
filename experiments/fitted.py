"""What a run fits on its training stores: statistics, tokenizer, where actions lead.

Computed once, written to the run directory before step 0, and read back from there ever after.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.lead import fit_lead
from data_pipelines.stats import Statistics, fit_statistics
from data_pipelines.windows import Windows
from experiments.run_record import write_json
from wam.config import TokenizerConfig
from wam.models.joint_dit import JointDiT
from wam.pretrained.video_tokenizers import wan_tokenizer
from wam.tokenizers import patch_pca
from wam.tokenizers.video import VideoTokenizer, from_state


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What was fitted on the training stores."""

    statistics: Statistics
    tokenizer: VideoTokenizer
    lead: dict[str, np.ndarray]
    lead_r2: dict[str, list[float]]
    cameras: tuple[str, ...]
    embodiments: tuple[str, ...]
    hashes: dict[str, str]

    def save(self, directory: Path) -> None:
        about, arrays = self.tokenizer.to_state()
        payload: dict[str, Any] = {f"tokenizer/{k}": v for k, v in arrays.items()}
        payload |= {f"lead/{k}": v for k, v in self.lead.items()}
        np.savez(directory / "fitted.tmp.npz", **payload)
        (directory / "fitted.tmp.npz").replace(directory / "fitted.npz")
        facts = {
            "statistics": self.statistics.to_json(),
            "tokenizer": about,
            "lead_r2": self.lead_r2,
            "cameras": self.cameras,
            "embodiments": self.embodiments,
            "hashes": self.hashes,
        }
        write_json(directory / "fitted.json", facts)

    @classmethod
    def load(cls, directory: Path) -> Fitted:
        facts = json.loads((directory / "fitted.json").read_text())
        with np.load(directory / "fitted.npz", allow_pickle=False) as payload:
            arrays = {name: payload[name] for name in payload.files}
        return cls(
            Statistics.from_json(facts["statistics"]),
            from_state(
                facts["tokenizer"],
                {k.removeprefix("tokenizer/"): v for k, v in arrays.items() if k.startswith("tokenizer/")},
            ),
            {k.removeprefix("lead/"): v for k, v in arrays.items() if k.startswith("lead/")},
            facts["lead_r2"],
            tuple(facts["cameras"]),
            tuple(facts["embodiments"]),
            facts["hashes"],
        )


def fit(
    config: TokenizerConfig,
    windows: Mapping[str, Windows],
    cameras: tuple[str, ...],
    *,
    normalization: str = "quantile",
    overrides: Mapping[str, str] | None = None,
    tokenizer: VideoTokenizer | None = None,
) -> Fitted:
    """Fits statistics, leads and, where none is given, the tokenizer on the training windows.

    Kinds of normalisation as in `fit_statistics`.
    """
    statistics = fit_statistics(list(windows.values()), normalization=normalization, overrides=overrides)
    names = sorted(statistics.action)
    specs = statistics.specs.values()
    action_dim = max((spec.model_action_dim for spec in specs), default=1)
    state_dim = max((spec.model_state_dim for spec in specs), default=1)
    lead, lead_r2 = {}, {}
    for name in names:
        own = [w for w in windows.values() if w.embodiment.name == name]
        lead[name], r2 = fit_lead(own, statistics, action_dim, state_dim)
        lead_r2[name] = np.asarray(r2).mean(0).tolist()
    if tokenizer is None:
        tokenizer = wan_tokenizer(config, _image_size(windows)) if config.path else _fit_pca(config, windows, cameras)
    hashes = {name: source.store.hash for name, source in windows.items()}
    return Fitted(statistics, tokenizer, lead, lead_r2, cameras, ("none", *names), hashes)


def _image_size(windows: Mapping[str, Windows]) -> tuple[int, int]:
    height, width = next(iter(windows.values()))[0]["frames"].shape[-3:-1]
    return height, width


def _fit_pca(config: TokenizerConfig, windows: Mapping[str, Windows], cameras: tuple[str, ...]) -> patch_pca.PatchPCA:
    r = config.frames_per_latent
    clips, camera = [], []
    per_source = max(1, config.fit_frames // ((1 + r) * len(windows)))
    for source in windows.values():
        for i in np.linspace(0, len(source) - 1, min(len(source), per_source)).astype(int):
            window = source[int(i)]
            for view in np.flatnonzero(window["view_mask"]):
                clips.append(window["frames"][view, : 1 + r])
                camera.append(window["camera"][view])
    # A window has several views: an even share of them keeps the number of frames as asked.
    chosen = np.linspace(0, len(clips) - 1, min(len(clips), config.fit_frames // (1 + r))).astype(int)
    return patch_pca.fit(config, np.stack([clips[i] for i in chosen]),
                         np.array([camera[i] for i in chosen]), len(cameras))  # fmt: skip


def set_constants(model: JointDiT, fitted: Fitted) -> None:
    """Writes what was fitted on data into the model's constants."""
    model.context_gain[...] = np.asarray(fitted.tokenizer.gain, np.float32)
    for row, name in enumerate(fitted.embodiments):
        if name == "none":
            continue
        _, action = fitted.statistics.normalizers(name)
        kinds = fitted.statistics.specs[name].model_action_kinds
        adds_up = np.array([kind == "delta" for kind in kinds], np.float32)
        lead = fitted.lead[name][: model.config.frames_per_chunk * model.config.frames_per_latent]
        model.embodiments.set(row, center=action.center, scale=action.scale, adds_up=adds_up, lead=lead)
