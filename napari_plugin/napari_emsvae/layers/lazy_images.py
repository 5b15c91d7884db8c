"""`LazyImages`: a stack of images that are made when napari asks for them.

Of a stack of 200 GB only the image on the screen is ever in memory, and opening it reads none but the few that set the contrast.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Images, Rows

LARGEST_BYTES = 1 << 30
"""More than this is never made at once: napari asks for the whole stack when it shows it in 3-D or from the side."""


class LazyImages:
    """n square images behind a function that makes some of them; what napari needs of an array, and no more.

    Parameters
    ----------
    n, box
        How many images, and their side in pixels.
    make
        Takes row numbers [k] within 0..n-1 and returns images, float32 [k, box, box].
    """

    def __init__(self, n: int, box: int, make: Callable[[Rows], Images]) -> None:
        self.shape: tuple[int, int, int] = (n, box, box)
        self._make = make

    dtype = np.dtype(np.float32)
    ndim = 3

    @property
    def size(self) -> int:
        """How many pixels there are in all."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """As numpy's basic indexing; the first index picks images, only those are made, and the rest is applied to them.

        Raises
        ------
        EmsvaeError
            The images asked for take more than `LARGEST_BYTES`.
        """
        first, *rest = _without_ellipsis(key if isinstance(key, tuple) else (key,))
        if isinstance(first, int | np.integer):
            row = range(len(self))[int(first)]
            return self._make(np.array([row]))[0][tuple(rest)]
        rows = np.arange(len(self))[first]
        need = len(rows) * self.shape[1] * self.shape[2] * self.dtype.itemsize
        if need > LARGEST_BYTES:
            raise EmsvaeError(
                f"{len(rows):,} images of {self.shape[1]} pixels at once would take {need / 1e9:.3g} GB of memory, more than "
                f"{LARGEST_BYTES / 1e9:.2g} GB; show one particle at a time (2-D, particle axis on the slider)"
            )
        return self._make(rows)[(slice(None), *rest)]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("images that are made when asked for cannot be an array without a copy")
        return np.asarray(self[:], dtype=dtype)


def _without_ellipsis(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same index with ``...`` written out; at least one entry long."""
    for place, item in enumerate(key):
        if item is Ellipsis:
            return (*key[:place], *[slice(None)] * (4 - len(key)), *key[place + 1 :])
    return key or (slice(None),)
