"""The robots we know, by name, and whose robot a store is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def check_embodiment(where: object, manifest: Mapping[str, Any], spec: EmbodimentSpec) -> None:
    """Raises ValueError if the numbers of a store, `where`, are not of this robot."""
    for what in ("state_dim", "action_dim"):
        if manifest[what] != getattr(spec, what):
            raise ValueError(
                f"{where} has {what} {manifest[what]}, its embodiment {spec.name!r} declares {getattr(spec, what)}"
            )


def agree(specs: Iterable[tuple[str, EmbodimentSpec]]) -> dict[str, EmbodimentSpec]:
    """Name -> robot, of (source, robot). ValueError if two sources mean different robots by one name."""
    known: dict[str, tuple[str, EmbodimentSpec]] = {}
    for source, spec in specs:
        first, other = known.setdefault(spec.name, (source, spec))
        if other != spec:
            ours, theirs = spec.to_json(), other.to_json()
            field = next(key for key in ours if ours[key] != theirs[key])
            raise ValueError(
                f"the sources {first!r} and {source!r} declare the embodiment {spec.name!r} differently: its {field} "
                f"is {theirs[field]} and {ours[field]}; give one of the robots another name"
            )
    return {name: spec for name, (_, spec) in known.items()}
