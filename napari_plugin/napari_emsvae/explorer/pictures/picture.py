"""An image as it is to be shown: its pixel size, its contrast, its name."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Picture:
    """An image, or a film of them, to be shown beside others."""

    name: str
    image: NDArray[np.floating] | NDArray[np.uint8]
    """[..., height, width]"""
    pixel_size_A: float
    limits: tuple[float, float]
    caption: str = ""
    """What stands above it [default: the name]."""
    smooth: bool = False
    """Without visible pixels: for what a model draws, which has none."""
    over: bool = False
    """Colours with transparency [height, width, 4] that lie over the picture before instead of beside it."""
    unit: str = "angstrom"
    """What the pixel size is in: pixel, of photographs."""


def low_passed(image: Image, resolution_px: float) -> Image:
    """An image [box, box] with amplitudes halved at a resolution in pixels, by a Gaussian that leaves no ripples."""
    # exp(-2 (pi sigma f)^2) = 1/2 at f = 1 / resolution.
    sigma = np.sqrt(np.log(2) / 2) / np.pi * resolution_px
    return ndimage.gaussian_filter(image, sigma).astype(np.float32)
