"""The report of a run as a page: key numbers, sections with figures and tables, commands to go on with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np
from numpy.typing import NDArray

from emspatialvae import __version__
from emspatialvae.analysis.figures.film import greys
from emspatialvae.analysis.latent_space.embedding import principal_components
from emspatialvae.analysis.report import exhibits, html
from emspatialvae.analysis.report.html import Cell, Html, Section
from emspatialvae.imaging.arrays import Floats
from emspatialvae.inference.junk_score import LIKELY
from emspatialvae.results import summary
from emspatialvae.results.classes import Classes
from emspatialvae.results.latents import Latents
from emspatialvae.results.manifest import Manifest

THUMBNAIL_PX = 56
LISTED = 20
"""Micrographs in the table."""


@dataclass(frozen=True)
class Findings:
    """What there is to say about a run.

    Attributes
    ----------
    run
        The folder, as the user gave it.
    manifest, metrics, latents, classes
        Of the run; latents of all particles.
    micrographs
        For each the rows of its particles, counted among those that were used; None where the file knows none.
    class_label
        Name of the column with our classes.
    """

    run: Path
    manifest: Manifest
    metrics: Sequence[Mapping[str, float]]
    latents: Latents
    classes: Classes
    micrographs: Mapping[str, NDArray[np.int64]] | None
    class_label: str

    @property
    def junk(self) -> Floats | None:
        """Probability of being junk of the particles that were used; None where the run does not know it."""
        return None if self.latents.junk is None else self.latents.junk[self.latents.used]


def page(findings: Findings, figures: Mapping[str, Html], cloud: Html | None) -> str:
    """The page; ``figures`` by name, ``cloud`` the scatter to point at."""
    wanted = {
        "latents": (
            "Latent space",
            ["z_density", "cloud", *_colours(figures), "umap", "z_variance", "paths", "manifold"],
        ),
        "classes": ("Classes", ["classes"]),
        "junk": ("Junk", ["junk"]),
        "poses": ("Poses", ["pose_spread", "poses"]),
        "model": ("Model and training", ["particle_size", "reconstructions", "averages", "learning_curve", "spectra"]),
    }
    tables = {"classes": _class_table(findings), "junk": _micrograph_table(findings)}
    available = dict(figures) | ({"cloud": cloud} if cloud is not None else {})
    sections = []
    for anchor, (title, names) in wanted.items():
        drawn = [available[name] for name in names if name in available]
        parts = [html.tag("div", *drawn, class_="figures")] if drawn else []
        if (table := tables.get(anchor)) is not None:
            parts.append(table)
        if parts:
            sections.append(Section(anchor, title, tuple(parts)))
    sections.append(Section("next", "Go on from here", tuple(_commands(findings))))
    sections.append(Section("run", "What was run", tuple(_facts(findings))))
    source = findings.manifest.config.input.particles
    return html.page(
        f"{findings.run.resolve().name}: what the particles look like",
        f"{source}: {findings.manifest.n_particles:,} particles, {_taken_out(findings.manifest)}.",
        html.key_numbers(list(_key_numbers(findings))),
        sections,
        f"Made by emsvae analyze, emspatialvae {__version__}. This page holds everything it shows and needs no network.",
    )


def _taken_out(manifest: Manifest) -> str:
    if manifest.config.model.poses_fixed:
        return "with the rotations and shifts of the file taken out"
    rotate, translate = summary.inferred(manifest.config.model)
    parts = [name for name, inferred in (("rotation", rotate), ("shift", translate)) if inferred]
    return f"with {' and '.join(parts)} taken out" if parts else "as they lie: no rotation or shift was inferred"


def _colours(figures: Mapping[str, Html]) -> list[str]:
    return [name for name in figures if name.startswith("z_by_")]


def _key_numbers(findings: Findings) -> Iterator[tuple[str, str, str]]:
    latents, config = findings.latents, findings.manifest.config.model
    some = latents[latents.used]
    left = len(latents) - len(some)
    yield "Particles", f"{len(some):,}", f"of {len(latents):,}; {left:,} not used" if left else "all of the file"
    active = summary.active_units(latents)
    yield "Latent coordinates", f"{active} of {latents.z.shape[1]}", "that hold something"
    rotate, translate = summary.inferred(config)
    if rotate:
        yield "Rotation known to", f"{np.degrees(np.median(some.theta_sd_rad)):.2g}\N{DEGREE SIGN}", "median s.d."
    if translate:
        yield (
            "Shift known to",
            f"{np.median(summary.shift_sd_A(some)):.2g} \N{ANGSTROM SIGN}",
            "median s.d. along an axis",
        )
    if some.peak_weight is not None and (rotate or translate):
        clear = (some.peak_weight > summary.CLEAR).mean()
        yield "One clear pose", f"{100 * clear:.0f} %", f"of particles, probability above {summary.CLEAR:g}"
    if findings.junk is not None:
        above = int((findings.junk > LIKELY).sum())
        yield (
            "Junk",
            f"{100 * above / max(len(findings.junk), 1):.1f} %",
            f"{above:,} particles with a score above {LIKELY:g}",
        )
    best = findings.classes.resolution_A[:, 0]
    told = f"the best to {np.nanmin(best):.1f} \N{ANGSTROM SIGN} (FRC 0.143)" if np.isfinite(best).any() else "averages"
    yield "Classes", f"{len(findings.classes)}", told


def _class_table(findings: Findings) -> Html:
    classes = findings.classes
    junk = classes.junk_share
    head = ["Class", "Average", "Particles", "Share", "FRC 0.143", "FRC 0.5", *([] if junk is None else ["Junk"])]
    rows = []
    for at, number in enumerate(classes.numbers):
        thumbnail, _ = exhibits.compact(greys(classes.images[at]), 64)
        row = [
            Cell(f"{number}", float(number)),
            Cell(html.image(thumbnail, f"Average of class {number}", (THUMBNAIL_PX, THUMBNAIL_PX))),
            Cell(f"{classes.particles[at]:,}", float(classes.particles[at])),
            Cell(f"{100 * classes.share[at]:.1f} %", float(classes.share[at])),
            *[_resolution(value) for value in classes.resolution_A[at]],
        ]
        if junk is not None:
            row.append(Cell(f"{100 * junk[at]:.0f} %", float(junk[at])))
        rows.append(row)
    caption = (
        "All classes, the largest first; a click on a column's head sorts. FRC: resolution in angstrom at which the averages of two "
        "half sets agree no better than that."
    )
    caption += f" Junk: share of particles with a score above {LIKELY:g}." if junk is not None else ""
    return html.table(caption, head, rows, sortable=True)


def _resolution(value_A: float) -> Cell:
    if not np.isfinite(value_A):
        return Cell("none")
    return Cell(f"{value_A:.1f} \N{ANGSTROM SIGN}", float(value_A))


def _micrograph_table(findings: Findings) -> Html | None:
    """Where the junk comes from; None where there is none, or nothing is known of it."""
    if findings.junk is None or not findings.micrographs or not (findings.junk > LIKELY).any():
        return None
    junk = {name: findings.junk[rows] > LIKELY for name, rows in findings.micrographs.items()}
    worst = sorted(junk, key=lambda name: (-junk[name].mean(), -len(junk[name])))[:LISTED]
    rows = [
        [
            Cell(name),
            Cell(f"{len(junk[name]):,}", float(len(junk[name]))),
            Cell(f"{100 * junk[name].mean():.0f} %", float(junk[name].mean())),
        ]
        for name in worst
    ]
    which = f"The {len(worst)} of {len(junk):,} micrographs" if len(worst) < len(junk) else "All micrographs, those"
    caption = f"{which} with the largest share of junk{'' if len(worst) < len(junk) else ' first'}."
    return html.table(caption, ["Micrograph", "Particles", "Junk"], rows, sortable=True)


def _commands(findings: Findings) -> Iterator[Html]:
    run = quote(str(findings.run))
    cs = findings.manifest.config.input.particles.suffix == ".cs"
    ending = "cs" if cs else "star"
    if findings.junk is not None:
        yield html.command(
            f'emsvae select {run} --where "junk < {LIKELY:g}" --out clean.{ending}', "Leave the junk out."
        )
    some = ", ".join(str(number) for number in findings.classes.numbers[:3])
    yield html.command(
        f'emsvae select {run} --where "{findings.class_label} in ({some})" --out subset.{ending}',
        "Keep the classes that you like; any column of the file can stand in the condition.",
    )
    yield html.command(
        f"relion_display --class --allow_save --i {run}/classes/run_model.star",
        "Look at the classes in RELION, and select there.",
    )
    yield html.command(
        f"emsvae export {run} --{ending} out.{ending}",
        "All particles with poses, latent variables and scores, for cryoSPARC."
        if cs
        else "All particles with poses, latent variables and scores, for RELION.",
    )
    first, last = _ends(findings.latents, findings.junk)
    yield html.command(
        f"emsvae path {run} --from {quote(first)} --to {quote(last)} --out path.mrcs",
        "Walk from one particle to another; these two lie at the ends of the longest axis of latent space.",
    )
    yield html.command(f"napari --plugin emspatialvae {run}", "Click particles, draw a lasso round a cloud, save it.")


def _ends(latents: Latents, junk: Floats | None) -> tuple[str, str]:
    """Names of particles near the ends of the longest axis of z, junk (scores of those that were used) left out."""
    some = latents[latents.used]
    if junk is not None and (junk <= LIKELY).any():
        some = some[junk <= LIKELY]
    score = principal_components(some.z).scores[:, 0]
    ends = [int(np.abs(score - np.percentile(score, at)).argmin()) for at in (2, 98)]
    return str(some.names[ends[0]]), str(some.names[ends[1]])


def _facts(findings: Findings) -> Iterator[Html]:
    manifest = findings.manifest
    config, preparation = manifest.config, manifest.preparation
    trained = "not told"
    if findings.metrics:
        last = findings.metrics[-1]
        held_out = f", held-out {last['test_elbo']:.2f}" if np.isfinite(last["test_elbo"]) else ""
        trained = f"{len(findings.metrics)} epochs, ELBO {last['train_elbo']:.2f}{held_out} nats per particle"
    facts = {
        "Particles": str(config.input.particles),
        "Number": f"{manifest.n_particles:,}",
        "Run folder": str(findings.run.resolve()),
        "Images": f"{preparation.box} px at {preparation.pixel_size_A:.4g} \N{ANGSTROM SIGN} per pixel",
        "Engine": f"{config.model.engine}, decoder {config.model.decoder}, {manifest.z_dim} latent coordinate(s)",
        "Training": trained,
        "Seed": str(config.train.seed),
    }
    rows = [html.tag("tr", html.tag("th", name, scope="row"), html.tag("td", text)) for name, text in facts.items()]
    yield html.tag(
        "div",
        html.tag("table", html.tag("caption", "Settings"), html.tag("tbody", *rows), class_="facts"),
        class_="frame",
    )
    if manifest.assumed:
        yield html.tag("h3", "What was found in the file, decided or assumed")
        yield html.bullets(list(manifest.assumed))
