"""Some of a run's particles, or of any particle file's, as a file of their own: the rows that stay keep their order and every byte."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emspatialvae.config import InputConfig
from emspatialvae.errors import EmsvaeError, NothingSelectedError, RunFolderError
from emspatialvae.imaging.arrays import Mask
from emspatialvae.io import star
from emspatialvae.io.atomic import atomic_path, check_outputs, check_writable
from emspatialvae.io.csg import particle_file
from emspatialvae.particles import duplicates, query
from emspatialvae.particles.columns import USED, is_result
from emspatialvae.particles.match import NOWHERE, Join, carried, join
from emspatialvae.particles.table import ParticleTable, StarTable, ending, open_table
from emspatialvae.results.own_files import check_not_own
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows.progress import Say


def write_selection(
    source: Path | RunDir, keep: Mask, out: Path, *, excluded: Path | None = None, force: bool = False
) -> None:
    """Write the particles that are kept to ``out``, and the others to ``excluded`` where that is given: both or neither.

    Parameters
    ----------
    source
        A run, or a STAR or .cs file.
    keep
        Which particles, in the order of the file; shape [n].
    out, excluded
        Files of the kind of the source; of a run on a .cs file .star or .cs.
    force
        Replace files that are there.

    Raises
    ------
    NothingSelectedError
        ``keep`` is all false; nothing is written. (An empty rest is no error: then ``excluded`` is not written.)
    EmsvaeError
        The name's ending does not fit, something is there, or ``out`` is the source itself.
    """
    files = _files(source)
    _check_outputs([*files.values(), *_made_from(source)], files, out, excluded, force=force)
    table = _with_rows(files[out.suffix], len(keep))
    _write(table, _padded(keep, table), out, excluded, force=force)


def select(
    source: Path,
    out: Path,
    *,
    where: str | None = None,
    drop_duplicates_A: float | None = None,
    micrograph_pixel_size_A: float | None = None,
    rows_from: Path | None = None,
    allow_missing: bool = False,
    with_results: bool = False,
    excluded: Path | None = None,
    force: bool = False,
    say: Say = print,
) -> None:
    """Select particles by a condition, without duplicates, and write them out of their own file or out of ``rows_from``.

    ``source`` and the outputs are as in `write_selection`; see ``emsvae select --help`` for the rest. A run's columns are
    those of its particles.star, then those of its particles.cs.

    Raises
    ------
    NothingSelectedError
        No particle is left.
    EmsvaeError
        Bad input; see `write_selection`, `query.parse`, `duplicates.particle_centers`, `join`.
    """
    if where is None and drop_duplicates_A is None and rows_from is None:
        raise EmsvaeError("nothing to select by; give --where, --drop-duplicates-a or --from")
    if rows_from is None and (with_results or allow_missing):
        raise EmsvaeError("--with-results and --allow-missing say how to join with another file; give it with --from")
    source, rows_from = particle_file(source), rows_from and particle_file(rows_from)
    files = _files(source)
    targets = {ending(rows_from): rows_from} if rows_from else files
    _check_outputs([*files.values(), *_made_from(source)], targets, out, excluded, force=force)
    table, *others = map(open_table, files.values())
    keep = np.ones(len(table), bool)
    if where is not None:
        keep = matching(table, where, *others, say=say)
        if not keep.any():
            raise NothingSelectedError(
                f"none of the {len(keep):,} particles of {table.path} meets --where {where!r}; nothing was written"
            )
    if drop_duplicates_A is not None:
        keep = without_duplicates(table, keep, drop_duplicates_A, micrograph_pixel_size_A, say=say)
    cells: Mapping[str, Sequence[str]] = {}
    target = table if rows_from or table.suffix == out.suffix else _with_rows(files[out.suffix], len(table))
    if rows_from is not None:
        target, rows = open_table(rows_from), np.flatnonzero(keep)
        # Only the .cs file of a run has the uids.
        same_kind = table if target.suffix not in files else _with_rows(files[target.suffix], len(table))
        joined = _joined(same_kind, rows, target, _stacks_of(source), allow_missing=allow_missing, say=say)
        cells = carried(table, rows, joined, target) if with_results else {}
        keep = np.zeros(len(target), bool)
        keep[joined.rows[joined.rows != NOWHERE]] = True
    keep = _padded(keep, target)
    _write(target, keep, out, excluded, cells, force=force)
    say(_told(keep, out))
    if excluded is not None:
        say(_told(~keep, excluded) if not keep.all() else f"no particle is left over: {excluded} was not written")


# ---------------------------------------------------------------------------------------------------------- which ones


def matching(table: ParticleTable, where: str, *others: ParticleTable, say: Say = print) -> Mask:
    """Which particles meet a condition, [n]; see `emspatialvae.particles.query`.

    Rows that a run could not use (``emsvaeUsed`` 0) hold no results, so a condition on results leaves them out.

    Parameters
    ----------
    others
        Files whose first n rows are the same particles, in which columns are looked for that the table does not have.
    """
    condition = query.parse(where, table.names, *(other.names for other in others))
    used = next((name for name in USED if name in table.names), None)
    named = {*condition.texts, *condition.numbers}
    guard = used is not None and used not in named and any(map(is_result, named))
    texts, numbers = table.read(
        tuple(name for name in condition.texts if name in table.names),
        tuple(name for name in (*condition.numbers, *([used] if guard and used else [])) if name in table.names),
    )
    for other in others:
        more_texts, more_numbers = other.read(
            tuple(name for name in condition.texts if name in other.names and name not in texts),
            tuple(name for name in condition.numbers if name in other.names and name not in numbers),
        )
        texts |= {name: values[: len(table)] for name, values in more_texts.items()}
        numbers |= {name: values[: len(table)] for name, values in more_numbers.items()}
    found = condition.matches(texts, numbers)
    if guard and used:
        unused = numbers[used] == 0
        if np.any(found & unused):
            say(f"left out, as the run did not use them ({used} is 0): {(found & unused).sum():,}")
        found = found & ~unused
    return found


def without_duplicates(
    table: ParticleTable,
    keep: Mask,
    distance_A: float,
    micrograph_pixel_size_A: float | None = None,
    *,
    say: Say = print,
) -> Mask:
    """Which of the particles that are kept [n] are no worse pick of another one of them; see `duplicates.representatives`."""
    if not 0 < distance_A < np.inf:
        raise EmsvaeError(f"--drop-duplicates-a {distance_A:g}: expected a distance in angstrom")
    rows = np.flatnonzero(keep)
    centers = duplicates.particle_centers(table, micrograph_pixel_size_A)
    rank, better = duplicates.ranks(table)
    stands_for = duplicates.representatives(centers[rows], distance_A, rank[rows])
    single = stands_for == np.arange(len(rows))
    say(
        f"duplicates within {distance_A:g} A left out: {(~single).sum():,}; kept: {better}; "
        f"micrograph pixels: {centers.pixel_size_from}"
    )
    left = keep.copy()
    left[rows] = single
    return left


def _told(mask: Mask, path: Path) -> str:
    return f"{mask.sum():,} of {len(mask):,} particles ({100 * mask.mean():.1f} %): {path}"


def _stacks_of(source: Path) -> InputConfig:
    """Where the stacks of the particles are looked for: a run's lie where its own input says."""
    return RunDir(source).manifest.config.input if source.is_dir() else InputConfig(source)


def _joined(
    table: ParticleTable,
    rows: NDArray[np.intp],
    other: ParticleTable,
    stacks: InputConfig,
    *,
    allow_missing: bool,
    say: Say,
) -> Join:
    joined = join(table, rows, other, stacks)
    found = f"joined by {joined.key}: {joined.found:,} of {len(rows):,} selected particles are in {other.path}"
    if joined.found < len(rows) and not allow_missing:
        raise EmsvaeError(f"{found}; give the file that they all came from, or --allow-missing")
    say(found)
    return joined


# -------------------------------------------------------------------------------------------------------------- files


def _files(source: Path | RunDir) -> dict[str, Path]:
    """The particle files of a run by their endings, the one whose columns are searched first; or the file itself."""
    if isinstance(source, Path) and not source.is_dir():
        return {ending(source): source}
    run = source if isinstance(source, RunDir) else RunDir(source)
    run.check()
    if not run.star.is_file():
        raise RunFolderError(
            f"{run.star} is missing: the run has no results yet; finish it with `emsvae train ... --resume`"
        )
    table = run.path / "particles.cs"
    return {".star": run.star, **({".cs": table} if table.is_file() else {})}


def _made_from(source: Path | RunDir) -> list[Path]:
    """The particle files that a run was made from."""
    if isinstance(source, Path) and not source.is_dir():
        return []
    run = source if isinstance(source, RunDir) else RunDir(source)
    given = run.manifest.config.input
    return [path for path in (given.particles, given.passthrough) if path is not None and path.is_file()]


def _check_outputs(
    inputs: Sequence[Path], targets: Mapping[str, Path], out: Path, excluded: Path | None, *, force: bool
) -> None:
    """Refuse before the work what cannot be written after it; ``targets``: whose rows are written, by their endings."""
    if out.suffix not in targets:
        raise EmsvaeError(
            f"{out}: rows of {next(iter(targets.values()))} make a {' or '.join(targets)} file; end the name so"
        )
    if excluded and excluded.suffix != out.suffix:
        raise EmsvaeError(f"--excluded {excluded} must end in {out.suffix}, as --out {out} does")
    outputs = (out, excluded) if excluded else (out,)
    if excluded and os.path.realpath(excluded) == os.path.realpath(out):
        raise EmsvaeError(f"--excluded and --out are both {out}; name two files")
    check_outputs(outputs, [*inputs, *targets.values()])
    check_not_own(outputs)
    for path in outputs:
        check_writable(path, force)


def _with_rows(path: Path, n: int) -> ParticleTable:
    """Open a file whose rows are n particles; those of a run with ``--limit`` go on after them."""
    table = open_table(path)
    of_a_run = (path.parent / "config.json").is_file()
    if len(table) < n or (len(table) > n and not of_a_run):
        raise RunFolderError(f"{path} has {len(table):,} rows, {n:,} were expected; export it again")
    return table


def _padded(keep: Mask, table: ParticleTable) -> Mask:
    """``keep`` for all rows of a table, none of those behind."""
    return np.pad(keep, (0, len(table) - len(keep)))


def _write(
    table: ParticleTable,
    keep: Mask,
    out: Path,
    excluded: Path | None,
    cells: Mapping[str, Sequence[str]] | None = None,
    *,
    force: bool,
) -> None:
    """Both files or neither; ``cells``: columns to add to the kept rows of a STAR file."""
    if not keep.any():
        raise NothingSelectedError(
            f"none of the {len(keep):,} particles of {table.path} is selected; nothing was written"
        )
    with ExitStack() as files:
        for path, mask, columns in ((out, keep, cells), (excluded, ~keep, None)):
            if path is None or not mask.any():
                continue
            temporary = files.enter_context(atomic_path(path, force))
            with temporary.open("wb") as stream:
                if columns and isinstance(table, StarTable):
                    star.write_rows(table.star, table.block.name, mask, stream, columns)
                else:
                    table.write(mask, stream)
