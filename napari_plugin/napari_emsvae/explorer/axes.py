"""Places of particles in a plane: latents, their principal components, UMAP, columns."""

import hashlib
import zipfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Floats
from napari_emsvae.explorer.columns import RunColumns
from napari_emsvae.explorer.neighbours import Neighbours

if TYPE_CHECKING:
    from emspatialvae.analysis.latent_space.embedding import PrincipalComponents
    from emspatialvae.results.latents import Latents

ABOUT = 30
"""Particles whose mean latent stands for a place in a plane."""
UMAP_ROWS = 50_000
"""UMAP looks at no more particles than that; the others have no place in it."""
UMAP_FILE = "umap.npz"
"""In the run's folder: a UMAP that was made."""


class Axes:
    """What particles can be placed by, and which latents belong to a place.

    Parameters
    ----------
    folder
        The run's, where a UMAP is kept.
    """

    def __init__(self, latents: "Latents", columns: RunColumns, neighbours: Neighbours, folder: Path) -> None:
        self.latents, self.columns, self.neighbours, self.folder = latents, columns, neighbours, folder
        self.z_dim = latents.z.shape[1]

    @property
    def names(self) -> tuple[str, ...]:
        """What particles can be placed by: latents, their principal components, UMAP where it is installed, columns."""
        z = tuple(f"z{k + 1}" for k in range(self.z_dim))
        components = tuple(f"PC{k + 1}" for k in range(self.z_dim)) if self.z_dim > 1 else ()
        return (*z, *components, *(("UMAP1", "UMAP2") if self.z_dim > 2 and has_umap() else ()))

    @property
    def first(self) -> tuple[str, str]:
        """The plane that is shown first; for one-dimensional latents the log-likelihood is the other axis."""
        if self.z_dim == 1:
            return "z1", "rlnLogLikeliContribution"
        return ("z1", "z2") if self.z_dim == 2 else ("PC1", "PC2")

    def coordinate(self, name: str) -> Floats:
        """Where particles lie along an axis of `names`, or a column of numbers; NaN for unused particles; [n].

        Raises
        ------
        EmsvaeError
            There is no such axis, or its cells are no numbers.
        """
        out = np.full(len(self.latents), np.nan)
        kind, number = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
        if name in self.names:
            table = {"z": lambda: self.neighbours.z, "PC": lambda: self.components, "UMAP": lambda: self.umap}
            out[self.neighbours.used] = table[kind]()[:, int(number) - 1]
            return out
        if name == "rlnLogLikeliContribution":
            values: NDArray[Any] = self.latents.log_likelihood
        else:
            values = self.columns.read(name)
        if values.dtype.kind not in "fiub":
            raise EmsvaeError(f"column {name} holds texts such as {values[0]!r}; an axis needs numbers")
        out[self.neighbours.used] = values[self.neighbours.used]
        return out

    def place(self, z: Floats, axes: tuple[str, str]) -> Floats:
        """Where latents z [k, d] lie in the plane of two axes; where an axis is no function of z, with the nearest particles; [k, 2]."""
        points = np.empty((len(z), 2))
        for k, name in enumerate(axes):
            if name in self.names and name.startswith("z"):
                points[:, k] = z[:, int(name[1:]) - 1]
            elif name in self.names and name.startswith("PC"):
                axis = int(name[2:]) - 1
                points[:, k] = (z - self._components.mean) @ self._components.axes[axis]
            else:
                _, nearest = self.neighbours.tree.query(z / self.neighbours.spread)
                points[:, k] = self.coordinate(name)[self.neighbours.used[nearest]]
        return points

    def latents_at(self, points: Floats, axes: tuple[str, str]) -> Floats:
        """The latents of points [k, 2] of a plane; [k, d].

        Where the plane leaves coordinates open, the mean of those of the `ABOUT` particles that lie nearest in it.
        """
        if self.z_dim == 2 and set(axes) == {"z1", "z2"}:
            return points if axes == ("z1", "z2") else points[:, ::-1]
        coordinates = np.stack([self.coordinate(name)[self.neighbours.used] for name in axes], 1)
        known = np.isfinite(coordinates).all(1)
        scale = np.maximum(coordinates[known].std(0), 1e-9)
        count = min(ABOUT, int(known.sum()))
        _, nearest = KDTree(coordinates[known] / scale).query(points / scale, k=count)
        nearest = np.reshape(nearest, (len(points), count))  # one neighbour would come without an axis of its own
        return self.neighbours.z[known][nearest].mean(1)

    @property
    def components(self) -> Floats:
        """Principal components of the used particles' latents; [used, d]."""
        return self._components.scores

    @cached_property
    def _components(self) -> "PrincipalComponents":
        from emspatialvae.analysis.latent_space.embedding import principal_components

        return principal_components(self.neighbours.z)

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

        file, key = self.folder / UMAP_FILE, self._digest_of_z()
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as saved:
                if str(saved["of"]) == key:
                    return saved["plane"].astype(float)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # there is none yet, or it is no good: it is made anew
        rows = some_rows(len(self.neighbours.used), UMAP_ROWS)
        out = np.full((len(self.neighbours.used), 2), np.nan)
        out[rows] = umap_plane(self.neighbours.z[rows])
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
        return hashlib.sha256(np.ascontiguousarray(self.neighbours.z).tobytes()).hexdigest()[:16]


def has_umap() -> bool:
    """Whether umap-learn is installed."""
    from importlib.util import find_spec

    return find_spec("umap") is not None
