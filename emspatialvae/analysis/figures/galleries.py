"""Galleries: class averages, and the circle of the particle on averages and single images."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from emspatialvae.analysis.figures.run import picture
from emspatialvae.analysis.figures.scale_bar import scale_bar
from emspatialvae.imaging.arrays import Floats

COLUMNS = 8
"""Class averages in a row."""
PARTICLE, BACKGROUND = "C1", "deepskyblue"
"""Colours of the particle's circle, and of the one beyond which the background lies."""


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


def particle_size(
    profiles: Mapping[str, Sequence[float]],
    averages: Mapping[str, Floats],
    examples: Floats,
    centres_px: Floats,
    radius_px: float,
    background_px: float,
    pixel_size_A: float,
    said: str,
) -> Figure:
    """How large the particle was taken to be: radial profiles, and its circle on averages and on single images.

    Parameters
    ----------
    profiles
        ``radius_A``, ``mean``, ``spread`` and ``density`` per ring, particles bright; empty: no panel of profiles.
    averages
        Images [box, box] with their titles.
    examples, centres_px
        Single images [6, box, box], and the centre of the particle in each, from the centre of the box; [6, 2].
    radius_px, background_px
        Of the particle, and where the background begins; in pixels of all images.
    said
        How the diameter was settled, for the title.
    """
    ratios = [2.3, *[1.7] * len(averages), 0.9, 0.9, 0.9]
    ratios = ratios if profiles else ratios[1:]
    figure = Figure(figsize=(2.1 * sum(ratios) * 0.8, 4.1), layout="constrained")
    grid = figure.add_gridspec(2, len(ratios), width_ratios=ratios)
    if profiles:
        _profiles(figure.add_subplot(grid[:, 0]), profiles, radius_px * pixel_size_A, background_px * pixel_size_A)
    first = bool(profiles)
    for column, (title, image) in enumerate(averages.items(), first):
        axes = figure.add_subplot(grid[:, column])
        picture(axes, image)
        _circles(axes, image.shape[-1], np.zeros(2), radius_px, background_px)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"{image.shape[-1] * pixel_size_A:.4g} \N{ANGSTROM SIGN} across", fontsize=9)
    for number, (image, centre) in enumerate(zip(examples, centres_px, strict=True)):
        row, column = divmod(number, 3)
        axes = figure.add_subplot(grid[row, first + len(averages) + column])
        picture(axes, image)
        _circles(axes, image.shape[-1], centre, radius_px, background_px)
        if number == 1:
            axes.set_title("six particles, low-passed; circle at the shift found", fontsize=10)
    apart = "" if background_px <= radius_px else "; dashed: where the background begins"
    figure.suptitle(f"{textwrap.fill(said, 100)}\ncircle: the particle{apart}", fontsize=10)
    return figure


def _profiles(axes: Axes, profiles: Mapping[str, Sequence[float]], radius_A: float, background_A: float) -> None:
    """Radial profiles in angstrom, with the radius of the particle and of the background."""
    radii, mean = np.array(profiles["radius_A"]), np.array(profiles["mean"])
    density, spread = np.array(profiles["density"]), np.array(profiles["spread"])
    density = density * (np.abs(mean).max() or 1.0) / (density.max() or 1.0)
    axes.fill_between(radii, density, color="0.88", label="density, fitted (no scale)")
    axes.plot(radii, mean, "k.-", label="mean over the particles")
    axes.plot(radii, spread, ".-", color="C2", label="spread from particle to particle, beyond noise")
    axes.axhline(0, color="0.5", linewidth=0.7)
    axes.axvline(radius_A, color=PARTICLE, label=f"radius of the circle, {radius_A:.3g} \N{ANGSTROM SIGN}")
    if background_A > radius_A:
        axes.axvline(
            background_A,
            color=BACKGROUND,
            linewidth=1,
            linestyle="--",
            label=f"background from {background_A:.3g} \N{ANGSTROM SIGN}",
        )
    axes.set_xlim(0, radii[-1])
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.55 * (high - low))  # room for the legend
    axes.set_xlabel("distance from the centre of the box (angstrom)")
    axes.set_ylabel("low-passed images (background s.d. = 1)")
    axes.set_title("Radial profiles, before any alignment", fontsize=10)
    axes.legend(loc="upper right", fontsize=8, framealpha=1)
    axes.grid(alpha=0.3)


def _circles(axes: Axes, box: int, centre_px: Floats, radius_px: float, background_px: float) -> None:
    """The particle about its centre, and the background about that of the box; what lies outside the box is cut."""
    middle = box // 2
    axes.add_patch(
        Circle((middle + centre_px[0], middle + centre_px[1]), radius_px, fill=False, color=PARTICLE, linewidth=1.3)
    )
    if background_px > radius_px:
        axes.add_patch(
            Circle((middle, middle), background_px, fill=False, color=BACKGROUND, linewidth=0.8, linestyle="--")
        )
