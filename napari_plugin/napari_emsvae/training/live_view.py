"""A training one looks at: what all particles have in common, what the model draws across latent space, and where particles lie."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from qtpy.QtCore import QSize

from emspatialvae.imaging.contrast import contrast_limits
from napari_emsvae.explorer.pictures.mosaic import Mosaic
from napari_emsvae.explorer.pictures.picture import Image
from napari_emsvae.qt import palette

TILES = 5
"""Of the map, along an axis."""
SHOWN = 5000
"""Particles of the scatter at most, drawn at random."""
SPREAD_OUT = 0.02
"""While z spreads less than that it has not begun to be used."""


@dataclass(frozen=True, eq=False)
class Glimpse:
    """How far a model has come, from its checkpoint."""

    epoch: int
    """Epochs done."""
    consensus: Image
    """[box, box]; mean of what the model draws for the particles."""
    map: Image | None
    """Tiles of what the model draws across latent space; None while z is not used yet."""
    points: NDArray[np.floating]
    """[k, 2]; particles that have been looked at, in their first two principal components."""
    seen: int
    """How many particles have been looked at,"""
    total: int
    """of all."""


def glimpse(run: Path) -> Glimpse:
    """What the checkpoint of a run that is being trained shows.

    Raises
    ------
    RunFolderError
        There is none yet.
    """
    from emspatialvae.analysis.latent_space import manifold
    from emspatialvae.analysis.latent_space.embedding import principal_components
    from emspatialvae.inference.infer import load_model
    from emspatialvae.model.render import canonical, evenly
    from emspatialvae.results.run_folder import RunDir

    folder = RunDir(run)
    state, model = folder.load_checkpoint(), load_model(folder)
    z = _contents(state, model.z_dim)
    known = z[np.abs(z).sum(1) > 0]
    drawn = canonical(model, evenly(known, 64) if len(known) else np.zeros((1, model.z_dim)))
    tiles, points = None, np.zeros((0, 2))
    if len(known) > TILES**2 and known.std(0).max() > SPREAD_OUT:
        places = manifold.zmap(known, TILES)
        tiles = Mosaic.of(canonical(model, places.z), columns=places.shape[1]).image
        chosen = np.random.default_rng(0).permutation(known)[:SHOWN]
        points = np.pad(principal_components(chosen).scores, ((0, 0), (0, 1)))[:, :2]
    return Glimpse(int(state["progress"]["epoch"]), drawn.mean(0), tiles, points, len(known), len(z))


def _contents(state: dict[str, Any], z_dim: int) -> NDArray[np.floating]:
    """What is known so far of each particle's z [n, d]; nothing of a model that keeps no table of them."""
    table = state["objective"].get("particles")
    return np.zeros((0, z_dim)) if table is None else table["z"].double().numpy()


class LiveView(FigureCanvasQTAgg):
    """Consensus, map and scatter side by side."""

    def __init__(self) -> None:
        figure = Figure(facecolor=palette.theme.background)
        super().__init__(figure)
        self.setToolTip(
            "Consensus: what all particles have in common. Map: what the model draws across latent space.\n"
            "Scatter: particles in the first two principal components of z. All as of the last checkpoint"
        )
        self.setAccessibleName("The model as it is being trained")
        self.setMinimumSize(240, 110)
        self.axes = figure.subplots(1, 3)
        figure.subplots_adjust(left=0.02, right=0.98, top=0.84, bottom=0.04, wspace=0.06)
        self.shown: Glimpse | None = None

    def sizeHint(self) -> QSize:
        """Three small pictures."""
        return QSize(420, 160)

    def show_glimpse(self, found: Glimpse) -> None:
        """Show how far the model has come."""
        self.shown = found
        theme = palette.theme
        self.figure.set_facecolor(theme.background)
        titles = (f"consensus, epoch {found.epoch}", "map of z", f"{found.seen:,} of {found.total:,} particles")
        for axes, title in zip(self.axes, titles, strict=True):
            axes.clear()
            axes.set_facecolor(theme.background)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(title, color=theme.text, fontsize=palette.FONT_PT - 1, pad=3)
            for spine in axes.spines.values():
                spine.set_color(theme.faint)
        for axes, image in zip(self.axes, (found.consensus, found.map), strict=False):
            if image is not None:
                low, high = contrast_limits(image)
                axes.imshow(image, cmap="gray", vmin=low, vmax=high)
        if found.map is None:
            self.axes[1].text(
                *(0.5, 0.5, "z is not used yet"),
                transform=self.axes[1].transAxes,
                ha="center",
                va="center",
                color=theme.faint,
                fontsize=palette.FONT_PT - 1,
            )
        self.axes[2].plot(*found.points.T, ".", ms=1.5, color=theme.distinct[0])
        self.draw_idle()
