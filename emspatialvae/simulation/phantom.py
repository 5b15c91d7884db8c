"""Objects whose images are known exactly: clouds of Gaussian blobs with one or two coordinates z to learn.

An image at any pose is drawn from the posed blob centres themselves: nothing is interpolated, and the derivatives with
respect to z, angle and shift are exact. A blob is separable, so one image is one matrix product ``rows^T columns``.
Lengths are fractions of the box, x points to the right and y downwards, and every object turns about its origin.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import Pose2D, object_to_image_xy, pixel_axis, rotate_xy

CHUNK = 500  # images drawn at once: about 100 MB of blobs at 40 px


def chunks(n: int) -> Iterator[slice]:
    """Slices of at most `CHUNK` rows that cover n."""
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def as_columns(z: ArrayLike) -> Floats:
    """``z`` as [n, d]; [n] is read as one coordinate."""
    z = np.asarray(z, dtype=np.float64)
    return z[:, None] if z.ndim == 1 else z


# ---------------------------------------------------------------------------------------------------------- the objects


@dataclass(frozen=True, eq=False)
class Phantom(ABC):
    """A cloud of equal Gaussian blobs whose centres depend on z.

    Attributes
    ----------
    blob_sigma
        S.d. of every blob.
    height
        Value at the centre of a lone blob: the signal scale; 0 for no signal at all.
    symmetry
        Rotational order about the image normal that holds at every z: angles are defined modulo 360 / symmetry degrees.
    """

    blob_sigma: float
    height: float = 1.0
    symmetry: int = 1

    @property
    @abstractmethod
    def z_dim(self) -> int:
        """Number of coordinates, d; each runs from -1 to 1."""

    @abstractmethod
    def atoms(self, z: ArrayLike) -> tuple[Floats, Floats]:
        """``(x, y)`` of all blobs in the object's frame at z [n, d]; two arrays [n, atoms]."""

    @abstractmethod
    def velocities(self, z: ArrayLike) -> tuple[Floats, Floats]:
        """Derivatives of `atoms` by every coordinate of z; two arrays [n, d, atoms]."""


@dataclass(frozen=True, eq=False)
class Part:
    """A rigid part of a jointed object.

    Attributes
    ----------
    atoms_xy
        Shape [a, 2]; blob centres at z = 0, relative to the pivot.
    pivot_xy
        The point about which it turns.
    span_rad
        Shape [d]; z turns the part by ``z @ span_rad / 2``, from +x towards +y. Zeros: it stands still.
    """

    atoms_xy: Floats
    span_rad: tuple[float, ...]
    pivot_xy: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class JointedPhantom(Phantom):
    """Rigid parts in the image plane that turn about pivots."""

    parts: tuple[Part, ...]

    @property
    def z_dim(self) -> int:
        """Number of coordinates, d."""
        return len(self.parts[0].span_rad)

    def _turned(self, z: ArrayLike) -> list[tuple[Floats, Floats]]:
        z = as_columns(z)
        turned = []
        for part in self.parts:
            angle = (z * np.array(part.span_rad) / 2).sum(1, keepdims=True)
            turned.append(rotate_xy(part.atoms_xy[:, 0], part.atoms_xy[:, 1], np.cos(angle), np.sin(angle)))
        return turned

    def atoms(self, z: ArrayLike) -> tuple[Floats, Floats]:
        """``(x, y)`` of all blobs, part after part; two arrays [n, atoms]."""
        placed = [
            (x + part.pivot_xy[0], y + part.pivot_xy[1])
            for part, (x, y) in zip(self.parts, self._turned(z), strict=True)
        ]
        x, y = (np.concatenate(axis, 1) for axis in zip(*placed, strict=True))
        return x, y

    def velocities(self, z: ArrayLike) -> tuple[Floats, Floats]:
        """``angle' (-y, x)`` about each part's pivot; two arrays [n, d, atoms]."""
        moved = []
        for part, (x, y) in zip(self.parts, self._turned(z), strict=True):
            rate = np.array(part.span_rad)[:, None] / 2
            moved.append((-y[:, None] * rate, x[:, None] * rate))
        vx, vy = (np.concatenate(axis, 2) for axis in zip(*moved, strict=True))
        return vx, vy


@dataclass(frozen=True, eq=False, kw_only=True)
class TiltedPhantom(Phantom):
    """A rigid object in space, seen in projection along directions that differ by a tilt about its own y axis.

    Attributes
    ----------
    atoms_xyz
        Shape [a, 3].
    span_rad
        z in [-1, 1] tilts by ``z * span_rad / 2``. A blob is a ball, so it looks the same from everywhere.
    """

    atoms_xyz: Floats
    span_rad: float

    @property
    def z_dim(self) -> int:
        """One: the tilt."""
        return 1

    def atoms(self, z: ArrayLike) -> tuple[Floats, Floats]:
        """``x cos t + depth sin t, y``; two arrays [n, atoms]."""
        tilt = as_columns(z) * self.span_rad / 2
        x, y, depth = self.atoms_xyz.T
        return x * np.cos(tilt) + depth * np.sin(tilt), np.broadcast_to(y, (len(tilt), len(y))).copy()

    def velocities(self, z: ArrayLike) -> tuple[Floats, Floats]:
        """``-x sin t + depth cos t, 0`` times the tilt per unit of z; two arrays [n, 1, atoms]."""
        tilt = as_columns(z) * self.span_rad / 2
        x, _, depth = self.atoms_xyz.T
        vx = (depth * np.cos(tilt) - x * np.sin(tilt)) * self.span_rad / 2
        return vx[:, None], np.zeros_like(vx)[:, None]


# ------------------------------------------------------------------------------------------------------------- drawing


def _posed_atoms(obj: Phantom, z: ArrayLike, pose: Pose2D, box: int) -> tuple[Floats, Floats]:
    """Blob centres in the image, in pixels from its centre; two arrays [n, atoms]."""
    x, y = obj.atoms(z)
    cos_t, sin_t = np.cos(pose.theta_rad)[:, None], np.sin(pose.theta_rad)[:, None]
    return object_to_image_xy(x * box, y * box, cos_t, sin_t, pose.shift_px[:, :1], pose.shift_px[:, 1:])


def _profiles(centre_px: Floats, box: int, sigma_px: float) -> tuple[Floats, Floats]:
    """Gaussians along one axis, and how far (in sigma) from their centres; both [n, atoms, box]."""
    u = (pixel_axis(box) - centre_px[..., None]) / sigma_px
    return np.exp(-0.5 * u**2), u


def clean_image(obj: Phantom, z: ArrayLike, pose: Pose2D, box: int) -> Floats:
    """Noise-free images [n, box, box] of the object with z [n, d] at n poses (shifts in pixels of this box)."""
    x, y = _posed_atoms(obj, z, pose, box)
    columns, rows = (_profiles(axis, box, obj.blob_sigma * box)[0] for axis in (x, y))
    return obj.height * (rows.swapaxes(1, 2) @ columns)


def derivatives(obj: Phantom, z: ArrayLike, pose: Pose2D, box: int) -> Floats:
    """Derivatives of `clean_image` by (z_1 .. z_d, theta_rad, shift_x_px, shift_y_px); [n, d + 3, box, box], exact.

    Every parameter moves blob centres: with velocity (vx, vy) the image changes by ``sum vx dI/dx + vy dI/dy``.
    """
    x, y = _posed_atoms(obj, z, pose, box)
    sigma_px = obj.blob_sigma * box
    (columns, across), (rows, down) = (_profiles(axis, box, sigma_px) for axis in (x, y))
    d_columns, d_rows = columns * across / sigma_px, rows * down / sigma_px
    about_x, about_y = x - pose.shift_px[:, :1], y - pose.shift_px[:, 1:]  # the pivot of the pose
    one, zero = np.ones_like(x), np.zeros_like(x)
    vx, vy = (v * box for v in obj.velocities(z))
    cos_t, sin_t = np.cos(pose.theta_rad)[:, None], np.sin(pose.theta_rad)[:, None]
    of_z = [rotate_xy(vx[:, k], vy[:, k], cos_t, sin_t) for k in range(obj.z_dim)]
    moved = [
        rows.swapaxes(1, 2) @ (vx[..., None] * d_columns) + d_rows.swapaxes(1, 2) @ (vy[..., None] * columns)
        for vx, vy in [*of_z, (-about_y, about_x), (one, zero), (zero, one)]
    ]
    return obj.height * np.stack(moved, 1)
