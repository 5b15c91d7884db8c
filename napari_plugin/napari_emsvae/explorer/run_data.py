"""`RunData`: what the explorer knows of a run, opened in the order in which it is needed.

The table of results comes first, so that the scatter stands while the rest is still read; then the particles, the model, and columns of
the STAR file when somebody asks for them. Everything here may be called from a worker thread; nothing here knows Qt.
"""

import hashlib
import json
import zipfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Floats, Rows

if TYPE_CHECKING:
    from emspatialvae.analysis.latent_space.embedding import PrincipalComponents
    from emspatialvae.model.interface import ParticleVAE
    from emspatialvae.particles.stack import ParticleStack
    from emspatialvae.particles.table import ParticleTable, StarTable
    from emspatialvae.preprocess.cache import ImageSource
    from emspatialvae.results.classes import Classes
    from emspatialvae.results.latents import Latents
    from emspatialvae.results.manifest import Manifest
    from emspatialvae.results.run_folder import RunDir


ABOUT = 30
"""Particles whose mean latent stands for a place in a plane."""
UMAP_ROWS = 50_000
"""UMAP looks at no more particles than that; the others have no place in it."""
UMAP_FILE, PLACE_FILE = "umap.npz", "located.json"
"""In the run's folder: a UMAP that was made, and where the stack was found when it was not where it had been."""
SAMPLE_ROWS = 200
"""Cells that show whether a column holds numbers."""


class RunData:
    """A run folder. Open it with `RunData.open`.

    Attributes
    ----------
    run, manifest, latents
        Folder, settings and results, in the order of the particle file.
    """

    def __init__(self, run: "RunDir", latents: "Latents") -> None:
        self.run = run
        self.project_dir: Path | None = None
        """Where the stack was found, if not where it had been."""
        self.latents = latents
        self.manifest: Manifest = run.manifest
        self._columns: dict[str, NDArray[Any]] = {}

    @classmethod
    def open(cls, path: Path) -> "RunData":
        """Read the table of results.

        Raises
        ------
        RunFolderError
            Not a run folder, or one without results.
        """
        from emspatialvae.results.read_run import read_latents

        data = cls(*read_latents(Path(path).absolute()))
        data.project_dir = data._remembered_place()
        return data

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.run.path

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def z_dim(self) -> int:
        """Number of latent coordinates."""
        return self.latents.z.shape[1]

    @property
    def pixel_size_A(self) -> float:
        """Of the prepared images."""
        return self.latents.pixel_size_A

    @cached_property
    def used(self) -> Rows:
        """The particles that the run could use."""
        return np.flatnonzero(self.latents.used)

    # ------------------------------------------------------------------------------------- what takes a moment to read

    @property
    def stack(self) -> "ParticleStack":
        """The run's particles.

        Raises
        ------
        EmsvaeError
            They are no longer where they were, or others than they were.
        """
        if isinstance(self._stack, EmsvaeError):
            raise self._stack
        return self._stack

    @cached_property
    def _stack(self) -> "ParticleStack | EmsvaeError":
        # What went wrong is kept: of a million particles the next try would take as long as the first.
        from emspatialvae.results.read_run import read_particles

        try:
            return read_particles(self.run, self.latents, self.project_dir)
        except EmsvaeError as error:
            return error

    @property
    def has_stack(self) -> bool:
        """Whether the raw images are where they are looked for."""
        return not isinstance(self._stack, EmsvaeError)

    def locate_stack(self, folder: Path) -> None:
        """Look for the stack from another folder on, the project's, and remember it in the run where it is there.

        Raises
        ------
        EmsvaeError
            It is not there either; what was known before holds.
        """
        from emspatialvae.io.atomic import atomic_path
        from emspatialvae.results.read_run import read_particles

        stack = read_particles(self.run, self.latents, folder)
        self.project_dir = folder
        for name in ("_stack", "images", "_own_columns"):
            self.__dict__.pop(name, None)
        self.__dict__["_stack"] = stack
        with atomic_path(self.path / PLACE_FILE, overwrite=True) as temporary:
            temporary.write_text(json.dumps({"project_dir": str(folder)}))

    def _remembered_place(self) -> Path | None:
        try:
            place = Path(json.loads((self.path / PLACE_FILE).read_text())["project_dir"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return place if place.is_dir() else None

    @property
    def unit(self) -> str:
        """What sizes are in: angstrom, or pixel where the particles are photographs, of which nobody knows a scale."""
        return "pixel" if self.has_stack and self.stack.of_pictures else "angstrom"

    @property
    def unit_sign(self) -> str:
        """The unit as it stands behind a number."""
        return "px" if self.unit == "pixel" else "\N{ANGSTROM SIGN}"

    @cached_property
    def model(self) -> "ParticleVAE":
        """The trained model, on the CPU.

        Raises
        ------
        RunFolderError
            The checkpoint is missing or damaged.
        """
        from emspatialvae.inference.infer import load_model

        return load_model(self.run)

    @cached_property
    def images(self) -> "ImageSource":
        """The images as the model sees them; without the stack those of the cache.

        Raises
        ------
        EmsvaeError
            There is neither.
        """
        from napari_emsvae.explorer.prepared_images import open_cache_alone, open_prepared

        if not self.has_stack:
            cached = open_cache_alone(self.run, self.latents.used)
            if cached is not None:
                return cached
        return open_prepared(self.run, self.stack)

    @cached_property
    def near_unit(self) -> Floats:
        """How well z is known, per coordinate; distances are counted in it."""
        from emspatialvae.analysis.latent_space.paths import typical_sd

        return typical_sd(self.latents.z_sd[self.used])

    def count_near(self, z: Floats) -> int:
        """How many particles have latents like z [d]: within two standard deviations of what is known of them, as along a path."""
        from emspatialvae.analysis.latent_space.paths import REACH

        unit = self.near_unit
        told = max(float((1 - np.minimum(unit, 1) ** 2).sum()), 1.0)
        distance = (((self.latents.z[self.used] - z) / unit) ** 2).sum(1)
        return int((distance <= REACH**2 * told).sum())

    @property
    def classes(self) -> "Classes | None":
        """What ``emsvae classes`` made; None when the run has none, or others than its table of results knows.

        Raises
        ------
        EmsvaeError
            They are damaged.
        """
        from emspatialvae.results.classes import read_classes

        return None if self.latents.class_number is None else read_classes(self.run)

    @cached_property
    def tree(self) -> KDTree:
        """The used particles in latent space, each coordinate in units of its spread."""
        return KDTree(self.latents.z[self.used] / self.z_spread)

    @cached_property
    def z_spread(self) -> Floats:
        """S.d. of every latent coordinate over the used particles, never 0; [d]."""
        return np.maximum(self.latents.z[self.used].std(0), 1e-6)

    def nearest_in_z(self, z: Floats, count: int) -> Rows:
        """The used particles nearest to latents z [d], the nearest first; [count] or as many as there are."""
        count = min(count, len(self.used))
        _, found = self.tree.query(np.asarray(z) / self.z_spread, k=count)
        return self.used[np.atleast_1d(found)]

    # ------------------------------------------------------------------------------------------------------- columns

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
            raise EmsvaeError(f"{self.run.star} is missing; run `emsvae export {self.path} --star {self.run.star}`")
        table = open_table(self.run.star)
        if len(table) < len(self):  # with --limit it goes on after the run's particles
            raise EmsvaeError(
                f"{self.run.star} has {len(table)} particles, the run has {len(self)}; run `emsvae export {self.path} "
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
        return table if len(table) >= len(self) else None

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """The columns of RUN/particles.star, ours last; then those that only RUN/particles.cs has."""
        more = () if self.cs_table is None else self.cs_table.names
        return tuple(dict.fromkeys((*self.table.names, *more)))

    @cached_property
    def number_columns(self) -> tuple[str, ...]:
        """Those of `column_names` that hold numbers, judged by their first cells; known without reading the whole file."""
        from emspatialvae.particles.table import CsTable, StarTable

        found = []
        texts = _text_columns(self.table) if isinstance(self.table, StarTable) else set()
        for name in self.column_names:
            cs = self.cs_table if name not in self.table.names else self.table
            is_text = cs.is_text(name) if isinstance(cs, CsTable) else name in texts
            if not is_text:
                found.append(name)
        return tuple(found)

    @cached_property
    def _own_columns(self) -> dict[str, NDArray[Any]]:
        """What the results say of each column, without a look at the file; nothing when the particles cannot be read."""
        from emspatialvae.results.export import result_columns

        if isinstance(self._stack, EmsvaeError):
            return {}
        columns = result_columns(self.latents, self._stack, self.manifest.config.poses)
        return {column.label: column.values for column in columns}

    def column(self, label: str) -> NDArray[Any]:
        """One column of RUN/particles.star: numbers (float) where every cell is one, texts otherwise; [n].

        Our own columns are known already; others take a pass over the file, some seconds at a million particles.

        Raises
        ------
        EmsvaeError
            There is no such column.
        """
        if label not in self._columns:
            self._columns[label] = self._read_column(label)
        return self._columns[label]

    def _read_column(self, label: str) -> NDArray[Any]:
        from emspatialvae.errors import ParticleFileError

        # Of particles that were not used the file keeps what it had; the results hold zeros for them.
        if label in self._own_columns and (label.startswith("emsvae") or self.latents.used.all()):
            return np.asarray(self._own_columns[label])
        if label not in self.column_names:
            raise EmsvaeError(f"{self.run.star} has no column {label}; it has {', '.join(self.column_names)}")
        table = self.table if label in self.table.names or self.cs_table is None else self.cs_table
        try:
            return table.read(numbers=(label,))[1][label][: len(self)]
        except ParticleFileError:
            return table.read(texts=(label,))[0][label][: len(self)]

    def where(self, condition: str) -> NDArray[np.bool_]:
        """Which particles meet a condition, as in ``emsvae select --where``; [n].

        Raises
        ------
        EmsvaeError
            It is none: what stands where.
        """
        from emspatialvae.workflows.select import matching

        others = () if self.cs_table is None else (self.cs_table,)
        return matching(self.table, condition, *others, say=lambda _: None)[: len(self)]

    # ---------------------------------------------------------------------------------------------- places in a plane

    @property
    def axis_names(self) -> tuple[str, ...]:
        """What particles can be placed by: latents, their principal components, UMAP where it is installed, columns."""
        z = tuple(f"z{k + 1}" for k in range(self.z_dim))
        components = tuple(f"PC{k + 1}" for k in range(self.z_dim)) if self.z_dim > 1 else ()
        return (*z, *components, *(("UMAP1", "UMAP2") if self.z_dim > 2 and has_umap() else ()))

    @property
    def first_axes(self) -> tuple[str, str]:
        """The plane that is shown first; for one-dimensional latents the log-likelihood is the other axis."""
        if self.z_dim == 1:
            return "z1", "rlnLogLikeliContribution"
        return ("z1", "z2") if self.z_dim == 2 else ("PC1", "PC2")

    def coordinate(self, name: str) -> Floats:
        """Where particles lie along an axis of `axis_names`, or a column of numbers; NaN for unused particles; [n].

        Raises
        ------
        EmsvaeError
            There is no such axis, or its cells are no numbers.
        """
        out = np.full(len(self), np.nan)
        kind, number = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
        if name in self.axis_names:
            table = {"z": lambda: self.latents.z[self.used], "PC": lambda: self.components, "UMAP": lambda: self.umap}
            out[self.used] = table[kind]()[:, int(number) - 1]
            return out
        if name == "rlnLogLikeliContribution":
            values: NDArray[Any] = self.latents.log_likelihood
        else:
            values = self.column(name)
        if values.dtype.kind not in "fiub":
            raise EmsvaeError(f"column {name} holds texts such as {values[0]!r}; an axis needs numbers")
        out[self.used] = values[self.used]
        return out

    def place(self, z: Floats, axes: tuple[str, str]) -> Floats:
        """Where latents z [k, d] lie in the plane of two axes; where an axis is no function of z, with the nearest particles; [k, 2]."""
        points = np.empty((len(z), 2))
        for k, name in enumerate(axes):
            if name in self.axis_names and name.startswith("z"):
                points[:, k] = z[:, int(name[1:]) - 1]
            elif name in self.axis_names and name.startswith("PC"):
                axis = int(name[2:]) - 1
                points[:, k] = (z - self._components.mean) @ self._components.axes[axis]
            else:
                _, nearest = self.tree.query(z / self.z_spread)
                points[:, k] = self.coordinate(name)[self.used[nearest]]
        return points

    def content_at(self, points: Floats, axes: tuple[str, str]) -> Floats:
        """The latents of points [k, 2] of a plane; [k, d].

        Where the plane leaves coordinates open, the mean of those of the `ABOUT` particles that lie nearest in it.
        """
        if self.z_dim == 2 and set(axes) == {"z1", "z2"}:
            return points if axes == ("z1", "z2") else points[:, ::-1]
        coordinates = np.stack([self.coordinate(name)[self.used] for name in axes], 1)
        known = np.isfinite(coordinates).all(1)
        scale = np.maximum(coordinates[known].std(0), 1e-9)
        count = min(ABOUT, int(known.sum()))
        _, nearest = KDTree(coordinates[known] / scale).query(points / scale, k=count)
        nearest = np.reshape(nearest, (len(points), count))  # one neighbour would come without an axis of its own
        return self.latents.z[self.used[known]][nearest].mean(1)

    @property
    def components(self) -> Floats:
        """Principal components of the used particles' latents; [used, d]."""
        return self._components.scores

    @cached_property
    def _components(self) -> "PrincipalComponents":
        from emspatialvae.analysis.latent_space.embedding import principal_components

        return principal_components(self.latents.z[self.used])

    @property
    def component_share(self) -> Floats:
        """Of the variance of z, per principal component; [d]."""
        return self._components.share

    def to_components(self, z: Floats) -> Floats:
        """Latents [d] along the principal components; [d]."""
        return (z - self._components.mean) @ self._components.axes.T

    def from_components(self, values: Floats) -> Floats:
        """The other way round."""
        return values @ self._components.axes + self._components.mean

    @cached_property
    def umap(self) -> Floats:
        """UMAP of the used particles' latents; NaN beyond `UMAP_ROWS`; [used, 2].

        Raises
        ------
        EmsvaeError
            umap-learn is not installed, or the particles are too few for it.
        """
        from emspatialvae.analysis.latent_space.embedding import some_rows, umap_plane

        file, key = self.path / UMAP_FILE, self._digest_of_z()
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as saved:
                if str(saved["of"]) == key:
                    return saved["plane"].astype(float)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # there is none yet, or it is no good: it is made anew
        rows = some_rows(len(self.used), UMAP_ROWS)
        out = np.full((len(self.used), 2), np.nan)
        out[rows] = umap_plane(self.latents.z[self.used[rows]])
        self._keep_umap(file, key, out)
        return out

    def _keep_umap(self, file: Path, key: str, plane: Floats) -> None:
        """A UMAP takes minutes: it stays with the run, where that can be written to."""
        from emspatialvae.io.atomic import atomic_path

        try:
            with atomic_path(file, overwrite=True) as temporary, temporary.open("wb") as stream:
                np.savez(stream, allow_pickle=False, of=key, plane=plane.astype(np.float32))
        except (OSError, EmsvaeError):
            return  # a run on a disk that is read-only is looked at all the same

    def _digest_of_z(self) -> str:
        """A short text that stands for these latents."""
        return hashlib.sha256(np.ascontiguousarray(self.latents.z[self.used]).tobytes()).hexdigest()[:16]


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
    return {name for name, cells in columns.items() if not all(map(_is_number, cells))}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def has_umap() -> bool:
    """Whether umap-learn is installed."""
    from importlib.util import find_spec

    return find_spec("umap") is not None
