"""How poses and junk scores are spread over the particles. Arrays in, matplotlib figures out."""

import numpy as np
from matplotlib.figure import Figure

from emspatialvae.imaging.arrays import Floats

BINS, FEW_BINS, FEW = 36, 12, 360
"""Of the circle: ten degrees each, or thirty for fewer particles than that."""


def poses(theta_rad: Floats | None, shift_A: Floats | None) -> Figure:
    """Angles [n] round the circle and shifts [n, 2]; what is None has no panel."""
    given = [kind for kind, values in (("theta", theta_rad), ("shift", shift_A)) if values is not None]
    figure = Figure(figsize=(5.2 * len(given), 3.8), layout="constrained")
    panels = dict(zip(given, figure.subplots(1, len(given), squeeze=False)[0], strict=True))
    if theta_rad is not None:
        axes, n = panels["theta"], len(theta_rad)
        bins = BINS if n >= FEW else FEW_BINS
        counts, edges, _ = axes.hist(np.degrees(theta_rad), bins=np.linspace(-180, 180, bins + 1).tolist(), color="C0")
        even, error = n / bins, np.sqrt(n / bins * (1 - 1 / bins))
        axes.axhline(even, color="black", linewidth=1.2, label="all angles alike")
        axes.axhspan(
            max(even - 2 * error, 0), even + 2 * error, color="0.5", alpha=0.4, label="and its scatter (2 s.d.)"
        )
        axes.set_xticks(np.arange(-180, 181, 90))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, 1.3 * max(counts.max(), even + 2 * error))
        axes.set_xlabel("theta (degrees)")
        axes.set_ylabel("particles")
        axes.legend(loc="upper right", fontsize=8)
    if shift_A is not None:
        axes = panels["shift"]
        half = float(np.abs(shift_A).max()) or 1.0
        bins = np.linspace(-half, half, int(np.clip(np.sqrt(len(shift_A)), 11, 81))).tolist()
        for column, name, line, colour in zip(shift_A.T, "xy", ("-", "--"), ("C0", "C1"), strict=True):
            label = f"{name}: {column.mean():+.2g} \N{PLUS-MINUS SIGN} {column.std():.2g} \N{ANGSTROM SIGN}"
            axes.hist(column, bins=bins, histtype="step", linewidth=1.6, linestyle=line, color=colour, label=label)
        axes.set_ylim(top=1.25 * axes.get_ylim()[1])
        axes.set_xlabel("shift (angstrom)")
        axes.set_ylabel("particles")
        axes.legend(loc="upper right", fontsize=8, title="mean \N{PLUS-MINUS SIGN} s.d.", title_fontsize=8)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure


def junk(score: Floats, threshold: float) -> Figure:
    """Junk score per particle [n], 0 to 1, with the line beyond which a particle counts as junk."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    below, above = score[score <= threshold], score[score > threshold]
    bins = np.linspace(0, 1, 41).tolist()
    axes.hist(below, bins=bins, color="C0", label=f"up to {threshold:g}: {len(below):,}")
    axes.hist(above, bins=bins, color="C1", hatch="///", label=f"above: {len(above):,} junk")
    axes.axvline(threshold, color="black", linewidth=1, linestyle="--")
    # Nearly all lie in the first bar and the last.
    axes.set_yscale("symlog", linthresh=10)
    axes.set_xlim(0, 1)
    axes.set_xlabel("junk score")
    axes.set_ylabel("particles")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="upper center", fontsize=8)
    return figure
