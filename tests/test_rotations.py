import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from wam.rotations import SIZES, from_matrix, relative, to_matrix

EULER = [name for name in SIZES if name.startswith("euler")]


def theirs(numbers, representation):
    """scipy's matrix of our numbers."""
    if representation.startswith("euler"):
        _, axes, kind = representation.split("_")
        return Rotation.from_euler(axes.upper() if kind == "intrinsic" else axes, numbers).as_matrix()
    if representation == "rotation_vector":
        return Rotation.from_rotvec(numbers).as_matrix()
    if representation.startswith("quaternion"):
        return Rotation.from_quat(numbers, scalar_first=representation.endswith("wxyz")).as_matrix()
    if representation == "matrix":
        return numbers.reshape(-1, 3, 3)
    columns = numbers.reshape(-1, 2, 3)
    whole = np.concatenate([columns, np.cross(columns[:, :1], columns[:, 1:])], 1)
    return whole if representation == "rot6d_rows" else whole.swapaxes(1, 2)


def rotations():
    """Random ones, none, almost none, half turns and almost half turns about random and main axes."""
    rng = np.random.default_rng(0)
    axes = np.concatenate([rng.normal(size=(50, 3)), np.eye(3), -np.eye(3)])
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = (0.0, 1e-12, 1e-7, 1e-3, 1.0, np.pi / 2, np.pi - 1e-3, np.pi - 1e-7, np.pi - 1e-12, np.pi)
    vectors = np.concatenate([angle * axes for angle in angles])
    return np.concatenate([Rotation.random(500, rng).as_matrix(), Rotation.from_rotvec(vectors).as_matrix()])


@pytest.mark.parametrize("representation", SIZES)
def test_there_and_back_and_the_same_as_scipy(representation):
    matrices = rotations()
    numbers = from_matrix(matrices, representation)
    assert numbers.shape == (len(matrices), SIZES[representation])
    assert np.abs(to_matrix(numbers, representation) - matrices).max() < 1e-12
    assert np.abs(theirs(numbers, representation) - matrices).max() < 1e-12


@pytest.mark.parametrize("representation", EULER)
def test_gimbal_lock(representation):
    rng = np.random.default_rng(1)
    for middle in (np.pi / 2, -np.pi / 2, np.pi / 2 - 1e-9, -np.pi / 2 + 1e-5):
        angles = rng.uniform(-np.pi, np.pi, (50, 3))
        angles[:, 1] = middle
        matrices = to_matrix(angles, representation)
        again = from_matrix(matrices, representation)
        assert np.isfinite(again).all()
        assert np.abs(to_matrix(again, representation) - matrices).max() < 1e-7


def test_canonical_forms():
    rng = np.random.default_rng(2)
    matrices = Rotation.random(200, rng).as_matrix()
    assert (from_matrix(matrices, "quaternion_wxyz")[:, 0] >= 0).all()
    assert (np.linalg.norm(from_matrix(matrices, "rotation_vector"), axis=1) <= np.pi).all()
    quaternion = from_matrix(matrices, "quaternion_xyzw")
    assert np.allclose(to_matrix(-3 * quaternion, "quaternion_xyzw"), matrices)  # sign and length do not count
    # Roll, pitch, yaw: yaw about the fixed z axis comes last.
    quarter = to_matrix(np.array([np.pi / 2, 0.0, np.pi / 2]), "euler_xyz_extrinsic")
    assert np.allclose(quarter @ [0, 1, 0], [0, 0, 1]) and np.allclose(quarter @ [1, 0, 0], [0, 1, 0])


def test_any_two_columns_become_a_rotation():
    rng = np.random.default_rng(3)
    noisy = rng.normal(size=(300, 6))
    noisy[:3] = [[0] * 6, [1, 0, 0, 2, 0, 0], [0, 0, 0, 0, 1, 0]]
    matrices = to_matrix(noisy, "rot6d")
    assert np.allclose(matrices @ matrices.swapaxes(1, 2), np.eye(3)) and np.allclose(np.linalg.det(matrices), 1)
    wanted = noisy[3:, :3] / np.linalg.norm(noisy[3:, :3], axis=1, keepdims=True)
    assert np.allclose(matrices[3:, :, 0], wanted)


def test_relative_undoes_the_reference():
    reference, target = Rotation.random(20, 4).as_matrix(), Rotation.random(20, 5).as_matrix()
    assert np.allclose(reference @ relative(reference, target), target)
    assert np.allclose(relative(reference, reference), np.eye(3))


def test_what_is_no_rotation():
    with pytest.raises(ValueError, match="length zero"):
        to_matrix(np.zeros(4), "quaternion_wxyz")
    with pytest.raises(ValueError, match="quaternion_wxyz has 4 numbers, got 3"):
        to_matrix(np.zeros(3), "quaternion_wxyz")
