"""EgoDex: egocentric video (mp4) with poses of camera and hands (HDF5), one pair of files an episode.

    <task>/<n>.mp4
    <task>/<n>.hdf5    camera/intrinsic [3, 3]
                       transforms/<joint> [N, 4, 4], joint to world, metres; transforms/camera among them
                       confidences/<joint> [N], not in every file
                       attributes llm_description, llm_description2, which_llm_description, llm_type

It is read as video without actions, or, with `hands=True`, as an embodiment of two hands: the pose of each wrist and
the positions of its five fingertips, 48 numbers, as in the paper (arXiv 2505.11709).
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

import h5py
import numpy as np

from data_pipelines.sources.faults import blamed_on, natural
from data_pipelines.sources.hands import JOINTS, SIDES
from data_pipelines.sources.hdf5 import attribute, dataset, open_hdf5
from data_pipelines.sources.source import About, LowDim, check_lowdim
from data_pipelines.sources.video import FrameIndex, Videos

CAMERA = "ego"


class EgoDex:
    """All pairs of files below a folder.

    `LowDim.extra` holds "transforms/camera", "transforms/<joint>" [N, 4, 4] of the wrists and fingertips, in the world
    frame of the recording, and "confidences/<joint>" [N] where the file has them. Further joints: `joints`.

    Args:
        directory: a part of the dataset, or the whole of it.
        hands: give state and action of the hands (`hands.HAND_NAMES`), see `hand_poses`.
        joints: the joints in `LowDim.extra`.

    Raises:
        FileNotFoundError: no .hdf5 file below the folder.
    """

    def __init__(self, directory, *, hands: bool = False, joints: Sequence[str] = JOINTS):
        self.directory = pathlib.Path(directory)
        self.name = self.directory.name
        self.hands, self.joints = hands, tuple(joints)
        self._paths = sorted(self.directory.rglob("*.hdf5"), key=lambda path: natural(str(path)))
        if not self._paths:
            raise FileNotFoundError(f"{self.directory} holds no .hdf5 file")
        self.problems: list[str] = []
        alone = {path.with_suffix("") for path in self.directory.rglob("*.mp4")} - {
            p.with_suffix("") for p in self._paths
        }
        if alone:
            self.problems.append(f"{len(alone)} .mp4 files have no .hdf5 file, such as {min(alone)}.mp4")
        self._videos = Videos()

    def __len__(self) -> int:
        return len(self._paths)

    @contextlib.contextmanager
    def _opened(self, i: int) -> Iterator[tuple[str, h5py.File, FrameIndex]]:
        path = self._paths[i]
        episode = path.relative_to(self.directory).with_suffix("").as_posix()
        with blamed_on(episode):
            video = path.with_suffix(".mp4")
            if not video.is_file():
                raise ValueError(f"{path.name} has no video {video}")
            index = self._videos.index(video)
            with open_hdf5(path) as file:
                frames = len(self._transforms(file, "camera"))
                if not frames:
                    raise ValueError(f"{path} has no frames")
                if frames != len(index):
                    raise ValueError(f"{path} has poses of {frames} frames, {video.name} has {len(index)} frames")
                yield episode, file, index

    def _transforms(self, file: h5py.File, joint: str) -> h5py.Dataset:
        array = dataset(file, f"transforms/{joint}")
        if array.shape[1:] != (4, 4):
            raise ValueError(f"'transforms/{joint}' of {file.filename} must be [N, 4, 4], got {list(array.shape)}")
        return array

    def about(self, i: int) -> About:
        with self._opened(i) as (episode, file, index):
            intrinsic = dataset(file, "camera/intrinsic")[()]
            if intrinsic.shape != (3, 3) or not np.isfinite(intrinsic).all():
                raise ValueError(f"'camera/intrinsic' of {file.filename} must be finite [3, 3]")
            if index.fps is None:
                raise ValueError(f"{self._paths[i].with_suffix('.mp4')} has a single frame and so no frame rate")
            return About(
                episode=episode,
                frames=len(index),
                fps=index.fps,
                cameras={CAMERA: index.size},
                instruction=_instruction(file),
                task=self._paths[i].parent.name,
                extra={"intrinsic": intrinsic.tolist()},
            )

    def lowdim(self, i: int) -> LowDim:
        with self._opened(i) as (episode, file, index):
            wanted = dict.fromkeys(("camera", *self.joints, *(JOINTS if self.hands else ())))
            poses = {joint: np.asarray(self._transforms(file, joint)[()], np.float32) for joint in wanted}
            extra = {f"transforms/{joint}": pose for joint, pose in poses.items()}
            if "confidences" in file:
                for joint in self.joints:
                    confidence = np.asarray(dataset(file, f"confidences/{joint}")[()], np.float32)
                    extra[f"confidences/{joint}"] = confidence
            check_lowdim(episode, len(index), LowDim(None, None, extra))
            state = action = None
            if self.hands:
                state, action = hand_poses(poses)
            return check_lowdim(episode, len(index), LowDim(state, action, extra))

    def frames(self, i: int, camera: str, which: Sequence[int]) -> np.ndarray:
        if camera != CAMERA:
            raise ValueError(f"{self.name} has no camera {camera!r}, only {CAMERA!r}")
        with self._opened(i) as (_, _, index):
            return self._videos.read(self._paths[i].with_suffix(".mp4"), index, which)


def _instruction(file: h5py.File) -> str:
    """A reversible task has two descriptions, one a direction."""
    which = attribute(file, "which_llm_description")
    second = attribute(file, "llm_type") in (None, "reversible") and which is not None and which.strip() == "2"
    name = "llm_description2" if second else "llm_description"
    text = attribute(file, name)
    if text is None:
        raise ValueError(f"{file.filename} has no attribute {name!r}")
    return text.strip()


def _inverse(poses: np.ndarray) -> np.ndarray:
    """Of rigid motions [N, 4, 4]."""
    rotation = poses[:, :3, :3].swapaxes(1, 2)
    inverse = np.zeros_like(poses)
    inverse[:, :3, :3], inverse[:, 3, 3] = rotation, 1
    inverse[:, :3, 3] = -np.einsum("nij,nj->ni", rotation, poses[:, :3, 3])
    return inverse


def hand_poses(poses: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """State and action of two hands, f32 [N, 48] each, from poses f32 [N, 4, 4] in the world frame, in metres.

    State t are the hands at frame t as the camera of frame t sees them; action t are the hands at frame t + 1, still in
    the camera of frame t, so that an observer can act on it. The last action holds the last state. A rotation is given
    by its first two columns (rot6d).

    Raises ValueError if a wrist or the camera is not a rigid motion.
    """
    for joint in ("camera", *(f"{side}Hand" for side in SIDES)):
        rotation = poses[joint][:, :3, :3]
        error = np.abs(rotation.swapaxes(1, 2) @ rotation - np.eye(3, dtype=np.float32)).max((1, 2))
        if (bad := np.flatnonzero((error > 1e-2) | (np.linalg.det(rotation) < 0))).size:
            raise ValueError(f"'transforms/{joint}' is not a rigid motion at frame {bad[0]}")
    to_camera = _inverse(poses["camera"])
    following = np.minimum(np.arange(len(to_camera)) + 1, len(to_camera) - 1)

    def seen(frame: np.ndarray) -> np.ndarray:
        parts = []
        for joint in JOINTS:
            pose = to_camera @ poses[joint][frame]
            parts.append(pose[:, :3, 3])
            if joint.endswith("Hand"):
                parts += [pose[:, :3, 0], pose[:, :3, 1]]
        return np.concatenate(parts, 1).astype(np.float32)

    return seen(np.arange(len(to_camera))), seen(following)
