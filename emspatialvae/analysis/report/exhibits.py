"""The figures of a report, each with its caption and with words for those who cannot see it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emspatialvae.analysis.figures import galleries, histograms, scatter
from emspatialvae.analysis.figures import run as figures
from emspatialvae.analysis.figures.scatter import Groups, Measure, Plane
from emspatialvae.analysis.latent_space.embedding import PrincipalComponents
from emspatialvae.imaging.arrays import Floats
from emspatialvae.results.classes import Classes

DPI = 130
SHOWN_CLASSES = 40
COLOURS = 128
"""Of a picture in the page: few enough to halve its size, enough for the eye."""


@dataclass(frozen=True)
class Exhibit:
    """A figure, drawn or on file, with what is said about it.

    Attributes
    ----------
    name
        Of its file, without the ending.
    figure
        Drawn here, or the PNG that was drawn before.
    alt
        What it shows, in a few words.
    caption
        What is seen, how to read it, what is good or bad.
    """

    name: str
    figure: Figure | Path
    alt: str
    caption: str

    def explanation(self, site: str | None) -> str | None:
        """The address of what the documentation says about this figure; None where no site of it is known."""
        page = "z_by" if self.name.startswith("z_by_") else self.name
        return None if site is None else f"{site.rstrip('/')}/report.html#{page.replace('_', '-')}"

    def save(self, folder: Path) -> tuple[bytes, tuple[int, int]]:
        """Write ``NAME.png`` into a folder; returns a smaller copy for the page and its (width, height)."""
        file = folder / f"{self.name}.png"
        if isinstance(self.figure, Path):
            file.write_bytes(self.figure.read_bytes())
        else:
            figures.save(self.figure, file, dpi=DPI)
        return compact(file)


def documentation() -> str | None:
    """Where the site of the installed version lies, as its package says (``project.urls`` in ``pyproject.toml``); None where it does not."""
    try:
        urls = metadata("emspatialvae").get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    named = dict(url.split(", ", 1) for url in urls)
    return named.get("Documentation")


def compact(picture: Path | NDArray[np.uint8], colours: int = COLOURS) -> tuple[bytes, tuple[int, int]]:
    """A PNG file, or grey levels [height, width], as PNG of few colours; with its (width, height)."""
    from PIL import Image

    if isinstance(picture, Path):
        with Image.open(picture) as stored:
            opened = stored.convert("RGB")
    else:
        opened = Image.fromarray(picture)
    few = opened.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    packed = BytesIO()
    few.save(packed, "png", optimize=True)
    return packed.getvalue(), opened.size


# -------------------------------------------------------------------------------------------------------- latent space


def density(plane: Plane, total_share: float | None) -> Exhibit:
    """How many particles lie where; ``total_share``: of the variance of z in the plane, where z has more than its two axes."""
    where = " and ".join(plane.axes)
    many = len(plane.points)
    said = f"How many of the {many:,} particles lie where in latent space. "
    if plane.points.shape[1] == 2:
        said += (
            "Separate clouds are different kinds of particle (views, states, junk); one long cloud is a continuous change; one round "
            "cloud about zero may be nothing but noise. The colours are logarithmic."
        )
    else:
        said += "Several peaks are different kinds of particle; one broad hill is a continuous change, or nothing but noise."
    if total_share is not None:
        said += f" The plane holds {100 * total_share:.0f} % of the variance of z."
    return Exhibit("z_density", scatter.density(plane), f"Map of the number of particles over {where}", said)


REMARKS = {
    "ClassNumber": "Classes part latent space between them; where their borders cut a cloud in two, they cut a continuous change.",
    "Junk": "Junk should lie apart from the particles, in small clouds or far out.",
    "Misfit": "What the image leaves unexplained: about 0 for a particle, high where something lies that the model does not draw.",
    "LogLikeliContribution": "How well the model explains the image, in the steerable engine against noise alone: low for empty images, "
    "large defocus and thick ice; very high for bright dirt.",
}
"""How to read columns whose names end so."""
PARTED = "Where the colours mix evenly, z does not depend on it; where they part, it does."


def density_by(plane: Plane, colour: Measure | Groups, name: str) -> Exhibit:
    """The same plane, coloured by a column of this name."""
    many, by_cell = len(plane.points), len(plane.points) > scatter.MARKED
    on_a_line = plane.points.shape[1] == 1
    if isinstance(colour, Groups):
        said = f"The particles by {colour.label}; numbers of particles in brackets."
        if by_cell and not on_a_line:
            said += f" {scatter.MARKED:,} of {many:,}, drawn at random, have a marker."
    elif on_a_line:
        said = f"{colour.label} against {plane.axes[0]}: particles per cell."
    else:
        said = f"The particles by {colour.label}, {'the mean of each cell' if by_cell else 'a marker each'}."
        if colour.values.min() < 0 or colour.values.max() > 1:
            said += " The colours leave out the outermost percent on either side."
    said += " " + next((remark for end, remark in REMARKS.items() if name.endswith(end)), PARTED)
    file = f"z_by_{re.sub('[^A-Za-z0-9]+', '_', name).strip('_')}"
    where = " and ".join(plane.axes)
    return Exhibit(file, scatter.coloured(plane, colour), f"Particles over {where}, coloured by {colour.label}", said)


def umap(plane: Plane, colour: Measure | Groups, of: int) -> Exhibit:
    """UMAP of z."""
    number = f"all {of:,}" if len(plane.points) == of else f"{len(plane.points):,} of {of:,}, drawn at random"
    said = (
        f"UMAP of z ({number} particles) by {colour.label}: particles that are neighbours in z are neighbours here. "
        "Distances between clouds, their sizes and their densities mean nothing in this picture; take decisions on z itself."
    )
    return Exhibit("umap", scatter.coloured(plane, colour), f"UMAP of z, coloured by {colour.label}", said)


def components(parts: PrincipalComponents) -> Exhibit:
    """What the principal components of z hold."""
    shares = ", ".join(f"PC {k} {100 * share:.0f} %" for k, share in enumerate(parts.share, 1))
    said = (
        "How much of the variance of z lies along each of its principal components. Components with next to nothing are coordinates "
        "that the model did not need: fewer --z-dim would do."
    )
    return Exhibit("z_variance", scatter.variance(parts.share), f"Variance of z by principal component: {shares}", said)


def films(rows: Mapping[str, Floats], steps_sd: Floats, near: Mapping[str, Sequence[int]]) -> Exhibit:
    """What the model draws along axes of z; ``near``: particles about each step."""
    figure = figures.films(rows, [f"{step:+.2g} s.d." for step in steps_sd])
    counts = "; ".join(f"{axis}: {', '.join(f'{count:,}' for count in counts)}" for axis, counts in near.items())
    said = (
        "What the model draws along the axes of latent space, from two standard deviations of the particles below their mean to two "
        f"above. Particles about each step, from left to right: {counts}. Where there are none, the picture is a guess."
    )
    return Exhibit("paths", figure, f"Drawn particles along {', '.join(rows)}", said)


# -------------------------------------------------------------------------------------------- classes, poses and junk


def classes(found: Classes) -> Exhibit:
    """Class averages, the largest class first."""
    numbers = found.numbers[:SHOWN_CLASSES]
    titles = []
    for at, number in enumerate(numbers):
        finest = found.resolution_A[at, 0]
        told = f"{finest:.1f} \N{ANGSTROM SIGN}" if np.isfinite(finest) else "no resolution"
        titles.append(f"{number}: {found.particles[at]:,} ({100 * found.share[at]:.1f} %)\n{told}")
    said = (
        "Class averages of the raw, full-size particles with our poses, the largest class first, each with a grey scale of its own; "
        "above each its number, its particles with their share, and the resolution at which two half sets agree (FRC 0.143). "
        "A sharp average means that its particles are alike and their poses right; a blurred one is junk, or several things at once."
    )
    if len(found) > len(numbers):
        said += f" The {len(found) - len(numbers)} smallest classes stand in the table only."
    figure = galleries.classes(found.images[: len(numbers)], titles, found.pixel_size_A)
    return Exhibit("classes", figure, f"Averages of the {len(numbers)} largest classes", said)


def pose_spread(theta_rad: Floats | None, shift_A: Floats | None) -> Exhibit:
    """Where the poses lie."""
    said = []
    if theta_rad is not None:
        length = float(np.abs(np.exp(1j * theta_rad).mean()))
        by_chance = 2 / np.sqrt(len(theta_rad))
        verdict = "as little as chance gives" if length < by_chance else f"chance gives up to {by_chance:.2g}"
        said.append(
            "Particles lie on the grid at any angle, so theta should be even within the grey band. Peaks 90 or 180 degrees apart are "
            f"poses that followed the detector, edges or neighbours. One-sidedness {length:.2g} of 1 ({verdict})."
        )
    if shift_A is not None:
        x, y = shift_A.std(0)
        said.append(
            f"Shifts have an s.d. of {x:.2g} (x) and {y:.2g} (y) angstrom: the precision of picking. They should fall off before the "
            "ends of the axis; a wall there means that --max-shift-a is too small, a mean far from zero that picking was off centre."
        )
    return Exhibit(
        "pose_spread", histograms.poses(theta_rad, shift_A), "Histograms of rotations and shifts", " ".join(said)
    )


def junk(score: Floats, threshold: float) -> Exhibit:
    """Junk scores of the particles."""
    above = int((score > threshold).sum())
    said = (
        f"Junk score per particle; {above:,} of {len(score):,} lie above {threshold:g}. Two heaps at the ends are a clear case; a score in "
        "the middle is a particle to look at. The scale is logarithmic above 10."
    )
    return Exhibit(
        "junk", histograms.junk(score, threshold), f"Histogram of junk scores, {above:,} above {threshold:g}", said
    )


STORED = {
    "reconstructions": (
        "Particles as recorded and with the pose taken out, above what the model draws for them",
        "Examples: each particle as recorded and with its pose taken out, each above what the model draws for it. The upright rows should "
        "look alike within a kind of particle; a model row that shows nothing but a blob has learned nothing about that particle.",
    ),
    "manifold": (
        "What the model draws on a grid over latent space",
        "What the model draws across latent space, in equally probable steps of its prior. Smooth changes between neighbours are what is "
        "wanted; tiles far from every particle (see the map of z) are guesses.",
    ),
    "particle_size": (
        "Radial profiles of the images, and the circle of the particle on averages and single images",
        "How large the particle was taken to be. The circle should hold all of the particle and no neighbours; give "
        "--particle-diameter-a where it does not. Beyond the edge the spread from particle to particle falls to that of the noise, and "
        "rises again where neighbours begin.",
    ),
    "averages": (
        "Average of the particles before and after alignment, and the mean of the model's drawings",
        "The average of the particles as they lie, with rotation and shift taken out, and the mean of what the model draws. The second "
        "should be sharper than the first by far and look like the third.",
    ),
    "poses": (
        "Histograms of how sure the poses are",
        "How sure the poses are, by the model's own account. A second heap far to the right are particles whose rotation could not be "
        "told: round views, or junk.",
    ),
    "learning_curve": (
        "ELBO per epoch of training and held-out particles",
        "The bound on the likelihood per epoch; higher is better. Both curves should have become flat; held-out particles far below the "
        "others mean over-fitting.",
    ),
    "spectra": (
        "Power of particles and noise against resolution",
        "What the model took the particles for before training: power against resolution. Where the particles' curve lies below the "
        "noise, detail comes from averaging only.",
    ),
}
"""Figures that training drew: name -> (alt, caption)."""


def stored(folder: Path) -> list[Exhibit]:
    """Those of the figures of a run that are there."""
    files = {name: folder / f"{name}.png" for name in STORED}
    return [Exhibit(name, file, *STORED[name]) for name, file in files.items() if file.is_file()]
