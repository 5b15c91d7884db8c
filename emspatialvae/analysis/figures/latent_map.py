"""The map of what a model draws across latent space, with how many particles bear each part of it."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from emspatialvae.analysis.figures import run as figures
from emspatialvae.analysis.figures.scale_bar import scale_bar
from emspatialvae.analysis.latent_space.manifold import ZMap

EMPTY_ALPHA = 0.55


def draw(images: NDArray[np.floating], shown: ZMap, pixel_size_A: float) -> Figure:
    """Images [tiles, box, box] of a map's tiles; each with its number of particles, dark where there is none."""
    arrow = " \N{RIGHTWARDS ARROW}"
    across, up = (f"{name}{arrow}" if name else "" for name in shown.axes)
    empty = int((shown.count == 0).sum())
    title = (
        "What the model draws across latent space, in equally probable steps\nnumbers: particles in each tile's cell"
        + (f"; darkened: none, so nothing bears out what is drawn ({empty} of {len(shown.count)})" if empty else "")
    )
    figure = figures.tiles(images, shown.shape, title, across, up)
    axes, box = figure.axes[0], images.shape[-1]
    for tile, count in enumerate(shown.count.tolist()):
        row, column = divmod(tile, shown.shape[1])
        left, top = column * box - 0.5, row * box - 0.5
        if count == 0:
            axes.add_patch(Rectangle((left, top), box, box, color="black", alpha=EMPTY_ALPHA, linewidth=0))
        axes.text(left + 0.95 * box, top + 0.95 * box, f"{count:,}", color="white", fontsize=5, ha="right", va="bottom")
    scale_bar(axes, box, pixel_size_A)
    return figure
