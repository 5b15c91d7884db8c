"""Poses, grids and every sign: the only module in which RELION, cryoSPARC and the paper meet.

Image coordinates are ``x`` = column and ``y`` = row **as stored (downwards)**, in pixels, with the origin at pixel index
``box // 2`` for even and odd boxes alike. A pose says how the object was moved into the image::

    image(p) = object(R(-theta) (p - shift)),      R(t) = [[cos t, -sin t], [sin t, cos t]]

so a positive theta moves a dot from +x towards +y, and the shift lives in the image frame (rotate first, then translate).
RELION's own rule is ``p_aligned = R(+psi) (p + origin)``; hence psi = -theta and origin = -shift. Checked against real
RELION 3.1.3 in ``tests/oracles``.

The functions named ``*_xy`` are plain arithmetic: they take numpy arrays, torch tensors and numbers.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emspatialvae.imaging.arrays import Floats


def rotate_xy(x: Any, y: Any, cos_t: Any, sin_t: Any) -> tuple[Any, Any]:
    """``R(t) (x, y)``: turn points by t, from +x towards +y. Broadcasts; numpy, torch or numbers."""
    return cos_t * x - sin_t * y, sin_t * x + cos_t * y


def image_to_object_xy(x: Any, y: Any, cos_theta: Any, sin_theta: Any, shift_x: Any, shift_y: Any) -> tuple[Any, Any]:
    """``R(-theta) (p - shift)``: where in the object the image point p looks. Broadcasts; numpy, torch or numbers."""
    return rotate_xy(x - shift_x, y - shift_y, cos_theta, -sin_theta)


def object_to_image_xy(x: Any, y: Any, cos_theta: Any, sin_theta: Any, shift_x: Any, shift_y: Any) -> tuple[Any, Any]:
    """``R(theta) q + shift``: where in the image the object point q is seen. Broadcasts; numpy, torch or numbers."""
    turned_x, turned_y = rotate_xy(x, y, cos_theta, sin_theta)
    return turned_x + shift_x, turned_y + shift_y


def shears(theta_rad: Floats) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Rotations as quarter turns and three shears: ``R(theta) = X(a) Y(b) X(a) R(pi / 2)^quarters``.

    ``X(a) (x, y) = (x + a y, y)`` and ``Y(b) (x, y) = (x, y + b x)``; what the quarter turns leave is at most 45 degrees, so that
    |a| < 0.42 and |b| < 0.71. Returns (quarters, a, b), each of theta's shape.
    """
    quarters = np.rint(theta_rad / (np.pi / 2)).astype(np.int64)
    rest = theta_rad - quarters * (np.pi / 2)
    return quarters, -np.tan(rest / 2), np.sin(rest)


def pixel_axis(box: int) -> Floats:
    """Coordinates of the pixels of one axis, in pixels, zero at index ``box // 2``; shape [box]."""
    return np.arange(box, dtype=np.float64) - box // 2


def pixel_grid(box: int) -> tuple[Floats, Floats]:
    """``(x, y)`` of every pixel, in pixels from the centre ``box // 2``; two arrays of shape [box, box]."""
    axis = pixel_axis(box)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return x, y


def in_half_boxes(x: Floats, y: Floats) -> Floats:
    """Pixel coordinates [box, box] as points [box^2, 2] in units of half the box, so that the disk is the unit disk."""
    return np.stack([x.ravel(), y.ravel()], -1) * (2 / len(x))


def wrap_rad(angle_rad: ArrayLike) -> Floats:
    """Bring angles into (-pi, pi]."""
    wrapped = np.pi - np.mod(np.pi - np.asarray(angle_rad, dtype=np.float64), 2 * np.pi)
    # A hair above pi the remainder rounds to the whole circle.
    return np.where(wrapped <= -np.pi, np.pi, wrapped)


def wrapped(angle_rad: Any) -> Any:
    """Bring angles into [-pi, pi): the arithmetic of `wrap_rad` for numpy arrays, torch tensors and numbers alike."""
    return (angle_rad + np.pi) % (2 * np.pi) - np.pi


def composed_xy(
    theta_rad: Any,
    shift_x: Any,
    shift_y: Any,
    inner_rad: Any,
    inner_x: Any,
    inner_y: Any,
    cos_theta: Any,
    sin_theta: Any,
) -> tuple[Any, Any, Any]:
    """The pose of an object that lies in the canonical frame with a pose of its own: first the inner one, then the outer.

    ``image(p) = b(R(-theta) (p - shift))`` and ``b(q) = x(R(-inner) (q - inner shift))`` make
    ``image(p) = x(R(-(theta + inner)) (p - shift - R(theta) inner shift))``. Returns (theta, shift_x, shift_y).
    """
    x, y = rotate_xy(inner_x, inner_y, cos_theta, sin_theta)
    return theta_rad + inner_rad, shift_x + x, shift_y + y


@dataclass(frozen=True)
class Pose2D:
    """In-plane poses of n particles.

    Attributes
    ----------
    theta_rad
        Shape [n]; how far the object was turned, from +x towards +y (downwards).
    shift_px
        Shape [n, 2]; (x, y) by which it was then moved, in pixels of the images the pose refers to.
    """

    theta_rad: Floats
    shift_px: Floats

    @classmethod
    def identity(cls, n: int) -> Self:
        """``n`` poses that move nothing."""
        return cls(np.zeros(n), np.zeros((n, 2)))

    def __len__(self) -> int:
        return len(self.theta_rad)

    @property
    def unset(self) -> NDArray[np.bool_]:
        """True where the file that the poses are from says none; shape [n]."""
        return ~(np.isfinite(self.theta_rad) & np.isfinite(self.shift_px).all(1))

    def __getitem__(self, rows: Any) -> "Pose2D":
        return Pose2D(self.theta_rad[rows], self.shift_px[rows])

    def scaled(self, factor: ArrayLike) -> "Pose2D":
        """The same poses on images whose pixels are ``factor`` times as many per length (scalar or [n])."""
        return Pose2D(self.theta_rad, self.shift_px * np.broadcast_to(factor, len(self))[:, None])

    def inverse(self) -> "Pose2D":
        """The poses that undo these: object and image change places."""
        shift_x, shift_y = self.shift_px.T
        x, y = rotate_xy(shift_x, shift_y, np.cos(self.theta_rad), -np.sin(self.theta_rad))
        return Pose2D(-self.theta_rad, -np.stack([x, y], -1))


def to_relion(pose: Pose2D, pixel_size_A: ArrayLike) -> tuple[Floats, Floats]:
    """RELION's ``(rlnAnglePsi in degrees, wrapped to (-180, 180]; rlnOriginX/YAngst in A, shape [n, 2])``."""
    psi_deg = np.degrees(wrap_rad(-np.asarray(pose.theta_rad)))
    return psi_deg, -pose.scaled(pixel_size_A).shift_px


def from_relion(psi_deg: ArrayLike, origin_A: ArrayLike, pixel_size_A: ArrayLike) -> Pose2D:
    """Poses from ``rlnAnglePsi`` [n] and ``rlnOriginX/YAngst`` [n, 2]; pixel size scalar or [n], in A."""
    theta_rad = wrap_rad(-np.radians(np.asarray(psi_deg, dtype=np.float64)))
    return Pose2D(theta_rad, -np.asarray(origin_A, dtype=np.float64)).scaled(1 / np.asarray(pixel_size_A))


def view_rotations(rot_rad: ArrayLike, tilt_rad: ArrayLike, theta_rad: ArrayLike) -> Floats:
    """Rotations A [n, 3, 3] that bring a map into the frame of its images; angles [n] in radians.

    ``image(p) = integral of map(A^T (p, depth)) over depth``. Rot and tilt are RELION's rlnAngleRot and rlnAngleTilt (in
    radians), theta = -psi as in every pose here, so that A is what RELION's ``Euler_angles2matrix`` makes of them. The last row
    of A is the direction, in the map, along which one looks. Checked against ``relion_project`` in ``tests/oracles``.
    """
    rot, tilt, theta = np.broadcast_arrays(*(np.asarray(a, dtype=np.float64) for a in (rot_rad, tilt_rad, theta_rad)))
    cos_r, sin_r, cos_t, sin_t = np.cos(rot), np.sin(rot), np.cos(tilt), np.sin(tilt)
    across_x, across_y, along = (
        np.stack(row, -1)
        for row in (
            (cos_t * cos_r, cos_t * sin_r, -sin_t),
            (-sin_r, cos_r, np.zeros_like(rot)),
            (sin_t * cos_r, sin_t * sin_r, cos_t),
        )
    )
    row_x, row_y = rotate_xy(across_x, across_y, np.cos(theta)[..., None], np.sin(theta)[..., None])
    return np.stack([row_x, row_y, along], -2)


def to_cryosparc(pose: Pose2D) -> tuple[Floats, Floats]:
    """CryoSPARC's ``(alignments2D/pose in radians [n], alignments2D/shift [n, 2])``, in the pixels of ``pose``."""
    return wrap_rad(-np.asarray(pose.theta_rad)), -pose.shift_px


def from_cryosparc(pose_rad: ArrayLike, shift_px: ArrayLike) -> Pose2D:
    """Poses from ``alignments2D/pose`` [n] and ``alignments2D/shift`` [n, 2], in pixels of ``alignments2D/psize_A``."""
    theta_rad = wrap_rad(-np.asarray(pose_rad, dtype=np.float64))
    return Pose2D(theta_rad, -np.asarray(shift_px, dtype=np.float64))


def to_paper(pose: Pose2D, box: int) -> tuple[Floats, Floats]:
    """The paper's ``(theta [n], dx [n, 2])`` on its grid ``linspace(-1, 1, box)`` with y upwards.

    The paper (Bepler et al. 2019, section 3.1) looks at ``x R(theta) + dx``: the move lives in the object frame, and on even
    boxes the grid's centre lies half a pixel from ours. Both are taken into account.
    """
    half, off = (box - 1) / 2, (box - 1) / 2 - box // 2
    shift_x, shift_y = (pose.shift_px - off).T
    x, y = rotate_xy(shift_x, shift_y, np.cos(pose.theta_rad), -np.sin(pose.theta_rad))
    return np.asarray(pose.theta_rad), np.stack([-off - x, off + y], -1) / half


def from_paper(theta_rad: ArrayLike, dx: ArrayLike, box: int) -> Pose2D:
    """Our poses from the paper's angle [n] and move [n, 2] in units of its [-1, 1] grid: inverse of `to_paper`."""
    theta = np.asarray(theta_rad, dtype=np.float64)
    half, off = (box - 1) / 2, (box - 1) / 2 - box // 2
    dx_px = np.asarray(dx, dtype=np.float64) * half
    x, y = rotate_xy(-off - dx_px[:, 0], dx_px[:, 1] - off, np.cos(theta), np.sin(theta))
    return Pose2D(theta, np.stack([x, y], -1) + off)
