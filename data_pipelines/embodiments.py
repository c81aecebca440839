"""The robots we know, by name, and whose robot a store is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from data_pipelines.sources.hands import HAND_NAMES, SIDES
from wam.embodiment import NONE_EMBODIMENT, EmbodimentSpec, Gripper, Rotation

GR1_PARTS = {"left_arm": 7, "left_hand": 6, "left_leg": 6, "neck": 3,
              "right_arm": 7, "right_hand": 6, "right_leg": 6, "waist": 3}  # fmt: skip


def _gr1(name: str, *relative: str) -> EmbodimentSpec:
    """Fourier GR-1: joint targets, absolute but for the parts named.

    The hands are commanded in other units than they are measured in, so their targets stay absolute.
    """
    names = tuple(f"{part}_{k}" for part, size in GR1_PARTS.items() for k in range(size))
    kinds = tuple("relative" if dim.rpartition("_")[0] in relative else "absolute" for dim in names)
    return EmbodimentSpec(name, kinds, names, names, control_hz=20.0)


def _droid(name: str, kind: str) -> EmbodimentSpec:
    """Franka with a Robotiq gripper: targets of seven joints, and the gripper from 0 (open) to 1 (closed)."""
    names, grippers = (*(f"joint_{k}" for k in range(7)), "gripper"), (Gripper("gripper", open=0.0, closed=1.0),)
    return EmbodimentSpec(name, (kind,) * 7 + ("gripper",), names, names, control_hz=15.0, state_grippers=grippers,
                          action_grippers=grippers)  # fmt: skip


def _robosuite(name: str, turn: Rotation, *fingers: str) -> EmbodimentSpec:
    """Panda under operational space control.

    Actions are steps in position and, as a rotation vector, in orientation, both in the controller's units; the gripper
    is told to open by -1 and to close by 1.
    """
    delta = ("drx", "dry", "drz")
    return EmbodimentSpec(
        name,
        action_kinds=("delta",) * 6 + ("gripper",),
        state_names=("x", "y", "z", *turn.dims, *fingers),
        action_names=("dx", "dy", "dz", *delta, "gripper"),
        control_hz=20.0,
        state_rotations=(turn,),
        action_rotations=(Rotation("turn", delta, "rotation_vector"),),
        action_grippers=(Gripper("gripper", open=-1.0, closed=1.0),),
    )


_HANDS = tuple(Rotation(f"{side}Hand", tuple(f"{side}Hand_rot6d_{k}" for k in range(6)), "rot6d") for side in SIDES)

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
        # The state's roll, pitch and yaw are taken from a rest pose, far from where they wrap, so they stay angles.
        EmbodimentSpec(
            name="widowx_bridge",
            action_kinds=("delta",) * 6 + ("gripper",),
            action_names=("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"),
            state_names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
            control_hz=5.0,
            state_grippers=(Gripper("gripper", open=1.0, closed=0.0),),
            action_grippers=(Gripper("gripper", open=1.0, closed=0.0),),
        ),
        _gr1("gr1"),
        _gr1("gr1_relative", "left_arm", "right_arm"),
        _droid("franka_droid", "relative"),
        _droid("franka_droid_absolute", "absolute"),
        _robosuite("panda_libero", Rotation("hand", ("rx", "ry", "rz"), "rotation_vector"), "finger_0", "finger_1"),
        _robosuite(
            "panda_robomimic", Rotation("hand", ("qx", "qy", "qz", "qw"), "quaternion_xyzw"), "finger_0", "finger_1"
        ),
        EmbodimentSpec(
            name="xarm_language_table",
            action_kinds=("delta", "delta"),
            action_names=("dx", "dy"),
            state_names=("x", "y"),
            control_hz=10.0,
        ),
        # Two human hands as the camera of the same frame sees them; each action is where they are a frame later.
        EmbodimentSpec(
            name="human_hands",
            action_kinds=("absolute",) * len(HAND_NAMES),
            action_names=HAND_NAMES,
            state_names=HAND_NAMES,
            control_hz=30.0,
            state_rotations=_HANDS,
            action_rotations=_HANDS,
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
