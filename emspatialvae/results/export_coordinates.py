"""Coordinates in the micrographs moved to where the particles are, for extracting their images anew.

A particle's centre lies at its pick plus our shift, as in RELION, which subtracts ``rlnOrigin``. What the coordinates have moved is
taken out of every offset in the file, so that each pose still means the same place in the micrograph.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.config import Poses
from emspatialvae.errors import EmsvaeError, ParticleFileError
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.io.star import StarFile
from emspatialvae.particles.columns import ORIGIN_A, ORIGIN_PX
from emspatialvae.particles.duplicates import micrograph_pixels, picks
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.particles.table import CS_COORDINATES, STAR_COORDINATES, CsTable, ParticleTable, StarTable
from emspatialvae.results import export
from emspatialvae.results.latents import Latents


def write_coordinates(
    latents: Latents,
    stack: ParticleStack,
    destination: Path,
    micrograph_pixel_size_A: float | None = None,
    *,
    poses: Poses = "auto",
    force: bool = False,
) -> str:
    """Write the particles' file with re-centred coordinates, and with our results, whose shifts are then zero.

    Returns
    -------
    A sentence on how far the coordinates moved, and in which pixels.

    Raises
    ------
    EmsvaeError
        The file has no coordinates or no pixel size, or the ending is not one that its kind can have.
    """
    table = _table(stack)
    kinds = (".star", ".cs") if isinstance(table, CsTable) else (".star",)
    if destination.suffix not in kinds:
        raise EmsvaeError(f"--coordinates {destination}: expected a name ending in {' or '.join(kinds)}")
    n = len(latents)
    picked = picks(table, "--coordinates moves coordinates")
    image_pixel_A = np.full(len(table), np.nan)
    image_pixel_A[:n] = stack.pixel_size_A
    pixel_A, source = micrograph_pixels(
        table, np.where(np.isnan(image_pixel_A), image_pixel_A[0], image_pixel_A), micrograph_pixel_size_A
    )
    if not np.all(pixel_A > 0):
        raise ParticleFileError(
            f"{table.path}: the pixel size of the micrographs is {source}; give --micrograph-pixel-size-a"
        )
    moved_A = np.where(latents.used[:, None], latents.reported_pose.shift_px * latents.pixel_size_A, 0.0)
    xy_px = picked.xy_px[:n] + moved_A / pixel_A[:n, None]
    centred = _without_shift(latents)
    if destination.suffix == ".star":
        replaced = _star_cells(table, stack, poses, xy_px, moved_A, latents.used)
        export.write_star(centred, stack, destination, poses=poses, force=force, replaced=replaced)
    else:
        assert isinstance(table, CsTable)
        array = _cs_fields(table.array, xy_px, moved_A, latents.used)
        export.write_cs(centred, dataclasses.replace(stack, metadata=array), destination, poses=poses, force=force)
    rms_A = float(np.sqrt((moved_A[latents.used] ** 2).mean())) if latents.used.any() else 0.0
    return (
        f"coordinates moved by {rms_A:.3g} A rms per axis, micrograph pixels: {source}; the images that {destination} names are those of the "
        "old coordinates: extract them anew"
    )


def _table(stack: ParticleStack) -> ParticleTable:
    if isinstance(stack.metadata, StarFile):
        return StarTable(stack.metadata)
    if stack.metadata is None:
        raise EmsvaeError(f"{stack.source} has no coordinates: --coordinates is for STAR and .cs files")
    return CsTable(stack.source, stack.metadata)


def _without_shift(latents: Latents) -> Latents:
    def centred(pose: Pose2D | None) -> Pose2D | None:
        return None if pose is None else Pose2D(pose.theta_rad, np.zeros_like(pose.shift_px))

    pose = centred(latents.pose)
    assert pose is not None
    return dataclasses.replace(latents, pose=pose, class_pose=centred(latents.class_pose))


def _star_cells(
    table: ParticleTable, stack: ParticleStack, poses: Poses, xy_px: Floats, moved_A: Floats, used: NDArray[np.bool_]
) -> dict[str, list[str]]:
    """Coordinates, and the offsets of the file's own poses where those stay; rows that were not used as they are."""
    new: dict[str, Floats] = dict(zip(STAR_COORDINATES[1:], xy_px.T, strict=True))
    if isinstance(table, StarTable) and export.protects_poses(stack, poses):
        for labels, unit_A in ((ORIGIN_A, 1.0), (ORIGIN_PX, stack.pixel_size_A)):
            for label, moved in zip(labels, moved_A.T, strict=True):
                if label in table.block.labels:
                    old = np.nan_to_num(table.read(numbers=(label,))[1][label][: len(used)])
                    new[label] = old + moved / unit_A
    if not isinstance(table, StarTable):
        return {label: [f"{value:.6f}" for value in values] for label, values in new.items()}
    known = table.block.columns(*new)
    return {
        label: [f"{value:.6f}" if use else text for value, use, text in zip(values, used, known[label], strict=False)]
        for label, values in new.items()
    }


def _cs_fields(array: NDArray[Any], xy_px: Floats, moved_A: Floats, used: NDArray[np.bool_]) -> NDArray[Any]:
    """Fractions of the micrograph, and the shifts of other alignments; their sign is that of RELION's offsets."""
    array = array.copy()
    rows = np.flatnonzero(used)
    _, x, y, shape = CS_COORDINATES
    height, width = array[shape].T
    array[x][rows] = (xy_px[:, 0] / width[: len(used)])[rows]
    array[y][rows] = (xy_px[:, 1] / height[: len(used)])[rows]
    for field in array.dtype.names or ():
        group, _, name = field.rpartition("/")
        unit = f"{group}/psize_A"
        if name == "shift" and group.startswith("alignments") and unit in (array.dtype.names or ()):
            array[field][rows] += moved_A[rows] / array[unit][rows, None]
    return array
