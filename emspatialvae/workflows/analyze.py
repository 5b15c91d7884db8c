"""What a run found, in one folder to look at (``emsvae analyze``).

RUN/analysis/
  report.html      key numbers, figures with captions, classes: one page that needs nothing else
  figures/         the figures, larger
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emspatialvae.analysis.figures.scatter import Groups, Measure, Plane
from emspatialvae.analysis.latent_space import embedding, manifold, paths
from emspatialvae.analysis.latent_space.embedding import PrincipalComponents
from emspatialvae.analysis.report import exhibits, html
from emspatialvae.analysis.report.cloud import cloud
from emspatialvae.analysis.report.exhibits import Exhibit
from emspatialvae.analysis.report.page import Findings, page
from emspatialvae.analysis.report.run_columns import Columns
from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Floats
from emspatialvae.inference.infer import load_model
from emspatialvae.inference.junk_score import LIKELY
from emspatialvae.io import leftovers, lock
from emspatialvae.io.atomic import atomic_folder
from emspatialvae.model.render import canonical
from emspatialvae.particles.columns import LOG_LIKELIHOOD, SCORES, kept_apart
from emspatialvae.results import summary
from emspatialvae.results.classes import Classes, read_classes
from emspatialvae.results.latents import Latents
from emspatialvae.results.read_run import read_latents
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows.classes import check_belong, classify_run
from emspatialvae.workflows.progress import Say

CLASSES, LEAST_PER_CLASS = 20, 10
"""Unless told otherwise: so many classes, or fewer, so that one has so many particles on average."""
AXES, STEPS_SD = 3, np.linspace(-2, 2, 9)
"""Axes of latent space that are walked, and where the steps lie."""
_PLAIN = (*(SCORES[score].star for score in ("class_number", "junk", "misfit")), LOG_LIKELIHOOD)
ALWAYS = tuple(name for plain in _PLAIN for name in (kept_apart(plain), plain))
"""What latent space is coloured by wherever the run knows it."""

Colours = Mapping[str, Measure | Groups]


@dataclass(frozen=True)
class ReportSettings:
    """What `analyze_run` shall do beyond what it always does."""

    k: int | None = None
    """Make classes anew, so many; None: take those of the run, or make `CLASSES` where it has none."""
    colour_by: tuple[str, ...] = ()
    """Columns to colour latent space by, as `find_column` knows them."""
    umap: bool = False
    rows: int = 20_000
    """Particles that go into UMAP at most."""
    project_dir: Path | None = None
    """Where the images lie now; None: as the run knows it."""


def analyze_run(path: Path, asked: ReportSettings, say: Say = print) -> Path:
    """Write ``analysis/`` into a run folder and return its page; an older one is replaced as a whole, or stays as it is.

    Raises
    ------
    EmsvaeError
        No results yet, no particle that was used, a column that does not exist, UMAP asked for and not installed, more classes
        than particles, images that classes need and that cannot be read.
    """
    run = RunDir(path)
    with lock.locked(run.path) as told:
        if told is not None:
            say(told)
        leftovers.sweep(run.path)
        return _analyze(path, asked, say)


def _analyze(path: Path, asked: ReportSettings, say: Say) -> Path:
    run, latents = read_latents(path)
    run.check_results_belong()
    used = int(latents.used.sum())
    if not used:
        raise EmsvaeError(f"{path}: no particle could be used, so there is nothing to show; its run.log says why")
    columns = Columns.of(run, latents)
    wanted = tuple(columns.find(name) for name in asked.colour_by)
    if asked.umap:
        embedding.check_umap(min(used, asked.rows))
    classes = _classes(run, latents, asked, say)
    _, latents = read_latents(path)  # which classes went into
    columns = Columns.of(run, latents)
    findings = Findings(
        path, run.manifest, run.metrics(), latents, classes, columns.micrographs(), columns.find("class_number")
    )
    colours = {name: columns.colour(name) for name in dict.fromkeys((*columns.known(ALWAYS), *wanted))}
    plane, parts = _plane(latents.z[columns.rows])
    shown: dict[str, html.Html] = {}
    site = exhibits.documentation()
    with atomic_folder(path / "analysis") as folder:
        figures = folder / "figures"
        figures.mkdir()
        for exhibit in _exhibits(run, findings, plane, parts, colours, asked.rows if asked.umap else 0):
            png, size_px = exhibit.save(figures)
            more = exhibit.explanation(site)
            shown[exhibit.name] = html.figure(png, size_px, exhibit.caption, exhibit.alt, name=exhibit.name, more=more)
        of = None if latents.class_number is None else latents.class_number[columns.rows]
        text = page(findings, shown, cloud(plane, latents.names[columns.rows], of))
        # Names that are no UTF-8 came in through surrogates, which no page can hold.
        (folder / "report.html").write_text(text, encoding="utf-8", errors="replace")
    report = path / "analysis" / "report.html"
    say(f"{len(shown)} figures, {report.stat().st_size / 1e6:.1f} MB; open it in a browser: {report}")
    return report


def _classes(run: RunDir, latents: Latents, asked: ReportSettings, say: Say) -> Classes:
    """Those of the run, unless it has none or others are wanted."""
    stored = read_classes(run)
    if stored is not None and asked.k is None and latents.class_number is not None:
        check_belong(stored, latents, run)
        return stored
    k = int(np.clip(latents.used.sum() // LEAST_PER_CLASS, 1, CLASSES)) if asked.k is None else asked.k
    return classify_run(run.path, k, project_dir=asked.project_dir, say=say)


def _plane(z: Floats) -> tuple[Plane, PrincipalComponents | None]:
    """Latents [n, d] themselves where they lie on a line or in a plane, else their first two principal components."""
    if z.shape[1] <= 2:
        return Plane(z, tuple(f"z{k + 1}" for k in range(z.shape[1]))), None
    parts = embedding.principal_components(z)
    names = tuple(f"PC {k + 1} of z ({100 * parts.share[k]:.0f} % of the variance)" for k in range(2))
    return Plane(parts.scores[:, :2], names), parts


def _exhibits(
    run: RunDir, findings: Findings, plane: Plane, parts: PrincipalComponents | None, colours: Colours, umap_rows: int
) -> Iterator[Exhibit]:
    """All figures there are of a run, one after the other: each is written before the next is drawn."""
    latents = findings.latents[findings.latents.used]
    yield exhibits.density(plane, None if parts is None else float(parts.share[:2].sum()))
    for name, colour in colours.items():
        yield exhibits.density_by(plane, colour, name)
    if umap_rows:
        some = embedding.some_rows(len(latents), umap_rows)
        flat = Plane(embedding.umap_plane(latents.z[some]), ("UMAP 1", "UMAP 2"))
        yield exhibits.umap(flat, next(iter(colours.values()))[some], len(latents))
    if parts is not None:
        yield exhibits.components(parts)
    yield _films(run, latents)
    yield exhibits.classes(findings.classes)
    if latents.junk is not None:
        yield exhibits.junk(latents.junk, LIKELY)
    rotate, translate = summary.inferred(findings.manifest.config.model)
    if rotate or translate:
        shift_A = latents.pose.shift_px * latents.pixel_size_A
        yield exhibits.pose_spread(latents.pose.theta_rad if rotate else None, shift_A if translate else None)
    yield from exhibits.stored(run.figures)


def _films(run: RunDir, latents: Latents) -> Exhibit:
    """What the model draws along the longest axes of latent space."""
    d = latents.z.shape[1]
    components = tuple(range(1, min(AXES, d) + 1))
    mean, axes = manifold.principal_axes(latents.z, components)
    unit = paths.typical_sd(latents.z_sd)
    model = load_model(run)
    drawn, near = {}, {}
    for component, axis in zip(components, axes, strict=True):
        name = f"PC {component} of z" if d > 1 else "z1"
        points = mean + STEPS_SD[:, None] * axis
        drawn[name] = canonical(model, points)
        near[name] = paths.walk(points, latents.z, unit).near.tolist()
    return exhibits.films(drawn, STEPS_SD, near)
