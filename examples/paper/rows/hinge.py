"""A hinged protein: how well each latent follows the hinge and the in-plane rotation (the paper's Table 1 and Fig. 4)."""

import dataclasses
from pathlib import Path

import numpy as np
from experiment import Place, StackSize, Values, cell, default, drawn, inferred, machine, markdown, paper, trained
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emspatialvae.analysis.accuracy.metrics import circular_correlation, evaluate_latents, pearson
from emspatialvae.analysis.accuracy.pose_errors import pose_errors
from emspatialvae.analysis.figures.run import picture
from emspatialvae.config import SimulateConfig
from emspatialvae.imaging.geometry import Pose2D, wrap_rad
from emspatialvae.results.latents import Latents
from emspatialvae.simulation.stack import simulate_stack
from emspatialvae.simulation.truth import load_simulation, read_truth
from emspatialvae.workflows.select import write_selection
from rows.protein import hinged_structure, simulate_structure

BOX, SNR = 40, 0.1
GAUGE_DEGREE = 5


SIZES = {
    "tiny": StackSize(300, 100, 16, 1, 1e-3, 1),
    "small": StackSize(20_000, 3_000, 128, 20, 1e-3, None),
    "full": StackSize(20_000, 16_000, 500, 500, 1e-4, None),
}
OURS = {"tiny": (100, 1), "small": (8_000, 12), "full": (16_000, None)}
"""Images and epochs of the paper's model with the settings of ``emsvae train --engine coordinate``, which are not the paper's."""
JUDGED = {
    "spatial": "`coordinate`, the paper's settings",
    "ours": "`coordinate`, its defaults here",
    "steerable": "`steerable`, the default, all images",
}
LATENTS = {
    "spatial z": "spatial-VAE, z",
    "spatial theta": "spatial-VAE, theta",
    "vanilla1 z1": "vanilla VAE 1-d, z",
    "vanilla2 z1": "vanilla VAE 2-d, z1",
    "vanilla2 z2": "vanilla VAE 2-d, z2",
}
PAPER = {
    "spatial z": ("0.95", ""),
    "spatial theta": ("", "0.92"),
    "vanilla1 z1": ("0.00", "0.18"),
    "vanilla2 z1": ("<= 0.09", "<= 0.04"),
    "vanilla2 z2": ("<= 0.09", "<= 0.04"),
}


def measure(size: str, place: Place) -> tuple[Values, Figure]:
    """Train the paper's three models and ours on the same images; judge all of them on the same held-out ones."""
    how, work = SIZES[size], place.work / f"hinge_{size}"
    stack, z, pose = _images(how, place, work)
    n_train = how.images * 4 // 5
    rows = np.arange(how.images)
    train, some, few, test = (stack.with_name(f"{name}.star") for name in ("train", "some", "few", "test"))
    write_selection(stack, rows >= n_train, test, force=True)
    for part, count in ((train, n_train), (some, OURS[size][0]), (few, how.coordinate_images)):
        write_selection(stack, rows < count, part, force=True)
    true_z, true_pose = z[n_train:], pose[n_train:]
    values: Values = {"machine": machine(), "settings": dataclasses.asdict(how), "latents": {}, "seconds": {}}
    models = {"spatial": (1, {}), "vanilla1": (1, {"decoder": "vanilla"}), "vanilla2": (2, {"decoder": "vanilla"})}
    common = {"hidden": how.hidden, "epochs": how.epochs, "learning_rate": how.learning_rate, "translate": False}
    found: dict[str, Latents] = {}
    for name, (z_dim, settings) in models.items():
        done = trained(paper(few, z_dim=z_dim, **common, **settings), work / name)
        found[name] = inferred(done.run, test, work / f"{name}_test.csv")
        values["seconds"][name] = done.seconds
        for k in range(z_dim):
            key = "spatial z" if name == "spatial" else f"{name} z{k + 1}"
            values["latents"][key] = _follows(found[name].z[:, k], true_z[:, 0], true_pose.theta_rad)
    spatial = found["spatial"]
    values["latents"]["spatial theta"] = {
        "hinge": abs(pearson(spatial.pose.theta_rad, true_z[:, 0])),
        "theta": circular_correlation(spatial.pose.theta_rad, true_pose.theta_rad),
    }
    own = {"z_dim": 1, "translate": False}
    for name, config in (
        ("ours", default(some, engine="coordinate", train={"epochs": OURS[size][1]}, **own)),
        ("steerable", default(train, train={"epochs": how.steerable_epochs}, **own)),
    ):
        done = trained(config, work / name)
        found[name] = inferred(done.run, test, work / f"{name}_test.csv")
        values["seconds"][name] = done.seconds
    values["settings"]["ours"] = OURS[size]
    for name in JUDGED:
        values[name] = judged(found[name], true_z, true_pose)
    walk = drawn(done.run, np.quantile(found["steerable"].z, np.linspace(0.02, 0.98, 9))[:, None])[:, 0]
    return values, _figure(values, found, true_z[:, 0], true_pose, walk, size)


def _images(how: StackSize, place: Place, work: Path) -> tuple[Path, np.ndarray, Pose2D]:
    """STAR file, true z [n, 1] and poses: of the user's structure, or of the built-in one."""
    if place.pdb is not None:
        return simulate_structure(hinged_structure(place.pdb), work / "sim", how.images, BOX, SNR)
    settings = {"particles": how.images, "box": BOX, "snr": SNR, "shift_px": 0.0}
    folder = simulate_stack(SimulateConfig("hinge", work / "sim", seed=5, force=True, **settings))
    truth = read_truth(folder / "truth.star", load_simulation(folder / "simulation.json"))
    return folder / "particles.star", truth.z, truth.pose


def _follows(latent: np.ndarray, hinge: np.ndarray, theta_rad: np.ndarray) -> dict[str, float]:
    """|Pearson correlation| of a latent with the hinge and with the angle (which is no circular variable to a vanilla VAE)."""
    return {"hinge": abs(pearson(latent, hinge)), "theta": abs(pearson(latent, theta_rad))}


def judged(found: Latents, true_z: np.ndarray, true_pose: Pose2D) -> dict[str, float]:
    """How close z and theta come to the truth, theta as it is reported and with the gauge (a turn that depends on z) taken out."""
    result = evaluate_latents(found.z, found.pose, true_z, true_pose)
    left = pose_errors(found.z, found.pose, true_pose, GAUGE_DEGREE).theta_rad
    return {
        "hinge": result.z_pearson[0],
        "theta": result.theta_circular_r,
        "theta_gauge": circular_correlation(true_pose.theta_rad + left, true_pose.theta_rad),
        "theta_deg": result.theta_rms_deg,
        "theta_gauge_deg": result.theta_gauge_rms_deg,
    }


# ------------------------------------------------------------------------------------------------------------- showing


def table(results: dict[str, Values]) -> str:
    """Table 1 of the paper with our numbers beside it, then the two engines with the gauge in and out."""
    head = ["correlation with", "hinge, the paper's", "theta, the paper's"]
    head += [f"{what}, `coordinate` {size}" for size in ("small", "full") for what in ("hinge", "theta")]
    lines = [
        [
            title,
            *PAPER[key],
            *[cell(results, size, "latents", key, what) for size in ("small", "full") for what in ("hinge", "theta")],
        ]
        for key, title in LATENTS.items()
    ]
    second = [
        "held-out images",
        "hinge",
        "theta as reported",
        "gauge removed",
        "theta rms as reported",
        "gauge removed",
        "time",
    ]
    both = []
    for name, title in JUDGED.items():
        sizes = ("small", "full") if name != "steerable" else ("full" if "full" in results else "small",)
        for size in sizes:
            numbers = [cell(results, size, name, key, form=".3f") for key in ("hinge", "theta", "theta_gauge")]
            angles = [
                cell(results, size, name, key, form=".1f", unit=" deg") for key in ("theta_deg", "theta_gauge_deg")
            ]
            label = title if len(sizes) == 1 else f"{title}, {size}"
            both.append([label, *numbers, *angles, cell(results, size, "seconds", name, form=",.0f", unit=" s")])
    return f"{markdown(head, lines)}\n\n{markdown(second, both)}"


def _figure(
    values: Values, found: dict[str, Latents], hinge: np.ndarray, pose: Pose2D, walk: np.ndarray, size: str
) -> Figure:
    figure = Figure(figsize=(13, 11), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[4.5, 1])
    titles = {"spatial": f"the paper's settings ({size})", "ours": f"coordinate ({size})", "steerable": "steerable"}
    for line, (name, title) in zip(top.subplots(3, 3), titles.items(), strict=True):
        latents, judged_as = found[name], values[name]
        sign = 1 if pearson(latents.z[:, 0], hinge) >= 0 else -1
        _dots(line[0], hinge, sign * latents.z[:, 0], f"{title}: z, |corr| {judged_as['hinge']:.2f}", "true hinge")
        off = np.angle(np.exp(1j * (latents.pose.theta_rad - pose.theta_rad)).mean())
        turned = wrap_rad(latents.pose.theta_rad - off)
        said = f"theta as reported, corr {judged_as['theta']:.2f}"
        _dots(line[1], np.degrees(pose.theta_rad), np.degrees(turned), said, "true rotation (degrees)")
        left = pose_errors(latents.z, latents.pose, pose, GAUGE_DEGREE).theta_rad
        said = f"theta, gauge removed, corr {judged_as['theta_gauge']:.2f}"
        _dots(
            line[2],
            np.degrees(pose.theta_rad),
            np.degrees(wrap_rad(pose.theta_rad + left)),
            said,
            "true rotation (degrees)",
        )
    line = bottom.subplots(1, len(walk))
    bottom.suptitle("what the steerable model draws as z goes from its 2nd to its 98th percentile", fontsize=10)
    for axes, image in zip(line, walk, strict=True):
        picture(axes, image, limits=np.percentile(walk, [0.5, 99.5]))
    figure.suptitle(f"Hinge: {len(hinge):,} held-out images of {BOX} px at SNR {SNR}", fontsize=11)
    return figure


def _dots(axes: Axes, x: np.ndarray, y: np.ndarray, title: str, label: str) -> None:
    axes.plot(x, y, ".", markersize=2, alpha=0.4)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(label, fontsize=9)
    axes.locator_params(nbins=6)
    axes.grid(alpha=0.3)
