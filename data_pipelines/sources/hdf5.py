"""robomimic and LIBERO: demonstrations as groups of an HDF5 file, images as arrays.

data                     attributes: env_args (JSON), problem_info (JSON, LIBERO), macros_image_convention (LIBERO)
data/demo_0/actions      [N, A]
data/demo_0/obs/<name>   [N, ...]: cameras uint8 [N, h, w, 3], everything else numbers
mask/<name>              names of demonstrations (robomimic): train, valid, ...
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np

from data_pipelines.sources.faults import blamed_on, frame_numbers, natural, utf8
from data_pipelines.sources.source import About, LowDim, check_lowdim


@dataclasses.dataclass(frozen=True)
class Hdf5Layout:
    """Names below `obs/`, read in this order."""

    cameras: tuple[str, ...]
    state: tuple[str, ...]
    """concatenated; empty: none"""
    seen_after: bool = False
    """obs[t] was seen after actions[t] and not before: frame t then belongs to actions[t + 1], and the last to none"""


LAYOUTS = {
    "robomimic": Hdf5Layout(
        cameras=("agentview_image", "robot0_eye_in_hand_image"),
        state=("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),
    ),
    # The released files were made by stepping the simulator first and recording what it showed then.
    "libero": Hdf5Layout(
        cameras=("agentview_rgb", "eye_in_hand_rgb"),
        state=("ee_states", "gripper_states"),
        seen_after=True,
    ),
}


@contextlib.contextmanager
def open_hdf5(path: pathlib.Path) -> Iterator[h5py.File]:
    """For reading; what HDF5 stumbles over becomes a ValueError that names the file."""
    try:
        # Locks protect from writers, and many network file systems refuse them.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """Raises ValueError if the group has no array of this name."""
    found = group.get(name)
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{group.file.filename} has no array '{group.name.rstrip('/')}/{name}'")
    return found


def attribute(group: h5py.Group, name: str) -> str | None:
    """A text attribute; None if there is none, ValueError if it is not UTF-8."""
    value = group.attrs.get(name)
    where = f"the attribute {name!r} of {group.file.filename}"
    return None if value is None else utf8(value if isinstance(value, (bytes, str)) else str(value), where)


def numbers(array: h5py.Dataset) -> np.ndarray:
    """f32 [N, dims] of an array of numbers [N, ...]."""
    if array.dtype.kind not in "fiub" or not array.ndim:
        raise ValueError(f"'{array.name}' of {array.file.filename} does not hold numbers but {array.dtype}")
    return np.asarray(array[()], np.float32).reshape(len(array), int(np.prod(array.shape[1:])))


@dataclasses.dataclass(frozen=True)
class _File:
    """What a file says about all its demonstrations."""

    path: pathlib.Path
    demos: tuple[str, ...] = ()
    fps: float = 0.0
    task: str = ""
    instruction: str = ""
    bottom_up: bool = False
    damage: str = ""
    """why none of it can be used"""


class Hdf5Demos:
    """The demonstrations of one file, or of all .hdf5 files of a folder. A file that cannot be used is one bad episode.

    Args:
        path: the file or folder.
        layout: an `Hdf5Layout` or the name of one in `LAYOUTS`.
        mask: only the demonstrations that `mask/<mask>` names.
        fps: control rate, for files that do not give it (env_args/env_kwargs/control_freq).
        instruction: for files that hold none (problem_info/language_instruction).

    Raises:
        FileNotFoundError: no such file, or no .hdf5 file in the folder.
        ValueError: unknown layout, or no file of which a demonstration can be used.
    """

    def __init__(
        self,
        path,
        layout: Hdf5Layout | str,
        *,
        mask: str | None = None,
        fps: float | None = None,
        instruction: str = "",
    ):
        path = pathlib.Path(path)
        if isinstance(layout, str):
            if layout not in LAYOUTS:
                raise ValueError(f"there is no HDF5 layout {layout!r}: pass an Hdf5Layout, or one of {sorted(LAYOUTS)}")
            layout = LAYOUTS[layout]
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        paths = [path] if path.is_file() else sorted(path.rglob("*.hdf5"), key=lambda file: natural(str(file)))
        if not paths:
            raise FileNotFoundError(f"{path} holds no .hdf5 file")
        self.name, self.layout = path.stem, layout
        self.problems: list[str] = []
        self._root = path.parent if path.is_file() else path
        self._episodes: list[tuple[_File, str]] = []
        for found in paths:
            file = self._read_file(found, mask, fps, instruction)
            self._episodes += [(file, demo) for demo in file.demos or ("",)]
        if all(file.damage for file, _ in self._episodes):
            raise ValueError(self._episodes[0][0].damage)

    def _read_file(self, path: pathlib.Path, mask: str | None, fps: float | None, instruction: str) -> _File:
        try:
            with open_hdf5(path) as file:
                data = file.get("data")
                if not isinstance(data, h5py.Group) or not len(data):
                    raise ValueError(f"{path} has no group 'data' with demonstrations")
                demos = sorted(data, key=natural)
                if mask is not None:
                    named = {utf8(name, f"mask/{mask} of {path}") for name in dataset(file, f"mask/{mask}")[()]}
                    if gone := sorted(named - set(demos)):
                        self.problems.append(f"{path.name}: mask/{mask} names {len(gone)} demonstrations that are gone")
                    demos = [demo for demo in demos if demo in named]
                    if not demos:
                        raise ValueError(f"{path}: mask/{mask} names no demonstration")
                args = _json_attribute(data, "env_args")
                rate = args.get("env_kwargs", {}).get("control_freq", fps)
                if not isinstance(rate, int | float) or rate <= 0:
                    raise ValueError(f"{path} gives no control rate (control_freq in env_args): pass fps")
                said = _json_attribute(data, "problem_info").get("language_instruction", instruction)
                return _File(
                    path,
                    tuple(demos),
                    float(rate),
                    said or str(args.get("env_name", path.stem)),
                    said,
                    attribute(data, "macros_image_convention") == "opengl",
                )
        except ValueError as error:
            return _File(path, damage=str(error))

    def __len__(self) -> int:
        return len(self._episodes)

    @contextlib.contextmanager
    def _demo(self, i: int) -> Iterator[tuple[str, _File, h5py.Group, int]]:
        """(episode, file, group, number of frames)."""
        file, demo = self._episodes[i]
        episode = f"{file.path.relative_to(self._root).with_suffix('').as_posix()}/{demo}"
        with blamed_on(episode):
            if file.damage:
                raise ValueError(file.damage)
            with open_hdf5(file.path) as opened:
                group = opened.get(f"data/{demo}")
                if not isinstance(group, h5py.Group):
                    raise ValueError(f"{file.path} has no group 'data/{demo}'")
                rows = len(dataset(group, "actions"))
                frames = rows - self.layout.seen_after
                if frames < 1:
                    raise ValueError(f"{rows} rows of actions in {file.path} leave no frame")
                yield episode, file, group, frames

    def _array(self, group: h5py.Group, name: str) -> h5py.Dataset:
        """An observation, with as many rows as there are actions."""
        array, rows = dataset(group, f"obs/{name}"), len(group["actions"])
        if not array.ndim or len(array) != rows:
            raise ValueError(f"'{array.name}' of {group.file.filename} is {list(array.shape)} for {rows} actions")
        return array

    def _camera(self, group: h5py.Group, name: str) -> h5py.Dataset:
        array = self._array(group, name)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
            raise ValueError(
                f"'{array.name}' of {group.file.filename} must be uint8 [N, h, w, 3], got "
                f"{array.dtype}{list(array.shape)}"
            )
        return array

    def about(self, i: int) -> About:
        with self._demo(i) as (episode, file, group, frames):
            cameras = {name: self._camera(group, name).shape[1:3] for name in self.layout.cameras}
            said, rows = attribute(group, "num_samples"), len(group["actions"])
            problem = f"{episode}: num_samples is {said}, there are {rows} actions"
            if said is not None and said != str(rows) and problem not in self.problems:
                self.problems.append(problem)
            success = bool((dataset(group, "rewards")[()] > 0).any()) if "rewards" in group else None
            return About(episode, frames, file.fps, cameras, file.instruction, file.task, success)

    def lowdim(self, i: int) -> LowDim:
        with self._demo(i) as (episode, _, group, frames):
            action = numbers(dataset(group, "actions"))[len(dataset(group, "actions")) - frames :]
            parts = [numbers(self._array(group, name)) for name in self.layout.state]
            state = np.concatenate(parts, 1)[:frames] if parts else None
            return check_lowdim(episode, frames, LowDim(state, action))

    def frames(self, i: int, camera: str, which: Sequence[int]) -> np.ndarray:
        if camera not in self.layout.cameras:
            raise ValueError(f"{self.name} has no camera {camera!r}, only {sorted(self.layout.cameras)}")
        with self._demo(i) as (episode, file, group, frames):
            array = self._camera(group, camera)
            rows, place = np.unique(np.array(frame_numbers(which, frames, episode), np.int64), return_inverse=True)
            if not len(rows):
                return np.empty((0, *array.shape[1:]), np.uint8)
            stretch = len(rows) == rows[-1] - rows[0] + 1
            images = array[rows[0] : rows[-1] + 1] if stretch else array[rows]
            return np.ascontiguousarray((images[:, ::-1] if file.bottom_up else images)[place])


def _json_attribute(group: h5py.Group, name: str) -> dict[str, Any]:
    """A JSON object; empty if the attribute is not there."""
    text = attribute(group, name)
    try:
        value = json.loads(text) if text is not None else {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"the attribute {name!r} of {group.file.filename} is not a JSON object")
    return value
