"""Particle files as tables: any column by its name, and the same file with some of its rows.

Where `emspatialvae.particles.read_star` reads what a model needs, this gives whatever a file holds, as it is written there.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from os.path import normpath
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import ParticleFileError
from emspatialvae.io import cs
from emspatialvae.io.image_names import ImageName, plain_image_name
from emspatialvae.io.star import StarBlock, StarFile, write_rows
from emspatialvae.particles.optics_groups import optics_rows
from emspatialvae.particles.read_star import particle_block

Texts = dict[str, NDArray[np.object_]]
Numbers = dict[str, NDArray[Any]]
STAR_COORDINATES = ("rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY")
CS_COORDINATES = (
    "location/micrograph_path",
    "location/center_x_frac",
    "location/center_y_frac",
    "location/micrograph_shape",
)
_CS_COORDINATES: dict[str, tuple[str, tuple[int, ...]]] = {
    "location/micrograph_path": ("text", ()),
    "location/center_x_frac": ("numbers", ()),
    "location/center_y_frac": ("numbers", ()),
    "location/micrograph_shape": ("numbers", (2,)),
}
"""What each of them holds."""

CS_MICROGRAPH_PIXEL = "location/micrograph_psize_A"


@dataclass(frozen=True)
class Coordinates:
    """Where n particles were picked.

    Attributes
    ----------
    micrographs, micrograph_of
        Names of the micrographs; for each particle its micrograph [n].
    xy_px
        Centres of the boxes in micrograph pixels; shape [n, 2].
    """

    micrographs: tuple[str, ...]
    micrograph_of: NDArray[np.intp]
    xy_px: NDArray[np.float64]

    @classmethod
    def checked(cls, path: Path, micrograph: NDArray[np.object_], x: NDArray[Any], y: NDArray[Any]) -> "Coordinates":
        """From columns of a file; ParticleFileError where one is not a finite number."""
        xy_px = np.stack([x, y], 1).astype(np.float64)
        wrong = np.flatnonzero(~np.isfinite(xy_px).all(1))
        if len(wrong):
            raise ParticleFileError(
                f"{path}: the coordinates of particle {wrong[0] + 1} are not numbers; repair the file"
            )
        number: dict[str, int] = {}
        same = _spellings(path, dict.fromkeys(micrograph.tolist()))
        of = np.array([number.setdefault(same[name], len(number)) for name in micrograph.tolist()], np.intp)
        return cls(tuple(number), of, xy_px)


def _spellings(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Each name of a micrograph -> the first name of the same file: ``./m.mrc``, absolute, through a link, relative to the project."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(PurePosixPath(name).name, []).append(name)
    same: dict[str, str] = {}
    for group in alike.values():
        for at, name in enumerate(group):
            first = next((other for other in group[:at] if _is_one_file(path, other, name)), name)
            same[name] = same.get(first, name)
    return same


def _is_one_file(path: Path, one: str, other: str) -> bool:
    """Whether two spellings in a particle file mean one file; by the paths alone where it is not here."""
    short, long = sorted((normpath(one), normpath(other)), key=len)
    if short == long:
        return True
    roots = [*path.absolute().parents, Path.cwd()]
    found = [next((file for root in roots if (file := root / name).is_file()), None) for name in (short, long)]
    if found[0] is not None and found[1] is not None:
        return found[0].samefile(found[1])
    return long.startswith("/") and not short.startswith("/") and long.endswith(f"/{short}") and "/" in short


class ParticleTable(Protocol):
    """One particle file; see `StarTable` and `CsTable`."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def suffix(self) -> str:
        """What files of this kind end in."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that `read` knows."""
        ...

    def __len__(self) -> int: ...

    def read(self, texts: tuple[str, ...] = (), numbers: tuple[str, ...] = ()) -> tuple[Texts, Numbers]:
        """Read columns in one pass, some as text and some as numbers: name -> [n], for both.

        Raises
        ------
        ParticleFileError
            Text where numbers are wanted (of a .cs file the other way round too), or a damaged file.
        """
        ...

    def image_names(self) -> NDArray[np.object_] | None:
        """``N@path`` [n] without zeros before N, so that two spellings of one image are equal; None without images."""
        ...

    def coordinates(self) -> Coordinates | None:
        """Where the particles were picked; None when the file does not say."""
        ...

    def write(self, keep: NDArray[np.bool_], out: IO[bytes]) -> None:
        """Write the same file without the rows that are not kept [n]; whatever else is in it stays."""
        ...


def open_table(path: Path) -> ParticleTable:
    """Open a particle file by its ending.

    Raises
    ------
    ParticleFileError
        Neither STAR nor .cs, or a file that cannot be used.
    """
    return StarTable(StarFile.read(path)) if ending(path) == ".star" else CsTable(path, cs.read_cs(path))


def ending(path: Path) -> str:
    """``.star`` or ``.cs``; ParticleFileError for any other."""
    if path.suffix not in (".star", ".cs"):
        raise ParticleFileError(
            f"{path} is neither a run folder nor a particle file; expected a name ending in .star or .cs"
        )
    return path.suffix


@dataclass(frozen=True)
class StarTable:
    """A STAR file: the columns of its particles, and through ``rlnOpticsGroup`` those of their optics groups."""

    star: StarFile
    suffix = ".star"

    @property
    def path(self) -> Path:
        """The file."""
        return self.star.path

    @cached_property
    def block(self) -> StarBlock:
        """The table of particles."""
        return particle_block(self.star)

    @cached_property
    def optics(self) -> StarBlock | None:
        """The table of optics groups; None in files of RELION 3.0."""
        found = (block for block in self.star.blocks if block.name == "optics" and "rlnOpticsGroup" in block.labels)
        return next(found, None)

    @property
    def names(self) -> tuple[str, ...]:
        """Labels of the particles, then those that only the optics groups have."""
        shared = self.optics.labels if self.optics else ()
        return (*self.block.labels, *(label for label in shared if label not in self.block.labels))

    def __len__(self) -> int:
        return self.block.n_rows

    def read(self, texts: tuple[str, ...] = (), numbers: tuple[str, ...] = ()) -> tuple[Texts, Numbers]:
        """Cells of particles; those of optics groups through ``rlnOpticsGroup``."""
        own = set(self.block.labels)
        shared_texts, shared_numbers = (
            [name for name in dict.fromkeys(some) if name not in own] for some in (texts, numbers)
        )
        shared = bool(shared_texts or shared_numbers)
        group = ("rlnOpticsGroup",) if shared and "rlnOpticsGroup" in own else ()
        cells, values = self.block.read(
            [name for name in dict.fromkeys(texts) if name in own],
            [name for name in dict.fromkeys((*numbers, *group)) if name in own],
        )
        read = {name: np.array(column, dtype=object) for name, column in cells.items()}
        if shared:
            row_of = self._optics_rows(values.get("rlnOpticsGroup"))
            assert self.optics is not None
            cells, optics = self.optics.read(shared_texts, shared_numbers)
            read |= {name: np.array(column, dtype=object)[row_of] for name, column in cells.items()}
            values |= {name: column[row_of] for name, column in optics.items()}
        return read, dict(values)

    def _optics_rows(self, group: NDArray[np.float64] | None) -> NDArray[np.intp]:
        """For each particle the row of its optics group."""
        assert self.optics is not None
        known = self.optics.read(numbers=["rlnOpticsGroup"])[1]["rlnOpticsGroup"]
        return optics_rows(self.path, known, group, len(self), self.block.name)

    def image_names(self) -> NDArray[np.object_]:
        """``rlnImageName`` without the zeros before N."""
        names = self.block.columns("rlnImageName")["rlnImageName"]
        return np.array([plain_image_name(name) for name in names], dtype=object)

    def coordinates(self) -> Coordinates | None:
        """``rlnCoordinateX/Y`` in ``rlnMicrographName``."""
        if not set(STAR_COORDINATES) <= set(self.block.labels):
            return None
        micrograph, x, y = STAR_COORDINATES
        texts, numbers = self.read((micrograph,), (x, y))
        return Coordinates.checked(self.path, texts[micrograph], numbers[x], numbers[y])

    def write(self, keep: NDArray[np.bool_], out: IO[bytes]) -> None:
        """The file's own bytes; see `star.write_rows`."""
        write_rows(self.star, self.block.name, keep, out)


@dataclass(frozen=True)
class CsTable:
    """A .cs file: its fields; of a field with several values per particle each by its number, as ``emsvae/z[0]``."""

    path: Path
    array: NDArray[Any]
    suffix = ".cs"

    @property
    def names(self) -> tuple[str, ...]:
        """Fields, and numbered values of fields."""
        return tuple(self._places)

    @cached_property
    def _places(self) -> dict[str, tuple[str, int | None]]:
        """Column -> its field, and which of the field's values; matrices are left out."""
        places: dict[str, tuple[str, int | None]] = {}
        for field in self.array.dtype.names or ():
            shape = self.array.dtype[field].shape
            if not shape:
                places[field] = (field, None)
            elif len(shape) == 1:
                places |= {f"{field}[{k}]": (field, k) for k in range(shape[0])}
        return places

    def __len__(self) -> int:
        return len(self.array)

    def read(self, texts: tuple[str, ...] = (), numbers: tuple[str, ...] = ()) -> tuple[Texts, Numbers]:
        """Fields in their own types."""
        return {name: self._text(name) for name in texts}, {name: self._number(name) for name in numbers}

    def _values(self, name: str) -> NDArray[Any]:
        field, k = self._places[name]
        return self.array[field] if k is None else self.array[field][:, k]

    def is_text(self, name: str) -> bool:
        """Whether a column holds text rather than numbers."""
        return self._values(name).dtype.kind in "SU"

    def _text(self, name: str) -> NDArray[np.object_]:
        if not self.is_text(name):
            raise ParticleFileError(f"{self.path}: column {name} holds numbers; expected text")
        return np.array([cs.decode_path(value) for value in self._values(name).tolist()], dtype=object)

    def _number(self, name: str) -> NDArray[Any]:
        values = self._values(name)
        if values.dtype.kind not in "iufb":
            raise ParticleFileError(f"{self.path}: column {name} holds text; expected numbers")
        return values

    def image_names(self) -> NDArray[np.object_] | None:
        """``blob/idx`` counted from 1, as in a STAR file, and ``blob/path``."""
        if not {"blob/idx", "blob/path"} <= set(self.names):
            return None
        cs.check_fields(self.path, self.array, {"blob/idx": ("whole numbers", ()), "blob/path": ("text", ())})
        places = zip(self.array["blob/idx"].tolist(), self._text("blob/path"), strict=True)
        return np.array([str(ImageName(index + 1, path)) for index, path in places], dtype=object)

    def coordinates(self) -> Coordinates | None:
        """``location/center_x_frac`` and ``y_frac`` times the micrograph's size."""
        if not set(CS_COORDINATES) <= set(self.array.dtype.names or ()):
            return None
        cs.check_fields(self.path, self.array, _CS_COORDINATES)
        micrograph, x, y, shape = CS_COORDINATES
        height, width = self.array[shape].T  # (rows, columns), as cryoSPARC writes it
        return Coordinates.checked(self.path, self._text(micrograph), self.array[x] * width, self.array[y] * height)

    def write(self, keep: NDArray[np.bool_], out: IO[bytes]) -> None:
        """The rows' own bytes; see `cs.write_rows`."""
        cs.write_rows(self.array, keep, out)
