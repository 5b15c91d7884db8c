"""The pictures of a run. Each function takes arrays and returns a matplotlib figure; nothing here reads or trains."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from emspatialvae.io.atomic import atomic_path

Floats = NDArray[np.floating]


def save(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a figure as PNG, replacing an older one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with atomic_path(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


def learning_curve(metrics: Sequence[Mapping[str, float]], z_delay: int) -> Figure:
    """ELBO of training and held-out particles per epoch, and the KL terms below; in nats per particle."""
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    epoch = [row["epoch"] for row in metrics]
    top.plot(epoch, [row["train_elbo"] for row in metrics], label="training particles", color="C0")
    held_out = [row["test_elbo"] for row in metrics]
    if np.isfinite(held_out).any():
        top.plot(epoch, held_out, label="held-out particles", color="C1", linestyle="--")
    # The first epochs climb from an untrained model and would flatten all that matters.
    shown = sorted(value for row in metrics for value in (row["train_elbo"], row["test_elbo"]) if np.isfinite(value))
    low, high = shown[len(shown) // 10], shown[-1]
    top.set_ylim(low - 0.15 * (high - low + 1e-9), high + 0.1 * (high - low + 1e-9))
    top.set_ylabel("ELBO per particle (nats)")
    top.set_title("Learning curve: higher is better; held-out far below training means over-fitting", fontsize=10)
    for part, style in (("kl_z", "-"), ("kl_theta", "--"), ("kl_shift", ":")):
        bottom.plot(epoch, [row[f"train_{part}"] for row in metrics], style, label=part.replace("kl_", "KL of "))
    bottom.set_xlabel("epoch")
    bottom.set_ylabel("nats per particle")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if z_delay > 0:
            axes.axvspan(0.5, min(z_delay, len(epoch)) + 0.5, color="0.9", zorder=0, label="z held at zero")
    top.legend(loc="lower right")
    bottom.legend(ncols=2)
    return figure


def z_scatter(z: Floats, colour: Floats, colour_label: str) -> Figure:
    """Particles in content space; z [n, d], coloured by [n]. One dimension is drawn as a histogram over the colour."""
    d = z.shape[1]
    size = float(np.clip(4e4 / len(z), 3, 30))
    if d == 1:
        figure = Figure(figsize=(6.5, 5.5), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
        top.hist(z[:, 0], bins=min(60, 5 + len(z) // 20), color="C0")
        top.set_ylabel("particles")
        bottom.scatter(z[:, 0], colour, s=size, alpha=0.5, linewidths=0, rasterized=True)
        bottom.set_ylabel(colour_label)
        bottom.set_xlabel("z1")
    else:
        pairs = [(i, i + 1) for i in range(0, min(d, 6) - 1, 1 if d < 4 else 2)]
        figure = Figure(figsize=(5.2 * len(pairs) + 0.8, 5), layout="constrained")
        for axes, (i, j) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
            drawn = axes.scatter(
                z[:, i], z[:, j], c=colour, s=size, alpha=0.6, linewidths=0, cmap="viridis", rasterized=True
            )
            axes.set_xlabel(f"z{i + 1}")
            axes.set_ylabel(f"z{j + 1}")
            axes.set_aspect("equal", "datalim")
            if (i, j) == pairs[-1]:
                figure.colorbar(drawn, ax=figure.axes, label=colour_label, shrink=0.85)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    figure.suptitle(f"Content of {len(z):,} particles, rotation and shift taken out", fontsize=10)
    return figure


def reconstructions(names: Sequence[str], rows: Mapping[str, Floats]) -> Figure:
    """One column per particle, one row per kind of image ({label: [k, box, box]})."""
    count = len(names)
    figure = Figure(figsize=(1.35 * count + 1.5, 1.45 * len(rows) + 0.8), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, (label, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=True):
            _picture(axes, image)
        line[0].set_ylabel(label, fontsize=9)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name if len(name) <= 16 else f"{name[:7]}..{name[-7:]}", fontsize=7)
    figure.suptitle("Particles as recorded, with pose taken out, and as the model sees them", fontsize=10)
    return figure


def tiles(images: Floats, shape: tuple[int, int], title: str, across: str, up: str) -> Figure:
    """Images [rows * columns, box, box] as one seamless map on a common grey scale."""
    rows, columns = shape
    box = images.shape[-1]
    canvas = images.reshape(rows, columns, box, box).swapaxes(1, 2).reshape(rows * box, columns * box)
    figure = Figure(figsize=(max(0.8 * columns + 0.6, 5), 0.8 * rows + 1.2), layout="constrained")
    axes = figure.subplots()
    _picture(axes, canvas)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(title, fontsize=10)
    return figure


def averages(before: Floats, after: Floats, model: Floats, count: int) -> Figure:
    """Average of the particles as recorded, of the aligned ones, and what the model draws for the same contents; [box, box]."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    pictures = {"as recorded": before, "rotation and shift taken out": after, "mean reconstruction": model}
    for axes, (title, image) in zip(figure.subplots(1, 3), pictures.items(), strict=True):
        _picture(axes, image, colorbar=True)
        axes.set_title(title, fontsize=10)
    figure.suptitle(f"Average of {count:,} particles (background s.d. = 1)", fontsize=10)
    return figure


def _picture(axes: Axes, image: Floats, *, colorbar: bool = False) -> Any:
    """Draw an image as stored, y downwards, grey values cut at the outermost half percent."""
    low, high = np.percentile(image, [0.5, 99.5])
    drawn = axes.imshow(image, cmap="gray", vmin=low, vmax=high if high > low else low + 1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    if colorbar and axes.figure is not None:
        axes.figure.colorbar(drawn, ax=axes, shrink=0.85)
    return drawn
