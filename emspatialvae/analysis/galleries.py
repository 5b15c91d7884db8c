"""Pictures of many images side by side: class averages, and films along an axis of content space."""

from collections.abc import Mapping, Sequence

import numpy as np
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


def films(rows: Mapping[str, Floats], below: Sequence[str]) -> Figure:
    """One row of images [steps, box, box] per label, on a common grey scale; ``below`` names the steps."""
    steps = len(below)
    figure = Figure(figsize=(1.15 * steps + 0.6, 1.2 * len(rows) + 0.4), layout="constrained")
    limits = np.percentile(np.stack(list(rows.values())), [0.5, 99.5])
    grid = figure.subplots(len(rows), steps, squeeze=False)
    for line, (label, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=True):
            picture(axes, image, limits=limits)
        line[0].set_ylabel(label, fontsize=9)
    for axes, text in zip(grid[-1], below, strict=True):
        axes.set_xlabel(text, fontsize=8)
    return figure
