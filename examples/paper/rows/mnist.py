"""MNIST: the ELBO of spatial-VAE, of the same with its pose fixed, and of a vanilla VAE against z-dim; and the 2-D manifold.

Real digits, posed by us. The paper's images of the third set are moved by N(0, 14^2) px; a digit of 20 px would leave a canvas
of 28, so that set lies on one of 64.
"""

import dataclasses
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from experiment import (
    QUICK,
    Place,
    Trained,
    Values,
    all_trained,
    cell,
    default,
    drawn,
    machine,
    markdown,
    paper,
    trained,
)
from experiment import SIZES as SHOWN
from matplotlib.figure import Figure
from scipy import ndimage

from emspatialvae.analysis.accuracy.metrics import circular_correlation, pearson
from emspatialvae.analysis.figures.run import picture
from emspatialvae.config import RunConfig
from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging import geometry
from emspatialvae.imaging.geometry import Pose2D


@dataclass(frozen=True)
class Size:
    """How much of the paper's experiment is done."""

    images: int | None
    """Of each data set; None: all there are."""
    hidden: int
    encoder_hidden: int
    epochs: tuple[int, int, int]
    """For each data set: the less pose there is to take out, the longer a decoder of coordinates takes to pay."""
    learning_rate: float
    batch_size: int
    z_dims: tuple[int, ...]
    wide_z_dims: tuple[int, ...]
    """Those for which wide priors are tried, too."""
    moved_box: int
    """Pixels that the canvas of the moved digits, 64 px, is Fourier-cropped to (for the steerable engine always 32)."""
    steerable_epochs: int | None
    """None: until it has settled, as by default."""
    quick: bool
    """Silu for tanh, products of coordinates and z, a first layer of fine detail, and a learning rate that falls over the last
    third of the epochs: for all models alike, where they have it."""


SIZES = {
    "tiny": Size(60, 16, 16, (1, 1, 1), 1e-3, 20, (2,), (), 32, 1, True),
    "small": Size(10_000, 64, 256, (13, 8, 5), 3e-3, 32, (2, 3, 4, 5, 10), (2,), 32, 3, True),
    "full": Size(None, 500, 500, (100, 100, 100), 1e-4, 100, (2, 3, 4, 5, 10), (2, 3, 4, 5, 10), 64, None, False),
}
ALL_Z_DIMS = SIZES["full"].z_dims


CANVAS = 64


@dataclass(frozen=True)
class DataSet:
    """How the digits are posed, and what the model expects of it."""

    title: str
    box: int
    theta_sd_rad: float
    shift_sd_px: float
    prior_shift_px: float
    """S.d. of the paper's shift prior."""


DATA = {
    "plain": DataSet("MNIST", 28, 0.0, 0.0, 1.4),
    "rotated": DataSet("rotated N(0, pi^2/16), moved N(0, 1.4^2) px", 28, np.pi / 4, 1.4, 1.4),
    "moved": DataSet("rotated N(0, pi^2/16), moved N(0, 14^2) px", CANVAS, np.pi / 4, 14.0, 14.0),
}
PRIOR_THETA = np.pi / 4
WIDE = 4
"""Times the paper's shift prior; the wide prior on theta is pi."""
MODELS = {
    "spatial": "spatial-VAE",
    "fixed": "spatial-VAE, pose fixed",
    "vanilla": "vanilla VAE",
    "vanilla+3": "vanilla VAE, z-dim + 3",
    "wide": "spatial-VAE, wide priors",
}


# --------------------------------------------------------------------------------------------------------------- data


def read_digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """All digits in a folder of idx files, training images first: [n, 28, 28] uint8 and labels [n].

    Raises
    ------
    EmsvaeError
        There are none.
    """
    images, labels = [], []
    for part in ("train", "t10k"):
        file = folder / f"{part}-images-idx3-ubyte.gz"
        if file.is_file():
            images.append(np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28))
            names = folder / f"{part}-labels-idx1-ubyte.gz"
            labels.append(np.frombuffer(gzip.decompress(names.read_bytes()), np.uint8, offset=8))
    if not images:
        raise EmsvaeError(
            f"{folder} holds no train-images-idx3-ubyte.gz or t10k-images-idx3-ubyte.gz; give MNIST's folder with --mnist"
        )
    return np.concatenate(images), np.concatenate(labels)


def posed(images: np.ndarray, pose: Pose2D, box: int) -> np.ndarray:
    """Images [n, b, b] turned and moved, on a canvas of ``box`` pixels: ``image(p) = object(R(-theta) (p - shift))``."""
    x, y = geometry.pixel_grid(box)
    centre = images.shape[-1] // 2
    out = np.empty((len(images), box, box), np.uint8)
    for n, image in enumerate(images):
        theta, (shift_x, shift_y) = pose.theta_rad[n], pose.shift_px[n]
        at = geometry.image_to_object_xy(x, y, np.cos(theta), np.sin(theta), shift_x, shift_y)
        out[n] = ndimage.map_coordinates(image, [at[1] + centre, at[0] + centre], order=1, mode="constant").round()
    return out


def make_data(folder: Path, digits: tuple[np.ndarray, np.ndarray], of: DataSet, n: int | None) -> Path:
    """``images.npy`` and ``truth.npz`` of one data set; the same numbers every time."""
    images, labels = digits[0][:n], digits[1][:n]
    rng = np.random.default_rng(1909)
    pose = Pose2D(
        of.theta_sd_rad * rng.standard_normal(len(images)), of.shift_sd_px * rng.standard_normal((len(images), 2))
    )
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", posed(images, pose, of.box))
    np.savez(folder / "truth.npz", theta_rad=pose.theta_rad, shift_px=pose.shift_px, label=labels)
    return folder / "images.npy"


# ------------------------------------------------------------------------------------------------------------ measuring


def measure(size: str, place: Place) -> tuple[Values, Figure]:
    """Train every model on every data set; held-out ELBO in nats."""
    how, digits = SIZES[size], read_digits(place.mnist)
    work = place.work / f"mnist_{size}"
    values: Values = {
        "machine": machine(),
        "settings": dataclasses.asdict(how),
        "elbo": {},
        "seconds": {},
        "pose": {},
    }
    manifolds: dict[str, np.ndarray] = {}
    values["images"] = min(len(digits[0]), how.images or len(digits[0]))
    for (name, of), epochs in zip(DATA.items(), how.epochs, strict=True):
        images = make_data(work / name, digits, of, how.images)
        models = [(model, z) for model in MODELS for z in (how.wide_z_dims if model == "wide" else how.z_dims)]
        jobs = [
            (_config(images, model, z, how, epochs, of), work / f"{images.parent.name}_{model}_z{z}")
            for model, z in models
        ]
        for (model, z_dim), done in zip(models, all_trained(jobs), strict=True):
            values["elbo"].setdefault(name, {}).setdefault(model, {})[str(z_dim)] = done.elbo
            values["seconds"].setdefault(name, {}).setdefault(model, {})[str(z_dim)] = done.seconds
            if z_dim == 2 and model == "spatial":
                manifolds[name] = drawn(done.run, _grid())[:, 0]
                if of.theta_sd_rad:
                    values["pose"][name] = {model: _poses(done, work / name)}
        if of.theta_sd_rad:
            values["pose"][name]["steerable"] = _poses(_steerable(images, how, of, work), work / name)
    return values, _figure(values, manifolds, size)


def _config(images: Path, model: str, z_dim: int, how: Size, epochs: int, of: DataSet) -> RunConfig:
    """One model of one z-dim; the training of the authors' MNIST script, which turns no images and delays no z."""
    shift_prior_px, theta_prior_rad = of.prior_shift_px, PRIOR_THETA
    if model == "wide":
        shift_prior_px, theta_prior_rad = WIDE * shift_prior_px, np.pi
    box = how.moved_box if of.box == CANVAS else of.box
    settings: dict[str, Any] = QUICK | {"bilinear": True} if how.quick else {}
    if model == "fixed":
        settings = settings | {"rotate": False, "translate": False}
    if model.startswith("vanilla"):  # it has no coordinates
        settings = settings | {"decoder": "vanilla", "bilinear": False}
    train = {"augment_rotation": False, "z_delay": 0, "batch_size": how.batch_size, "holdout": 1 / 7, "seed": 7}
    config = paper(
        images,
        hidden=how.hidden,
        encoder_hidden=how.encoder_hidden,
        epochs=epochs,
        learning_rate=how.learning_rate,
        train=train | {"cooling": how.quick},
        z_dim=z_dim + 3 * (model == "vanilla+3"),
        noise="bernoulli",
        theta_kl="full",
        theta_prior_rad=theta_prior_rad,
        shift_prior_px=shift_prior_px * box / of.box,
        **settings,
    )
    return dataclasses.replace(config, prepare=dataclasses.replace(config.prepare, box=box))


def _steerable(images: Path, how: Size, of: DataSet, work: Path) -> Trained:
    """Our default engine; but for the range of shifts, which no default foresees."""
    far = {"max_shift_A": 0.48 * of.box} if of.shift_sd_px > 0.1 * of.box else {}
    config = default(images, z_dim=2, train={"epochs": how.steerable_epochs, "seed": 7}, **far)
    config = dataclasses.replace(config, prepare=dataclasses.replace(config.prepare, box=min(of.box, 32)))
    return trained(config, work / f"{images.parent.name}_steerable")


def _poses(done: Trained, data: Path) -> dict[str, float]:
    """Poses of all images against the truth: theta over all, and within each digit, whose upright no other digit shares."""
    truth, found = np.load(data / "truth.npz"), done.latents
    theta, shift = found.pose.theta_rad, found.pose.shift_px
    digits = [truth["label"] == digit for digit in np.unique(truth["label"])]
    return {
        "theta": circular_correlation(theta, truth["theta_rad"]),
        "theta_within": float(np.mean([circular_correlation(theta[d], truth["theta_rad"][d]) for d in digits])),
        "shift": float(np.mean([pearson(shift[:, k], truth["shift_px"][:, k]) for k in (0, 1)])),
        "seconds": done.seconds,
    }


def _grid(side: int = 11) -> np.ndarray:
    """A grid of contents over the central nine tenths of the prior, row by row from the top; [side^2, 2]."""
    from scipy.stats import norm

    steps = norm.ppf(np.linspace(0.05, 0.95, side))
    across, up = np.meshgrid(steps, steps[::-1])
    return np.stack([across.ravel(), up.ravel()], 1)


# ------------------------------------------------------------------------------------------------------------- showing


def table(results: dict[str, Values]) -> str:
    """Held-out ELBO against z-dim, a part for each data set; then how well poses were found."""
    parts = []
    for name, of in DATA.items():
        head = ["held-out ELBO, nats", *[f"z-dim {z}" for z in ALL_Z_DIMS]]
        lines = [
            [f"{title}, {size}", *[cell(results, size, "elbo", name, model, str(z), form=".1f") for z in ALL_Z_DIMS]]
            for size in SHOWN
            for model, title in MODELS.items()
        ]
        parts.append(f"**{of.title}**, {of.box} px\n\n{markdown(head, lines)}")
    head = ["correlation with the true pose, z-dim 2", "theta", "theta, mean over the ten digits", "shift", "time"]
    lines = []
    for name, of in DATA.items():
        if not of.theta_sd_rad:
            continue
        for model, title in (("spatial", "`coordinate`"), ("steerable", "`steerable`, the same images")):
            for size in SHOWN:
                numbers = [cell(results, size, "pose", name, model, key) for key in ("theta", "theta_within", "shift")]
                seconds = cell(results, size, "pose", name, model, "seconds", form=",.0f", unit=" s")
                lines.append([f"{of.title}: {title}, {size}", *numbers, seconds])
    return "\n\n".join([*parts, markdown(head, lines)])


def _figure(values: Values, manifolds: dict[str, np.ndarray], size: str) -> Figure:
    figure = Figure(figsize=(13, 8.6), layout="constrained")
    grid = figure.subplots(2, len(DATA), height_ratios=[1, 1.25])
    colours = dict(zip(MODELS, ("C0", "C1", "0.35", "0.65", "C9"), strict=True))
    for axes, (name, of) in zip(grid[0], DATA.items(), strict=True):
        for model, of_z in values["elbo"][name].items():
            z = [int(key) for key in of_z]
            style = "--" if model in ("vanilla+3", "wide") else "-"
            axes.plot(
                z, list(of_z.values()), style, marker="o", markersize=4, color=colours[model], label=MODELS[model]
            )
        axes.set_title(of.title, fontsize=10)
        axes.set_xlabel("z-dim")
        axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel("held-out ELBO, nats per image")
    grid[0, 0].legend(fontsize=8)
    for axes, name in zip(grid[1], DATA, strict=True):
        if name not in manifolds:
            axes.set_axis_off()
            continue
        images = manifolds[name]
        side, box = round(len(images) ** 0.5), images.shape[-1]
        crop = slice(max(0, box // 2 - 14), box // 2 + 14)
        tiles = images[:, crop, crop]
        picture(
            axes,
            tiles.reshape(side, side, *tiles.shape[1:]).swapaxes(1, 2).reshape(side * tiles.shape[1], -1),
            limits=(0, 1),
        )
        axes.set_title("what spatial-VAE draws over its two z (central 90 %)", fontsize=9)
    figure.suptitle(f"MNIST, {size}: {values['images']:,} digits, a seventh of them held out", fontsize=11)
    return figure
