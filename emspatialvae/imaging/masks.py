"""Circles on images, hard and soft."""

import numpy as np
from numpy.typing import NDArray

from emspatialvae.imaging import geometry
from emspatialvae.imaging.arrays import Images


def circular_mask(box: int, radius_px: float) -> NDArray[np.bool_]:
    """True within ``radius_px`` of the centre; shape [box, box]."""
    x, y = geometry.pixel_grid(box)
    return x**2 + y**2 <= radius_px**2


def soft_mask(box: int, radius_px: float, edge_px: float) -> Images:
    """1 within ``radius_px`` of the centre, 0 from ``edge_px`` further on, half a cosine between; shape [box, box]."""
    beyond = (np.hypot(*geometry.pixel_grid(box)) - radius_px) / edge_px
    return np.asarray((1 + np.cos(np.pi * beyond.clip(0, 1))) / 2, dtype=np.float32)
