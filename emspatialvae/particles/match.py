"""Which rows of one particle file are which of another: the same particles, say, extracted without binning.

Never by row number: RELION sorts particles by micrograph whenever it reads them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from emspatialvae.config import InputConfig
from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Mask
from emspatialvae.particles import columns
from emspatialvae.particles.image_keys import image_keys
from emspatialvae.particles.table import Coordinates, ParticleTable, StarTable

SAME_PLACE_PX = 0.01
SAME_PICK_PX = 1.0
"""Programs round coordinates: an image of the same name that was picked farther away is another particle."""
RECENTRED_PX = 100.0
"""Within one file an image is what it is; its coordinates may have been moved to the particle's centre since."""
NOWHERE = -1


@dataclass(frozen=True)
class Join:
    """Where k particles stand in another file.

    Attributes
    ----------
    key
        What the two files were compared by, for a person to read.
    rows
        Row in the other file, `NOWHERE` where it has no such particle; shape [k].
    """

    key: str
    rows: NDArray[np.intp]

    @property
    def found(self) -> int:
        """How many were found."""
        return int(np.count_nonzero(self.rows != NOWHERE))


def join(
    table: ParticleTable,
    rows: NDArray[np.intp],
    other: ParticleTable,
    source: InputConfig | None = None,
) -> Join:
    """Find rows [k] of one file in another: by uid, else by image, else by micrograph and coordinates (to 0.01 px).

    The first key that both files have and by which each particle is found once; where none finds all, the one that finds most.
    Images are compared as files and numbers (`image_keys`). Where particles of one image name were picked in different places,
    coordinates decide.

    Parameters
    ----------
    source
        Where the stacks of ``table`` are looked for; where it lies itself, if it is None.

    Raises
    ------
    EmsvaeError
        No key finds any, or image names and coordinates contradict each other; the message says what was tried.
    """
    tried: list[str] = []
    best = Join("", np.full(len(rows), NOWHERE, np.intp))
    contradiction = ""
    for key, compare in (
        ("uid", _by_uid),
        ("image name", _by_image_name),
        ("micrograph and coordinates", _by_coordinates),
    ):
        found = compare(table, rows, other, source or InputConfig(table.path))
        if found is None:
            tried.append(f"{key} (not in both)")
            continue
        here = Join(key + (f", as {contradiction}" if contradiction else ""), found.rows)
        if found.n_elsewhere:
            contradiction = f"{found.n_elsewhere:,} of the {here.found:,} particles with the same image name were picked in other places"
            tried.append(
                f"{key} ({here.found:,} of {len(rows):,} found, {found.n_elsewhere:,} of them picked in other places)"
            )
        elif found.n_repeated:
            tried.append(f"{key} (fits several rows: {found.n_repeated:,})")
        elif here.found == len(rows):
            return here
        else:
            namesakes = f", {found.n_namesakes:,} have that name in other files" if found.n_namesakes else ""
            tried.append(f"{key} ({here.found:,} of {len(rows):,} found{namesakes})")
            best = max(best, here, key=lambda join: join.found)
    if not best.found:
        raise EmsvaeError(
            f"{table.path} and {other.path} cannot be joined; tried {', '.join(tried)}; give the file that the particles came "
            "from (and remove what is in it twice: emsvae select FILE --drop-duplicates-a 1)"
        )
    return best


def carried(table: ParticleTable, rows: NDArray[np.intp], joined: Join, other: ParticleTable) -> dict[str, list[str]]:
    """Our columns for the rows of another file that were found, in its order: label -> one cell per row.

    All of them are in angstrom and degrees, so they hold whatever the binning. Poses go under ``emsvae`` labels where the
    other file has those of a 3-D refinement, and so do classes if it has some of its own then.

    Raises
    ------
    EmsvaeError
        One of the files is no RELION 3.1 STAR file (in RELION 3.0 shifts are in pixels), or there are no results.
    """
    if not (isinstance(table, StarTable) and isinstance(other, StarTable) and table.optics and other.optics):
        raise EmsvaeError("--with-results needs STAR files of RELION 3.1 or later on both sides; go without it")
    if columns.USED[0] not in table.block.labels:
        raise EmsvaeError(f"--with-results: {table.path} holds no results of a run; go without it")
    angles = tuple(label for label in ("rlnAngleRot", "rlnAngleTilt") if label in other.block.labels)
    protected = any(np.any(values) for values in other.read(numbers=angles)[1].values())
    ours = [label for label in table.block.labels if columns.is_result(label) and label not in columns.ORIGIN_PX]
    if columns.kept_apart(columns.ANGLE) in ours:
        ours = [label for label in ours if label not in columns.POSE_LABELS]
    if columns.SCORES["class_posterior"].star not in ours or columns.kept_apart(columns.CLASS) in ours:
        ours = [label for label in ours if label != columns.CLASS]  # those of somebody else
    taken = {*columns.POSE_LABELS, *([columns.CLASS] if columns.CLASS in other.block.labels else [])}
    found = joined.rows != NOWHERE
    from_rows = rows[found][np.argsort(joined.rows[found])].tolist()
    cells: dict[str, list[str]] = {}
    for label, texts in table.block.columns(*ours).items():
        new = columns.kept_apart(label) if protected and label in taken else label
        cells[new] = [texts[row] for row in from_rows]
    return cells


@dataclass(frozen=True)
class _Found:
    """What one key finds."""

    rows: NDArray[np.intp]
    """In the other file, `NOWHERE` where there is none; shape [k]."""
    n_repeated: int
    """How many of the particles share their key with others in one of the files."""
    n_elsewhere: int = 0
    """How many have other coordinates there."""
    n_namesakes: int = 0
    """How many share only the spelling of their image's name with one there."""


def _by_uid(table: ParticleTable, rows: NDArray[np.intp], other: ParticleTable, _: InputConfig) -> _Found | None:
    if not ("uid" in table.names and "uid" in other.names):
        return None
    mine, theirs = (each.read(numbers=("uid",))[1]["uid"] for each in (table, other))
    return _Found(*_by_key(mine[rows].tolist(), theirs.tolist()))


def _by_image_name(
    table: ParticleTable, rows: NDArray[np.intp], other: ParticleTable, source: InputConfig
) -> _Found | None:
    mine, theirs = table.image_names(), other.image_names()
    if mine is None or theirs is None:
        return None
    keys = image_keys(mine[rows], source, theirs, InputConfig(other.path))
    at, n_repeated = _by_key(keys.mine, keys.theirs)
    elsewhere = _picked_elsewhere(table.coordinates(), rows, other.coordinates(), at, keys.is_found)
    return _Found(at, n_repeated, elsewhere, int(np.count_nonzero(keys.namesakes)))


def _picked_elsewhere(
    mine: Coordinates | None, rows: NDArray[np.intp], theirs: Coordinates | None, at: NDArray[np.intp], same_file: Mask
) -> int:
    """How many of the rows that were found have other coordinates there; 0 where one side has none."""
    if mine is None or theirs is None:
        return 0
    found = np.flatnonzero(at != NOWHERE)
    ours, there = rows[found], at[found]
    my_names, their_names = (np.array([Path(name).name for name in each.micrographs]) for each in (mine, theirs))
    apart_px = np.abs(mine.xy_px[ours] - theirs.xy_px[there]).max(1, initial=0)
    moved = apart_px > np.where(same_file[found], RECENTRED_PX, SAME_PICK_PX)
    other = my_names[mine.micrograph_of[ours]] != their_names[theirs.micrograph_of[there]]
    return int(np.count_nonzero(moved | other))


def _by_key(mine: Sequence[Any], theirs: Sequence[Any]) -> tuple[NDArray[np.intp], int]:
    row_of: dict[Any, int] = {}
    twice = {key for row, key in enumerate(theirs) if row_of.setdefault(key, row) != row}
    at = np.array([row_of.get(key, NOWHERE) for key in mine], np.intp)
    return at, sum(key in twice for key in mine) + _repeated(at)


def _by_coordinates(
    table: ParticleTable, rows: NDArray[np.intp], other: ParticleTable, _: InputConfig
) -> _Found | None:
    mine, theirs = table.coordinates(), other.coordinates()
    if mine is None or theirs is None:
        return None
    at, n_repeated = np.full(len(rows), NOWHERE, np.intp), 0
    their_rows = dict(zip(theirs.micrographs, _grouped(theirs.micrograph_of, len(theirs.micrographs)), strict=True))
    groups = _grouped(mine.micrograph_of[rows], len(mine.micrographs))
    their_name = _same_micrographs(mine.micrographs, theirs.micrographs)
    for micrograph, own in zip(mine.micrographs, groups, strict=True):
        candidates = their_rows.get(their_name.get(micrograph, ""))
        if candidates is None or not len(own):
            continue
        tree = KDTree(theirs.xy_px[candidates])
        found_two = tree.query(mine.xy_px[rows[own]], k=2, distance_upper_bound=SAME_PLACE_PX)
        distance, nearest = (np.asarray(each) for each in found_two)
        found = np.isfinite(distance[:, 0])
        at[own[found]] = candidates[nearest[found, 0]]
        n_repeated += int(np.isfinite(distance[:, 1]).sum())
    return _Found(at, n_repeated + _repeated(at))


def _same_micrographs(mine: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """My name of a micrograph -> theirs: as it is spelled, else by the last part where that is the only one on both sides."""
    known = set(theirs)
    left = [name for name in mine if name not in known]
    ours_left, theirs_left = Counter(Path(name).name for name in left), Counter(Path(name).name for name in theirs)
    by_last = {Path(name).name: name for name in theirs}
    found = {name: name for name in mine if name in known}
    for name in left:
        last = Path(name).name
        if ours_left[last] == theirs_left[last] == 1 and by_last[last] not in found:
            found[name] = by_last[last]
    return found


def _grouped(number: NDArray[np.intp], n: int) -> list[NDArray[np.intp]]:
    """Where each of the numbers below n stands."""
    return np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number, minlength=n))[:-1])


def _repeated(at: NDArray[np.intp]) -> int:
    """How many of the found rows were found before."""
    found = at[at != NOWHERE]
    return len(found) - len(np.unique(found))
