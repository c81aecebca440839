"""Rotations as datasets write them, to matrices and back. numpy only, float64 inside, any leading shape.

Representations by name (`SIZES`):

    matrix                  9: row by row
    rot6d                   6: first column, then second (Zhou et al. 2019, arXiv 1812.07035); what models see
    rot6d_rows              6: first row, then second (PyTorch3D)
    quaternion_xyzw, _wxyz  4: any length but zero; q and -q are one rotation
    rotation_vector         3: axis times angle in radians (also called axis-angle)
    euler_<abc>_extrinsic   3: angles in radians about the fixed axes a, then b, then c: R = R_c R_b R_a
    euler_<abc>_intrinsic   3: about the axes that move along: R = R_a R_b R_c

for every order abc of three different axes. Roll, pitch, yaw is `euler_xyz_extrinsic`.
"""

from __future__ import annotations

import itertools

import numpy as np

_EULER = {
    f"euler_{''.join(axes)}_{kind}": 3 for axes in itertools.permutations("xyz") for kind in ("extrinsic", "intrinsic")
}
SIZES: dict[str, int] = {
    "matrix": 9,
    "rot6d": 6,
    "rot6d_rows": 6,
    "quaternion_xyzw": 4,
    "quaternion_wxyz": 4,
    "rotation_vector": 3,
    **_EULER,
}
"""How many numbers a representation has."""

_TINY = 1e-8


def to_matrix(x: np.ndarray, representation: str) -> np.ndarray:
    """[..., `SIZES[representation]`] -> f64 [..., 3, 3]. ValueError for a quaternion of length zero."""
    x = np.asarray(x, np.float64)
    if x.shape[-1] != SIZES[representation]:
        raise ValueError(f"{representation} has {SIZES[representation]} numbers, got {x.shape[-1]}")
    if representation == "matrix":
        return x.reshape(*x.shape[:-1], 3, 3)
    if representation == "rot6d":
        return _orthonormal(x[..., :3], x[..., 3:])
    if representation == "rot6d_rows":
        return _orthonormal(x[..., :3], x[..., 3:]).swapaxes(-1, -2)
    if representation == "rotation_vector":
        return _from_rotation_vector(x)
    if representation.startswith("quaternion"):
        return _from_quaternion(np.roll(x, 1, -1) if representation.endswith("xyzw") else x)
    axes, angles = _axes(representation), x
    if representation.endswith("extrinsic"):
        axes, angles = axes[::-1], x[..., ::-1]
    first, second, third = (_about(axis, angles[..., k]) for k, axis in enumerate(axes))
    return first @ second @ third


def from_matrix(matrix: np.ndarray, representation: str) -> np.ndarray:
    """f64 [..., 3, 3], a rotation -> f64 [..., `SIZES[representation]`], in the representation's canonical form:

    quaternions with w >= 0, rotation vectors no longer than pi, Euler angles with the middle one within +-pi/2 and, in
    gimbal lock, one of the two outer ones zero.
    """
    matrix = np.asarray(matrix, np.float64)
    if representation == "matrix":
        return matrix.reshape(*matrix.shape[:-2], 9)
    if representation == "rot6d":
        return np.concatenate([matrix[..., 0], matrix[..., 1]], -1)
    if representation == "rot6d_rows":
        return np.concatenate([matrix[..., 0, :], matrix[..., 1, :]], -1)
    if representation.startswith("quaternion"):
        wxyz = _to_quaternion(matrix)
        return np.roll(wxyz, -1, -1) if representation.endswith("xyzw") else wxyz
    if representation == "rotation_vector":
        return _to_rotation_vector(matrix)
    axes, extrinsic = _axes(representation), representation.endswith("extrinsic")
    angles = _to_euler(matrix, axes[::-1] if extrinsic else axes)
    return angles[..., ::-1] if extrinsic else angles


def relative(reference: np.ndarray, target: np.ndarray) -> np.ndarray:
    """R_reference^T R_target, [..., 3, 3]: the target as the reference sees it."""
    return np.swapaxes(reference, -1, -2) @ target


def _orthonormal(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Gram-Schmidt of two columns. What spans no plane, as only a model can answer, still becomes some rotation."""
    a = _unit(first, np.array([1.0, 0.0, 0.0]))
    rest = second - (a * second).sum(-1, keepdims=True) * a
    spare = np.eye(3)[np.abs(a).argmin(-1)]  # an axis that is never parallel to the first column
    b = _unit(rest, _unit(spare - (a * spare).sum(-1, keepdims=True) * a, spare))
    return np.stack([a, b, np.cross(a, b)], -1)


def _unit(x: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.where(length > _TINY, x / np.maximum(length, _TINY), otherwise)


def _about(axis: int, angle: np.ndarray) -> np.ndarray:
    matrix = np.zeros((*angle.shape, 3, 3))
    j, k = (axis + 1) % 3, (axis + 2) % 3
    matrix[..., axis, axis] = 1
    matrix[..., j, j] = matrix[..., k, k] = np.cos(angle)
    matrix[..., k, j] = np.sin(angle)
    matrix[..., j, k] = -matrix[..., k, j]
    return matrix


def _axes(representation: str) -> list[int]:
    return ["xyz".index(axis) for axis in representation.split("_")[1]]


def _from_rotation_vector(x: np.ndarray) -> np.ndarray:
    half = np.linalg.norm(x, axis=-1, keepdims=True) / 2
    return _from_quaternion(np.concatenate([np.cos(half), np.sinc(half / np.pi) / 2 * x], -1))


def _from_quaternion(wxyz: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(wxyz, axis=-1, keepdims=True)
    if (length < _TINY).any():
        raise ValueError("a quaternion of length zero is no rotation")
    w, x, y, z = np.moveaxis(wxyz / length, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _to_quaternion(m: np.ndarray) -> np.ndarray:
    """wxyz with w >= 0: of the four ways to write it, the one that divides by the largest component (Shepperd 1978)."""
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    ways = np.stack(
        [
            np.stack([1 + xx + yy + zz, a, b, c], -1),
            np.stack([a, 1 + xx - yy - zz, xy, xz], -1),
            np.stack([b, xy, 1 - xx + yy - zz, yz], -1),
            np.stack([c, xz, yz, 1 - xx - yy + zz], -1),
        ],
        -2,
    )  # each is the quaternion times four times one of its components
    largest = np.einsum("...ii->...i", ways).argmax(-1)
    q = np.take_along_axis(ways, largest[..., None, None], -2)[..., 0, :]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    return np.where(q[..., :1] < 0, -q, q)


def _to_rotation_vector(matrix: np.ndarray) -> np.ndarray:
    wxyz = _to_quaternion(matrix)
    sine = np.linalg.norm(wxyz[..., 1:], axis=-1, keepdims=True)
    half = np.arctan2(sine, wxyz[..., :1])
    return wxyz[..., 1:] * np.where(sine > _TINY, 2 * half / np.maximum(sine, _TINY), 2.0)


def _to_euler(m: np.ndarray, axes: list[int]) -> np.ndarray:
    """Intrinsic angles: m = R_i(first) R_j(second) R_k(third)."""
    i, j, k = axes
    sign = 1.0 if (j - i) % 3 == 1 else -1.0
    level = np.hypot(m[..., i, i], m[..., i, j])  # cosine of the second angle
    locked = level < _TINY
    first = np.where(locked, 0.0, np.arctan2(-sign * m[..., j, k], m[..., k, k]))
    second = np.arctan2(sign * m[..., i, k], level)
    # What is left once the first angle is taken away: well defined even in gimbal lock, whatever the first one is.
    left = _about(i, -first) @ m
    return np.stack([first, second, np.arctan2(sign * left[..., j, i], left[..., j, j])], -1)
