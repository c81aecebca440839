"""Recording one episode of a simulated robot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from data_pipelines.episode import Episode
from wam.embodiment import EmbodimentSpec


class Env(Protocol):
    """What collection needs of a simulator."""

    task: str
    spec: EmbodimentSpec

    @property
    def instruction(self) -> str: ...

    @property
    def workspace(self) -> np.ndarray:
        """[2, n]: bounds of the first n state dimensions, those that the first n (`delta`) action dimensions move."""

    def sample_layouts(self, seed: int, n: int) -> np.ndarray: ...

    def reset(self, layout: np.ndarray) -> np.ndarray: ...

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]: ...

    def render(self) -> dict[str, np.ndarray]: ...

    def expert_action(self) -> np.ndarray: ...

    def close(self) -> None: ...


class Recorder:
    """Steps an environment that has been reset, and keeps what happens.

    Attributes:
        state: the current state, f32 [S].
        steps: control steps recorded.
        success_step: number of steps after which the task was first solved; -1: not yet.
    """

    def __init__(self, env: Env, state: np.ndarray, frame_stride: int):
        self._env, self._stride = env, frame_stride
        self._states, self._actions, self._imitate = [state], [], []
        self._frame_step: list[int] = []
        self._images: list[dict[str, np.ndarray]] = []
        self.success_step = -1
        self._film()

    @property
    def state(self) -> np.ndarray:
        return self._states[-1]

    @property
    def steps(self) -> int:
        return len(self._actions)

    def step(self, action: np.ndarray, *, imitate: bool) -> None:
        """One control step; `imitate`: may it be copied?"""
        action = np.clip(action, -1, 1).astype(np.float32)
        state, success = self._env.step(action)
        self._states.append(state)
        self._actions.append(action)
        self._imitate.append(imitate)
        if success and self.success_step < 0:
            self.success_step = self.steps
        self._film()

    def _film(self) -> None:
        if self.steps % self._stride == 0:
            self._images.append(self._env.render())
            self._frame_step.append(self.steps)

    def images(self) -> dict[str, np.ndarray]:
        """What the cameras see now; what was filmed at this step is not rendered again."""
        return self._images[-1] if self._frame_step[-1] == self.steps else self._env.render()

    def film_end(self) -> None:
        """Keeps a frame of the current step, whatever the stride: how an episode ends is worth seeing."""
        images = self.images()
        if self._frame_step[-1] < self.steps:
            self._images.append(images)
            self._frame_step.append(self.steps)

    def episode(self, kind: str, meta: Mapping[str, Any]) -> Episode:
        """The episode so far; without success, none of its steps is to be imitated."""
        imitate = np.array(self._imitate, bool)
        if self.success_step < 0:
            imitate[:] = False
        env = self._env
        return Episode(
            frames={camera: np.stack([image[camera] for image in self._images]) for camera in self._images[0]},
            frame_step=np.array(self._frame_step, np.int32),
            state=np.stack(self._states).astype(np.float32),
            action=np.stack(self._actions),
            imitate=imitate,
            meta={
                "task": env.task,
                "instruction": env.instruction,
                "embodiment": env.spec.name,
                "kind": kind,
                "control_hz": env.spec.control_hz,
                "success_step": self.success_step,
                **meta,
            },
        )
