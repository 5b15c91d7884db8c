"""STAR files without loss: the wanted columns out, our columns in, every other byte as it was.

`StarFile.read` finds the tables, `StarBlock.columns` reads cells as they are written, `write_with_columns` gives the
same file back with columns added, `write_rows` with some of its rows, `write_new` makes a new one.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.io.atomic import atomic_path
from emspatialvae.io.star_scan import StarBlock, StarFile
from emspatialvae.io.star_text import as_cells, extended, line_chunks, without_cr, words

if TYPE_CHECKING:
    import pandas

__all__ = ["StarBlock", "StarFile", "write_new", "write_rows", "write_with_columns"]

_LABEL = re.compile(r"[^\s_#][^\s#]*")


def write_with_columns(
    star: StarFile, block_name: str, columns: Mapping[str, Sequence[str]], destination: Path, *, overwrite: bool = False
) -> None:
    """Write the original bytes with columns added at the end of each row, or replaced where the label exists.

    New labels follow the last existing one as ``_label #N``; nothing else changes, except that CRLF becomes LF, which
    RELION needs. Added cells are set off by one space each, and quoted where they need it.

    Parameters
    ----------
    star, block_name
        The file as read, and the block to extend.
    columns
        Label (without underscore) -> one text per row.
    destination
        May be the file itself, with ``overwrite``.
    overwrite
        Replace a file that is there.

    Raises
    ------
    ValueError
        Wrong number of values, labels that are not single words, or values that no STAR cell can hold: NaN and infinity
        (RELION silently turns them into numbers) and line ends.
    ParticleFileError
        A row with a wrong number of columns.
    OutputExistsError, EmsvaeError
        See `emspatialvae.io.atomic.atomic_path`.
    """
    block = star.block(block_name)
    cells = _as_cells(columns, block.n_rows)
    with atomic_path(Path(destination), overwrite) as temporary, temporary.open("wb") as out:
        _write(block, cells, None, out)


def write_rows(
    star: StarFile,
    block_name: str,
    keep: NDArray[np.bool_],
    out: IO[bytes],
    columns: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write the original bytes without the rows of one block that are not kept; all other lines stay, comments too.

    CRLF becomes LF, as in `write_with_columns`.

    Parameters
    ----------
    star, block_name
        The file as read, and the block to thin out.
    keep
        Which of its rows stay; shape [n_rows].
    out
        An open file: whoever writes several files at once decides when they take their places.
    columns
        As in `write_with_columns`, one text per row that is *kept*.

    Raises
    ------
    ValueError, ParticleFileError
        See `write_with_columns`.
    """
    block = star.block(block_name)
    if keep.shape != (block.n_rows,) or keep.dtype != bool:
        raise ValueError(f"keep: {keep.dtype} of shape {keep.shape} for {block.n_rows} rows")
    _write(block, _as_cells(columns or {}, int(keep.sum())), keep, out)


def _as_cells(columns: Mapping[str, Sequence[str]], n_rows: int) -> dict[str, Sequence[str]]:
    """The columns in STAR form, checked."""
    cells: dict[str, Sequence[str]] = {}
    for label, values in columns.items():
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{label!r} is no STAR label: one word, without the leading underscore, without #")
        if len(values) != n_rows:
            raise ValueError(f"{label}: {len(values)} values for {n_rows} rows")
        cells[label] = as_cells(label, values)
    return cells


def _write(
    block: StarBlock, cells: Mapping[str, Sequence[str]], keep: NDArray[np.bool_] | None, out: IO[bytes]
) -> None:
    """The whole file, one of its blocks with cells put in and, where ``keep`` is given, rows left out."""
    _copy(block.path, 0, block.labels_end if block.is_loop else block.rows_start, out)
    if block.is_loop:
        _write_labels(block, [label for label in cells if label not in block.labels], out)
        _copy(block.path, block.labels_end, block.rows_start, out)
        out.writelines(_rows(block, cells, keep))
    elif keep is None or keep.all():  # the one row of key-value pairs
        _write_pairs(block, cells, out)
    _copy(block.path, block.rows_end, None, out)


def write_new(
    destination: Path, tables: Mapping[str, "pandas.DataFrame | Mapping[str, object]"], *, overwrite: bool = False
) -> None:
    """Write a new STAR file; numbers in the shortest form that reads back to the same value.

    Parameters
    ----------
    destination
        Where it goes.
    tables
        Block name -> table; columns are labels without the underscore; a plain mapping becomes label-value pairs. With a
        table ``optics`` each block is headed by ``# version 30001``, as RELION 3.1 does.
    overwrite
        Replace a file that is there.

    Raises
    ------
    ValueError
        Missing or infinite values, line ends in texts.
    OutputExistsError, EmsvaeError
        See `emspatialvae.io.atomic.atomic_path`.
    """
    import pandas
    import starfile  # slow: brings pandas along

    with atomic_path(Path(destination), overwrite) as temporary, temporary.open("wb") as out:
        for name, table in tables.items():
            # Quoting is done already, by RELION's rules; starfile knows spaces only.
            block: Any = _as_text(pandas.DataFrame(table, index=None if isinstance(table, pandas.DataFrame) else [0]))
            block = block if isinstance(table, pandas.DataFrame) else block.iloc[0].to_dict()
            text = starfile.to_string({name: block}, quote_character="")
            # starfile's own first line names the program and the time; RELION's version line stands there instead.
            out.write(b"\n# version 30001\n\n" if "optics" in tables else b"\n")
            out.write(_encoded(text[text.index("\ndata_") + 1 :]))


def _as_text(table: "pandas.DataFrame") -> "pandas.DataFrame":
    """The table with every number as its shortest text (``0.1``, also for float32), and nothing missing in it."""
    import pandas

    columns: dict[str, Sequence[str]] = {}
    for label in table.columns:
        values = table[label].to_numpy()
        if pandas.isna(values).any():
            raise ValueError(f"{label}: values are missing or NaN; a STAR file needs them all")
        # numpy's own text of a float is the shortest that reads back the same; booleans are 0 and 1 in RELION.
        texts = (values.astype(int) if values.dtype.kind == "b" else values).astype(str).tolist()
        columns[str(label)] = as_cells(str(label), texts)
    return pandas.DataFrame(columns, dtype=object)


def _copy(path: Path, start: int, end: int | None, out: IO[bytes]) -> None:
    for lines in line_chunks(path, start, end):
        out.writelines(map(without_cr, lines))


def _end_line(block: StarBlock, out: IO[bytes]) -> None:
    """End the line before what is added behind the labels, where the file stops without a line end."""
    with block.path.open("rb") as stream:
        stream.seek(block.labels_end - 1)
        if stream.read(1) != b"\n":
            out.write(b"\n")


def _write_labels(block: StarBlock, added: Sequence[str], out: IO[bytes]) -> None:
    if added:
        _end_line(block, out)
    out.writelines(f"_{label} #{number}\n".encode() for number, label in enumerate(added, len(block.labels) + 1))


def _write_pairs(block: StarBlock, cells: Mapping[str, Sequence[str]], out: IO[bytes]) -> None:
    """Key-value pairs: values replaced in their lines, new pairs after the last one."""
    for lines in line_chunks(block.path, block.rows_start, block.rows_end):
        for line in map(without_cr, lines):
            pair = words(line)
            label = pair[0][1:].decode("utf-8", "surrogateescape") if pair else ""
            out.write(extended(line, b"", {1: _encoded(cells[label][0])}) if label in cells else line)
    added = [label for label in cells if label not in block.labels]
    if added:
        _end_line(block, out)
    out.writelines(f"_{label} ".encode() + _encoded(cells[label][0]) + b"\n" for label in added)


def _rows(block: StarBlock, cells: Mapping[str, Sequence[str]], keep: NDArray[np.bool_] | None) -> Iterator[bytes]:
    """The lines from the first row to the last with the cells put in; comment lines pass as they are."""
    kept = [True] * block.n_rows if keep is None else keep.tolist()
    added = [values for label, values in cells.items() if label not in block.labels]
    replaced = {block.labels.index(label): values for label, values in cells.items() if label in block.labels}
    new: Iterator[str] = map(" ".join, zip(*added, strict=True)) if added else itertools.repeat("")
    swaps: Iterator[tuple[str, ...]] = zip(*replaced.values(), strict=True) if replaced else itertools.repeat(())
    lines = itertools.chain.from_iterable(line_chunks(block.path, block.rows_start, block.rows_end))
    n_rows = 0
    for number, line in enumerate(map(without_cr, lines), block.first_line):
        row = words(line)
        if row and len(row) != len(block.labels):
            raise block.wrong_count(number, len(row))
        n_rows += bool(row)
        if row and n_rows <= block.n_rows:
            if not kept[n_rows - 1]:
                continue
            if cells:
                swap = dict(zip(replaced, map(_encoded, next(swaps)), strict=True))
                line = extended(line, _encoded(next(new)), swap)
        yield line
    block.check_n_rows(n_rows)


def _encoded(cell: str) -> bytes:
    # Bytes that are not UTF-8 came in through surrogates (`StarBlock.columns`) and go out as they were.
    return cell.encode("utf-8", "surrogateescape")
