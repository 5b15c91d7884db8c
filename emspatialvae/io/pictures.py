"""Pictures instead of recordings: ``.npy`` stacks and single png, jpg or tif files; read where they lie, stacks written as a stream.

Whole numbers of 8 or 16 bits without sign are brightness on a scale of their own: they are read as 0 to 1 (over 255, over
65535). Any other number is taken as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emspatialvae.errors import ParticleFileError
from emspatialvae.io.atomic import atomic_path

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""Endings of single pictures."""
Axes = Literal["n h w", "n h w c", "n c h w"]
_FULL_SCALE = {"|b1": 1.0, "|u1": 255.0, "<u2": 65535.0, ">u2": 65535.0}
_GREY = {
    "1": "bool",
    "L": "uint8",
    "I;16": "uint16",
    "I;16B": "uint16",
    "I;16L": "uint16",
    "I": "int32",
    "F": "float32",
}
"""Pillow's names of one-channel pictures, and the numbers that they hold; all others are read as red, green, blue."""


@dataclass(frozen=True)
class NpyStack:
    """What is needed to read the pictures of a ``.npy`` file.

    Attributes
    ----------
    path
        The file.
    n_images, height, width, channels
        The pictures; height counts rows (y), width columns (x).
    axes
        What the axes of the array are; without ``c`` there is one channel.
    dtype
        Of the numbers on disk.
    pixel_size_A
        Never known.
    """

    path: Path
    n_images: int
    height: int
    width: int
    channels: int
    axes: Axes
    dtype: np.dtype[Any]
    pixel_size_A: None = None


@dataclass(frozen=True)
class Picture:
    """One png, jpg or tif file; attributes as those of `NpyStack`."""

    path: Path
    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]
    has_alpha: bool
    """Transparency, which is left out."""
    n_images: int = 1
    pixel_size_A: None = None


def open_npy(path: Path) -> NpyStack:
    """Look at a ``.npy`` file of shape [n, h, w], [n, h, w, c] or [n, c, h, w]: of four axes the two equal neighbours are h and w.

    Raises
    ------
    ParticleFileError
        Not readable, of another shape, not square, empty, or not of real numbers.
    """
    array = _mapped(path)
    if array.ndim not in (3, 4):
        raise ParticleFileError(
            f"{path} has shape {_shape(array)}; expected pictures as [n, h, w], or with colour [n, h, w, c] or [n, c, h, w]"
        )
    if array.dtype.kind not in "buif":
        raise ParticleFileError(f"{path} holds {array.dtype} values; expected real numbers")
    fits: dict[Axes, bool] = {
        "n h w": array.ndim == 3 and array.shape[1] == array.shape[2],
        "n h w c": array.ndim == 4 and array.shape[1] == array.shape[2],
        "n c h w": array.ndim == 4 and array.shape[2] == array.shape[3],
    }
    possible: list[Axes] = [axes for axes, fit in fits.items() if fit]
    if not possible:
        raise ParticleFileError(f"{path} has shape {_shape(array)}, its pictures are not square; cut or pad them")
    if len(possible) > 1:
        raise ParticleFileError(
            f"{path} has shape {_shape(array)}, which may be [n, h, w, c] or [n, c, h, w]; one channel goes as [n, h, w]"
        )
    if not array.size:
        raise ParticleFileError(f"{path} has shape {_shape(array)}: there is no picture in it")
    sizes = dict(zip(possible[0].split(), array.shape, strict=True))
    return NpyStack(path, sizes["n"], sizes["h"], sizes["w"], sizes.get("c", 1), possible[0], array.dtype)


def open_picture(path: Path) -> Picture:
    """Look at one png, jpg or tif file.

    Raises
    ------
    ParticleFileError
        Not readable, not square, or several pictures in one.
    """
    with _pillow(path) as picture:
        if getattr(picture, "n_frames", 1) != 1:
            raise ParticleFileError(
                f"{path} holds {picture.n_frames} pictures; expected one a file, or all in one .npy of shape [n, h, w]"
            )
        width, height = picture.size
        if width != height:
            raise ParticleFileError(f"{path} is {width} x {height} pixels; expected square pictures: cut or pad them")
        dtype = np.dtype(_GREY.get(picture.mode, "uint8"))
        alpha = picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info
        return Picture(path, height, width, 1 if picture.mode in _GREY else 3, dtype, alpha)


def read_npy(stack: NpyStack, indices: ArrayLike) -> NDArray[np.float32]:
    """Read pictures by 0-based index, in any order and with repeats; [k, channels, height, width].

    Raises
    ------
    ParticleFileError
        An index outside the stack, or a file that has changed since it was opened.
    """
    wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
    array = _mapped(stack.path)
    if (len(array), array.dtype) != (stack.n_images, stack.dtype):
        raise ParticleFileError(f"{stack.path} has changed while it was read; start again")
    outside = wanted[(wanted < 0) | (wanted >= stack.n_images)]
    if len(outside):
        raise ParticleFileError(
            f"image {outside[0] + 1} (counted from 1) is asked for in {stack.path}, which holds {stack.n_images}"
        )
    out = np.empty((len(wanted), stack.channels, stack.height, stack.width), dtype=np.float32)
    for place in np.argsort(wanted, kind="stable"):
        one = array[wanted[place]]
        out[place] = np.moveaxis(one, -1, 0) if stack.axes == "n h w c" else one
    return _scaled(out, stack.dtype)


def read_picture(picture: Picture) -> NDArray[np.float32]:
    """Read it, transparency left out; [channels, height, width].

    Raises
    ------
    ParticleFileError
        It cannot be read, or has changed since it was opened.
    """
    with _pillow(picture.path) as opened:
        try:
            pixels = np.asarray(opened if opened.mode in _GREY else opened.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise ParticleFileError(f"{picture.path} is damaged ({error}); copy it again") from None
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    if planes.shape != (picture.channels, picture.height, picture.width):
        raise ParticleFileError(f"{picture.path} has changed while it was read; start again")
    return _scaled(planes.astype(np.float32), picture.dtype)


@contextmanager
def npy_writer(path: Path, n_images: int, axes: Axes, channels: int, box: int, *, overwrite: bool) -> Iterator[Any]:
    """Write a float32 ``.npy`` file of known length as a stream: yields the function that takes the next [k, channels, box, box].

    Raises
    ------
    ValueError
        Not as many pictures as announced.
    """
    sizes = {"n": n_images, "c": channels, "h": box, "w": box}
    shape = tuple(sizes[axis] for axis in axes.split())
    with atomic_path(path, overwrite) as temporary, temporary.open("wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        start = stream.tell()

        def append(images: NDArray[np.floating]) -> None:
            stream.write(np.ascontiguousarray(np.moveaxis(images, 1, -1) if axes == "n h w c" else images, "<f4").data)

        yield append
        if stream.tell() - start != 4 * np.prod(shape, dtype=np.int64):
            raise ValueError(f"{path}: {n_images} pictures were announced, others were written")


def _mapped(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (
        Exception
    ) as error:  # numpy evaluates the header as a Python literal: damaged ones raise whatever Python's parser raises
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0][:200].rstrip(".") or type(error).__name__
        raise ParticleFileError(
            f"{path} is not a .npy file of plain numbers ({reason}); save it with numpy.save"
        ) from None


@contextmanager
def _pillow(path: Path) -> Iterator[Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(path)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "not a picture that Pillow knows"
        raise ParticleFileError(f"{path} cannot be read ({reason}); expected one of {', '.join(PICTURES)}") from None
    with picture:
        yield picture


def _scaled(pixels: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[np.float32]:
    scale = _FULL_SCALE.get(dtype.str, 1.0)
    return pixels if scale == 1 else pixels / np.float32(scale)


def _shape(array: NDArray[Any]) -> str:
    return f"[{', '.join(map(str, array.shape))}]"
