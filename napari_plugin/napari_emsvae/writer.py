"""Image layers as .mrcs stacks, with their pixel size: napari's File > Save.

A selection of particles is no layer: the explorer writes it, as a STAR or .cs file with every column of the original.
"""

from pathlib import Path
from typing import Any

import numpy as np

from emspatialvae.errors import EmsvaeError
from emspatialvae.io.mrc import StackWriter

SUFFIXES = (".mrcs", ".mrc")
CHUNK_BYTES = 64 << 20
ANGSTROM = ("angstrom", "Å")


def write_stack(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write an image layer, a few images at a time.

    Axes before the last two are images, one after the other; a layer that shows the same image all along an axis has it once.

    Parameters
    ----------
    path
        Where to; .mrcs is put behind a name that ends in neither .mrcs nor .mrc.
    data
        [..., height, width], an array or what the reader made.
    meta
        The layer's properties.

    Raises
    ------
    EmsvaeError
        Not square images, colours, or pixels that are not finite; a file is there that the user was not asked about.
    """
    # The dialog has asked whether a file may be replaced, but not about the name that we make of its answer.
    asked = path.lower().endswith(SUFFIXES)
    path = path if asked else f"{path}{SUFFIXES[0]}"
    frames = _frames(data, meta)
    n, height, width = frames.shape
    if height != width:
        raise EmsvaeError(
            f"images of {height} x {width} pixels; a stack (.mrcs) holds square ones: save this layer as .tif"
        )
    step = max(1, CHUNK_BYTES // (height * width * 4))
    with StackWriter(Path(path), n, width, _pixel_size_A(meta), overwrite=asked) as stack:
        for first in range(0, n, step):
            images = np.asarray(frames[first : first + step], dtype=np.float32)
            if not np.isfinite(images).all():
                raise EmsvaeError(
                    f"images {first + 1} and following hold pixels that are not finite; save this layer as .tif"
                )
            stack.append(images)
    return [path]


def _frames(data: Any, meta: dict[str, Any]) -> Any:
    """The images of a layer as [n, height, width], lazily where they are lazy."""
    if meta.get("rgb"):
        raise EmsvaeError("a stack (.mrcs) holds numbers, not colours; save this layer as .png or .tif")
    if data.ndim == 3:
        return data
    array = np.asarray(data)
    # Films are repeated along the reader's particle axis, for a slider of their own; in memory they are there once.
    once = tuple(slice(1) if stride == 0 else slice(None) for stride in array.strides[:-2])
    array = array[once]
    return array.reshape(-1, *array.shape[-2:])


def _pixel_size_A(meta: dict[str, Any]) -> float | None:
    """Of a layer that is in angstrom; None where it is in something else."""
    units, scale = meta.get("units"), meta.get("scale")
    if units is None or scale is None or str(units[-1]) not in ANGSTROM:
        return None
    return float(scale[-1])
