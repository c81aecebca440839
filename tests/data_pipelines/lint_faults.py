"""A clean data set in memory, and the means to give it exactly one fault."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np

from data_pipelines.datasets import Dataset
from data_pipelines.lint.episodes import ForeignEpisodes
from data_pipelines.lint.survey import survey
from data_pipelines.sources.source import About, BadEpisode, LowDim
from wam.embodiment import NONE_EMBODIMENT, EmbodimentSpec

HZ, STEPS, EPISODES = 10.0, 60, 8
ROBOT = EmbodimentSpec(
    name="tester",
    action_kinds=("delta", "delta", "absolute", "gripper"),
    action_names=("dx", "dy", "angle", "gripper"),
    state_names=("x", "y", "angle", "gripper_opening"),
    control_hz=HZ,
)
TASKS = ("pick up the cup", "open the drawer", "close the door", "push the block")


@dataclasses.dataclass
class Memory:
    """A `Source` whose every part can be reached, and broken."""

    abouts: list[About]
    states: list[np.ndarray | None]
    actions: list[np.ndarray | None]
    pixels: list[dict[str, np.ndarray]]
    times: list[np.ndarray]
    bad: dict[int, str] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    name: str = "memory"

    def __len__(self) -> int:
        return len(self.abouts)

    def about(self, i):
        if i in self.bad:
            raise BadEpisode(self.bad[i])
        return self.abouts[i]

    def lowdim(self, i):
        return LowDim(self.states[i], self.actions[i], {"timestamp": self.times[i]})

    def frames(self, i, camera, which):
        return self.pixels[i][camera][list(which)]


def clean(seed: int = 0, episodes: int = EPISODES) -> Memory:
    """Smooth, busy movement; deltas that lead where the state goes; a gripper that follows; two cameras that see it."""
    rng = np.random.default_rng(seed)
    made = Memory([], [], [], [], [])
    t = np.arange(STEPS + 1) / HZ
    for i in range(episodes):
        phase, rate = rng.uniform(0, 2 * np.pi, 3), rng.uniform(1.5, 2.5, 3)
        path = np.sin(rate * t[:, None] + phase) + 0.3 * np.sin(2.3 * rate * t[:, None] + 2 * phase)
        command = np.where(np.sin(1.4 * t + phase[0]) > 0, 1.0, -1.0)
        opening = np.concatenate([[0.5], 0.5 + 0.5 * command[:-1]])
        state = np.column_stack([path, opening])[:STEPS].astype(np.float32)
        noise = rng.normal(0, 0.004, (STEPS, 3))
        moves = np.diff(path[:, :2], axis=0)
        action = np.column_stack([moves + noise[:, :2], path[1:, 2] + noise[:, 2], command[:STEPS]]).astype(np.float32)
        made.states.append(state)
        made.actions.append(action)
        made.pixels.append({"front": _seen(path, 1.0, rng), "wrist": _seen(path, -1.0, rng)})
        made.times.append(np.arange(STEPS) / HZ)
        made.abouts.append(About(f"episode_{i}", STEPS, HZ, {"front": (24, 32), "wrist": (24, 32)},
                                 TASKS[i % len(TASKS)], "task"))  # fmt: skip
    return made


def _seen(path: np.ndarray, side: float, rng: np.random.Generator) -> np.ndarray:
    """uint8 [STEPS, 24, 32, 3]: a blob that moves over a background that tells the cameras apart."""
    y, x = np.mgrid[0:24, 0:32]
    ground = 110 + 60 * side * np.sign(x - 16) * (y > 8)
    blob = np.exp(
        -((x - 16 - 8 * path[:STEPS, None, None, 0]) ** 2 + (y - 12 - 5 * path[:STEPS, None, None, 1]) ** 2) / 20
    )
    image = ground + 60 * blob + rng.normal(0, 1.5, (STEPS, 24, 32))
    return np.clip(image, 0, 255).astype(np.uint8)[..., None].repeat(3, -1)


def broken(change) -> Memory:
    """The clean data set after `change(memory)`."""
    memory = copy.deepcopy(clean())
    change(memory)
    return memory


def surveyed(memory: Memory, robot: EmbodimentSpec | None = ROBOT, **options):
    options = {"count": 0} | options
    return survey(episodes_of(memory, robot), **options)


def episodes_of(memory: Memory, robot: EmbodimentSpec | None = ROBOT) -> ForeignEpisodes:
    return ForeignEpisodes(Dataset("memory", lambda _: memory, robot or NONE_EMBODIMENT), memory)
