"""A small simulation, and a map of which every projection is known."""

from pathlib import Path

import numpy as np

from emspatialvae.config import SimulateConfig
from emspatialvae.imaging.geometry import pixel_axis
from emspatialvae.simulation.kinds import Kind

BLOBS = (
    (5.0, 1.0, -1.5, 1.0),
    (-3.0, 3.5, 2.0, 0.7),
    (-1.0, -4.0, 3.0, 0.8),
    (1.5, 2.0, 4.5, 0.6),
    (0.0, 0.0, 0.0, 0.5),
)
"""x, y, z in voxels from the centre, height."""
SIGMA = 1.4


def blob_map(side, background=0.0):
    """A map of Gaussian blobs [side, side, side], axes (z, y, x)."""
    axis = pixel_axis(side)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    density = np.full(x.shape, background)
    for at_x, at_y, at_z, height in BLOBS:
        density += height * np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2 + (z - at_z) ** 2) / (2 * SIGMA**2))
    return density


def simulation_of(folder: Path, kind: Kind = "hinge", **options) -> SimulateConfig:
    return SimulateConfig(kind, folder, **{"particles": 60, "seed": 3, **options})
