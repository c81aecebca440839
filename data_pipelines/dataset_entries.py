"""The datasets we know, an entry each. Where their arrays lie on disk is the business of `sources`.

Run `Dataset.check` on your copy before you trust an entry: there are several conversions of most datasets about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from data_pipelines.dataset import Dataset
from data_pipelines.embodiments import GR1_PARTS, get_embodiment
from data_pipelines.sources.rlds_layouts import LAYOUTS
from data_pipelines.sources.source import Source

Opener = Callable[..., Source]


def _video(path: Any, **options: Any) -> Source:
    from data_pipelines.sources.video_folder import VideoFolder

    return VideoFolder(path, **options)


def _epic_kitchens(path: Any, **options: Any) -> Source:
    from data_pipelines.sources.video_folder import EPIC_KITCHENS

    return _video(path, **{"columns": EPIC_KITCHENS} | options)


def _rlds(layout: str) -> Opener:
    def open_(path: Any, **options: Any) -> Source:
        from data_pipelines.sources.rlds import Rlds

        return Rlds(path, **{"layout": layout} | options)

    return open_


def _lerobot(instruction: str, state: Sequence[str] | None = None, action: Sequence[str] | None = None) -> Opener:
    def open_(path: Any, **options: Any) -> Source:
        from data_pipelines.sources.lerobot import LeRobot

        return LeRobot(path, **{"instruction": instruction, "state": state, "action": action} | options)

    return open_


def _hdf5(layout: str) -> Opener:
    def open_(path: Any, **options: Any) -> Source:
        from data_pipelines.sources.hdf5 import Hdf5Demos

        return Hdf5Demos(path, **{"layout": layout} | options)

    return open_


def _egodex(hands: bool) -> Opener:
    def open_(path: Any, **options: Any) -> Source:
        from data_pipelines.sources.egodex import EgoDex

        return EgoDex(path, **{"hands": hands} | options)

    return open_


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_DROID_CAMERAS = {
    "exterior_1": "exterior_image_1_left",
    "exterior_2": "exterior_image_2_left",
    "wrist": "wrist_image_left",
}
_DROID_PARTS = ("joint_position", "gripper_position")
_LEROBOT_DROID = _lerobot("language.language_instruction", _DROID_PARTS, _DROID_PARTS)
_GR1 = _lerobot("human.action.task_description", tuple(GR1_PARTS), tuple(GR1_PARTS))
_LIBERO_RLDS = ("libero_spatial_no_noops", "libero_object_no_noops", "libero_goal_no_noops", "libero_10_no_noops")


def _droid(name: str, opener: Opener, kind: str) -> Dataset:
    # Not every episode has an instruction.
    return Dataset(name, opener, get_embodiment(kind), _DROID_CAMERAS, wrist=("wrist",), spoken=False)


def _libero(name: str, opener: Opener, front: str, wrist: str) -> Dataset:
    return Dataset(name, opener, get_embodiment("panda_libero"), {"front": front, "wrist": wrist}, wrist=("wrist",))


_ENTRIES = (
    Dataset("video", _video, spoken=False),
    Dataset("epic_kitchens", _epic_kitchens),
    # Bridge V2. All episodes have image_0; where the others were not there, their frames are black. Many episodes have
    # no instruction. To confirm on your copy: whether image_3 is the wrist's, and so belongs into `wrist`.
    Dataset(
        "bridge", _rlds("bridge_dataset"), get_embodiment("widowx_bridge"),
        _same("image_0", "image_1", "image_2", "image_3"), spoken=False,
    ),
    # GR00T's simulated GR-1 sets. One camera; joint targets. "gr1_relative": the same files, of whose arms the model
    # sees targets relative to the chunk's start.
    Dataset("gr1", _GR1, get_embodiment("gr1"), _same("ego_view")),
    Dataset("gr1_relative", _GR1, get_embodiment("gr1_relative"), _same("ego_view")),
    # DROID: the same targets of joints, seen relative to the chunk's start (as DreamZero does) or absolute.
    _droid("droid", _rlds("droid"), "franka_droid"),
    _droid("droid_absolute", _rlds("droid"), "franka_droid_absolute"),
    _droid("droid_lerobot", _LEROBOT_DROID, "franka_droid"),
    _droid("droid_lerobot_absolute", _LEROBOT_DROID, "franka_droid_absolute"),
    _libero("libero", _hdf5("libero"), "agentview_rgb", "eye_in_hand_rgb"),
    # To confirm on your copy: that the gripper is still -1 for open, and which way up the images are.
    *(_libero(name, _rlds(name), "image", "wrist_image") for name in _LIBERO_RLDS),
    # Files of simulated tasks on one Panda; no language, but `open` takes an `instruction`.
    Dataset(
        "robomimic", _hdf5("robomimic"), get_embodiment("panda_robomimic"),
        {"front": "agentview_image", "wrist": "robot0_eye_in_hand_image"}, wrist=("wrist",), spoken=False,
    ),
    Dataset("language_table", _rlds("language_table"), get_embodiment("xarm_language_table"), _same("rgb")),
    Dataset("egodex", _egodex(hands=False), cameras=_same("ego")),
    Dataset("egodex_hands", _egodex(hands=True), get_embodiment("human_hands"), _same("ego")),
)  # fmt: skip
_KNOWN_ROBOTS = {"droid", "r2d2_faceblur", "bridge_dataset", "language_table", *_LIBERO_RLDS}

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        *_ENTRIES,
        # Open X-Embodiment: read as video. Their layouts name state and action, too, but what each dimension means,
        # which way the gripper goes and what the rotations are in, nobody has confirmed here: copy the entry into
        # a file of your own, with the `robot` that you have verified.
        *(
            Dataset(name, _rlds(name), cameras=_same(*(key.rpartition("/")[2] for key in layout.cameras)), spoken=False)
            for name, layout in LAYOUTS.items()
            if name not in _KNOWN_ROBOTS
        ),
    )
}
