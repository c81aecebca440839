"""Meta-World (50 tabletop tasks of one Sawyer arm) with explicit layouts and exact repeatability.

The package's own `reset(seed=...)` ignores the seed and repeats one frozen layout. Here the randomised part of a scene
(object and goal positions) is an explicit vector, the *layout*: the same layout and the same actions give the same
states and the same pixels, whatever the environment did before.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from wam.embodiment import EmbodimentSpec

if TYPE_CHECKING:
    import mujoco

SPEC = EmbodimentSpec(
    name="sawyer_metaworld",
    action_kinds=("delta", "delta", "delta", "gripper"),
    state_names=("hand_x", "hand_y", "hand_z", "gripper_opening"),
    action_names=("dx", "dy", "dz", "gripper"),
    control_hz=80.0,
)

# Layouts of a split are drawn from its seed. Choose tasks and settings on validation; look at test once.
SPLIT_SEEDS: Mapping[str, int] = {"train": 1, "validation": 100, "test": 200}

CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")

INSTRUCTIONS: Mapping[str, str] = {
    "assembly": "put the ring on the peg",
    "basketball": "put the ball in the basket",
    "bin-picking": "move the block to the other bin",
    "box-close": "put the lid on the box",
    "button-press-topdown": "press the button from above",
    "button-press-topdown-wall": "press the button from above, over the wall",
    "button-press": "press the button",
    "button-press-wall": "press the button behind the wall",
    "coffee-button": "press the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "take the ring off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-open": "open the door",
    "door-unlock": "unlock the door",
    "hand-insert": "put the hand into the hole",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-open": "open the faucet",
    "faucet-close": "close the faucet",
    "hammer": "hammer the nail in",
    "handle-press-side": "press the handle down from the side",
    "handle-press": "press the handle down",
    "handle-pull-side": "pull the handle up from the side",
    "handle-pull": "pull the handle up",
    "lever-pull": "pull the lever up",
    "pick-place-wall": "pick up the puck and place it at the goal behind the wall",
    "pick-out-of-hole": "take the block out of the hole",
    "pick-place": "pick up the puck and place it at the goal",
    "plate-slide": "slide the plate into the goal",
    "plate-slide-side": "slide the plate sideways into the goal",
    "plate-slide-back": "slide the plate out of the goal",
    "plate-slide-back-side": "slide the plate sideways out of the goal",
    "peg-insert-side": "insert the peg into the hole",
    "peg-unplug-side": "pull the peg out of the hole",
    "soccer": "push the ball into the goal",
    "stick-push": "push the bottle with the stick",
    "stick-pull": "pull the bottle with the stick",
    "push": "push the puck to the goal",
    "push-wall": "push the puck around the wall to the goal",
    "push-back": "push the block back to the goal",
    "reach": "reach the goal",
    "reach-wall": "reach the goal behind the wall",
    "shelf-place": "put the block on the shelf",
    "sweep-into": "sweep the block into the hole",
    "sweep": "sweep the block off the table",
    "window-open": "open the window",
    "window-close": "close the window",
}

TASKS = tuple(INSTRUCTIONS)

# The native corner2 is far away and turned by half a circle: moved closer here, and turned upright after rendering.
_CORNER2_POSITION = (0.75, 0.075, 0.7)
_SMALL_MESH = 1000  # triangles
_VISIBLE_SPACE = np.array([[-0.3, 0.45, 0.06], [0.3, 0.9, 0.35]])
_UPSIDE_DOWN = ("corner2", "corner3", "corner4", "corner")


@dataclasses.dataclass(frozen=True)
class RenderConfig:
    """What decides the pixels besides the scene: data collection and evaluation must use the same values."""

    size: int = 64
    """Height and width of every image."""
    shadows: bool = False
    """Shadows and reflections: about five times slower without a GPU."""
    multisample: int = 0
    """Samples per pixel of anti-aliasing."""
    mesh_resolution: float = 0.005
    """Metres; details of the drawn meshes below it are merged (0: keep all). The arm has 60 000 triangles, most smaller
    than a pixel, and they are what drawing costs without a GPU. The physics does not change."""
    goal_marker: bool = True
    """Draw the small sphere at the goal. Tasks like reach cannot be solved without it; others show their goal by the
    scene, and some (faucet-open, faucet-close) can then be told apart by the instruction alone."""


class MetaWorldEnv:
    """One task: `reset(layout)`, `step(action)`, `render()`.

    Attributes:
        task: name of the task, one of `TASKS`.
        cameras: names of the rendered cameras, any of `CAMERAS`; none: no rendering device is needed.
        max_steps: number of control steps allowed after a reset.
    """

    spec = SPEC

    def __init__(
        self,
        task: str,
        cameras: Sequence[str] = (),
        render: RenderConfig = RenderConfig(),
        max_steps: int = 500,
    ):
        """Raises ValueError for an unknown task or camera, RuntimeError if images cannot be rendered here."""
        if task not in INSTRUCTIONS:
            raise ValueError(f"unknown Meta-World task {task!r}; choose from {', '.join(sorted(TASKS))}")
        if unknown := [camera for camera in cameras if camera not in CAMERAS]:
            raise ValueError(f"unknown Meta-World camera {unknown[0]!r}; choose from {', '.join(CAMERAS)}")
        self.task = task
        self.cameras = tuple(cameras)
        self.max_steps = max_steps
        self._renderer: mujoco.Renderer | None = None
        self._env = _make_env(task)
        self._env.max_path_length = np.inf  # the limit is `max_steps`
        self._expert = _make_expert(task)
        self._observation: np.ndarray | None = None
        self._steps = 0
        if self.cameras:
            self._renderer = _make_renderer(self._env.model, render)

    @property
    def instruction(self) -> str:
        return INSTRUCTIONS[self.task]

    @property
    def layout_dim(self) -> int:
        return int(self._env._random_reset_space.low.size)

    @property
    def workspace(self) -> np.ndarray:
        """Lowest and highest hand position that the cameras see well, metres [2, 3], within the robot's own limits."""
        low, high = _VISIBLE_SPACE
        return np.stack([np.maximum(low, self._env.mocap_low), np.minimum(high, self._env.mocap_high)])

    def sample_layouts(self, seed: int, n: int) -> np.ndarray:
        """`n` layouts, float64 [n, layout_dim]; a function of (task, seed), and a prefix of any longer sample.

        The task's own rejection rules (no goal on top of its object, ...) are applied. Ends the current episode.
        """
        env = self._env
        env.np_random = np.random.default_rng([seed, *self.task.encode()])
        env._freeze_rand_vec, env.seeded_rand_vec = False, True
        layouts = np.empty((n, self.layout_dim))
        for row in layouts:
            env.reset_model()
            row[:] = env._last_rand_vec
        env._freeze_rand_vec, env.seeded_rand_vec = True, False
        self._observation = None
        return layouts

    def reset(self, layout: np.ndarray) -> np.ndarray:
        """Starts an episode in `layout` [layout_dim] and returns the state, float32 [4].

        Raises ValueError if the layout has another size or lies outside the task's range.
        """
        import mujoco

        layout = np.array(layout, np.float64)
        space = self._env._random_reset_space
        if layout.shape != space.low.shape or np.any(layout < space.low) or np.any(layout > space.high):
            raise ValueError(
                f"task {self.task!r} takes layouts of {self.layout_dim} numbers between {space.low.tolist()} and "
                f"{space.high.tolist()}, got {layout.tolist()}; draw them with sample_layouts"
            )
        env = self._env
        env._last_rand_vec = layout
        env.reset()
        # A task moves bodies of the model after its own last forward pass: without this one, the first observation
        # and the first image would show the scene before the layout was applied.
        mujoco.mj_forward(env.model, env.data)
        env._prev_obs = env._get_curr_obs_combined_no_goal()
        self._observation = env._get_obs()
        self._expert = _make_expert(self.task)
        self._steps = 0
        return self.state

    @property
    def state(self) -> np.ndarray:
        """Hand position in metres and gripper opening in [0, 1], float32 [4]."""
        return self._current().astype(np.float32)[:4]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """One control step of 1/80 s. `action` [4] is clipped to [-1, 1]: hand displacement / 1 cm, gripper closing.

        Returns the state, float32 [4], and whether the task is solved at this moment.
        Raises RuntimeError before the first reset and after `max_steps` steps.
        """
        self._current()
        if self._steps >= self.max_steps:
            raise RuntimeError(
                f"task {self.task!r}: the episode is over after {self.max_steps} steps, call reset(layout)"
            )
        action = np.clip(np.asarray(action, np.float32), -1, 1)
        self._observation, _, _, _, info = self._env.step(action)
        self._steps += 1
        return self.state, bool(info["success"])

    def render(self) -> dict[str, np.ndarray]:
        """The current images, upright: {camera: uint8 [size, size, 3]}."""
        if self._renderer is None:
            raise RuntimeError(f"the {self.task!r} environment was made without cameras; name them in cameras=")
        self._current()
        images = {}
        for camera in self.cameras:
            self._renderer.update_scene(self._env.data, camera)
            image = self._renderer.render()
            images[camera] = image[::-1, ::-1].copy() if camera in _UPSIDE_DOWN else image
        return images

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action for the current observation, float32 [4] in [-1, 1]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "constants may be too high": they are, hence the clip
            action = self._expert.get_action(self._current())
        return np.clip(action, -1, 1).astype(np.float32)

    def close(self) -> None:
        """Frees the rendering context."""
        if self._renderer is not None:
            atexit.unregister(self._renderer.close)
            self._renderer.close()
            self._renderer = None
        self._env.close()

    def _current(self) -> np.ndarray:
        if self._observation is None:
            raise RuntimeError(f"task {self.task!r}: call reset(layout) first")
        return self._observation


def _import_metaworld():
    # Both are read once: at the first import of mujoco, and at the first drawing.
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa without a GPU: small images are faster without its threads
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from metaworld import env_dict, policies
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Meta-World is not installed ({error}); install the extra: pip install 'wam[sim]'"
        ) from error
    except Exception as error:  # mujoco loads its graphics library on import, and fails in many ways
        raise _no_rendering(error) from error
    return env_dict, policies


def _no_rendering(error: Exception) -> RuntimeError:
    backend = os.environ.get("MUJOCO_GL", "")
    package = "libosmesa6" if backend == "osmesa" else "libegl1 libgl1-mesa-dri"
    return RuntimeError(
        f"MuJoCo cannot render with MUJOCO_GL={backend} ({str(error).strip()}): install its graphics library "
        f"(apt-get install {package}), or set MUJOCO_GL=egl before mujoco is first imported, or MUJOCO_GL=disable to "
        "run without images"
    )


def _make_env(task: str):
    env_dict, _ = _import_metaworld()
    env = env_dict.ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
    env._set_task_called = True
    env._partially_observable = False  # the experts read the goal; the policy only ever sees `state`
    del env.sawyer_observation_space  # cached with a hidden goal, and observations are clipped to it
    return env


def _make_expert(task: str):
    _, policies = _import_metaworld()
    return policies.ENV_POLICY_MAP[f"{task}-v3"]()


def _make_renderer(model: mujoco.MjModel, config: RenderConfig) -> mujoco.Renderer:
    import mujoco

    model.camera("corner2").pos = _CORNER2_POSITION
    if config.mesh_resolution > 0:
        for mesh in np.flatnonzero(model.mesh_facenum > _SMALL_MESH):
            _simplify_mesh(model, int(mesh), config.mesh_resolution)
    model.vis.quality.offsamples = config.multisample
    model.vis.global_.offwidth = model.vis.global_.offheight = config.size
    if not config.shadows:
        model.light_castshadow[:] = 0
    if not config.goal_marker:
        for i in range(model.nsite):
            if model.site(i).name.startswith("goal"):
                model.site(i).rgba = 0
    try:
        # Their destructors assume that the constructor has come to its end.
        mujoco.GLContext._context = mujoco.Renderer._gl_context = mujoco.Renderer._mjr_context = None
        renderer = mujoco.Renderer(model, config.size, config.size)
    except Exception as error:
        raise _no_rendering(error) from error
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.scene.flags[flag] = config.shadows
    atexit.register(renderer.close)  # a context left to the interpreter's shutdown prints errors
    return renderer


def _simplify_mesh(model: mujoco.MjModel, mesh: int, resolution: float) -> None:
    """Lets all vertices in one cell of a grid share one of them and drops the triangles that collapse.

    Only drawing reads `mesh_face`: collisions work on the vertices and their convex hull, which stay as they are.
    """
    vertices = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
    cells = np.round(vertices / resolution).astype(np.int64)
    _, first, cell = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    faces = first[cell.reshape(-1)][model.mesh_face[start : start + count]]
    _, kept = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)  # one of each
    a, b, c = faces[kept].T
    kept = np.sort(kept[(a != b) & (b != c) & (c != a)])
    model.mesh_face[start : start + len(kept)] = faces[kept]
    for per_face in (model.mesh_facenormal, model.mesh_facetexcoord):
        per_face[start : start + len(kept)] = per_face[start + kept]
    model.mesh_facenum[mesh] = len(kept)
