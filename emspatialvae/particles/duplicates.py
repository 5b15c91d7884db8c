"""The same particle picked twice: centres nearer to each other in one micrograph than particles can be.

The centre is where the particle is, not where its box is: the pick plus the particle's shift, as in RELION
(``relion_star_handler --remove_duplicates``, which subtracts ``rlnOrigin``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from emspatialvae.config import InputConfig
from emspatialvae.errors import ParticleFileError
from emspatialvae.imaging import geometry
from emspatialvae.imaging.arrays import Floats
from emspatialvae.particles import columns
from emspatialvae.particles.read_cs import read_cs_source
from emspatialvae.particles.read_star import read_star_source
from emspatialvae.particles.table import (
    CS_COORDINATES,
    CS_MICROGRAPH_PIXEL,
    STAR_COORDINATES,
    Coordinates,
    ParticleTable,
)

MICROGRAPH_PIXELS = ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize", CS_MICROGRAPH_PIXEL)
PROTECTED_SHIFT = tuple(map(columns.kept_apart, columns.ORIGIN_A))
"""Where our shifts are when a 3-D refinement's own were not to be overwritten."""
_JUNK, _PEAK = columns.SCORES["junk"], columns.SCORES["peak_weight"]
SCORES = {
    **dict.fromkeys((_JUNK.star, _JUNK.cs), -1),
    **dict.fromkeys((_PEAK.star, columns.kept_apart(_PEAK.star), _PEAK.cs), 1),
    **dict.fromkeys((columns.LOG_LIKELIHOOD, columns.kept_apart(columns.LOG_LIKELIHOOD)), 1),
}
"""Columns that tell the better one of two picks, the first that a file has; -1: lower is better."""


@dataclass(frozen=True)
class Centers:
    """Where n particles lie.

    Attributes
    ----------
    micrograph
        Number of each particle's micrograph; shape [n].
    xy_A
        Centres in angstrom; shape [n, 2].
    pixel_size_from
        Where the size of the micrographs' pixels came from, for a person to read.
    """

    micrograph: NDArray[np.intp]
    xy_A: Floats
    pixel_size_from: str

    def __getitem__(self, rows: Any) -> "Centers":
        return Centers(self.micrograph[rows], self.xy_A[rows], self.pixel_size_from)


def particle_centers(table: ParticleTable, micrograph_pixel_size_A: float | None = None) -> Centers:
    """Centres of the particles in their micrographs: pick + shift.

    Coordinates are in pixels of the micrograph, whose size is the one given, else the file's own, else (no binning at
    extraction) that of the particle images.

    Raises
    ------
    ParticleFileError
        No coordinates in the file, or no pixel size.
    """
    picked = picks(table, "duplicates are found by coordinates")
    shift_A, image_pixel_A = _shifts(table)
    pixel_A, source = micrograph_pixels(table, image_pixel_A, micrograph_pixel_size_A)
    xy_A = picked.xy_px * pixel_A[:, None] + shift_A
    if not (np.isfinite(xy_A).all() and np.all(pixel_A > 0)):
        raise ParticleFileError(
            f"{table.path}: distances in angstrom need the pixel size, and coordinates and shifts that are numbers; "
            "give --micrograph-pixel-size-a, or repair the file"
        )
    return Centers(picked.micrograph_of, xy_A, source)


def picks(table: ParticleTable, why: str) -> Coordinates:
    """The coordinates of a file; ParticleFileError where it has none, ``why`` they are asked for."""
    picked = table.coordinates()
    if picked is None:
        wanted = STAR_COORDINATES if table.suffix == ".star" else CS_COORDINATES
        raise ParticleFileError(f"{table.path}: {why}; expected {', '.join(wanted)}, and the file has not all of them")
    return picked


def micrograph_pixels(table: ParticleTable, image_pixel_A: Floats, given_A: float | None) -> tuple[Floats, str]:
    """Pixel size [n] that coordinates are in, and where it came from: the one given, the file's own, or that of the images [n]."""
    known = next((name for name in MICROGRAPH_PIXELS if name in table.names), None)
    if given_A is not None:
        pixel_A, source = np.full(len(table), given_A), "as given"
    elif known is not None:
        pixel_A, source = table.read(numbers=(known,))[1][known].astype(np.float64), known
    else:
        pixel_A, source = image_pixel_A, "that of the particle images, as the file names no other"
    sizes = " to ".join(f"{size:.4g}" for size in dict.fromkeys((pixel_A.min(), pixel_A.max())))
    return pixel_A, f"{sizes} A ({source})"


def _shifts(table: ParticleTable) -> tuple[Floats, Floats]:
    """Shift of each particle in its box [n, 2] and pixel size of its image [n], both in angstrom; no shifts are zeros."""
    read = read_star_source if table.suffix == ".star" else read_cs_source
    stack = read(InputConfig(table.path))
    if set(PROTECTED_SHIFT) <= set(table.names):
        moved = np.stack([table.read(numbers=PROTECTED_SHIFT)[1][name] for name in PROTECTED_SHIFT], 1)
        return geometry.from_relion(np.zeros(len(table)), moved, 1.0).shift_px, stack.pixel_size_A
    if stack.pose is None or not np.any(np.nan_to_num(stack.pose.shift_px)):
        return np.zeros((len(table), 2)), stack.pixel_size_A
    return np.nan_to_num(stack.pose.scaled(stack.pixel_size_A).shift_px), stack.pixel_size_A


def ranks(table: ParticleTable) -> tuple[NDArray[np.intp], str]:
    """Place of each particle [n] when the better ones come first, and what told them apart, for a person to read."""
    # A row that a run could not use loses to any other.
    used = next((name for name in columns.USED if name in table.names), None)
    score = next((name for name in SCORES if name in table.names), None)
    values = table.read(numbers=tuple(name for name in (used, score) if name))[1]
    unused = np.zeros(len(table)) if used is None else values[used] == 0
    cost = np.zeros(len(table)) if score is None else -SCORES[score] * values[score].astype(np.float64)
    rank = np.empty(len(table), np.intp)
    rank[np.lexsort((cost, unused))] = np.arange(len(table))
    if score is None:
        return rank, "the first in the file"
    return rank, f"the {'lower' if SCORES[score] < 0 else 'higher'} {score}"


def close_pairs(centers: Centers, distance_A: float) -> Iterator[NDArray[np.intp]]:
    """Pairs of particles at most ``distance_A`` apart, the earlier row first; [k, 2], micrograph by micrograph."""
    order = np.argsort(centers.micrograph, kind="stable")
    ends = np.flatnonzero(np.diff(centers.micrograph[order])) + 1
    for rows in np.split(order, ends):
        if len(rows) > 1:
            pairs = KDTree(centers.xy_A[rows]).query_pairs(distance_A, output_type="ndarray")
            yield rows[np.sort(pairs, axis=1)]


def representatives(centers: Centers, distance_A: float, rank: NDArray[np.intp]) -> NDArray[np.intp]:
    """For each particle the row that stands for it: its own where it is kept, that of a better one nearby otherwise; [n].

    The best is kept and takes away all within ``distance_A`` of it, then the best of the rest, and so on: what is kept
    lies farther apart than that, and each that is not has a kept one within reach.

    Parameters
    ----------
    centers
        Of n particles.
    distance_A
        In angstrom; a pair at just this distance is one particle.
    rank
        Place of each particle when the better ones come first; shape [n].
    """
    stands_for = np.arange(len(rank))
    for pairs in close_pairs(centers, distance_A):
        better = np.where((rank[pairs[:, 0]] < rank[pairs[:, 1]])[:, None], pairs, pairs[:, ::-1])
        # In this order all that could take away a pair's better member has been seen when the pair's turn comes.
        for kept, other in better[np.argsort(rank[better[:, 0]], kind="stable")].tolist():
            if stands_for[kept] == kept and stands_for[other] == other:
                stands_for[other] = kept
    return stands_for


def duplicate_groups(stands_for: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Groups of rows that are one particle, the kept row first, out of `representatives`; single particles are left out."""
    dropped = np.flatnonzero(stands_for != np.arange(len(stands_for)))
    kept, start = np.unique(np.sort(stands_for[dropped]), return_index=True)
    by_kept = dropped[np.argsort(stands_for[dropped], kind="stable")]
    return (
        [np.r_[row, others] for row, others in zip(kept, np.split(by_kept, start[1:]), strict=True)]
        if len(kept)
        else []
    )
