"""What the files of a run know of each particle that was used: any column, to colour latent space by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emspatialvae.analysis.figures.scatter import Groups, Measure, colouring
from emspatialvae.errors import EmsvaeError, ParticleFileError, RunFolderError
from emspatialvae.io.image_names import plain_image_name
from emspatialvae.particles.find_column import find_column
from emspatialvae.particles.table import ParticleTable, open_table
from emspatialvae.results.latents import Latents
from emspatialvae.results.run_folder import RunDir

UNITS = {
    **dict.fromkeys(("Angst", "_A", "DefocusU", "DefocusV", "CtfMaxResolution"), "\N{ANGSTROM SIGN}"),
    **dict.fromkeys(("Angle", "AnglePsi", "AngleRot", "AngleTilt", "PhaseShift", "ThetaStd"), "degrees"),
    **dict.fromkeys(("_rad", "alignments2D/pose"), "radians"),
    **dict.fromkeys(("Voltage", "_kv"), "kV"),
    **dict.fromkeys(("OriginX", "OriginY", "CoordinateX", "CoordinateY"), "px"),
    "LogLikeliContribution": "nats",
    "Misfit": "s.d. of noise",
}
"""Of columns whose names end so."""
MICROGRAPHS = ("rlnMicrographName", "location/micrograph_path")


@dataclass(frozen=True)
class Columns:
    """The tables of a run, the STAR file first, and the rows that were used."""

    tables: tuple[ParticleTable, ...]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, run: RunDir, latents: Latents) -> "Columns":
        """Open them.

        Raises
        ------
        RunFolderError
            ``particles.star`` is missing, or shorter than the run's results.
        """
        if not run.star.is_file():
            raise RunFolderError(f"{run.star} is missing; make it again: emsvae export {run.path} --star {run.star}")
        files = [run.star, *(file for file in (run.star.with_suffix(".cs"),) if file.is_file())]
        tables = tuple(open_table(file) for file in files)
        for table in tables:
            if len(table) < len(latents):  # with --limit they are longer
                raise RunFolderError(
                    f"{table.path} has {len(table):,} rows, the run has {len(latents):,} particles; make it again: "
                    f"emsvae export {run.path} --{table.suffix[1:]} {table.path} --force"
                )
        if run.manifest.config.input.particles.suffix in (".star", ".cs"):
            _check_belong(tables, latents, run)
        return cls(tables, np.flatnonzero(latents.used))

    @property
    def names(self) -> tuple[str, ...]:
        """All columns there are."""
        return tuple(dict.fromkeys(name for table in self.tables for name in table.names))

    def find(self, wanted: str) -> str:
        """The column that a user means; see `find_column`.

        Raises
        ------
        EmsvaeError
            There is none; the nearest is named.
        """
        try:
            return find_column(wanted, *(table.names for table in self.tables))
        except EmsvaeError as error:
            raise EmsvaeError(f"--colour-by {wanted}: {error}") from None

    def known(self, names: Sequence[str]) -> list[str]:
        """Those of the names that are columns."""
        return [name for name in names if name in self.names]

    def colour(self, name: str) -> Measure | Groups:
        """A column of the particles that were used, as numbers or as groups."""
        unit = next((unit for end, unit in UNITS.items() if name.endswith(end)), "")
        return colouring(name, self._cells(name), unit)

    def micrographs(self) -> Mapping[str, NDArray[np.int64]] | None:
        """For each micrograph its particles, counted among those that were used; None where the files name none."""
        known = self.known(MICROGRAPHS)
        if not known:
            return None
        names, of = np.unique(self._cells(known[0]).astype(str), return_inverse=True)
        order, ends = np.argsort(of, kind="stable"), np.cumsum(np.bincount(of, minlength=len(names)))
        return dict(zip(names.tolist(), np.split(order, ends[:-1]), strict=True))

    def _cells(self, name: str) -> NDArray:
        table = next(table for table in self.tables if name in table.names)
        try:
            return table.read(numbers=(name,))[1][name][self.rows]
        except ParticleFileError:  # the column holds text
            return table.read(texts=(name,))[0][name][self.rows]


def _check_belong(tables: tuple[ParticleTable, ...], latents: Latents, run: RunDir) -> None:
    """Refuse tables whose rows are not those of ``latents.csv``, one by one."""
    ours = [plain_image_name(str(name)) for name in latents.names]
    for table in tables:
        names = table.image_names()
        if names is not None and names[: len(ours)].tolist() != ours:
            raise RunFolderError(
                f"{table.path} and {run.latents} do not list the same particles in the same order; make it again: "
                f"emsvae export {run.path} --{table.suffix[1:]} {table.path} --force"
            )
