"""Short names for arrays; shapes stand in the docstrings."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Images = NDArray[np.float32]
"""[n, box, box]"""
Rows = NDArray[np.int64]
"""Numbers of particles in their file, from 0."""
Mask = NDArray[np.bool_]
"""[n]; which particles."""
