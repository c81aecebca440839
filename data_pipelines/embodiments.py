"""The robots we know, by name, and whose robot a store is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wam.embodiment import NONE_EMBODIMENT, EmbodimentSpec

EMBODIMENTS: dict[str, EmbodimentSpec] = {
    spec.name: spec
    for spec in (
        NONE_EMBODIMENT,
        EmbodimentSpec(
            name="sawyer_metaworld",
            action_kinds=("delta", "delta", "delta", "gripper"),
            action_names=("dx", "dy", "dz", "gripper"),
            state_names=("hand_x", "hand_y", "hand_z", "gripper_opening"),
            control_hz=80.0,
        ),
    )
}


def get_embodiment(name: str) -> EmbodimentSpec:
    """Raises ValueError if nobody declared the embodiment."""
    if name not in EMBODIMENTS:
        raise ValueError(f"unknown embodiment {name!r}: declare it in {__name__}, known are {sorted(EMBODIMENTS)}")
    return EMBODIMENTS[name]


def embodiment_of_store(manifest: Mapping[str, Any]) -> EmbodimentSpec:
    """The robot that a store's manifest describes, or else names. ValueError if nobody knows it, or it is malformed."""
    spec = manifest.get("embodiment_spec")
    return get_embodiment(manifest["embodiment"]) if spec is None else EmbodimentSpec.from_json(spec)
