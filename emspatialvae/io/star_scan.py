"""Where the tables of a STAR file lie, and the cells of wanted columns.

RELION's rules are followed (``MetaDataTable::readStar``): a block starts at ``data_``, holds either a loop or key-value
pairs, and a blank line ends the rows of a loop. Files are streamed; a table is never held as rows of Python objects.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import ParticleFileError
from emspatialvae.io.compressed import kind_of
from emspatialvae.io.star_text import line_chunks, words

MISSING = {b"<NA>", b"NA", b"N/A", b"None", b"none", b"null", b"NULL", b"nan", b"NaN", b"NAN", b""}
"""How programs write that a number is missing."""
_VERSION = re.compile(rb"#\s*version\s+(\d+)")


@dataclass(frozen=True)
class StarBlock:
    """One table of a STAR file: a loop, or key-value pairs, which count as one row.

    Attributes
    ----------
    path
        The file.
    name
        What follows ``data_``; empty in most RELION 3.0 files.
    labels
        Column names without the leading underscore, in file order.
    n_rows
        Number of rows.
    is_loop
        False for key-value pairs.
    labels_end, rows_start, rows_end
        Byte positions behind the last label line and round the rows (which comment lines may interrupt); of key-value
        pairs, labels_end is rows_end.
    first_line
        Line number of the first row, from 1.
    """

    path: Path
    name: str
    labels: tuple[str, ...]
    n_rows: int
    is_loop: bool
    labels_end: int
    rows_start: int
    rows_end: int
    first_line: int

    def columns(self, *labels: str) -> dict[str, list[str]]:
        """Cells of the named columns exactly as in the file, quotes stripped: label -> [n_rows] strings; see `read`."""
        return self.read(texts=labels)[0]

    def read(
        self, texts: Sequence[str] = (), numbers: Sequence[str] = (), *, lenient: bool = False
    ) -> tuple[dict[str, list[str]], dict[str, NDArray[np.float64]]]:
        """Read columns in one pass, some as they are written and some as numbers: label -> [n_rows], for both.

        Numbers that are missing (`MISSING`) are NaN; ``lenient``, so is any other text among them.

        The number of columns of **every** row is checked here (and in `write_with_columns`), not by `StarFile.read`.

        Raises
        ------
        KeyError
            A label that is not in ``labels``.
        ParticleFileError
            A row with more or fewer cells than there are labels, a number that is none, or a file that changed since it
            was scanned.
        """
        missing = [label for label in (*texts, *numbers) if label not in self.labels]
        if missing:
            raise KeyError(f"{missing[0]} is not among the columns of data_{self.name} in {self.path}")
        at = {label: self.labels.index(label) for label in (*texts, *numbers)}
        cells: dict[str, list[str]] = {label: [] for label in texts}
        values: dict[str, list[NDArray[np.float64]]] = {label: [np.empty(0)] for label in numbers}
        n_rows = 0
        for rows in self._rows():
            n_rows += len(rows)
            for label in texts:
                # One decoding per column and chunk, not per cell; a cell never holds a line end.
                column = b"\n".join([row[at[label]] for row in rows])
                cells[label] += column.decode("utf-8", "surrogateescape").split("\n")
            for label in numbers:
                column = [row[at[label]] for row in rows]
                values[label].append(self._as_numbers(label, column, n_rows - len(rows), lenient=lenient))
        self.check_n_rows(n_rows)
        return cells, {label: np.concatenate(parts) for label, parts in values.items()}

    def _as_numbers(self, label: str, column: list[bytes], rows_before: int, *, lenient: bool) -> NDArray[np.float64]:
        try:
            return np.array(column).astype(np.float64)
        except ValueError:
            wrong = [row for row, cell in enumerate(column) if not is_number(cell)]
        text = next((row for row in wrong if column[row] not in MISSING), None)
        if text is not None and not lenient:
            shown = column[text].decode("utf-8", "replace")[:60]
            raise ParticleFileError(
                f"{self.path}: column {label} of data_{self.name} holds text ({shown!r}) in row {rows_before + text + 1:,}; expected numbers"
            )
        for row in wrong:
            column[row] = b"nan"
        return np.array(column).astype(np.float64)

    def _rows(self) -> Iterator[list[list[bytes]]]:
        """Chunks of at least one row, each split into cells, comments left out and counts checked."""
        if not self.is_loop:
            lines = [line for lines in line_chunks(self.path, self.rows_start, self.rows_end) for line in lines]
            yield [[pair[1] for pair in map(words, lines) if pair]]
            return
        number = self.first_line
        for lines in line_chunks(self.path, self.rows_start, self.rows_end):
            rows = [words(line) for line in lines]
            if not {0, len(self.labels)}.issuperset(map(len, rows)):
                wrong = next(i for i, row in enumerate(rows) if len(row) not in (0, len(self.labels)))
                raise self.wrong_count(number + wrong, len(rows[wrong]))
            number += len(lines)
            if rows := [row for row in rows if row]:
                yield rows

    def wrong_count(self, number: int, found: int) -> ParticleFileError:
        """Say that line ``number``, the first of its kind, has ``found`` cells, and what is wrong with all rows like it."""
        wrong, example = self._wrong_rows()
        where = (
            f"{self.path}, line {number}: {found} columns found, the labels of data_{self.name} say {len(self.labels)}"
        )
        if len(wrong) > 1:
            of_all = "all" if len(wrong) == self.n_rows else f"{len(wrong):,} of {self.n_rows:,}"
            where += f"; so it is in {of_all} rows, lines {_ranges(wrong)}"
        if example is not None:
            return ParticleFileError(f"{where}; a name with spaces needs quotes round it: {example!r} seems to be one")
        if len(wrong) == self.n_rows > 1:
            return ParticleFileError(
                f"{where}; a label is missing or too many, or names with spaces stand without quotes"
            )
        return ParticleFileError(f"{where}; mend or delete {'those lines' if len(wrong) > 1 else 'that line'}")

    def _wrong_rows(self) -> tuple[list[int], str | None]:
        """Line numbers of the rows with a wrong number of cells; and two cells side by side that look like one name torn apart."""
        wrong: list[int] = []
        example = None
        number = self.first_line
        for lines in line_chunks(self.path, self.rows_start, self.rows_end):
            for line in lines:
                cells = words(line)
                if cells and len(cells) != len(self.labels):
                    wrong.append(number)
                    if example is None and len(cells) > len(self.labels):
                        example = _torn_name(cells)
                number += 1
        return wrong, example

    def check_n_rows(self, n_rows: int) -> None:
        """Raise ParticleFileError unless as many rows came by as were scanned."""
        if n_rows != self.n_rows:
            raise ParticleFileError(
                f"{self.path} changed while it was in use: {self.n_rows} rows before, {n_rows} now; run again"
            )


@dataclass(frozen=True)
class StarFile:
    """Where the tables of a STAR file lie.

    Attributes
    ----------
    path
        The file.
    blocks
        Its tables, in file order.
    crlf
        Whether it has Windows line ends, which RELION cannot read; they are not written back.
    version
        From ``# version 30001``; None where no such line is there (RELION 3.0, other programs).
    """

    path: Path
    blocks: tuple[StarBlock, ...]
    crlf: bool
    version: int | None

    @classmethod
    def read(cls, path: Path) -> "StarFile":
        """Find the blocks, labels and rows of a STAR file, in one pass over it.

        Raises
        ------
        ParticleFileError
            Unreadable, empty, binary, without a data block, or not built as RELION expects (the line is named).
        """
        scan = _Scan(Path(path))
        scan.run()
        return cls(scan.path, tuple(scan.blocks), scan.crlf, scan.version)

    def block(self, name: str) -> StarBlock:
        """Return the block ``data_<name>``; KeyError where there is none."""
        for block in self.blocks:
            if block.name == name:
                return block
        raise KeyError(f"no block data_{name} in {self.path}")


def is_number(cell: bytes | str) -> bool:
    """Whether a cell can be read as a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _torn_name(cells: list[bytes]) -> str | None:
    """Two neighbours of which one is a path and neither a number, joined by the space that tore them apart."""
    for left, right in pairwise(cells):
        if (b"/" in left or b"@" in left) and not (is_number(left) or is_number(right) or b"@" in right):
            return (left + b" " + right).decode("utf-8", "replace")
    return None


def _ranges(numbers: list[int], most: int = 4) -> str:
    """``3 to 7, 9, ...``: ascending numbers with runs drawn together."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [str(first) if first == last else f"{first} to {last}" for first, last in runs[:most]]
    return ", ".join([*shown, "..."] if len(runs) > most else shown)


class _Scan:
    """The one pass: a small machine whose ``place`` says what the next line may be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blocks: list[StarBlock] = []
        self.crlf = False
        self.version: int | None = None
        self.place = "outside"  # outside | opened | labels | rows | pairs | ended
        self.name = ""
        self.labels: list[str] = []
        self.n_rows = self.number = self.labels_end = self.rows_start = self.rows_end = self.first_line = 0

    def run(self) -> None:
        try:
            with self.path.open("rb") as stream:
                head = stream.read(4096)
                stream.seek(0)
                if not head.strip():
                    raise ParticleFileError(f"{self.path} is empty; a STAR file was expected")
                if (kind := kind_of(head)) is not None:
                    raise ParticleFileError(
                        f"{self.path} is compressed ({kind}); decompress it first, only stacks are read so"
                    )
                if b"\0" in head:
                    raise ParticleFileError(f"{self.path} is a binary file; a STAR file (text) was expected")
                if b"\r" in head and b"\n" not in head:
                    raise ParticleFileError(
                        f"{self.path} has line ends of old Macintosh programs (0x0D alone), so that all of it is one line; mend them:"
                        " tr '\\r' '\\n' < OLD.star > NEW.star"
                    )
                self._lines(stream)
        except OSError as error:
            raise ParticleFileError(f"{self.path} cannot be read: {error.strerror or error}") from error
        self._close_block()
        if not self.blocks:
            raise ParticleFileError(f"{self.path} is not a STAR file: no data_ block with labels was found in it")

    def _lines(self, stream: IO[bytes]) -> None:
        end = 0
        for line in stream:
            self.number += 1
            start, end = end, end + len(line)
            self.crlf = self.crlf or line.endswith(b"\r\n")
            first = line.lstrip()
            if self.place == "rows" and first and not first.startswith((b"#", b"data_", b"loop_")):
                self.n_rows += 1
                self.rows_end = end
            else:
                self._other(line.removeprefix(b"\xef\xbb\xbf") if start == 0 else line, start, end)

    def _other(self, line: bytes, start: int, end: int) -> None:
        """Any line that is not plainly the next row of a loop."""
        cells = words(line)
        if not cells:
            if self.version is None and (found := _VERSION.match(line.lstrip())):
                self.version = int(found[1])
            if self.place == "rows" and not line.strip():
                self.place = "ended"
        elif self._opens_block(cells):
            self._close_block()
            self.name, self.n_rows, self.place = cells[0][5:].decode("utf-8", "surrogateescape"), 0, "opened"
        elif self.place == "opened" and cells == [b"loop_"]:
            self.place = "labels"
        elif self.place == "labels" and cells[0].startswith(b"_") and len(cells) == 1:
            self._label(cells[0])
            self.labels_end = self.rows_start = self.rows_end = end
        elif self.place in ("opened", "pairs") and cells[0].startswith(b"_") and len(cells) == 2:
            if self.place == "opened":
                self.rows_start, self.first_line = start, self.number
            self._label(cells[0])
            self.n_rows, self.place, self.labels_end, self.rows_end = 1, "pairs", end, end
        elif self.place in ("labels", "rows") and self.labels:
            if self.place == "labels":
                self.rows_start, self.first_line = start, self.number
            self.n_rows, self.place, self.rows_end = self.n_rows + 1, "rows", end
        else:
            self._raise_misplaced(cells)

    def _opens_block(self, cells: list[bytes]) -> bool:
        """Whether this is a data_ line, rather than the row of a one-column table of names that start so."""
        name_in_table = self.place == "rows" and len(self.labels) == 1
        return len(cells) == 1 and cells[0].startswith(b"data_") and not name_in_table

    def _label(self, word: bytes) -> None:
        label = word[1:].decode("utf-8", "surrogateescape")
        if label in self.labels:
            raise ParticleFileError(
                f"{self.path}, line {self.number}: the label _{label} stands twice in data_{self.name};"
                " remove one of the two columns"
            )
        self.labels.append(label)

    def _close_block(self) -> None:
        if not self.labels:
            return
        if any(block.name == self.name for block in self.blocks):
            raise ParticleFileError(f"{self.path} has two blocks data_{self.name}; rename or remove one of them")
        where = (self.labels_end, self.rows_start, self.rows_end, self.first_line)
        is_loop = self.labels_end <= self.rows_start
        self.blocks.append(StarBlock(self.path, self.name, tuple(self.labels), self.n_rows, is_loop, *where))
        self.labels = []

    def _raise_misplaced(self, cells: list[bytes]) -> None:
        where = f"{self.path}, line {self.number}"
        shown = cells[0].decode("utf-8", "replace")[:60]
        if self.place == "outside":
            raise ParticleFileError(f"{where}: a STAR file starts with data_, found {shown!r}")
        if self.place == "ended":
            raise ParticleFileError(
                f"{where}: {shown!r} comes after the blank line that ends data_{self.name}, RELION would drop it;"
                " delete the blank line"
            )
        raise ParticleFileError(f"{where}: {shown!r} does not belong here; loop_, _label lines or rows were expected")
