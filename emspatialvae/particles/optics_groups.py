"""Which row of ``data_optics`` each particle of a RELION 3.1 file belongs to."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import ParticleFileError


def optics_rows(
    path: Path, known: NDArray[np.float64], group_of: NDArray[np.float64] | None, n: int, table: str = "particles"
) -> NDArray[np.intp]:
    """For each of ``n`` particles the row of its optics group.

    Parameters
    ----------
    path
        The file, for errors.
    known
        ``rlnOpticsGroup`` of data_optics, [groups].
    group_of
        ``rlnOpticsGroup`` of the particles, [n]; None if the file has no such column.
    n
        How many particles there are.
    table
        What the table of particles is called, without ``data_``.

    Raises
    ------
    ParticleFileError
        Numbers that are not whole, a group that is listed twice, a particle whose group is not listed, or no word on the group of
        the particles where there are several.
    """
    _check_whole(path, "data_optics", known)
    numbers, first, count = np.unique(known, return_index=True, return_counts=True)
    if len(numbers) < len(known):
        raise ParticleFileError(
            f"{path}: data_optics lists optics group {numbers[count > 1][0]:.0f} twice; repair the file"
        )
    if group_of is None and len(known) == 1:
        return np.zeros(n, np.intp)
    if group_of is None:
        raise ParticleFileError(
            f"{path}: particles have no rlnOpticsGroup, data_optics has {len(known)} groups; add the column"
        )
    _check_whole(path, f"data_{table}", group_of)
    missing = group_of[~np.isin(group_of, numbers)]
    if len(missing):
        raise ParticleFileError(
            f"{path}: particles belong to optics group {missing.min():.0f}, data_optics has {numbers.astype(int).tolist()}; repair the file"
        )
    return first[np.searchsorted(numbers, group_of)]


def _check_whole(path: Path, where: str, groups: NDArray[np.float64]) -> None:
    """Refuse numbers of optics groups that are no whole numbers."""
    wrong = np.flatnonzero(~(np.abs(groups) < 1 << 31) | (groups != np.trunc(groups)))
    if len(wrong):
        raise ParticleFileError(
            f"{path}: rlnOpticsGroup is {groups[wrong[0]]:g} in row {wrong[0] + 1} of {where}; expected whole numbers from 1; repair the file"
        )
