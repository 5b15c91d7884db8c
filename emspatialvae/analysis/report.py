"""Draws the standard figures of a run into its ``figures/`` folder."""

import numpy as np
import torch

from emspatialvae import imaging
from emspatialvae.analysis import figures, manifold
from emspatialvae.infer import Latents
from emspatialvae.model.interface import ParticleVAE
from emspatialvae.model.posterior import Content
from emspatialvae.prepare import PreparedImages
from emspatialvae.run import RunDir

EXAMPLES = 8
AVERAGED = 4000
"""At most so many particles go into the averages."""
TILES = 11


def draw(run: RunDir, model: ParticleVAE, images: PreparedImages, latents: Latents) -> None:
    """Draw learning curve, z scatter, reconstructions, manifold and averages.

    ``images`` and ``latents`` are those of the run's own stack, row by row.
    """
    model = model.cpu()
    rows = np.flatnonzero(latents.used)
    folder = run.figures
    metrics = run.metrics()
    if metrics:
        figures.save(figures.learning_curve(metrics, run.manifest.config.train.z_delay), folder / "learning_curve.png")
    shown = rows[:: max(1, len(rows) // 50_000)]
    figures.save(
        figures.z_scatter(latents.z[shown], latents.log_likelihood[shown], "log-likelihood (nats)"),
        folder / "z_scatter.png",
    )
    figures.save(_reconstructions(model, images, latents, rows), folder / "reconstructions.png")
    figures.save(_manifold(model, latents, rows), folder / "manifold.png")
    figures.save(_averages(model, images, latents, rows), folder / "averages.png")


def canonical(model: ParticleVAE, z: np.ndarray) -> np.ndarray:
    """What the model draws for contents z [n, d] at pose zero; first channel, shape [n, box, box]."""
    content = torch.from_numpy(np.ascontiguousarray(z)).float()
    still = Content(content, torch.zeros(len(z)), torch.zeros(len(z), 2))
    parts = [
        model.render(Content(still.z[i : i + 64], still.theta_rad[i : i + 64], still.shift_px[i : i + 64]))[:, 0]
        for i in range(0, len(z), 64)
    ]
    return within_mask(model, torch.cat(parts).numpy())


def within_mask(model: ParticleVAE, images: np.ndarray) -> np.ndarray:
    """Images [n, box, box] with the corners at zero, where the model never saw a pixel and draws whatever it likes."""
    return np.where(imaging.circular_mask(model.images.box, model.images.mask_radius_px), images, 0)


def _reconstructions(model: ParticleVAE, images: PreparedImages, latents: Latents, rows: np.ndarray):  # noqa: ANN202
    picked = rows[np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).astype(int)]
    raw, pose = images.portion(picked).images, latents.pose[picked]
    posed = Content(
        torch.from_numpy(latents.z[picked]).float(),
        torch.from_numpy(pose.theta_rad).float(),
        torch.from_numpy(pose.shift_px).float(),
    )
    return figures.reconstructions(
        [str(name).split("@")[0] for name in latents.names[picked]],
        {
            "raw": raw,
            "model,\nsame pose": within_mask(model, model.render(posed)[:, 0].numpy()),
            "aligned": imaging.align(raw, pose),
            "model,\nno pose": canonical(model, latents.z[picked]),
        },
    )


def _manifold(model: ParticleVAE, latents: Latents, rows: np.ndarray):  # noqa: ANN202
    z, shape = manifold.grid(latents.z[rows], TILES)
    many = latents.z.shape[1] > 2
    across, up = (
        ("first principal axis of z", "second principal axis of z") if many else ("z1", "z2" if shape[0] > 1 else "")
    )
    title = "What the model draws across content space (equally probable steps)"
    return figures.tiles(
        canonical(model, z), shape, title, f"{across} \N{RIGHTWARDS ARROW}", f"{up} \N{RIGHTWARDS ARROW}" if up else ""
    )


def _averages(model: ParticleVAE, images: PreparedImages, latents: Latents, rows: np.ndarray):  # noqa: ANN202
    picked = rows[np.linspace(0, len(rows) - 1, min(AVERAGED, len(rows))).astype(int)]
    box = images.pixels.shape[-1]
    before, after = np.zeros((box, box)), np.zeros((box, box))
    for part in np.array_split(picked, max(1, len(picked) // 500)):
        raw = images.portion(part).images
        before += raw.sum(0)
        after += imaging.align(raw, latents.pose[part]).sum(0)
    some = picked[:: max(1, len(picked) // 200)]
    return figures.averages(
        before / len(picked), after / len(picked), canonical(model, latents.z[some]).mean(0), len(picked)
    )
