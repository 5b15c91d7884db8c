"""One way to open and read images, whatever they lie in: MRC stacks, ``.npy`` stacks, single pictures."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emspatialvae.io import mrc, pictures
from emspatialvae.io.mrc import MrcHeader
from emspatialvae.io.pictures import NpyStack, Picture

ImageFile = MrcHeader | NpyStack | Picture


def open_images(path: Path) -> ImageFile:
    """Look at a file of images, by the ending of its name; what is neither .npy nor a picture is taken for MRC.

    Raises
    ------
    ParticleFileError
        It cannot be read as what its name says.
    """
    ending = path.suffix.lower()
    if ending == ".npy":
        return pictures.open_npy(path)
    return pictures.open_picture(path) if ending in pictures.PICTURES else mrc.read_header(path)


def channels_of(file: ImageFile) -> int:
    """1, or 3 of a colour picture, or as many as a ``.npy`` stack has."""
    return 1 if isinstance(file, MrcHeader) else file.channels


def notes_of(file: ImageFile) -> tuple[str, ...]:
    """What is odd about a file, half a sentence each, without its name."""
    return file.notes if isinstance(file, MrcHeader) else ()


def read_images(file: ImageFile, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read images by 0-based index, in any order and with repeats; [k, channels, height, width]."""
    if isinstance(file, MrcHeader):
        return mrc.read_images(file, indices)[:, None]
    if isinstance(file, NpyStack):
        return pictures.read_npy(file, indices)
    return np.repeat(pictures.read_picture(file)[None], len(indices), axis=0)
