"""Windows of held-out stores as a checkpoint's model sees them; needs no simulator."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.mixture import stack
from data_pipelines.store import ClipStore
from data_pipelines.transforms import ToSample
from data_pipelines.windows import Windows
from experiments.recipe import window_config
from wam.batch import Batch
from wam.policy import Policy


def data_root(policy: Policy, workdir: Path) -> Path:
    """Where the stores of the checkpoint's run are."""
    root = policy.assets["config"]["data"]["root"]
    return Path(root) if root else workdir / "data"


def windows_of(policy: Policy, store: ClipStore, source: str) -> Windows:
    """A store cut as the run cut the source of this name."""
    data = policy.assets["config"]["data"]
    return Windows(store, window_config(data, policy.camera_table, source, control_hz=store.manifest["control_hz"]))


def batch_of(policy: Policy, windows: Windows, source: str, indices: Sequence[int]) -> Batch:
    """These windows as one batch, under the source's number in the run (0 for a store that it did not train on)."""
    names = [entry["spec"]["name"] for entry in policy.assets["embodiments"]]
    height, width = policy.tokenizer.image_size
    sample = ToSample(
        policy.config.batch_spec(height, width, policy.text_config.tokens),
        {source: windows},
        {name: policy.embodiment(name).normalizers for name in names if name != "none"},
        names,
        policy.encode_text,
    )
    batch = stack([sample(windows[i], 0) for i in indices])
    sources = policy.assets["sources"]
    batch["source"][:] = batch["sample_id"][:, 0] = sources.index(source) if source in sources else 0
    return batch


def check_held_out(held_out: ClipStore, train: ClipStore) -> None:
    """ValueError if a clip of one store has the states and actions of a clip of the other, whatever it is called."""
    shared = _contents(held_out) & _contents(train)
    if shared:
        raise ValueError(
            f"{len(shared)} of {len(held_out)} clips of {held_out.directory} are in {train.directory} too: an error "
            "on them would say nothing about new data; hold out other episodes"
        )


def _contents(store: ClipStore) -> set[str]:
    pairs = zip(store.index.state, store.index.action, strict=True)
    return {hashlib.sha256(s.tobytes() + a.tobytes()).hexdigest() for s, a in pairs if s is not None and a is not None}


def mean_action(windows: Windows) -> np.ndarray:
    """f64 [A]: mean of what the model is to predict, over the steps that may be copied; not normalised."""
    total, count = np.zeros(windows.embodiment.model_action_dim), 0
    for clip in range(len(windows.store)):
        anchors = windows.anchors(clip)
        if len(anchors):
            low_dim = windows.low_dim_of(clip, anchors)
            rows = low_dim["action"][low_dim["action_mask"] & low_dim["imitate"][..., None]]
            total, count = total + rows.sum(0, dtype=np.float64), count + len(rows)
    if not count:
        raise ValueError(f"{windows.store.directory} has no action that may be copied: it has no mean")
    return total / count
