"""Which features of which RLDS dataset are cameras, state, action and instruction: one entry a dataset.

Names, not meanings: everything is read in raw units, in the order given here. What the dimensions are is declared
with the embodiment. RLDS says nothing about time, so the control rates are those its authors publish.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class RldsLayout:
    """Keys below `steps/`; a camera is called by the last part of its key."""

    fps: float
    cameras: tuple[str, ...]
    state: tuple[str, ...]
    """concatenated; empty: none"""
    action: tuple[str, ...]
    """concatenated; empty: none"""
    instructions: tuple[str, ...]
    """the first that is not empty is the instruction, the others are paraphrases"""
    success_path: str = ""
    """feature below `episode_metadata/`, a path that contains the word "success" if the episode succeeded"""

    def __post_init__(self):
        if not self.cameras or self.fps <= 0:
            raise ValueError(f"an RLDS layout needs a camera and a control rate, got {self.cameras} at {self.fps} Hz")


def _observed(*names: str) -> tuple[str, ...]:
    return tuple(f"observation/{name}" for name in names)


def _acted(*names: str) -> tuple[str, ...]:
    return tuple(f"action/{name}" for name in names)


def _plain(fps: float, *cameras: str) -> RldsLayout:
    """The layout most converters write: one state, one action, one instruction."""
    return RldsLayout(fps, _observed(*cameras), _observed("state"), ("action",), ("language_instruction",))


_SPOKEN = _observed("natural_language_instruction")
_POSE = ("world_vector", "rotation_delta")
_DROID = RldsLayout(
    fps=15,
    cameras=_observed("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"),
    state=_observed("joint_position", "gripper_position"),
    action=("action_dict/joint_position", "action_dict/gripper_position"),
    instructions=("language_instruction", "language_instruction_2", "language_instruction_3"),
    success_path="file_path",
)

LAYOUTS: dict[str, RldsLayout] = {
    "droid": _DROID,
    "r2d2_faceblur": _DROID,  # what DROID's own files call it
    "bridge_dataset": _plain(5, "image_0", "image_1", "image_2", "image_3"),
    "libero_spatial_no_noops": _plain(20, "image", "wrist_image"),
    "libero_object_no_noops": _plain(20, "image", "wrist_image"),
    "libero_goal_no_noops": _plain(20, "image", "wrist_image"),
    "libero_10_no_noops": _plain(20, "image", "wrist_image"),
    # Open X-Embodiment
    "fractal20220817_data": RldsLayout(
        fps=3,
        cameras=_observed("image"),
        state=_observed("base_pose_tool_reached", "gripper_closed"),
        action=_acted(*_POSE, "gripper_closedness_action"),
        instructions=_SPOKEN,
    ),
    "taco_play": RldsLayout(
        fps=15,
        cameras=_observed("rgb_static", "rgb_gripper"),
        state=_observed("robot_obs"),
        action=_acted("rel_actions_world"),
        instructions=_SPOKEN,
    ),
    "jaco_play": RldsLayout(
        fps=10,
        cameras=_observed("image", "image_wrist"),
        state=_observed("end_effector_cartesian_pos"),
        action=_acted("world_vector", "gripper_closedness_action"),
        instructions=_SPOKEN,
    ),
    "berkeley_cable_routing": RldsLayout(
        fps=10,
        cameras=_observed("image", "top_image", "wrist45_image", "wrist225_image"),
        state=_observed("robot_state"),
        action=_acted(*_POSE),
        instructions=_SPOKEN,
    ),
    "berkeley_autolab_ur5": RldsLayout(
        fps=5,
        cameras=_observed("image", "hand_image"),
        state=_observed("robot_state"),
        action=_acted(*_POSE, "gripper_closedness_action"),
        instructions=_SPOKEN,
    ),
    "nyu_door_opening_surprising_effectiveness": RldsLayout(
        fps=3,
        cameras=_observed("image"),
        state=(),
        action=_acted(*_POSE, "gripper_closedness_action"),
        instructions=_SPOKEN,
    ),
    "roboturk": RldsLayout(
        fps=10,
        cameras=_observed("front_rgb"),
        state=(),
        action=_acted(*_POSE, "gripper_closedness_action"),
        instructions=_SPOKEN,
    ),
    "toto": RldsLayout(
        fps=30,
        cameras=_observed("image"),
        state=_observed("state"),
        action=_acted(*_POSE, "open_gripper"),
        instructions=_SPOKEN,
    ),
    "viola": RldsLayout(
        fps=20,
        cameras=_observed("agentview_rgb", "eye_in_hand_rgb"),
        state=_observed("joint_states", "gripper_states"),
        action=_acted(*_POSE, "gripper_closedness_action"),
        instructions=_SPOKEN,
    ),
    "language_table": RldsLayout(
        fps=10,
        cameras=_observed("rgb"),
        state=_observed("effector_translation"),
        action=("action",),
        instructions=_observed("instruction"),
    ),
    "austin_buds_dataset_converted_externally_to_rlds": _plain(20, "image", "wrist_image"),
    "austin_sailor_dataset_converted_externally_to_rlds": _plain(20, "image", "wrist_image"),
    "austin_sirius_dataset_converted_externally_to_rlds": _plain(20, "image", "wrist_image"),
    "berkeley_fanuc_manipulation": _plain(10, "image", "wrist_image"),
    "cmu_stretch": _plain(10, "image"),
    "furniture_bench_dataset_converted_externally_to_rlds": _plain(10, "image", "wrist_image"),
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": _plain(20, "image", "wrist_image"),
    "nyu_franka_play_dataset_converted_externally_to_rlds": _plain(3, "image", "image_additional_view"),
    "stanford_hydra_dataset_converted_externally_to_rlds": _plain(10, "image", "wrist_image"),
    "ucsd_kitchen_dataset_converted_externally_to_rlds": _plain(2, "image"),
    "utaustin_mutex": _plain(20, "image", "wrist_image"),
}
