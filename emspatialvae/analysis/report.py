"""Draws the standard figures of a run into its ``figures/`` folder, and the image that its poses refer to."""

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emspatialvae import imaging
from emspatialvae.analysis import figures, manifold, summary
from emspatialvae.infer import Latents
from emspatialvae.io.mrc import StackWriter
from emspatialvae.model.interface import ParticleVAE
from emspatialvae.model.posterior import Content
from emspatialvae.model.steerable_vae import SteerableVAE
from emspatialvae.prepare import PreparedImages
from emspatialvae.run import RunDir
from emspatialvae.steerable import FourierPlane

EXAMPLES = 8
AVERAGED = 4000
"""At most so many particles go into the averages."""
RENDERED = 200
"""And so many contents into the mean of what the model draws."""
TILES = 11
LEAST_POWER = 1.0
"""Added to a ring's sum of CTF^2, the Wiener filter's noise over signal: one more particle with nothing on it."""

Floats = NDArray[np.floating]


def draw(run: RunDir, model: ParticleVAE, images: PreparedImages, latents: Latents) -> None:
    """Draw the figures that apply to the run, and write ``consensus.mrc``.

    ``images`` and ``latents`` are those of the run's own stack, row by row.
    """
    model = model.cpu()
    rows = np.flatnonzero(latents.used)
    drawn = {
        "learning_curve": _learning_curve(run),
        "z_scatter": _z_scatter(model, latents, rows),
        "reconstructions": _reconstructions(run, model, images, latents, rows),
        "manifold": _manifold(model, latents, rows),
        "averages": _averages(model, images, latents, rows),
        "poses": _poses(run, latents, rows),
        "spectra": _spectra(run, model),
    }
    for name, figure in drawn.items():
        if figure is not None:
            figures.save(figure, run.figures / f"{name}.png")
    with StackWriter(run.consensus, 1, model.images.box, latents.pixel_size_A, overwrite=True) as writer:
        writer.append(consensus(model, latents.z[rows])[None])


def canonical(model: ParticleVAE, z: Floats) -> NDArray[np.float32]:
    """What the model draws for contents z [n, d] at pose zero; first channel, shape [n, box, box]."""
    content = torch.from_numpy(np.ascontiguousarray(z)).float()
    still = Content(content, torch.zeros(len(z)), torch.zeros(len(z), 2))
    parts = [
        model.render(Content(still.z[i : i + 64], still.theta_rad[i : i + 64], still.shift_px[i : i + 64]))[:, 0]
        for i in range(0, len(z), 64)
    ]
    return seen(model, torch.cat(parts).numpy())


def seen(model: ParticleVAE, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images [n, box, box] with zeros where the model never saw a pixel and draws whatever it likes."""
    if isinstance(model, SteerableVAE):
        return images  # it saw the whole disk, and beyond there is nothing
    return np.where(imaging.circular_mask(model.images.box, model.images.mask_radius_px), images, np.float32(0))


def consensus(model: ParticleVAE, z: Floats) -> NDArray[np.float32]:
    """The image that reported poses refer to, ``particle(p) ~ consensus(R(-theta) (p - shift))``; shape [box, box].

    The steerable engine registers all contents on it. The coordinate engine has no such frame: the mean of what it draws for
    contents z [n, d] then stands for it.
    """
    if isinstance(model, SteerableVAE) and model.gauge.fitted:
        return model.spectra.unwhitened(model.basis.images(model.gauge.reference)).numpy()
    return canonical(model, _some(z, RENDERED)).mean(0)


def _learning_curve(run: RunDir) -> Figure | None:
    metrics, config = run.metrics(), run.manifest.config
    if not metrics:
        return None
    return figures.learning_curve(metrics, config.train.z_delay or 0, against_noise=config.model.engine == "steerable")


def _z_scatter(model: ParticleVAE, latents: Latents, rows: NDArray[np.int64]) -> Figure:
    shown = rows[:: max(1, len(rows) // 50_000)]
    ratio = ", against noise alone" if isinstance(model, SteerableVAE) else ""
    return figures.z_scatter(latents.z[shown], latents.log_likelihood[shown], f"log-likelihood{ratio} (nats)")


def _reconstructions(
    run: RunDir, model: ParticleVAE, images: PreparedImages, latents: Latents, rows: NDArray[np.int64]
) -> Figure:
    picked = _some(rows, EXAMPLES)
    portion, pose = images.portion(picked), latents.pose[picked]
    posed = Content(
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
    at_pose = seen(model, model.render(posed)[:, 0].numpy())
    upright = canonical(model, latents.z[picked])
    lines = {
        f"{image}": portion.images,
        f"{of_model},\nsame pose": _by_ring(at_pose, power),
        f"{image},\nno pose": imaging.align(portion.images, pose),
        f"{of_model},\nno pose": _by_ring(upright, power),
    }
    if power is not None:
        lines["model alone,\nno pose"] = upright
    names = [str(name).split("@")[0] for name in latents.names[picked]]
    note = (
        "" if power is None else "the CTF acts twice, in the microscope and as a filter; what the model draws gets both"
    )
    return figures.reconstructions(names, lines, note)


def _manifold(model: ParticleVAE, latents: Latents, rows: NDArray[np.int64]) -> Figure:
    z, shape = manifold.grid(latents.z[rows], TILES)
    many = latents.z.shape[1] > 2
    across, up = (
        ("first principal axis of z", "second principal axis of z") if many else ("z1", "z2" if shape[0] > 1 else "")
    )
    title = "What the model draws across content space (equally probable steps)"
    return figures.tiles(
        canonical(model, z), shape, title, f"{across} \N{RIGHTWARDS ARROW}", f"{up} \N{RIGHTWARDS ARROW}" if up else ""
    )


def _averages(model: ParticleVAE, images: PreparedImages, latents: Latents, rows: NDArray[np.int64]) -> Figure:
    picked = _some(rows, AVERAGED)
    box = images.pixels.shape[-1]
    before, after = np.zeros((box, box)), np.zeros((box, box))
    power = None if images.ctf_power is None else np.zeros(images.ctf_power.shape[1])
    for part in np.array_split(picked, max(1, len(picked) // 500)):
        portion = images.portion(part)
        before += portion.images.sum(0)
        after += imaging.align(portion.images, latents.pose[part]).sum(0)
        if power is not None and portion.ctf_power is not None:
            power += portion.ctf_power.sum(0)
    if power is None:
        before, after = before / len(picked), after / len(picked)
    else:
        before, after = _by_ring(np.stack([before, after]), 1 / (power + LEAST_POWER))
    drawn = canonical(model, _some(latents.z[picked], RENDERED)).mean(0)
    return figures.averages(before, after, drawn, len(picked), ctf=power is not None)


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


def _by_ring(images: Floats, factors: Floats | None) -> NDArray[np.float32]:
    """Images [n, box, box] with each ring of the Fourier plane multiplied by ``factors`` [rings] or [n, rings]."""
    pixels = torch.from_numpy(np.asarray(images, dtype=np.float32))
    if factors is None:
        return pixels.numpy()
    plane = FourierPlane(pixels.shape[-1])
    spread = plane.by_ring(torch.from_numpy(np.asarray(factors, dtype=np.float32)))
    return plane.images(plane.transform(pixels) * spread).numpy()


def _some(values: NDArray, count: int) -> NDArray:
    """At most ``count`` of the values, evenly spread over them."""
    return values[np.linspace(0, len(values) - 1, min(count, len(values))).astype(int)]
