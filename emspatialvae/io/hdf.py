"""HDF5 stacks: EMAN2's (an image a dataset, ``/MDF/images/N/image``), or one dataset [n, height, width]; as an MRC stack.

EMAN2 keeps the order of rows when it converts between HDF and MRC, so none is turned round here.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import NDArray

from emspatialvae.errors import ParticleFileError

MAGIC = b"\x89HDF\r\n\x1a\n"
ENDINGS = (".hdf", ".hdf5", ".h5")
_EMAN_IMAGES, _EMAN_PIXEL_SIZE = "MDF/images", "EMAN.apix_x"


def write_as_mrc(path: Path, out: IO[bytes]) -> None:
    """Write the images of an HDF5 file as a little-endian float32 MRC stack to an open file.

    Raises
    ------
    ParticleFileError
        h5py is not installed; no images in it, or of several sizes; a volume; several datasets that might be the stack; damaged.
    """
    try:
        h5py = importlib.import_module("h5py")
    except ImportError:
        raise ParticleFileError(
            f'{path} is an HDF5 file, which needs a package to read: pip install "emspatialvae[hdf5]", or convert it with e2proc2d.py'
        ) from None
    try:
        with h5py.File(path, "r") as file:
            pixel_size_A, count, images = _images_of(path, file)
            shape: tuple[int, int] | None = None
            out.write(bytes(HEADER_DTYPE.itemsize))
            for number, image in enumerate(images, 1):
                if image.ndim != 2 or image.dtype.kind not in "iufb" or (shape is not None and image.shape != shape):
                    raise ParticleFileError(
                        f"{path}: image {number} is {image.dtype} of shape {image.shape}; expected real images, all of one size"
                    )
                shape = (image.shape[0], image.shape[1])
                out.write(np.ascontiguousarray(image, "<f4").data)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ParticleFileError(f"{path} is a damaged HDF5 file ({str(error)[:160]}); copy it again") from None
    if shape is None:
        raise ParticleFileError(f"{path} holds no images ({_EMAN_IMAGES} is empty)")
    out.seek(0)
    out.write(_header(count, *shape, pixel_size_A))
    out.seek(0, 2)


def _images_of(path: Path, file: Any) -> tuple[float, int, Iterator[NDArray[Any]]]:
    """Pixel size in angstrom (0: unknown), number of images, and the images."""
    if _EMAN_IMAGES in file:
        groups = file[_EMAN_IMAGES]
        numbers = sorted((name for name in groups if name.isdecimal()), key=int)
        if [int(name) for name in numbers] != list(range(len(numbers))):
            raise ParticleFileError(
                f"{path}: its images are not numbered 0 to {len(numbers) - 1}; copy it with e2proc2d.py"
            )
        size = float(groups[numbers[0]].attrs.get(_EMAN_PIXEL_SIZE, 0)) if numbers else 0.0
        return size, len(numbers), (groups[name]["image"][()] for name in numbers)
    found: list[Any] = []
    file.visititems(lambda _, item: found.append(item) if getattr(item, "ndim", 0) == 3 else None)
    if len(found) != 1:
        raise ParticleFileError(
            f"{path}: {len(found)} datasets of three dimensions; expected {_EMAN_IMAGES} (EMAN2), or one dataset [n, height, width]"
        )
    return 0.0, len(found[0]), (found[0][row] for row in range(len(found[0])))


def _header(count: int, height: int, width: int, pixel_size_A: float) -> bytes:
    header = np.zeros((), HEADER_DTYPE.newbyteorder("<")).view(np.recarray)
    header.nx, header.ny, header.nz, header.mode = width, height, count, 2
    header.mx, header.my, header.mz = width, height, 1
    header.cella.x, header.cella.y = width * pixel_size_A, height * pixel_size_A
    header.map, header.machst = b"MAP ", [0x44, 0x44, 0, 0]
    return header.tobytes()
