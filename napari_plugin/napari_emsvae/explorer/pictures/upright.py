"""Particles as the model sees them with rotation and shift taken out: the one place where the window aligns images."""

import numpy as np
from numpy.typing import NDArray

from emspatialvae.imaging import alignment
from emspatialvae.imaging.arrays import Images, Rows
from emspatialvae.preprocess.preparation import Portion
from napari_emsvae.explorer.run_data import RunData


def upright(data: RunData, rows: Rows) -> tuple[Images, Portion]:
    """Prepared images of particles in the common frame, of colour the mean [k, box, box], and what they were made from."""
    portion = data.images.portion(rows)
    return alignment.align(grey(portion.images), data.latents.pose[rows]), portion


def grey(images: NDArray[np.floating]) -> NDArray[np.floating]:
    """Images [k, box, box], of images with channels [k, channels, box, box] their mean."""
    return images.mean(1) if images.ndim == 4 else images
