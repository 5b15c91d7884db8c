"""Draws the standard figures of a run into its ``figures/`` folder, and the image that its poses refer to."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from emspatialvae.analysis.figures import galleries, latent_map
from emspatialvae.analysis.figures import run as figures
from emspatialvae.analysis.latent_space import manifold
from emspatialvae.imaging import alignment, normalisation
from emspatialvae.imaging.arrays import Floats
from emspatialvae.io.image_names import parse_image_name
from emspatialvae.io.mrc import StackWriter
from emspatialvae.model.distributions import LatentAndPose
from emspatialvae.model.interface import ParticleVAE
from emspatialvae.model.render import RENDERED, by_ring, canonical, consensus, evenly, restored, seen
from emspatialvae.model.steerable.vae import SteerableVAE
from emspatialvae.preprocess.cache import PreparedImages
from emspatialvae.results import summary
from emspatialvae.results.latents import Latents
from emspatialvae.results.run_folder import RunDir

EXAMPLES = 8
AVERAGED = 4000
"""At most so many particles go into the averages."""
TILES = 11
CIRCLED, LOW_PASS_PX = 6, 1.5
"""Single images that the particle's circle is drawn on, and the s.d. of the Gaussian that smooths them."""


def draw(run: RunDir, model: ParticleVAE, images: PreparedImages, latents: Latents, folder: Path) -> None:
    """Draw the figures that apply to the run into ``folder/figures``, and write ``folder/consensus.mrc``.

    ``images`` and ``latents`` are those of the run's own stack, row by row.
    """
    model = model.cpu()
    rows = np.flatnonzero(latents.used)
    averages = _Averages.of(images, latents, evenly(rows, AVERAGED))
    drawn = {
        "learning_curve": _learning_curve(run),
        "z_scatter": _z_scatter(model, latents, rows),
        "reconstructions": _reconstructions(run, model, images, latents, rows),
        "manifold": _manifold(model, latents, rows),
        "particle_size": _particle_size(run, images, latents, rows, averages),
        "averages": _averages(model, latents, averages),
        "poses": _poses(run, latents, rows),
        "spectra": _spectra(run, model),
    }
    for name, figure in drawn.items():
        if figure is not None:
            figures.save(figure, folder / run.figures.name / f"{name}.png")
    with StackWriter(folder / run.consensus.name, 1, model.images.box, latents.pixel_size_A, overwrite=True) as writer:
        writer.append(consensus(model, latents.z[rows])[None])


def _learning_curve(run: RunDir) -> Figure | None:
    metrics, config = run.metrics(), run.manifest.config
    if not metrics:
        return None
    return figures.learning_curve(metrics, config.train.z_delay or 0, against_noise=config.model.engine == "steerable")


def _z_scatter(model: ParticleVAE, latents: Latents, rows: NDArray[np.int64]) -> Figure:
    shown = rows[:: max(1, len(rows) // 50_000)]
    ratio = ", against noise alone" if model.against_noise else ""
    return figures.z_scatter(latents.z[shown], latents.log_likelihood[shown], f"log-likelihood{ratio} (nats)")


def _reconstructions(
    run: RunDir, model: ParticleVAE, images: PreparedImages, latents: Latents, rows: NDArray[np.int64]
) -> Figure:
    picked = evenly(rows, EXAMPLES)
    portion, pose = images.portion(picked), latents.pose[picked]
    recorded = normalisation.brightness(portion.images)
    posed = LatentAndPose(
        torch.from_numpy(latents.z[picked]).float(),
        torch.from_numpy(pose.theta_rad).float(),
        torch.from_numpy(pose.shift_px).float(),
    )
    power = portion.ctf_power
    # The image was multiplied by the CTF once by the microscope and once by us, the model not at all: it gets both.
    image, of_model = {
        "none": ("image", "model"),
        "phase-flip": ("image, phases\nflipped", "model"),
        "multiply": ("image\n\N{MULTIPLICATION SIGN} CTF", "model\n\N{MULTIPLICATION SIGN} CTF\N{SUPERSCRIPT TWO}"),
    }[run.manifest.preparation.ctf]
    at_pose = seen(model, model.render(posed).mean(1).numpy())
    upright = canonical(model, latents.z[picked])
    lines = {
        f"{image}": recorded,
        f"{of_model},\nsame pose": by_ring(at_pose, power),
        f"{image},\nno pose": alignment.align(recorded, pose),
        f"{of_model},\nno pose": by_ring(upright, power),
    }
    if power is not None:
        lines["model alone,\nno pose"] = upright
    split = [parse_image_name(str(name)) for name in latents.names[picked]]
    names = [path if number is None else str(number) for number, path in split]
    note = (
        "" if power is None else "the CTF acts twice, in the microscope and as a filter; what the model draws gets both"
    )
    return figures.reconstructions(names, lines, note)


def _manifold(model: ParticleVAE, latents: Latents, rows: NDArray[np.int64]) -> Figure:
    shown = manifold.zmap(latents.z[rows], TILES)
    return latent_map.draw(canonical(model, shown.z), shown, latents.pixel_size_A)


@dataclass(frozen=True)
class _Averages:
    """Of some particles, ``rows``, as they lie and with their poses taken out; [box, box], restored where ``ctf``."""

    before: Floats
    after: Floats
    rows: NDArray[np.int64]
    ctf: bool

    @classmethod
    def of(cls, images: PreparedImages, latents: Latents, rows: NDArray[np.int64]) -> "_Averages":
        box = images.pixels.shape[-1]
        before, after = np.zeros((box, box)), np.zeros((box, box))
        power = None if images.ctf_power is None else np.zeros(images.ctf_power.shape[1])
        for part in np.array_split(rows, max(1, len(rows) // 500)):
            portion = images.portion(part)
            recorded = normalisation.brightness(portion.images)
            before += recorded.sum(0)
            after += alignment.align(recorded, latents.pose[part]).sum(0)
            if power is not None and portion.ctf_power is not None:
                power += portion.ctf_power.sum(0)
        if power is None:
            return cls(before / len(rows), after / len(rows), rows, ctf=False)
        before, after = restored(np.stack([before, after]), power)
        return cls(before, after, rows, ctf=True)


def _averages(model: ParticleVAE, latents: Latents, found: _Averages) -> Figure:
    drawn = canonical(model, evenly(latents.z[found.rows], RENDERED)).mean(0)
    return figures.averages(found.before, found.after, drawn, len(found.rows), ctf=found.ctf)


def _particle_size(
    run: RunDir, images: PreparedImages, latents: Latents, rows: NDArray[np.int64], averages: _Averages
) -> Figure | None:
    manifest = run.manifest
    preparation = manifest.preparation
    if manifest.config.model.whole_image or not len(rows):
        return None
    profiles = run.profiles()
    if profiles and preparation.invert:  # they were seen before that
        profiles["mean"] = [-value for value in profiles["mean"]]
    picked = evenly(rows, CIRCLED)
    recorded = normalisation.brightness(images.portion(picked).images)
    said = (sentence for sentence in manifest.assumed if sentence.startswith(("particle diameter", "mask ")))
    return galleries.particle_size(
        profiles,
        {"average as they lie": averages.before, "average, rotation and shift taken out": averages.after},
        ndimage.gaussian_filter(recorded, (0, LOW_PASS_PX, LOW_PASS_PX)),
        latents.pose.shift_px[picked],
        preparation.particle_radius_px or preparation.mask_radius_px,
        preparation.mask_radius_px,
        preparation.pixel_size_A,
        next(said, "diameter of the particle"),
    )


def _poses(run: RunDir, latents: Latents, rows: NDArray[np.int64]) -> Figure | None:
    rotate, translate = summary.inferred(run.manifest.config.model)
    if not (rotate or translate) or not len(rows):
        return None
    some = latents[rows]
    return figures.poses(
        np.degrees(some.theta_sd_rad) if rotate else None,
        summary.shift_sd_A(some) if translate else None,
        some.peak_weight,
    )


def _spectra(run: RunDir, model: ParticleVAE) -> Figure | None:
    if not isinstance(model, SteerableVAE):
        return None
    return figures.spectra(
        model.spectra.noise.numpy(),
        model.spectra.signal.numpy(),
        model.images.box * run.manifest.preparation.pixel_size_A,
        model.basis.order.int().numpy(),
        white=bool(model.spectra.white),
        ctf=run.manifest.preparation.ctf == "multiply",
    )
