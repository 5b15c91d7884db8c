"""Particles in latent space: how many lie where, and what they are there. Arrays in, matplotlib figures out.

Millions of particles are drawn as counts or means per cell, never as a marker each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from emspatialvae.imaging.arrays import Floats

MARKED = 20_000
"""Up to so many particles have a marker each."""
CELLS = 120
"""Cells along an axis of a map."""
GROUPS = 12
"""Groups with a colour and a marker of their own; the others are drawn alike."""
NAMED = 40
"""Groups whose names are written into the picture at most."""
MARKERS = "osD^vP*X<>ph"
COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b"),
    *("#e377c2", "#17becf", "#bcbd22", "#000000", "#7f7f00", "#005f73"),
)
OTHERS = "0.75"
NUMBERED = ("ClassNumber", "OpticsGroup", "GroupNumber", "RandomSubset", "/class")
"""Ends of columns whose numbers are names, however many there are."""


@dataclass(frozen=True)
class Plane:
    """Particles in a plane, or along a line.

    Attributes
    ----------
    points
        Shape [n, 2] or [n, 1].
    axes
        What the coordinates are called, one or two.
    """

    points: Floats
    axes: tuple[str, ...]

    def __getitem__(self, rows: NDArray[np.integer]) -> "Plane":
        return Plane(self.points[rows], self.axes)


@dataclass(frozen=True)
class Measure:
    """A number per particle [n]; NaN where it is not known."""

    label: str
    values: Floats

    def __getitem__(self, rows: NDArray[np.integer]) -> "Measure":
        return Measure(self.label, self.values[rows])


@dataclass(frozen=True)
class Groups:
    """A group per particle: ``of`` [n] counts into ``names``."""

    label: str
    of: NDArray[np.integer]
    names: tuple[str, ...]

    def __getitem__(self, rows: NDArray[np.integer]) -> "Groups":
        return Groups(self.label, self.of[rows], self.names)

    def counts(self) -> NDArray[np.integer]:
        """Particles per group; shape [groups]."""
        return np.bincount(self.of, minlength=len(self.names))


def colouring(label: str, cells: Sequence[str] | NDArray, unit: str = "") -> Measure | Groups:
    """A column as numbers or as groups: texts, a dozen or fewer different whole numbers, and class numbers are groups.

    Groups are named by their cells and come in the order of their numbers, or the largest first.
    """
    said = f"{label} ({unit})" if unit else label
    texts = np.asarray(cells)
    try:
        values = texts.astype(np.float64)
    except ValueError:
        names, of, counts = np.unique(texts.astype(str), return_inverse=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return Groups(said, np.argsort(order)[of], tuple(names[order].tolist()))
    known = np.unique(values[np.isfinite(values)])
    few = len(known) <= GROUPS or label.endswith(NUMBERED)
    if few and np.isfinite(values).all() and (known == np.rint(known)).all():
        return Groups(said, np.searchsorted(known, values), tuple(f"{value:.0f}" for value in known))
    return Measure(said, values)


def density(plane: Plane) -> Figure:
    """How many particles lie where, counted per cell; on a line a histogram."""
    figure, axes = _canvas(plane)
    points = plane.points
    if points.shape[1] == 1:
        axes.hist(points[:, 0], bins=min(CELLS, 10 + len(points) // 50), color="C0")
        axes.set_ylabel("particles")
        return figure
    edges = _edges(points)
    counts, *_ = np.histogram2d(points[:, 0], points[:, 1], bins=edges)
    top = max(counts.max(), 2)
    drawn = _map(axes, np.where(counts > 0, counts, np.nan), edges, LogNorm(1, top))
    figure.colorbar(drawn, ax=axes, label="particles per cell", shrink=0.85)
    return figure


def coloured(plane: Plane, colour: Measure | Groups) -> Figure:
    """Where particles with which value, or of which group, lie."""
    return _by_group(plane, colour) if isinstance(colour, Groups) else _by_value(plane, colour)


def variance(share: Floats) -> Figure:
    """How much of the spread of z each principal component holds; ``share`` [d] of 1."""
    figure = Figure(figsize=(max(4.5, 1.5 + 0.6 * len(share)), 3.2), layout="constrained")
    axes = figure.subplots()
    numbers = np.arange(1, len(share) + 1)
    bars = axes.bar(numbers, 100 * share, color="C0")
    axes.bar_label(bars, [f"{100 * part:.0f} %" for part in share], fontsize=9)
    axes.set_xticks(numbers, [f"PC {number}" for number in numbers])
    axes.set_ylim(0, 112 * max(float(share.max()), 1e-9))
    axes.set_ylabel("share of the variance of z (%)")
    return figure


# ---------------------------------------------------------------------------------------------------------- parts


def _by_value(plane: Plane, colour: Measure) -> Figure:
    figure, axes = _canvas(plane)
    rows = np.flatnonzero(np.isfinite(colour.values))
    points, values = plane.points[rows], colour.values[rows]
    if points.shape[1] == 1:
        points = np.column_stack([points, values])
        edges = _edges(points)
        counts, *_ = np.histogram2d(points[:, 0], points[:, 1], bins=edges)
        drawn = _map(axes, np.where(counts > 0, counts, np.nan), edges, LogNorm(1, max(counts.max(), 2)))
        axes.set_aspect("auto")
        axes.set_ylabel(colour.label)
        figure.colorbar(drawn, ax=axes, label="particles per cell", shrink=0.85)
        return figure
    norm, extend = _limits(values)
    if len(rows) > MARKED:
        edges = _edges(points)
        counts, *_ = np.histogram2d(points[:, 0], points[:, 1], bins=edges)
        sums, *_ = np.histogram2d(points[:, 0], points[:, 1], bins=edges, weights=values)
        with np.errstate(invalid="ignore"):
            drawn = _map(axes, sums / counts, edges, norm)
    else:
        order = np.random.default_rng(0).permutation(len(rows))  # no value lies on top because its rows come last
        drawn = axes.scatter(
            *points[order].T, c=values[order], s=_size(len(rows)), norm=norm, alpha=0.8, linewidths=0, rasterized=True
        )
    figure.colorbar(drawn, ax=axes, label=colour.label, shrink=0.85, extend=extend)
    return figure


def _by_group(plane: Plane, colour: Groups) -> Figure:
    figure, axes = _canvas(plane)
    counts = colour.counts()
    own = np.sort(np.argsort(-counts, kind="stable")[:GROUPS])
    own = own[counts[own] > 0]
    style = np.full(len(colour.names), -1)
    style[own] = np.arange(len(own))
    styled = style[colour.of]
    left = int((styled < 0).sum())
    names = {at: f"{_short(colour.names[group])} ({counts[group]:,})" for at, group in enumerate(own)}
    others = {-1: f"{len(colour.names) - len(own):,} others ({left:,})"} if left else {}
    if plane.points.shape[1] == 1:
        bins = np.histogram_bin_edges(plane.points[:, 0], bins=60).tolist()
        for at, name in (others | names).items():
            look, line = (OTHERS, "-") if at < 0 else (COLOURS[at], "-" if at < GROUPS // 2 else "--")
            values = plane.points[styled == at, 0]
            axes.hist(values, bins=bins, histtype="step", linewidth=1.6, label=name, color=look, linestyle=line)
        axes.set_ylabel("particles")
    else:
        _mark_groups(axes, plane.points, styled, others | names)
        _write_names(axes, plane.points, colour, own)
    figure.legend(title=colour.label, loc="outside right upper", fontsize=8, title_fontsize=9, markerscale=1)
    return figure


def _mark_groups(axes: Axes, points: Floats, styled: NDArray, names: dict[int, str]) -> None:
    """Markers of particles [n, 2] by their style [n], -1 for the others, which come first and lie below."""
    rows = np.random.default_rng(0).permutation(len(points))[:MARKED]
    size = _size(len(rows))
    for at, name in names.items():
        here = rows[styled[rows] == at]
        colour, marker = (OTHERS, "o") if at < 0 else (COLOURS[at], MARKERS[at])
        axes.scatter(*points[here].T, s=size, c=colour, marker=marker, alpha=0.7, linewidths=0, rasterized=True)
        axes.scatter([], [], s=36, c=colour, marker=marker, linewidths=0, label=name)


def _write_names(axes: Axes, points: Floats, colour: Groups, own: NDArray[np.integer]) -> None:
    """Short names, class numbers say, at the middles of their groups: colour alone shall say nothing."""
    shown = [group for group in np.unique(colour.of) if len(colour.names[group]) <= 4]
    for group in shown if len(shown) <= NAMED else []:
        x, y = np.median(points[colour.of == group], axis=0)
        size = 11 if group in own else 8
        effect = [withStroke(linewidth=3, foreground="white")]
        axes.text(
            x, y, colour.names[group], ha="center", va="center", weight="bold", fontsize=size, path_effects=effect
        )


def _canvas(plane: Plane) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(plane.axes[0])
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    if plane.points.shape[1] == 2:
        axes.set_ylabel(plane.axes[1])
        axes.set_aspect("equal", "datalim")
    return figure, axes


def _edges(points: Floats) -> Sequence[Floats]:
    """Borders of the cells of a map along both axes."""
    cells = int(np.clip(np.sqrt(len(points)) / 1.5, 12, CELLS))
    return [np.histogram_bin_edges(column, bins=cells) for column in points.T]


def _map(axes: Axes, values: Floats, edges: Sequence[Floats], norm: Normalize) -> QuadMesh:
    return axes.pcolormesh(edges[0], edges[1], values.T, norm=norm, cmap="viridis", rasterized=True)


def _limits(values: Floats) -> tuple[Normalize, str]:
    """The colours' range, without the outermost percent on either side, and which ends of it are open."""
    if not len(values):
        return Normalize(0, 1), "neither"
    if values.min() >= 0 and values.max() <= 1:  # a probability
        return Normalize(0, 1), "neither"
    low, high = np.percentile(values, [1, 99])
    if low == high:
        low, high = float(values.min()), float(values.max())
    ends = (bool(values.min() < low), bool(values.max() > high))
    return Normalize(low, high if high > low else low + 1), {
        (True, True): "both",
        (True, False): "min",
        (False, True): "max",
        (False, False): "neither",
    }[ends]


def _size(n: int) -> float:
    return float(np.clip(4e4 / max(n, 1), 4, 30))


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else f"{name[:9]}..{name[-(length - 11) :]}"
