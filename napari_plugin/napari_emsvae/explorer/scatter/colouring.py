"""The scatter as an image: colours by value, class or density, the selection bright and the rest dim. No Qt, no figure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emspatialvae.imaging.arrays import Floats, Mask
from napari_emsvae.explorer.scatter import raster
from napari_emsvae.explorer.scatter.raster import Window
from napari_emsvae.qt import palette

NAMED, APART = 40, (0.05, 0.045)
"""Groups that have their names in the scatter, and how far apart these are, as parts of its width and height."""
DIM = 0.3
"""Opacity of what is not selected, while something is."""


@dataclass(frozen=True, eq=False)
class Colouring:
    """What the points are coloured by.

    Attributes
    ----------
    label
        The column, or what else it is.
    values
        [n]; numbers, or whole numbers that stand for groups.
    names
        Of the groups, by code minus ``first``; empty for numbers.
    first
        The first code that has a colour; those below belong to no group.
    """

    label: str
    values: Floats
    names: tuple[str, ...] = ()
    first: int = 0

    @property
    def is_groups(self) -> bool:
        """Whether the values are codes of groups."""
        return bool(self.names)

    @property
    def limits(self) -> tuple[float, float]:
        """Values of the ends of the colour scale: all but the outermost 1 %."""
        known = self.values[np.isfinite(self.values)]
        if not len(known):
            return 0.0, 1.0
        low, high = np.percentile(known, [1, 99]).tolist()
        return (low, high) if high > low else (low, low + 1.0)


def paint(
    points: Floats, window: Window, shape: tuple[int, int], colouring: Colouring, selected: Mask | None
) -> NDArray[np.float32]:
    """RGBA [height, width, 4] of points [n, 2]; ``selected`` [n] (None: nothing is) lie on top, the others are dim."""
    limits = (0.0, 1.0) if colouring.is_groups else colouring.limits

    def layer(rows: Mask | slice) -> tuple[Floats, Floats]:
        values = colouring.values[rows]
        drawn = raster.rasterise(points[rows], window, shape, values, codes=colouring.is_groups)
        if colouring.is_groups:
            return palette.of_codes(drawn.level, colouring.first), raster.opacity(drawn.counts)
        return palette.of_levels(drawn.level, *limits), raster.opacity(drawn.counts)

    if selected is None or not selected.any():
        rgb, alpha = layer(slice(None))
        return np.concatenate([rgb, alpha[..., None]], -1).astype(np.float32)
    below, below_alpha = layer(~selected)
    above, above_alpha = layer(selected)
    top = above_alpha > 0
    rgb = np.where(top[..., None], above, below)
    alpha = np.where(top, above_alpha, DIM * below_alpha)
    return np.concatenate([rgb, alpha[..., None]], -1).astype(np.float32)


def places_of_names(points: Floats, colouring: Colouring) -> list[tuple[str, float, float]]:
    """Where the name of each group stands: (name, x, y), at the median of its points; none of many groups, and none on another one."""
    if not colouring.is_groups or len(colouring.names) > NAMED:
        return []
    known = np.isfinite(points).all(1)
    codes = np.where(known, colouring.values, -1).astype(np.int64)
    span = np.array(Window.around(points).size)
    out: list[tuple[str, float, float]] = []
    for k in np.argsort(-np.bincount(np.maximum(codes, 0), minlength=1)[colouring.first :], kind="stable").tolist():
        here = points[codes == k + colouring.first]
        if not len(here) or k >= len(colouring.names):
            continue
        x, y = np.median(here, axis=0).tolist()
        if all((np.abs(np.array([x - a, y - b])) / span > APART).any() for _, a, b in out):
            out.append((colouring.names[k], x, y))
    return sorted(out, key=lambda place: colouring.names.index(place[0]))


def column_colouring(label: str, cells: NDArray) -> Colouring:
    """Colouring by a column [n], texts or numbers; class numbers and a few whole numbers are groups."""
    from emspatialvae.analysis.figures import scatter

    found = scatter.colouring(label, cells)
    if isinstance(found, scatter.Groups):
        return Colouring(label, found.of.astype(float), found.names)
    return Colouring(label, found.values)
