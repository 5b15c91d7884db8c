"""The columns of a run's particle file, read when somebody asks for them, and what can be found by them."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import EmsvaeError, ParticleFileError
from emspatialvae.imaging.arrays import Mask
from emspatialvae.io.star_scan import is_number

if TYPE_CHECKING:
    from emspatialvae.particles.table import ParticleTable, StarTable
    from emspatialvae.results.latents import Latents
    from emspatialvae.results.run_folder import RunDir

SAMPLE_ROWS = 200
"""Cells that show whether a column holds numbers."""


class RunColumns:
    """The columns of RUN/particles.star, and of RUN/particles.cs where there is one, for the particles of a run.

    Parameters
    ----------
    own
        Gives the columns that the results make, without a look at the file.
    """

    def __init__(self, run: "RunDir", latents: "Latents", own: Callable[[], Mapping[str, NDArray[Any]]]) -> None:
        self.run, self.n = run, len(latents)
        self._own, self._all_used = own, bool(latents.used.all())
        self._known: dict[str, NDArray[Any]] = {}

    @cached_property
    def table(self) -> "ParticleTable":
        """RUN/particles.star.

        Raises
        ------
        EmsvaeError
            It is gone, damaged, or has fewer particles than the run.
        """
        from emspatialvae.particles.table import open_table

        if not self.run.star.is_file():
            raise EmsvaeError(f"{self.run.star} is missing; run `emsvae export {self.run.path} --star {self.run.star}`")
        table = open_table(self.run.star)
        if len(table) < self.n:  # with --limit it goes on after the run's particles
            raise EmsvaeError(
                f"{self.run.star} has {len(table)} particles, the run has {self.n}; run `emsvae export {self.run.path} "
                f"--star {self.run.star} --force` to write it anew"
            )
        return table

    @cached_property
    def cs_table(self) -> "ParticleTable | None":
        """RUN/particles.cs, which a run on a .cs file has as well: micrographs and whatever else cryoSPARC knows."""
        from emspatialvae.particles.table import open_table

        file = self.run.star.with_suffix(".cs")
        if not file.is_file():
            return None
        table = open_table(file)
        return table if len(table) >= self.n else None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns of RUN/particles.star, ours last; then those that only RUN/particles.cs has."""
        more = () if self.cs_table is None else self.cs_table.names
        return tuple(dict.fromkeys((*self.table.names, *more)))

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """Those of `names` that hold numbers, judged by their first cells; known without reading the whole file."""
        from emspatialvae.particles.table import CsTable, StarTable

        found = []
        texts = _text_columns(self.table) if isinstance(self.table, StarTable) else set()
        for name in self.names:
            cs = self.cs_table if name not in self.table.names else self.table
            is_text = cs.is_text(name) if isinstance(cs, CsTable) else name in texts
            if not is_text:
                found.append(name)
        return tuple(found)

    def read(self, label: str) -> NDArray[Any]:
        """One column of RUN/particles.star: numbers (float) where every cell is one, texts otherwise; [n].

        Our own columns are known already; others take a pass over the file, some seconds at a million particles.

        Raises
        ------
        EmsvaeError
            There is no such column.
        """
        if label not in self._known:
            self._known[label] = self._read(label)
        return self._known[label]

    def _read(self, label: str) -> NDArray[Any]:
        # Of particles that were not used the file keeps what it had; the results hold zeros for them.
        own = self._own()
        if label in own and (label.startswith("emsvae") or self._all_used):
            return np.asarray(own[label])
        if label not in self.names:
            raise EmsvaeError(f"{self.run.star} has no column {label}; it has {', '.join(self.names)}")
        table = self.table if label in self.table.names or self.cs_table is None else self.cs_table
        try:
            return table.read(numbers=(label,))[1][label][: self.n]
        except ParticleFileError:
            return table.read(texts=(label,))[0][label][: self.n]

    def where(self, condition: str) -> Mask:
        """Which particles meet a condition, as in ``emsvae select --where``; [n].

        Raises
        ------
        EmsvaeError
            It is none: what stands where.
        """
        from emspatialvae.workflows.select import matching

        others = () if self.cs_table is None else (self.cs_table,)
        return matching(self.table, condition, *others, say=lambda _: None)[: self.n]

    def in_range(self, label: str, low: float, high: float) -> Mask:
        """Which particles have a value from ``low`` to ``high`` in a column; [n].

        Raises
        ------
        EmsvaeError
            There is no such column, or it holds texts.
        """
        values = self.read(label)
        if values.dtype.kind not in "fiub":
            raise EmsvaeError(f"column {label} holds texts such as {values[0]!r}; a range needs numbers")
        return (values >= low) & (values <= high)

    def one_of(self, label: str, wanted: list[str]) -> Mask:
        """Which particles have one of some values in a column; [n].

        Raises
        ------
        EmsvaeError
            There is no such column, or it holds numbers and a value is none.
        """
        values = self.read(label)
        if values.dtype.kind not in "fiub":
            return np.isin(values.astype(str), wanted)
        try:
            return np.isin(values, np.array(wanted, dtype=float))
        except ValueError:
            raise EmsvaeError(
                f"column {label} holds numbers, {', '.join(wanted)} are none; type numbers, as in 1, 4"
            ) from None


def _text_columns(table: "StarTable") -> set[str]:
    """Columns of a STAR file that hold texts, judged by the first rows: a look at the beginning of each table."""
    block, optics = table.block, table.optics
    with block.path.open("rb") as stream:
        stream.seek(block.rows_start)
        lines = [line.decode("utf-8", "replace").split() for _, line in zip(range(SAMPLE_ROWS), stream, strict=False)]
    rows = [cells for cells in lines if len(cells) == len(block.labels)]
    columns = dict(zip(block.labels, zip(*rows, strict=True), strict=True)) if rows else {}
    if optics is not None:
        columns = {**optics.columns(*optics.labels), **columns}
    return {name for name, cells in columns.items() if not all(map(is_number, cells))}
