"""Galaxies in colour: Bernoulli likelihood, three channels, z-dim 20, 50 and 100 (the paper's Fig. 5).

The paper trains on Galaxy Zoo. Where the user has those pictures (``--galaxies FOLDER``) they are read; else rendered ones.
Whether a sample of the prior turns with z is measured: the position angle of its longest axis, over samples.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from experiment import QUICK, Place, Values, all_trained, cell, drawn, machine, markdown, paper
from matplotlib.figure import Figure
from sersic import Galaxies, render

from emspatialvae.config import ModelConfig, RunConfig
from emspatialvae.imaging.geometry import Pose2D, pixel_grid

SHIFT_SD_PX = 2.0
NOISE = 0.03
SAMPLES = 200
LONG = 0.15
"""Ellipticity of a sample from which on it has a longest axis."""


@dataclass(frozen=True)
class Size:
    """How much of the paper's experiment is done."""

    images: int
    """Rendered; the user's pictures are all taken."""
    box: int
    hidden: int
    encoder_hidden: int
    epochs: int
    learning_rate: float
    batch_size: int
    z_dims: tuple[int, ...]
    prior_shift_px: float
    """The paper's 8 px are those of 64 px pictures; smaller pictures, smaller shifts."""
    quick: bool
    """As in `rows.mnist.Size`, without products of coordinates and z, with which z could turn a galaxy; and the sharp pose posterior
    and the KL warm-up with which ``emsvae train --engine coordinate`` begins."""


SIZES = {
    "tiny": Size(60, 16, 16, 16, 1, 1e-3, 20, (20,), 2.0, True),
    "small": Size(2000, 32, 96, 256, 20, 2e-3, 20, (20, 50, 100), 4.0, True),
    "full": Size(60_000, 64, 500, 5000, 300, 1e-4, 100, (20, 50, 100), 8.0, False),
}
Z_DIMS = SIZES["full"].z_dims
MODELS = {"spatial": "spatial-VAE", "vanilla": "vanilla VAE"}


def make_galaxies(folder: Path, n: int, box: int) -> Path:
    """``images.npy`` of n rendered galaxies; the same numbers every time."""
    rng = np.random.default_rng(1909)
    galaxies = Galaxies.drawn(n, rng)
    pose = Pose2D(rng.uniform(-np.pi, np.pi, n), SHIFT_SD_PX * box / 64 * rng.standard_normal((n, 2)))
    folder.mkdir(parents=True, exist_ok=True)
    parts = [slice(start, start + 100) for start in range(0, n, 100)]
    np.save(folder / "images.npy", np.concatenate([render(galaxies[p], pose[p], box, NOISE, rng) for p in parts]))
    return folder / "images.npy"


def measure(size: str, place: Place) -> tuple[Values, Figure]:
    """Train spatial-VAE and a vanilla VAE of every z-dim; held-out ELBO, and how far samples of the prior turn."""
    how, work = SIZES[size], place.work / f"galaxy_{size}"
    images = place.galaxies or make_galaxies(work, how.images, how.box)
    values: Values = {
        "machine": machine(),
        "settings": dataclasses.asdict(how),
        "elbo": {},
        "aligned": {},
        "seconds": {},
    }
    samples: dict[str, np.ndarray] = {}
    models = [(model, z_dim) for model in MODELS for z_dim in how.z_dims]
    jobs = [(_config(images, model, z_dim, how), work / f"{model}_z{z_dim}") for model, z_dim in models]
    for (model, z_dim), done in zip(models, all_trained(jobs), strict=True):
        rng = np.random.default_rng(z_dim)
        seen = drawn(done.run, rng.standard_normal((SAMPLES, z_dim)))
        values["elbo"].setdefault(model, {})[str(z_dim)] = done.elbo
        values["aligned"].setdefault(model, {})[str(z_dim)] = alignment(seen.mean(1))
        values["seconds"].setdefault(model, {})[str(z_dim)] = done.seconds
        samples.setdefault(model, seen[:24])
        values["images"] = done.run.manifest.n_particles
    return values, _figure(samples, _first(images, 24), values, size)


def _config(images: Path, model: str, z_dim: int, how: Size) -> RunConfig:
    """The training of the authors' script: no delay of z, and images turned for the encoder where that is asked for."""
    settings: dict[str, Any] = {"decoder": "vanilla"} if model == "vanilla" else {}
    train = {"z_delay": 0, "batch_size": how.batch_size, "holdout": 0.1, "augment_rotation": model == "spatial"}
    if how.quick:  # or theta closes while all galaxies are still round
        settings |= QUICK | {"pose_start_sd": ModelConfig.pose_start_sd}
        train |= {"cooling": True, "kl_warmup_steps": 1000}
    config = paper(
        images,
        hidden=how.hidden,
        encoder_hidden=how.encoder_hidden,
        epochs=how.epochs,
        learning_rate=how.learning_rate,
        train=train,
        z_dim=z_dim,
        noise="bernoulli",
        shift_prior_px=how.prior_shift_px,
        **settings,
    )
    return dataclasses.replace(config, prepare=dataclasses.replace(config.prepare, box=how.box))


def _first(images: Path, n: int) -> np.ndarray:
    from emspatialvae.config import InputConfig
    from emspatialvae.particles.load import load_particles

    return load_particles(InputConfig(images)).channel_images(slice(n))


def alignment(images: np.ndarray) -> float | None:
    """Mean resultant length of the doubled position angles of pictures [n, box, box]: 1 all lie alike, 0 they lie anyhow.

    Over those that are longer than wide, by their second moments of brightness above the edge; None where all are round.
    """
    x, y = pixel_grid(images.shape[-1])
    angles = []
    for image in images:
        light = np.clip(image - np.median(image), 0, None)
        light = np.where(light > 0.2 * light.max(), light, 0)
        total = light.sum()
        dx, dy = x - (light * x).sum() / total, y - (light * y).sum() / total
        xx, yy, xy = ((light * a).sum() / total for a in (dx**2, dy**2, dx * dy))
        ellipticity = ((xx - yy) + 2j * xy) / (xx + yy)
        if abs(ellipticity) > LONG:
            angles.append(ellipticity / abs(ellipticity))
    return float(abs(np.mean(angles))) if len(angles) > 1 else None


# ------------------------------------------------------------------------------------------------------------- showing


def table(results: dict[str, Values]) -> str:
    """ELBO and orientation of samples for every model, z-dim and size."""
    head = ["", *[f"z-dim {z}, {size}" for size in ("small", "full") for z in Z_DIMS]]
    lines = []
    for what, said, form in (
        ("elbo", "held-out ELBO, nats", ".1f"),
        ("aligned", "samples that lie alike (1: all, 0: anyhow, -: all are round)", ".2f"),
    ):
        for model, title in MODELS.items():
            cells = [cell(results, size, what, model, str(z), form=form) for size in ("small", "full") for z in Z_DIMS]
            lines.append([f"{title}: {said}", *cells])
    return markdown(head, lines)


def _figure(samples: dict[str, np.ndarray], data: np.ndarray, values: Values, size: str) -> Figure:
    figure = Figure(figsize=(13, 3.7), layout="constrained")
    z_dim = next(iter(values["elbo"]["spatial"]))
    shown = {"pictures": data}
    for model, title in MODELS.items():
        alike = values["aligned"][model][z_dim]
        said = "all round" if alike is None else f"alike {alike:.2f}"
        shown[f"{title}, z-dim {z_dim}: samples, {said}"] = samples[model]
    for axes, (title, images) in zip(figure.subplots(1, 3), shown.items(), strict=True):
        rows, columns, box = len(images) // 6, 6, images.shape[-1]
        tiles = images[: rows * columns].transpose(0, 2, 3, 1).reshape(rows, columns, box, box, -1)
        axes.imshow(tiles.swapaxes(1, 2).reshape(rows * box, columns * box, -1).clip(0, 1), interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(f"Galaxies, {size}: {values['images']:,} pictures, a tenth of them held out", fontsize=11)
    return figure
