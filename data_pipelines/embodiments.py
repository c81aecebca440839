"""The robots we know, by name. A store names its embodiment; its dimensions, kinds and rate are declared here."""

from __future__ import annotations

from wam.batch import NONE_EMBODIMENT, EmbodimentSpec

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
