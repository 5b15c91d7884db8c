"""Whose word on the pixel size counts."""

import numpy as np

from emspatialvae.config import InputConfig


def pixel_size_or_nan(config: InputConfig, found: float | None) -> float:
    """The user's word, else the file's, else NaN (`load_particles` asks for it)."""
    size = config.pixel_size_A if config.pixel_size_A is not None else found
    return float(size) if size is not None and np.isfinite(size) and size > 0 else float("nan")
