"""The pictures of a run. Each function takes arrays and returns a matplotlib figure; nothing here reads or trains."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.contrast import contrast_limits
from emspatialvae.io.atomic import atomic_path


def save(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a figure as PNG, replacing an older one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with atomic_path(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


def learning_curve(metrics: Sequence[Mapping[str, float]], z_delay: int, *, against_noise: bool) -> Figure:
    """ELBO of training and held-out particles per epoch, and the KL terms below; in nats per particle.

    ``against_noise``: the ELBO bounds the logarithm of a likelihood ratio, image explained by the model over image is noise.
    """
    figure = Figure(figsize=(7, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    epoch = [row["epoch"] for row in metrics]
    marker = "o" if len(epoch) < 3 else ""
    top.plot(epoch, [row["train_elbo"] for row in metrics], label="training particles", color="C0", marker=marker)
    held_out = [row["test_elbo"] for row in metrics]
    if np.isfinite(held_out).any():
        top.plot(epoch, held_out, label="held-out particles", color="C1", linestyle="--", marker=marker)
    # The first epochs climb from an untrained model and would flatten all that matters.
    shown = sorted(value for row in metrics for value in (row["train_elbo"], row["test_elbo"]) if np.isfinite(value))
    low, high = shown[len(shown) // 10], shown[-1]
    top.set_ylim(low - 0.15 * (high - low + 1e-9), high + 0.1 * (high - low + 1e-9))
    top.set_ylabel("ELBO, nats per particle" + ("\nlog-likelihood ratio against noise alone" if against_noise else ""))
    title = "Learning curve: higher is better; held-out far below training means over-fitting"
    if against_noise:
        title += "\n0: the model explains a particle no better than noise alone does"
        if top.get_ylim()[0] < 0 < top.get_ylim()[1]:
            top.axhline(0, color="0.4", linewidth=1)
    top.set_title(title, fontsize=10)
    for part, style in (("kl_z", "-"), ("kl_theta", "--"), ("kl_shift", ":")):
        values = [row[f"train_{part}"] for row in metrics]
        if part == "kl_z" or any(values):  # where the pose is summed out, its KL is in the likelihood already
            bottom.plot(epoch, values, style, label=part.replace("kl_", "KL of "), marker=marker)
    bottom.set_title("Information that one image gives beyond the prior", fontsize=10)
    bottom.set_xlabel("epoch")
    bottom.set_ylabel("nats per particle")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if z_delay > 0:
            axes.axvspan(0.5, min(z_delay, len(epoch)) + 0.5, color="0.9", zorder=0, label="z held at zero")
        axes.legend(loc="lower right" if axes is top else "best")
    return figure


def z_scatter(z: Floats, colour: Floats, colour_label: str) -> Figure:
    """Particles in latent space; z [n, d], coloured by [n]. One dimension is drawn as a histogram over the colour."""
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
    figure.suptitle(f"Latent variables of {len(z):,} particles, rotation and shift taken out", fontsize=10)
    return figure


def reconstructions(names: Sequence[str], rows: Mapping[str, Floats], note: str = "") -> Figure:
    """One column per particle, one row per kind of image ({label: [k, box, box]}); ``note`` goes under the title."""
    figure, grid = lines(rows)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name if len(name) <= 16 else f"{name[:7]}..{name[-7:]}", fontsize=7)
    title = "Particles as they lie and with the pose taken out, each above what the model draws for it"
    figure.suptitle(f"{title}\n{note}" if note else title, fontsize=10)
    return figure


def films(rows: Mapping[str, Floats], below: Sequence[str]) -> Figure:
    """One row of images [steps, box, box] per label, on a common grey scale; ``below`` names the steps."""
    figure, grid = lines(rows, contrast_limits(np.stack(list(rows.values()))))
    for axes, text in zip(grid[-1], below, strict=True):
        axes.set_xlabel(text, fontsize=8)
    return figure


def lines(rows: Mapping[str, Floats], limits: Sequence[float] | Floats | None = None) -> tuple[Figure, NDArray[Any]]:
    """Images [count, box, box] per label, a line each; the figure and its axes [lines, count]. ``limits``: as for `picture`."""
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.25 * count + 1, 1.35 * len(rows) + 0.7), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, (label, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=True):
            picture(axes, image, limits=limits)
        line[0].set_ylabel(label, fontsize=9)
    return figure, grid


def tiles(images: Floats, shape: tuple[int, int], title: str, across: str, up: str) -> Figure:
    """Images [rows * columns, box, box] as one seamless map on a common grey scale."""
    rows, columns = shape
    box = images.shape[-1]
    canvas = images.reshape(rows, columns, box, box).swapaxes(1, 2).reshape(rows * box, columns * box)
    figure = Figure(figsize=(max(0.8 * columns + 0.6, 5), 0.8 * rows + 1.2), layout="constrained")
    axes = figure.subplots()
    picture(axes, canvas)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(title, fontsize=10)
    return figure


def averages(before: Floats, after: Floats, model: Floats, count: int, *, ctf: bool = False) -> Figure:
    """Average of the particles as recorded, of the aligned ones, and what the model draws for the same latents; [box, box].

    ``ctf``: the first two are sums of CTF-multiplied images over sums of CTF^2.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    pictures = {"as they lie": before, "rotation and shift taken out": after, "what the model draws, mean": model}
    for axes, (title, image) in zip(figure.subplots(1, 3), pictures.items(), strict=True):
        picture(axes, image, colorbar=True)
        axes.set_title(title, fontsize=10)
    said = f"Average of {count:,} particles (background s.d. of one particle = 1)"
    if ctf:
        said += "\nCTF taken out as a Wiener filter does: sum of CTF \N{MULTIPLICATION SIGN} image over sum of CTF\N{SUPERSCRIPT TWO}, ring by ring"
    figure.suptitle(said, fontsize=10)
    return figure


def poses(theta_sd_deg: Floats | None, shift_sd_A: Floats | None, probability: Floats | None) -> Figure:
    """How sure the poses are: histograms over particles [n] of the s.d. of theta and shift, and of the pose's probability.

    What is None has no panel.
    """
    panels: list[tuple[Floats, str, str]] = []
    if theta_sd_deg is not None:
        said = f"Angle: known to \N{PLUS-MINUS SIGN}{np.median(theta_sd_deg):.2g}\N{DEGREE SIGN} (median)"
        panels.append((theta_sd_deg, said, "s.d. of theta (degrees)\n104 would mean: no idea"))
    if shift_sd_A is not None:
        said = f"Shift: known to \N{PLUS-MINUS SIGN}{np.median(shift_sd_A):.2g} \N{ANGSTROM SIGN} (median)"
        panels.append((shift_sd_A, said, "s.d. of the shift along an axis (angstrom)"))
    if probability is not None:
        said = f"One clear pose (above 0.9): {100 * (probability > 0.9).mean():.0f} % of particles"
        panels.append((probability, said, "probability of the reported pose\nlow: another pose fits almost as well"))
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    for axes, (values, title, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        bins = np.linspace(0, 1, 41) if values is probability else np.linspace(0, _beyond(values), 41)
        axes.hist(values.clip(max=bins[-1]), bins=bins, color="C0")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(label + ("" if values.max() <= bins[-1] else "\n(last bar: and beyond)"))
        axes.set_xlim(0, bins[-1])
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("particles")
    figure.suptitle("How sure the reported poses are", fontsize=10)
    return figure


def _beyond(values: Floats) -> float:
    """A round place on the axis that nearly all of the values lie below."""
    high = float(np.percentile(values, 99)) * 1.2 or 1.0
    unit = 10.0 ** np.floor(np.log10(high))
    return float(np.ceil(2 * high / unit) * unit / 2)


def spectra(
    noise: Floats, signal: Floats, field_A: float, order: NDArray[np.integer], *, white: bool, ctf: bool
) -> Figure:
    """What the model took the particles for before it drew any: power against resolution, and the orders of its components.

    Parameters
    ----------
    noise, signal
        Mean |F|^2 per pixel of each ring, 1 for white noise of s.d. 1; shapes [groups, rings] and [rings].
    field_A
        Side of the box in angstrom: ring r holds the frequency ``r / field_A``.
    order
        Angular order of each component; shape [R].
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    frequency = np.arange(1, len(signal)) / field_A
    for number, power in enumerate(noise, 1):
        group = f", optics group {number}" if len(noise) > 1 else ""
        left.plot(frequency, power[1:], "--", label=f"noise{group}" + (" (white)" if white else ""))
    lowest = float(noise[:, 1:].min()) / 100
    # The estimate scatters about zero where there is no signal: a dot here and there, no line.
    measured = np.where(signal > lowest, signal, np.nan)[1:]
    gaps = "" if np.isfinite(measured).all() else "; gaps: too weak to measure"
    left.plot(frequency, measured, "k.-", label=f"particles{' before the CTF' if ctf else ''}{gaps}")
    left.set_yscale("log")
    left.set_ylim(bottom=lowest)
    left.set_xlim(0, frequency[-1])
    left.set_xticks(frequency[-1] * np.arange(1, 6) / 5)
    left.set_xticklabels([f"{1 / f:.3g}" for f in left.get_xticks()])
    left.set_xlabel("resolution (angstrom)")
    left.set_ylabel("power (white noise of s.d. 1 = 1)")
    left.set_title("Signal above noise: seen in one particle; below: by averaging", fontsize=10)
    left.legend()
    right.bar(*np.unique(order, return_counts=True), color="C0")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_xlabel("angular order (how often a pattern repeats per turn)")
    right.set_ylabel("components")
    right.set_title(f"The {len(order)} components that images are made of", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def picture(
    axes: Axes, image: Floats, *, colorbar: bool = False, limits: Sequence[float] | Floats | None = None
) -> Any:
    """Draw an image as stored, y downwards, grey values cut at ``limits`` or at the outermost half percent."""
    low, high = contrast_limits(image) if limits is None else limits
    drawn = axes.imshow(image, cmap="gray", vmin=low, vmax=high if high > low else low + 1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    if colorbar and axes.figure is not None:
        axes.figure.colorbar(drawn, ax=axes, shrink=0.85)
    return drawn
