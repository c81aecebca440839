import dataclasses
import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation as Scipy

from wam.embodiment import NONE_EMBODIMENT, EmbodimentSpec, Gripper, Normalizer, Rotation
from wam.rotations import SIZES, from_matrix, to_matrix

EULER = ("roll", "pitch", "yaw")
QUATERNION = ("qx", "qy", "qz", "qw")


def robot(**changes):
    """Position and gripper, a wrist given as Euler angles in the action and as a quaternion in the state."""
    fields = {
        "name": "arm",
        "action_kinds": ("relative", "absolute", *["relative"] * 3, "gripper", "delta"),
        "action_names": ("x", "y", *EULER, "grip", "base"),
        "state_names": ("width", *QUATERNION, "x", "y"),
        "control_hz": 10.0,
        "state_rotations": (Rotation("wrist", QUATERNION, "quaternion_xyzw"),),
        "action_rotations": (Rotation("wrist", EULER, "euler_xyz_extrinsic"),),
        "state_grippers": (Gripper("width", open=0.08, closed=0.0),),
        "action_grippers": (Gripper("grip", open=0.0, closed=1.0),),
    }
    return EmbodimentSpec(**fields | changes)


def random_numbers(spec, rng, n=40, K=5):
    state = rng.normal(size=(n, spec.state_dim))
    action = rng.normal(size=(n, K, spec.action_dim))
    for array, names, rotations in ((state, spec.state_names, spec.state_rotations),
                                    (action, spec.action_names, spec.action_rotations)):  # fmt: skip
        for rotation in rotations:
            shape = array.shape[:-1]
            matrix = Scipy.random(int(np.prod(shape)), rng).as_matrix().reshape(*shape, 3, 3)
            array[..., [names.index(dim) for dim in rotation.dims]] = from_matrix(matrix, rotation.representation)
    return state.astype(np.float32), action.astype(np.float32)


def same_rotation(a, b, representation):
    return np.allclose(to_matrix(a, representation), to_matrix(b, representation), atol=2e-6)


def test_what_the_model_sees():
    spec = robot()
    wrist = [f"wrist_rot6d_{k}" for k in range(6)]
    assert spec.model_action_names == ("x", "y", *wrist, "grip", "base")
    assert spec.model_action_kinds == ("relative", "absolute", *["relative"] * 6, "gripper", "delta")
    assert spec.model_state_names == ("width", *wrist, "x", "y")
    assert (spec.action_dim, spec.model_action_dim, spec.state_dim, spec.model_state_dim) == (7, 10, 7, 9)
    assert spec.fixed_action.tolist() == [False, False, *[True] * 6, True, False]
    assert spec.fixed_state.tolist() == [*[True] * 7, False, False]
    assert robot(unnormalized=("y",)).fixed_action[1] and robot(unnormalized=("y",)).fixed_state[8]
    assert (NONE_EMBODIMENT.model_action_dim, NONE_EMBODIMENT.model_state_dim) == (0, 0)

    state, action = random_numbers(spec, np.random.default_rng(0))
    seen, encoded = spec.encode_state(state), spec.encode_action(action, state)
    assert seen.dtype == encoded.dtype == np.float32
    assert np.array_equal(encoded[..., 0], action[..., 0] - state[:, None, 5])  # relative to the chunk's start
    assert np.array_equal(encoded[..., [1, 9]], action[..., [1, 6]])
    assert np.allclose(encoded[..., 8], 2 * action[..., 5] - 1) and np.allclose(seen[:, 0], 1 - state[:, 0] / 0.04)
    hand = Scipy.from_quat(state[:, 1:5]).as_matrix()
    for k in range(action.shape[1]):
        wanted = hand.swapaxes(1, 2) @ Scipy.from_euler("xyz", action[:, k, 2:5]).as_matrix()
        assert np.allclose(encoded[:, k, 2:5], wanted[..., 0], atol=1e-5)
        assert np.allclose(encoded[:, k, 5:8], wanted[..., 1], atol=1e-5)


@pytest.mark.parametrize("representation", [*[*SIZES][:6], "euler_xyz_extrinsic", "euler_zyx_intrinsic"])
@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_there_and_back(representation, kind):
    dims = tuple(f"r{k}" for k in range(SIZES[representation]))
    turn = Rotation("wrist", dims, representation)
    kinds = ("relative", "absolute", *[kind] * len(dims), "gripper", "delta")
    spec = robot(action_kinds=kinds, action_names=("x", "y", *dims, "grip", "base"), action_rotations=(turn,))
    rng = np.random.default_rng(1)
    state, action = random_numbers(spec, rng)
    again = spec.decode_action(spec.encode_action(action, state), state)
    plain = [0, 1, -2, -1]
    assert np.allclose(again[..., plain], action[..., plain], atol=1e-6)
    assert same_rotation(again[..., 2:-2], action[..., 2:-2], representation)
    back = spec.decode_state(spec.encode_state(state))
    assert np.allclose(back[:, [0, 5, 6]], state[:, [0, 5, 6]], atol=1e-6)
    assert same_rotation(back[:, 1:5], state[:, 1:5], "quaternion_xyzw")
    # And from what a model answers, which is no rotation exactly, to one that is.
    answer = spec.encode_action(action, state) + rng.normal(size=(40, 5, spec.model_action_dim)).astype(np.float32)
    matrix = to_matrix(spec.decode_action(answer, state)[..., 2:-2], representation)
    assert np.allclose(matrix @ matrix.swapaxes(-1, -2), np.eye(3), atol=1e-5)


def test_small_turns_stay_increments():
    kinds = ("delta",) * 6 + ("gripper",)
    names = ("dx", "dy", "dz", *EULER, "grip")
    spec = robot(action_kinds=kinds, action_names=names)
    assert spec.model_action_names == names and not spec.fixed_action[:6].any()
    state, action = random_numbers(spec, np.random.default_rng(2))
    assert np.array_equal(spec.encode_action(action, state)[..., :6], action[..., :6])


def test_json_round_trip():
    spec = robot(unnormalized=("y",))
    assert EmbodimentSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    with pytest.raises(ValueError, match=r"not the JSON of an embodiment: .*unexpected keyword argument 'colour'"):
        EmbodimentSpec.from_json(spec.to_json() | {"colour": "red"})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"action_kinds": ("velocity",) * 7}, r"unknown action kinds \['velocity'\]"),
        ({"action_kinds": ("delta",)}, "7 action names for 1 kinds"),
        ({"control_hz": 0.0}, "control_hz must be positive"),
        ({"state_names": ("width", *QUATERNION, "x", "x")}, "a name occurs twice among the state dims"),
        ({"state_names": ("width", *QUATERNION, "y", "z")}, r"relative actions \['x'\] need state dims of the"),
        ({"state_rotations": ()}, "rotation 'wrist' needs a state rotation of the same name"),
        ({"action_rotations": (Rotation("wrist", ("a", "b", "c"), "rotation_vector"),)}, "has the dim 'a', which the"),
        ({"action_rotations": (Rotation("wrist", EULER, "euler"),)}, "unknown representation 'euler'"),
        ({"action_rotations": (Rotation("wrist", EULER, "rot6d"),)}, "has 3 dims, rot6d has 6"),
        ({"action_rotations": (Rotation("wrist", ("y", *EULER[:2]), "rotation_vector"),)}, "must be of one kind"),
        ({"action_kinds": ("delta",) * 7, "action_grippers": (), "action_names": ("a", *QUATERNION, "b", "c"),
          "action_rotations": (Rotation("w", QUATERNION, "quaternion_xyzw"),)}, "increments add up only as"),
        ({"action_grippers": (Gripper("grip", 1.0, 1.0),)}, "is 1.0 open and 1.0 closed"),
        ({"action_grippers": (Gripper("y", 0.0, 1.0),)}, "'y' has a gripper's range but is 'absolute'"),
        ({"action_grippers": (Gripper("yaw", 0.0, 1.0),)}, "'yaw' is in rotation 'wrist' and in gripper 'yaw'"),
        ({"unnormalized": ("z",)}, r"unnormalized names \['z'\]"),
    ],
)  # fmt: skip
def test_specs_that_do_not_fit_together(changes, problem):
    with pytest.raises(ValueError, match="embodiment 'arm': .*" + problem):
        robot(**changes)


def test_normalising_is_undone():
    """Back to within a few roundings of float32 of the largest number involved, whatever the scale of a dimension."""
    rng = np.random.default_rng(3)
    center = rng.choice([0.0, 1e-6, 1.0, -1e6, 1e20], 400)
    spread = rng.choice([0.0, 1e-9, 1e-5, 1e-3, 1.0, 1e6, 1e20], 400)
    x = (center + spread * rng.normal(size=(200, 400))).astype(np.float32)
    normalizer = Normalizer(np.quantile(x, 0.01, axis=0), np.quantile(x, 0.99, axis=0))
    normal = normalizer.normalize(x)
    assert np.isfinite(normal).all()
    size = np.maximum(np.abs(x), np.maximum(np.abs(normalizer.low), np.abs(normalizer.high)))
    assert (np.abs(normalizer.denormalize(normal) - x) <= 4 * np.finfo(np.float32).eps * size).all()
    varied = ~normalizer.constant
    assert varied.any() and normalizer.constant.any()
    assert np.abs(np.quantile(normal[:, varied], 0.99, axis=0) - 1).max() < 0.05
    # A dimension that hardly moves is not blown up: its noise stays as small as it was.
    still = normalizer.constant
    assert (np.abs(normal[:, still]) <= np.abs(x - normalizer.center)[:, still] + 1e-6).all()


def test_bounds_of_one_change_nothing():
    x = np.random.default_rng(4).normal(size=(9, 3)).astype(np.float32)
    normalizer = Normalizer(-np.ones(3), np.ones(3))
    assert np.array_equal(normalizer.normalize(x), x) and np.array_equal(normalizer.denormalize(x), x)


def test_a_spec_is_a_value():
    assert robot() == robot() and hash(robot()) == hash(robot())
    assert dataclasses.replace(robot(), control_hz=5.0) != robot()
