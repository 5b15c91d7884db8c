"""Negative stain: an antibody with 20-D z, an interpolation, and what a non-negative mean does to the background (Fig. 6 to 8).

The user's own stack (``--stack particles.star``), else a simulated body with two arms on hinges of their own.
"""

import dataclasses
from pathlib import Path

import numpy as np
from experiment import (
    Place,
    StackSize,
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
from matplotlib.figure import Figure

from emspatialvae.analysis.accuracy.metrics import evaluate_latents
from emspatialvae.analysis.figures.run import picture
from emspatialvae.config import RunConfig, SimulateConfig
from emspatialvae.imaging.geometry import Pose2D, pixel_grid
from emspatialvae.simulation.stack import simulate_stack
from emspatialvae.simulation.truth import load_simulation, read_truth

BOX, SNR, SHIFT_SD_PX = 40, 0.3, 2.0
Z_DIM = 20
PRIOR_SHIFT_PX = 4.0
BEYOND = 0.42
"""Of the box, from its centre: further out the simulated object has nothing."""
FRAMES = 9
AVERAGED = 64


SIZES = {
    "tiny": StackSize(120, 100, 16, 1, 1e-3, 1),
    "small": StackSize(10_000, 3_000, 128, 12, 1e-3, None),
    "full": StackSize(10_000, 10_000, 1000, 500, 1e-4, None),
}
MODELS = {
    "coordinate": "`coordinate`, 20-D z",
    "non-negative": "`coordinate`, 20-D z, non-negative mean",
    "steerable": "`steerable`, the default, 2-D z, all images",
}


def measure(size: str, place: Place) -> tuple[Values, Figure]:
    """Train the three models on the same stack; background of what they draw, and the truth where it is known."""
    how, work = SIZES[size], place.work / f"em_{size}"
    stack, z, pose = _images(how, place, work)
    values: Values = {"machine": machine(), "settings": dataclasses.asdict(how), "simulated": z is not None}
    walks: dict[str, np.ndarray] = {}
    jobs = {name: (_config(name, stack, how), work / name) for name in MODELS}
    several = [name for name in MODELS if name != "steerable"]  # which uses all threads itself
    finished = dict(zip(several, all_trained([jobs[name] for name in several]), strict=True))
    for name, job in jobs.items():
        done = finished.get(name) or trained(*job)
        latents = done.latents
        walks[name] = interpolation(done)
        values[name] = {"elbo": done.elbo, "seconds": done.seconds, "images": len(latents)}
        values[name]["background"] = background(drawn(done.run, latents.z[latents.used][:AVERAGED])[:, 0])
        if z is not None and pose is not None:
            n = len(latents)
            found = evaluate_latents(latents.z, latents.pose, z[:n], pose[:n])
            values[name] |= {
                "z1": found.z_r_cubic[0],
                "z2": found.z_r_cubic[1],
                "theta_deg": found.theta_gauge_rms_deg,
                "shift_px": found.shift_gauge_rms_px,
            }
    return values, _figure(walks, values, size)


def _images(how: StackSize, place: Place, work: Path) -> tuple[Path, np.ndarray | None, Pose2D | None]:
    """STAR file, and true z and poses where they are known."""
    if place.stack is not None:
        return place.stack, None, None
    settings = {"particles": how.images, "box": BOX, "snr": SNR, "shift_px": SHIFT_SD_PX}
    folder = simulate_stack(SimulateConfig("two-hinges", work / "sim", seed=6, force=True, **settings))
    truth = read_truth(folder / "truth.star", load_simulation(folder / "simulation.json"))
    return folder / "particles.star", truth.z, truth.pose


def _config(name: str, stack: Path, how: StackSize) -> RunConfig:
    if name == "steerable":
        return default(stack, train={"epochs": how.steerable_epochs})
    config = paper(
        stack,
        hidden=how.hidden,
        epochs=how.epochs,
        learning_rate=how.learning_rate,
        z_dim=Z_DIM,
        shift_prior_px=PRIOR_SHIFT_PX,
        non_negative=name == "non-negative",
    )
    return dataclasses.replace(config, input=dataclasses.replace(config.input, limit=how.coordinate_images))


def interpolation(done: Trained) -> np.ndarray:
    """What the model draws on the straight line between two particles, those at the ends of the main direction of z; [frames, b, b]."""
    latents = done.latents
    z = latents.z[latents.used]
    along = (z - z.mean(0)) @ np.linalg.svd(z - z.mean(0), full_matrices=False)[2][0]
    order = np.argsort(along)
    first, last = z[order[int(0.02 * len(z))]], z[order[int(0.98 * len(z))]]
    return drawn(done.run, first + np.linspace(0, 1, FRAMES)[:, None] * (last - first))[:, 0]


def background(images: np.ndarray) -> float:
    """R.m.s. of the structure that is drawn where there is nothing, over that of the object; images [n, b, b] at pose zero.

    Structure: what differs from the mean out there. An even grey costs a model nothing and means nothing.
    """
    box = images.shape[-1]
    radius = np.hypot(*pixel_grid(box)) / box
    outside = (radius > BEYOND) & (radius <= 0.5)
    level = images[:, outside].mean(1, keepdims=True)
    inside = images[:, radius <= BEYOND] - level
    return float(np.sqrt(((images[:, outside] - level) ** 2).mean() / (inside**2).mean()))


# ------------------------------------------------------------------------------------------------------------- showing


def table(results: dict[str, Values]) -> str:
    """A line for every model and size."""
    head = [
        "",
        "hinge 1, corr",
        "hinge 2, corr",
        "theta rms, gauge removed",
        "shift rms",
        "background over object",
        "time",
    ]
    lines = []
    for name, title in MODELS.items():
        sizes = ("small", "full") if name != "steerable" else ("full" if "full" in results else "small",)
        for size in sizes:
            lines.append(
                [
                    title if name == "steerable" else f"{title}, {size}",
                    *[cell(results, size, name, key) for key in ("z1", "z2")],
                    cell(results, size, name, "theta_deg", form=".1f", unit=" deg"),
                    cell(results, size, name, "shift_px", unit=" px"),
                    cell(results, size, name, "background", form=".3f"),
                    cell(results, size, name, "seconds", form=",.0f", unit=" s"),
                ]
            )
    return markdown(head, lines)


def _figure(walks: dict[str, np.ndarray], values: Values, size: str) -> Figure:
    figure = Figure(figsize=(13, 5.4), layout="constrained")
    for line, (name, images) in zip(figure.subplots(len(walks), FRAMES), walks.items(), strict=True):
        # From the darkest to the brightest, so that structure in the background shows.
        limits = images.min(), images.max()
        for axes, image in zip(line, images, strict=True):
            picture(axes, image, limits=limits)
        title = MODELS[name].replace("`", "").replace(", the default", "").replace(", all images", "")
        line[0].set_ylabel(f"{title.replace(', ', chr(10))}\nbackground {values[name]['background']:.3f}", fontsize=8)
    what = "simulated antibody" if values["simulated"] else "the user's stack"
    figure.suptitle(
        f"{what}, {size}: on a straight line in z from one particle to another, rotation and shift taken out",
        fontsize=11,
    )
    return figure
