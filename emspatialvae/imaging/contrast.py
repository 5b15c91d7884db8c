"""Which grey values are black and white where images are shown."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

CLIPPED_PERCENT = 0.5


def contrast_limits(pixels: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Grey values of black and of white: the outermost half percent at either end is cut off.

    Parameters
    ----------
    pixels
        Of one image or of several that share a scale, of any shape; NaN and infinity do not count.

    Returns
    -------
    Two different numbers, also where all pixels are alike or none is finite.
    """
    finite = pixels[np.isfinite(pixels)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, [CLIPPED_PERCENT, 100 - CLIPPED_PERCENT]).tolist()
    return (low, high) if high > low else (low, low + 1.0)
