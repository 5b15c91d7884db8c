"""Bare stacks and pictures as particles: an MRC stack, a ``.npy`` stack, or a folder of png, jpg and tif files sorted by name.

Pictures have no microscope: no CTF, no pose, and a pixel is called one angstrom long unless the user knows better.
"""

from typing import Literal

import numpy as np

from emspatialvae.config import InputConfig
from emspatialvae.errors import ParticleFileError
from emspatialvae.io import mrc, pictures
from emspatialvae.io.compressed import bare_name
from emspatialvae.io.image_names import image_name
from emspatialvae.particles.pixel_size import pixel_size_or_nan
from emspatialvae.particles.stack import OpticsGroup, ParticleStack


def read_stack_source(config: InputConfig) -> ParticleStack:
    """A bare stack: every image of the file in order, nothing else known."""
    header = mrc.read_header(config.particles)
    if bare_name(config.particles).suffix.lower() == ".mrc" and header.n_images == header.width == header.height:
        raise ParticleFileError(
            f"{config.particles}: {header.n_images} sections of {header.width} x {header.height} look like a volume; "
            "expected a stack of particle images (rename it to .mrcs if it is one)"
        )
    n = header.n_images
    return ParticleStack(
        source=config.particles,
        kind="mrc",
        names=np.array([image_name(i, config.particles.name) for i in range(n)], dtype=object),
        paths=(str(config.particles),),
        file_of=np.zeros(n, np.int32),
        index_of=np.arange(n, dtype=np.int64),
        optics=(OpticsGroup("opticsGroup1", pixel_size_or_nan(config, header.pixel_size_A)),),
        optics_of=np.zeros(n, np.int32),
    )


def read_npy_source(config: InputConfig) -> ParticleStack:
    """Every picture of a ``.npy`` file in order."""
    file = pictures.open_npy(config.particles)
    names = [image_name(i, config.particles.name) for i in range(file.n_images)]
    values = _values(file.dtype)
    notes = [f"shape read as [{', '.join(file.axes.split())}]: {_kind(file.channels)}, {values}"]
    return _stack(config, "npy", names, (str(config.particles),), notes)


def read_folder_source(config: InputConfig) -> ParticleStack:
    """Every picture of a folder, sorted by name (as text: 10 comes before 2, 02 before 10); folders within it are left alone.

    Raises
    ------
    ParticleFileError
        There is none; or they differ in size or channels.
    """
    folder = config.particles
    broken = sorted(file for file in folder.iterdir() if file.is_symlink() and not file.exists())
    pictures_gone = [file for file in broken if file.suffix.lower() in pictures.PICTURES]
    if pictures_gone:
        raise ParticleFileError(
            f"{pictures_gone[0]} is a link to {pictures_gone[0].readlink()}, which is not there ({len(pictures_gone):,} such links in the "
            "folder); mend or remove them"
        )
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    found = [file for file in files if file.suffix.lower() in pictures.PICTURES]
    if not found:
        raise ParticleFileError(
            f"{folder} is a folder without pictures; expected {', '.join(pictures.PICTURES)} files, or give a particle file"
        )
    opened = [pictures.open_picture(file) for file in found]
    first = opened[0]
    for other in opened:
        if (other.width, other.channels) != (first.width, first.channels):
            raise ParticleFileError(
                f"{other.path} is {_size(other)}, {first.path.name} {_size(first)}; expected pictures of one size and kind"
            )
    notes = [f"{len(found):,} pictures sorted by name, {found[0].name} to {found[-1].name}: {_kind(first.channels)}"]
    notes += sorted({_values(file.dtype) for file in opened})
    if any(file.has_alpha for file in opened):
        notes.append("transparency is left out")
    if len(files) > len(found):
        notes.append(f"{len(files) - len(found)} other files in the folder are left out")
    return _stack(config, "folder", [file.name for file in found], tuple(map(str, found)), notes)


def _stack(
    config: InputConfig, kind: Literal["npy", "folder"], names: list[str], paths: tuple[str, ...], notes: list[str]
) -> ParticleStack:
    n, in_one_file = len(names), kind == "npy"
    if config.pixel_size_A is None:
        notes = [*notes, "no pixel size: 1 A per pixel, so that what is given in angstrom is in pixels"]
    return ParticleStack(
        source=config.particles,
        kind=kind,
        names=np.array(names, dtype=object),
        paths=paths,
        file_of=np.zeros(n, np.int32) if in_one_file else np.arange(n, dtype=np.int32),
        index_of=np.arange(n, dtype=np.int64) if in_one_file else np.zeros(n, np.int64),
        optics=(OpticsGroup("opticsGroup1", config.pixel_size_A or 1.0),),
        optics_of=np.zeros(n, np.int32),
        notes=tuple(notes),
    )


def _kind(channels: int) -> str:
    return "one channel" if channels == 1 else f"{channels} channels"


def _size(picture: pictures.Picture) -> str:
    return f"{picture.width} px, {_kind(picture.channels)}"


def _values(dtype: np.dtype) -> str:
    if dtype.kind == "b":
        return "values 0 and 1"
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return f"{8 * dtype.itemsize}-bit values over {2 ** (8 * dtype.itemsize) - 1}"
    return f"{dtype.name} values as they are"
