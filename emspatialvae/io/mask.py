"""A mask on the consensus of a run, from an MRC file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import ParticleFileError
from emspatialvae.io import mrc


def read_mask(path: Path, box: int) -> NDArray[np.float32]:
    """A mask on the consensus image: weights from 0 to 1, shape [box, box].

    Raises
    ------
    ParticleFileError
        It cannot be read, has another box, or is empty.
    """
    header = mrc.read_header(path)
    if (header.height, header.width) != (box, box) or header.n_images != 1:
        raise ParticleFileError(
            f"{path}: {header.n_images} image(s) of {header.height} x {header.width} px; expected one mask of {box} x {box}, the box "
            "of the run's consensus.mrc"
        )
    mask = mrc.read_images(header, np.zeros(1, dtype=np.int64))[0]
    if not np.isfinite(mask).all() or not (mask > 0).any():
        raise ParticleFileError(
            f"{path}: the mask is empty or holds NaN; expected 1 on what shall stand still, 0 elsewhere"
        )
    return mask.clip(0, 1)
