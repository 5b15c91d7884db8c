"""`RunData`: what the explorer knows of a run, opened in the order in which it is needed.

The table of results comes first, so that the scatter stands while the rest is still read; then the particles, the model, and columns of
the STAR file when somebody asks for them. Everything here may be called from a worker thread; nothing here knows Qt.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Rows
from napari_emsvae.explorer.axes import Axes
from napari_emsvae.explorer.columns import RunColumns
from napari_emsvae.explorer.neighbours import Neighbours

if TYPE_CHECKING:
    from emspatialvae.model.interface import ParticleVAE
    from emspatialvae.particles.stack import ParticleStack
    from emspatialvae.preprocess.cache import ImageSource
    from emspatialvae.results.classes import Classes
    from emspatialvae.results.latents import Latents
    from emspatialvae.results.manifest import Manifest
    from emspatialvae.results.run_folder import RunDir


PLACE_FILE = "located.json"
"""In the run's folder: where the stack was found when it was not where it had been."""


class RunData:
    """A run folder. Open it with `RunData.open`.

    Attributes
    ----------
    run, manifest, latents
        Folder, settings and results, in the order of the particle file.
    columns, neighbours, axes
        Columns of the particle file, particles that are alike, and places in a plane.
    """

    def __init__(self, run: "RunDir", latents: "Latents") -> None:
        self.run = run
        self.project_dir: Path | None = None
        """Where the stack was found, if not where it had been."""
        self.latents = latents
        self.manifest: Manifest = run.manifest
        self.columns = RunColumns(run, latents, lambda: self._own_columns)
        self.neighbours = Neighbours(latents)
        self.axes = Axes(latents, self.columns, self.neighbours, run.path)

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

    @property
    def used(self) -> Rows:
        """The particles that the run could use."""
        return self.neighbours.used

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
    def _own_columns(self) -> dict[str, NDArray[Any]]:
        """What the results say of each column, without a look at the file; nothing when the particles cannot be read."""
        from emspatialvae.results.export import result_columns

        if isinstance(self._stack, EmsvaeError):
            return {}
        columns = result_columns(self.latents, self._stack, self.manifest.config.poses)
        return {column.label: column.values for column in columns}
