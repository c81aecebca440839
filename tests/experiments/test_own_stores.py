"""A recipe that collects nothing: two robots with a rate and cameras of their own, trained from stores to a policy."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

from data_pipelines.episode import Episode
from data_pipelines.store import ShardWriter, finish_store
from experiments.configs import debug
from experiments.fitted import set_constants
from experiments.recipe import Recipe, assets, load_data
from tests.data_pipelines.conftest import make_episode
from wam.checkpoint import Inference
from wam.embodiment import EmbodimentSpec, Gripper, Rotation
from wam.models.dynamics_paths import Constant
from wam.models.joint_dit import create
from wam.policy import Policy

TURN = ("r0", "r1", "r2")
ARM = EmbodimentSpec(
    name="test_arm",
    action_kinds=("relative", "relative", "relative", "relative", "gripper"),
    action_names=("x", *TURN, "grip"),
    state_names=("x", *TURN),
    control_hz=10.0,
    state_rotations=(Rotation("wrist", TURN, "rotation_vector"),),
    action_rotations=(Rotation("wrist", TURN, "rotation_vector"),),
    action_grippers=(Gripper("grip", open=0.0, closed=1.0),),
)


def arm_episode(name, steps=30):
    """10 Hz, a frame a step; other cameras than the Sawyer has."""
    blank = make_episode(name, steps, stride=1, hz=10.0, size=32, embodiment="test_arm", cameras=("left", "right"))
    rng = np.random.default_rng([1, *name.encode()])
    state = np.cumsum(rng.normal(0, 0.2, (steps + 1, 4)), 0).astype(np.float32)
    action = np.column_stack([state[1:], rng.integers(0, 2, steps)]).astype(np.float32)
    return Episode(blank.frames, blank.frame_step, state, action, blank.imitate, blank.meta)


def write(root, name, episodes, robot=None):
    with ShardWriter(root / "train" / name, "s0", clip_steps=64, overlap_steps=32) as shard:
        for episode in episodes:
            shard.add(episode)
    finish_store(root / "train" / name, embodiment=robot)
    (root / "validation").mkdir(exist_ok=True)
    (root / "validation" / name).symlink_to(root / "train" / name)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    write(root, "sawyer", [make_episode(f"e{i}", 80, size=32) for i in range(3)])
    write(root, "arm", [arm_episode(f"a{i}") for i in range(3)], ARM)
    write(root, "arm_again", [arm_episode(f"b{i}") for i in range(2)], ARM)
    other = dataclasses.replace(ARM, action_grippers=(Gripper("grip", open=1.0, closed=0.0),))
    write(root, "arm_otherwise", [arm_episode(f"c{i}") for i in range(2)], other)
    return root


def recipe(**data):
    config = debug.get_config()
    del config["sim"], config["collect"]
    with config.unlocked():
        config.tokenizer.patch, config.tokenizer.frames_per_latent, config.tokenizer.fit_frames = 8, 1, 100
        fields = {
            "weights": {"sawyer": 0.5, "arm": 0.5},
            "views": ("corner", "wrist"),
            "frame_seconds": (0.0, 0.1, 0.2),
            "action_horizon": 8,
            "action_hz": 40.0,
            "sources": {"arm": {"frame_seconds": (0.0, 0.4, 0.8), "action_hz": 0, "views": ("right", "left")}},
        }
        for name, value in (fields | data).items():
            config.data[name] = value
    return Recipe.of(config)


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """(recipe, data, a policy of fresh weights) of both robots."""
    one = recipe()
    data = load_data(one, root, tmp_path_factory.mktemp("run"))
    model = create(data.model)
    set_constants(model, data.fitted)
    _, params, constants, _ = nnx.split(model, nnx.Param, Constant, ...)
    saved = json.loads(json.dumps(assets(one, data)))  # as a checkpoint keeps it
    _, arrays = data.fitted.tokenizer.to_state()
    inference = Inference(0, nnx.to_pure_dict(params), nnx.to_pure_dict(constants), arrays, saved)
    return one, data, Policy(inference, unroll=False)


def test_every_source_is_cut_by_its_own_clock(trained):
    _, data, policy = trained
    assert data.model.action_dim == 8 and data.model.state_dim == 7 and data.model.embodiments == 3
    order = list(data.train)
    sawyer, arm = (data.to_sample(data.train[name][0], order.index(name)) for name in ("sawyer", "arm"))
    assert np.allclose(sawyer["video_time"], [0, 0.1, 0.2]) and np.allclose(arm["video_time"], [0, 0.4, 0.8])
    assert np.allclose(sawyer["action_time"][0], np.arange(8) / 40)
    assert np.allclose(arm["action_time"][0], np.arange(8) / 10)  # 0: the store's own rate
    assert [data.fitted.cameras[i] for i in arm["camera"]] == ["right", "left"]
    assert np.allclose(policy.frame_seconds("test_arm"), [0, 0.4, 0.8])
    assert np.allclose(policy.action_seconds("test_arm"), np.arange(8) / 10)
    assert policy.embodiment("test_arm").views == ("right", "left") and policy.embodiments[0] == "sawyer_metaworld"


def test_a_policy_sees_what_training_saw_and_answers_in_the_robots_numbers(trained, root):
    _, data, policy = trained
    windows = data.train["arm"]
    clip, step = windows.locate(5)
    state, action, _ = windows.store.low_dim(clip)
    sample = data.to_sample(windows[5], list(data.train).index("arm"))
    frames = dict(zip(windows.views, windows[5]["frames"][:, 0], strict=True))
    observation = {"images": frames, "state": state[step], "instruction": "reach the goal", "embodiment": "test_arm"}
    given = action[step : step + 8]
    row = policy.observations.row(observation)
    policy.observations.fill(row, given, observation)
    for key in set(row) - {"video", "frame_mask"}:
        assert np.allclose(row[key], sample[key], atol=1e-6), key
    assert np.array_equal(row["video"], sample["video"][:, :1])
    answered = policy.raw_actions(sample["action"][0], observation)
    assert answered.shape == (8, 5) and np.allclose(answered, given, atol=1e-5)
    chunk, _ = policy.infer(observation)
    assert chunk.actions.shape == (8, 5) and np.isfinite(chunk.actions).all()
    forward, _ = policy.infer(observation, mode="forward", actions=given)
    assert set(forward.video) == {"right", "left"} and np.allclose(forward.video_seconds, [0.4, 0.8])


def test_shape_by_statement(root, tmp_path):
    with pytest.raises(ValueError, match=r"no data\.image_size: the model's shape is known only from its data"):
        recipe().by_shape()
    stated = recipe(weights={"sawyer": 1.0}, sources={}, image_size=32, embodiments=("sawyer_metaworld",))
    model, spec = stated.by_shape()
    assert (model.action_dim, model.embodiments, model.cameras, spec.height) == (4, 2, 2, 32)
    with pytest.raises(ValueError, match=r"data\.embodiments is \['widowx_bridge'\], the stores are of"):
        load_data(recipe(weights={"sawyer": 1.0}, sources={}, embodiments=("widowx_bridge",)), root, tmp_path)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"sources": {"leg": {}}}, r"data\.sources has 'leg', which has no weight"),
        ({"sources": {"arm": {"chunks": 2}}}, r"data\.sources\.arm has 'chunks'; a source decides frame_seconds"),
        ({"sources": {"arm": {"frame_seconds": (0.0, 0.1)}}}, r"arm\.frame_seconds has 2 entries, .* has 3"),
        ({"sources": {"arm": {"views": ("left", "top"), "action_hz": 10}}}, r"arm\.views has 'top'; its cameras are"),
        ({"weights": {"arm": 1.0, "arm_again": 1.0}, "action_hz": 10.0},
         r"'train/arm' and 'train/arm_again' are both of the embodiment 'test_arm' but have"),
        ({"weights": {"arm": 1.0, "arm_otherwise": 1.0}, "sources": {}, "action_hz": 10.0},
         "declare the embodiment 'test_arm' differently: its"),
        ({"normalization": "z-score"}, "unknown normalization 'z-score'"),
    ],
)  # fmt: skip
def test_sources_that_do_not_fit_together(root, tmp_path, data, problem):
    with pytest.raises(ValueError, match=problem):
        load_data(recipe(**data), root, tmp_path)
