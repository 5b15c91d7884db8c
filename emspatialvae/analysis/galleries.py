"""The gallery of class averages."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from emspatialvae.analysis.figures import Floats, picture
from emspatialvae.analysis.scales import scale_bar

COLUMNS = 8
"""Class averages in a row."""


def classes(images: Floats, titles: Sequence[str], pixel_size_A: float) -> Figure:
    """Class averages [k, box, box], each with its own grey scale and a title of a few lines above it."""
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    lines = 1 + max(title.count("\n") for title in titles)
    figure = Figure(figsize=(1.45 * columns, (1.3 + 0.18 * lines) * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, image, title in zip(grid, images, titles, strict=False):
        picture(axes, image)
        axes.set_title(title, fontsize=8)
    scale_bar(grid[0], images.shape[-1], pixel_size_A)
    for axes in grid[len(images) :]:
        axes.set_axis_off()
    return figure
