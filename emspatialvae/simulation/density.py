"""A 3-D map as particles are made of it: read, freed from its background, measured."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import pixel_axis
from emspatialvae.io import mrc

HELD = 0.98
"""Share of the squared density that the particle's sphere holds."""


@dataclass(frozen=True, eq=False)
class Density:
    """A map of one particle.

    Attributes
    ----------
    values
        Shape [m, m, m], axes (z, y, x); the background is 0.
    voxel_A
        Side of a voxel, in angstrom.
    voxel_from
        Where that comes from, for a sentence to the user.
    """

    values: Floats
    voxel_A: float
    voxel_from: str

    def diameter_A(self) -> float:
        """Diameter of the smallest sphere round the centre that holds `HELD` of the squared density, in angstrom."""
        squares = pixel_axis(len(self.values)) ** 2
        radius = np.sqrt(squares[:, None, None] + squares[:, None] + squares).ravel()
        order = np.argsort(radius, kind="stable")
        held = np.cumsum(self.values.ravel()[order] ** 2)
        return 2 * self.voxel_A * max(float(radius[order][np.searchsorted(held, HELD * held[-1])]), 0.5)


def read_density(path: Path, voxel_A: float | None, pixel_size_A: float) -> Density:
    """Read a cubic map; the median of its surface is its background, and is taken away.

    Parameters
    ----------
    path
        The map, .mrc.
    voxel_A
        Side of a voxel in angstrom [default: what the header says, or else ``pixel_size_A``].
    pixel_size_A
        Of the images that will be made, in angstrom.

    Raises
    ------
    EmsvaeError
        No such file, no cube, or a map without any density.
    """
    if not path.is_file():
        raise EmsvaeError(f"--map {path}: there is no such file; expected a cubic 3-D map (.mrc)")
    header = mrc.read_header(path)
    sides = (header.width, header.height, header.n_images)
    if len(set(sides)) > 1:
        raise EmsvaeError(
            f"--map {path} has {' x '.join(map(str, sides))} voxels; expected a cube, so pad or crop it to equal sides"
            " (relion_image_handler --new_box)"
        )
    values = mrc.read_images(header, range(header.n_images)).astype(np.float64)
    if not np.isfinite(values).all():
        raise EmsvaeError(
            f"--map {path} holds voxels that are no numbers; expected finite densities, so make the map again"
        )
    values -= np.median(_surface(values))
    if not values.any():
        raise EmsvaeError(f"--map {path} has the same density everywhere; expected a map with a particle in it")
    if voxel_A is not None:
        return Density(values, voxel_A, "as --map-pixel-size-a says")
    if header.pixel_size_A is not None:
        return Density(values, header.pixel_size_A, "as its header says")
    return Density(values, pixel_size_A, "assumed to be --pixel-size-a, because its header does not say")


def _surface(values: Floats) -> Floats:
    """The voxels of the six faces of a cube."""
    faces = [np.take(values, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    return np.concatenate(faces)
