"""The adapter: layouts decide everything, images are upright, bad requests are refused in one sentence."""

import os
import subprocess
import sys

import numpy as np
import pytest

from wam.envs import env_factory
from wam.envs.metaworld import INSTRUCTIONS, SPEC, SPLIT_SEEDS, TASKS, MetaWorldEnv, RenderConfig

pytestmark = pytest.mark.requires_sim
CAMERAS = ("corner2", "topview", "gripperPOV")


@pytest.fixture(scope="module")
def env():
    env = MetaWorldEnv("drawer-open", CAMERAS, RenderConfig(size=32))
    yield env
    env.close()


def rollout(env, layout, steps=40):
    """States, actions, images of the expert, and the observation in full."""
    states, actions, images = [env.reset(layout)], [], [env.render()]
    for _ in range(steps):
        actions.append(env.expert_action())
        states.append(env.step(actions[-1])[0])
    images.append(env.render())
    pixels = np.stack([image[camera] for image in images for camera in CAMERAS])
    return np.stack(states), np.stack(actions), pixels, env._env.data.qpos.copy()


def test_the_tasks_are_those_of_the_package():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert {f"{task}-v3" for task in TASKS} == set(ALL_V3_ENVIRONMENTS)
    assert len(set(INSTRUCTIONS.values())) == len(TASKS) == 50


def test_a_layout_decides_states_and_pixels_whatever_came_before(env):
    layouts = env.sample_layouts(SPLIT_SEEDS["train"], 2)
    first = rollout(env, layouts[0])
    rollout(env, layouts[1], 7)
    again = rollout(env, layouts[0])
    fresh_env = MetaWorldEnv("drawer-open", CAMERAS, RenderConfig(size=32))
    fresh = rollout(fresh_env, layouts[0])
    fresh_env.close()
    for a, b, c in zip(first, again, fresh, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_another_layout_is_seen_in_the_first_image(env):
    layouts = env.sample_layouts(SPLIT_SEEDS["train"], 2)
    images = []
    for layout in layouts:
        env.reset(layout)
        images.append(env.render())
    for camera in ("corner2", "topview"):
        assert images[0][camera].dtype == np.uint8
        assert images[0][camera].shape == (32, 32, 3)
        assert (images[0][camera] != images[1][camera]).any(), camera


def test_the_first_image_is_that_of_the_settled_scene(env):
    """Without a forward pass after reset, frame 0 shows the drawer where the previous layout had it."""
    env.reset(np.array([0.1, 0.9, 0.0]))
    np.testing.assert_allclose(env._env.data.body("drawer").xpos[0], 0.1, atol=1e-6)


def test_simplified_meshes_change_few_pixels_and_no_state(env):
    layout = env.sample_layouts(1, 1)[0]
    exact = MetaWorldEnv("drawer-open", CAMERAS, RenderConfig(size=32, mesh_resolution=0))
    triangles = [int(e._env.model.mesh_facenum.sum()) for e in (env, exact)]
    assert triangles[0] < 0.6 * triangles[1]
    ours, theirs = rollout(env, layout), rollout(exact, layout)
    exact.close()
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    error = (ours[2].astype(float) - theirs[2]) ** 2
    assert 0 < error.mean() < 255**2 / 10**3  # more than 30 dB


def test_images_are_upright(env):
    """The robot's red base is at the bottom in topview; the grey background is at the top in corner2."""
    env.reset(env.sample_layouts(1, 1)[0])
    images = env.render()
    red = (images["topview"][..., 0].astype(int) - images["topview"][..., 1]) > 60
    assert red[16:].sum() > 3 * red[:16].sum()
    top, bottom = images["corner2"][:6].astype(int), images["corner2"][-6:].astype(int)
    assert np.ptp(top[:, 20:], axis=-1).mean() < 10 < np.ptp(bottom[:, 20:], axis=-1).mean()


def test_layouts_are_a_prefix_of_longer_samples_and_differ_by_seed_and_task(env):
    long = env.sample_layouts(1, 6)
    np.testing.assert_array_equal(env.sample_layouts(1, 4), long[:4])
    assert not np.isin(env.sample_layouts(100, 6)[:, 0], long[:, 0]).any()
    other = MetaWorldEnv("drawer-close")
    assert not np.isin(other.sample_layouts(1, 6)[:, 0], long[:, 0]).any()


@pytest.mark.parametrize("task", ["push", "pick-place", "faucet-close"])
def test_the_expert_solves_a_layout_with_actions_in_range(task):
    env = MetaWorldEnv(task)
    env.reset(env.sample_layouts(SPLIT_SEEDS["validation"], 1)[0])
    for _ in range(120):
        action = env.expert_action()
        assert action.dtype == np.float32
        assert (np.abs(action) <= 1).all()
        state, success = env.step(action)
        assert state.dtype == np.float32
        assert state.shape == (SPEC.state_dim,)
        if success:
            break
    assert success


def test_actions_beyond_the_range_are_clipped():
    env = MetaWorldEnv("reach")
    layout = env.sample_layouts(1, 1)[0]
    states = []
    for size in (1, 7):
        env.reset(layout)
        states.append(np.stack([env.step(size * np.array([1, -1, 1, 1]))[0] for _ in range(5)]))
    np.testing.assert_array_equal(*states)


def test_without_the_goal_marker_faucets_look_alike():
    pair = [
        MetaWorldEnv(task, ("corner2", "topview"), RenderConfig(goal_marker=False))
        for task in ("faucet-open", "faucet-close")
    ]
    layout = pair[0].sample_layouts(1, 1)[0]  # the box of faucet-open lies within that of faucet-close
    for env in pair:
        env.reset(layout)
    images = [env.render() for env in pair]
    for camera in images[0]:
        np.testing.assert_array_equal(images[0][camera], images[1][camera])
    for env in pair:
        env.close()


def test_bad_requests_are_refused_in_one_sentence(env):
    with pytest.raises(ValueError, match=r"unknown Meta-World task 'drawer-opn'; choose from assembly, "):
        MetaWorldEnv("drawer-opn")
    with pytest.raises(ValueError, match=r"unknown Meta-World camera 'front'; choose from topview, "):
        MetaWorldEnv("drawer-open", ("front",))
    with pytest.raises(ValueError, match=r"takes layouts of 3 numbers between .* draw them with sample_layouts"):
        env.reset(np.array([5.0, 0.9, 0.0]))
    with pytest.raises(ValueError, match=r"unknown simulator 'mars'"):
        env_factory("mars", {})
    with pytest.raises(ValueError, match=r"render settings of 'metaworld': .*'colour'"):
        env_factory("metaworld", {"colour": 1})
    short = MetaWorldEnv("reach", max_steps=1)
    with pytest.raises(RuntimeError, match=r"call reset\(layout\) first"):
        short.step(np.zeros(4))
    short.reset(short.sample_layouts(1, 1)[0])
    short.step(np.zeros(4))
    with pytest.raises(RuntimeError, match=r"the episode is over after 1 steps"):
        short.step(np.zeros(4))
    with pytest.raises(RuntimeError, match=r"made without cameras"):
        short.render()


@pytest.mark.skipif(sys.platform != "linux", reason="EGL is how Linux renders")
def test_no_rendering_device_is_one_sentence_with_the_package_to_install():
    code = "from wam.envs.metaworld import MetaWorldEnv; MetaWorldEnv('reach', ('corner2',))"
    no_driver = os.environ | {"MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_FILENAMES": os.devnull}
    done = subprocess.run([sys.executable, "-c", code], env=no_driver, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "RuntimeError: MuJoCo cannot render with MUJOCO_GL=egl" in done.stderr.splitlines()[-1]
    assert "apt-get install libegl1" in done.stderr
    assert "Exception ignored" not in done.stderr
