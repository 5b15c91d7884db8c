"""Neighbours: other views of the same map that a box cuts out of a crowded micrograph along with its particle.

With particles of diameter d, the surroundings of one are the annulus round its centre from 0.9 d (neighbours may touch, and overlap by a
tenth of a diameter at most) to half the box's diagonal plus d / 2 (beyond, no neighbour reaches into the box). Each image gets
a Poisson number of neighbours, their centres anywhere in the annulus with equal chance, of mean

    crowding * (area of the annulus) / (area of a disk of diameter d),

so that the disks of the neighbours cover the share ``crowding`` of the annulus on average. Where neighbours lie on top of each other
the area counts twice.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import view_rotations

NEAREST = 0.9
"""Smallest distance of two particles, in diameters."""
BESIDE_NOTHING = 0.3
"""Crowding round a place without a particle, at least: there is always something to be picked by mistake."""


@dataclass(frozen=True, eq=False)
class Views:
    """Directions from which n objects are seen, and how they lie in the image.

    Attributes
    ----------
    rot_rad, tilt_rad, theta_rad
        Shape [n]; see `emspatialvae.imaging.geometry.view_rotations`.
    """

    rot_rad: Floats
    tilt_rad: Floats
    theta_rad: Floats

    def __getitem__(self, rows: Any) -> "Views":
        return Views(self.rot_rad[rows], self.tilt_rad[rows], self.theta_rad[rows])

    @property
    def rotations(self) -> Floats:
        """Shape [n, 3, 3]."""
        return view_rotations(self.rot_rad, self.tilt_rad, self.theta_rad)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Objects beside the particles.

    Attributes
    ----------
    owner
        Shape [n]; the image that each belongs to, in ascending order.
    views
        Of the n objects.
    offset_px
        Shape [n, 2]; (x, y) from the particle's centre.
    """

    owner: NDArray[np.int64]
    views: Views
    offset_px: Floats

    def of(self, rows: slice) -> NDArray[np.int64]:
        """Which of them belong to the images of a range."""
        return np.arange(*np.searchsorted(self.owner, [rows.start, rows.stop]))


def draw_views(n: int, rng: np.random.Generator) -> Views:
    """Rotations spread evenly over all of SO(3): rot and theta uniform on the circle, the cosine of tilt uniform."""
    rot_rad = rng.uniform(-np.pi, np.pi, n)
    tilt_rad = np.arccos(rng.uniform(-1, 1, n))
    return Views(rot_rad, tilt_rad, rng.uniform(-np.pi, np.pi, n))


def annulus_px(diameter_px: float, box: int) -> tuple[float, float]:
    """Inner and outer radius of the surroundings, in pixels."""
    return NEAREST * diameter_px, box / np.sqrt(2) + diameter_px / 2


def draw_neighbours(
    crowding: float,
    alone: NDArray[np.bool_],
    beside_nothing: NDArray[np.bool_],
    diameter_px: float,
    box: int,
    rng: np.random.Generator,
) -> Neighbours:
    """Neighbours of n images.

    Parameters
    ----------
    crowding
        Share of the surroundings that they cover.
    alone
        Shape [n]; images that get none.
    beside_nothing
        Shape [n]; images whose own place is empty: they get one neighbour at least, within a quarter of a diameter of the nearest
        place, and others as if ``crowding`` were `BESIDE_NOTHING` or more.
    diameter_px, box
        Of a particle, and the side of the images, in pixels.
    """
    inner, outer = annulus_px(diameter_px, box)
    mean = max(outer**2 - inner**2, 0) / (diameter_px / 2) ** 2
    density = np.where(beside_nothing, max(crowding, BESIDE_NOTHING), crowding) * ~alone
    count = rng.poisson(mean * density) + beside_nothing
    owner = np.repeat(np.arange(len(alone)), count)
    first = np.diff(owner, prepend=-1) > 0
    reach = np.where(first & beside_nothing[owner], inner + diameter_px / 4, max(outer, inner))
    distance = np.sqrt(inner**2 + (reach**2 - inner**2) * rng.random(len(owner)))
    direction = rng.uniform(0, 2 * np.pi, len(owner))
    offset = distance[:, None] * np.stack([np.cos(direction), np.sin(direction)], -1)
    return Neighbours(owner, draw_views(len(owner), rng), offset)
