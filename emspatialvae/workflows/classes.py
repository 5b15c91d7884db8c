"""Classes of a run: particles that look alike, and what they look like (``emsvae classes``).

RUN/classes/
  classes.mrcs     averages of the raw, full-size particles, the largest class first
  classes.csv      particles, share, resolution, mean z of each
  run_model.star   the same for RELION: ``relion_display --class --i run_model.star``
  run_data.star    the run's particles.star, which RELION's display looks for beside the model; with our classes as
                   rlnClassNumber, whatever the input's own are
"""

import os
import shlex
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emspatialvae.analysis.classes.averages import class_averages
from emspatialvae.analysis.classes.clusters import classified
from emspatialvae.analysis.classes.restore import Averages
from emspatialvae.config import ClassMethod
from emspatialvae.errors import EmsvaeError, RunFolderError
from emspatialvae.imaging import geometry
from emspatialvae.imaging.arrays import Floats
from emspatialvae.inference.junk_score import LIKELY
from emspatialvae.io import leftovers, lock, mrc, star, switch
from emspatialvae.io.atomic import atomic_path
from emspatialvae.io.image_names import image_name
from emspatialvae.jobs import ranks
from emspatialvae.particles.columns import CLASS, kept_apart
from emspatialvae.particles.read_star import particle_block
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.preparation import Preparation
from emspatialvae.results import export
from emspatialvae.results.classes import THRESHOLDS, Classes, read_classes, resolution_label
from emspatialvae.results.latents import Latents
from emspatialvae.results.read_run import check_fits, read_run
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows.progress import Say, bar

if TYPE_CHECKING:
    import pandas as pd

    from emspatialvae.model.steerable.observation import Observation
JUNK_CLASS = 0.5
"""A class with so large a share of junk is said to be mostly junk."""
OUTSIDE, SOLID = 1.2, 0.3
"""Beyond that many radii of the particle lies its surrounding; what is above that share of the highest density counts for the centre."""
UNRESOLVED_A = 999.0
"""What RELION writes where there is no resolution."""


def classify_run(
    path: Path,
    k: int | None = 20,
    *,
    method: ClassMethod | None = None,
    seed: int = 0,
    project_dir: Path | None = None,
    say: Say = print,
) -> Classes:
    """Put a run's particles into classes and write them: into the run's own tables, and ``RUN/classes/``.

    Classes are derived from the run's results and can be made again at any time, so older ones are replaced.

    Parameters
    ----------
    k
        Number of classes; None: as many as are distinct (method ``images``).
    method
        See `emspatialvae.config.ClassMethod` [default: ``images``; of the coordinate engine, which draws no images in one frame, ``kmeans``].

    Raises
    ------
    EmsvaeError
        No results yet, more classes than particles, images that cannot be read.
    """
    if seed < 0:
        raise EmsvaeError(f"--seed is {seed}; expected 0 or more")
    run, team = RunDir(path), ranks.present()
    with ExitStack() as stack:

        def locked() -> None:
            told = stack.enter_context(lock.locked(run.path))
            if told is not None:
                say(told)
            leftovers.sweep(run.path)

        team.by_first(locked)
        return _classify(run, k, method, seed, project_dir, say)


def _classify(
    run: RunDir, k: int | None, method: ClassMethod | None, seed: int, project_dir: Path | None, say: Say
) -> Classes:
    team = ranks.present()
    _, latents, stack = read_run(run.path, project_dir)
    team.check_alike([str(name) for name in stack.names], f"the ranks see different particles as {stack.source}")
    run.check_results_belong()
    manifest = run.manifest
    check_fits(stack, manifest.preparation, run)  # a stack of the same name that is found first may be another one
    latents = team.by_first(lambda: _classified(run, latents, stack, k, method, seed))
    with bar(int(latents.used.sum()), "averaging classes") as progress:
        averages = class_averages(
            stack, latents, manifest.preparation, seed=seed, progress=lambda n: progress(n * team.count), ranks=team
        )
    return team.by_first(lambda: _written(run, latents, stack, averages, say))


def _written(run: RunDir, latents: Latents, stack: ParticleStack, averages: Averages, say: Say) -> Classes:
    """Write classes into the run, and say what they are."""
    manifest, folder = run.manifest, run.path / "classes"
    if folder.exists():
        say(f"{folder} is replaced")
    # Tables and classes take their places together.
    with switch.switching(run.path) as parts:
        latents = export.write_run(latents, stack, run, parts.folder)
        table = class_table(latents, averages, _particle_radius_px(manifest.preparation, averages.pixel_size_A))
        (parts.folder / folder.name).mkdir()
        _write(parts.folder / folder.name, folder, averages, table)
    label = export.class_label(stack, manifest.config.poses)
    if label != CLASS:
        say(f"the input has an rlnClassNumber of its own, which stays as its poses do: ours is {label}")
    classes = read_classes(run)
    assert classes is not None
    _tell(classes, averages, run, label, say)
    return classes


def _classified(
    run: RunDir, latents: Latents, stack: ParticleStack, k: int | None, method: ClassMethod | None, seed: int
) -> Latents:
    """Classes by the method that was asked for, or that fits the run.

    Raises
    ------
    EmsvaeError
        The method and the run do not go together.
    """
    steerable = run.manifest.config.model.engine == "steerable"
    method = method or ("images" if steerable else "kmeans")
    latents = replace(latents, class_pose=None)
    if method != "images":
        if k is None:
            raise EmsvaeError(f"--k auto needs --method images; give a number of classes for --method {method}")
        return classified(latents, k, method, seed)
    if not steerable:
        raise EmsvaeError(
            f"--method images: {run.path} was trained with --engine coordinate, whose images have no common frame; use --method kmeans"
        )
    from emspatialvae.analysis.classes.image_classes import classified_by_image
    from emspatialvae.inference.infer import load_model
    from emspatialvae.model.batch import Batch
    from emspatialvae.model.steerable.vae import SteerableVAE
    from emspatialvae.workflows.run_images import open_images

    model = load_model(run)
    assert isinstance(model, SteerableVAE)

    def observe(rows: NDArray[np.int64]) -> "Observation":
        portion = open_images(run, stack).portion(rows)
        return model.observe(Batch.of(portion.images, portion.group, portion.ctf_power))

    return classified_by_image(model, latents, k, observe, seed)


def _particle_radius_px(preparation: Preparation, pixel_size_A: float) -> float:
    """Of the particle, in pixels of the averages."""
    radius = preparation.particle_radius_px or preparation.mask_radius_px
    return radius * preparation.pixel_size_A / pixel_size_A


def check_belong(classes: Classes, latents: Latents, run: RunDir) -> None:
    """Refuse classes that are not those of the results: of another number of particles.

    Raises
    ------
    RunFolderError
        They do not belong together.
    """
    counts = np.bincount(latents.class_number)[1:] if latents.class_number is not None else np.zeros(0, np.int64)
    if len(counts) != len(classes) or not np.array_equal(counts[classes.numbers - 1], classes.particles):
        raise RunFolderError(
            f"{run.path / 'classes'} is of other classes than {run.latents}; run `emsvae classes {run.path}` to make them again"
        )


def class_table(latents: Latents, averages: Averages, radius_px: float) -> "pd.DataFrame":
    """A row per class: particles, share, resolution, mean z, mean probabilities, share of junk, what the average looks like.

    ``radius_px``: of the particle, in pixels of the averages. Units are in the names; see `average_features`.
    """
    import pandas as pd

    assert latents.class_number is not None
    rows = np.flatnonzero(latents.class_number > 0)
    of, k = latents.class_number[rows] - 1, len(averages)
    size = np.bincount(of, minlength=k)

    def mean(values: Floats) -> Floats:
        return np.bincount(of, values[rows], minlength=k) / size

    columns = {"class": np.arange(1, k + 1), "particles": size, "share": size / size.sum()}
    columns |= {resolution_label(threshold): averages.resolution_A(threshold) for threshold in THRESHOLDS}
    columns |= {f"z{d + 1}": mean(z) for d, z in enumerate(latents.z.T)}
    for name, values in (
        ("pose_probability", latents.peak_weight),
        ("class_posterior", latents.class_posterior),
        ("misfit", latents.misfit),
        ("junk_share", None if latents.junk is None else (latents.junk > LIKELY).astype(float)),
    ):
        columns |= {} if values is None else {name: mean(values)}
    columns |= average_features(averages.images, radius_px, averages.pixel_size_A)
    return pd.DataFrame(columns | {"pixel_size_A": averages.pixel_size_A})


def average_features(images: NDArray[np.float32], radius_px: float, pixel_size_A: float) -> dict[str, Floats]:
    """By what people judge class averages [k, box, box]; [k] each.

    ``off_centre_A``: from the centre of the box to the centre of mass of what is bright within the particle's circle;
    ``power_outside``: mean square outside the particle's circle over that within; ``centre_to_edge``: mean of the inner half of the
    particle's radius over the mean of its outer fifth (below 1: a hollow shell).
    """
    x, y = geometry.pixel_grid(images.shape[-1])
    radius = np.hypot(x, y)
    inside, outside = radius <= radius_px, radius > OUTSIDE * radius_px
    solid = np.where(inside & (images > SOLID * images.max((1, 2), keepdims=True)), images, 0)
    mass = solid.sum((1, 2)).clip(1e-12)
    off = np.hypot((solid * x).sum((1, 2)) / mass, (solid * y).sum((1, 2)) / mass) * pixel_size_A
    squares = images.astype(np.float64) ** 2
    within = squares[:, inside].mean(1).clip(1e-12)
    beyond = squares[:, outside].mean(1) / within if outside.any() else np.zeros(len(images))
    edge = images[:, inside & (radius > 0.8 * radius_px)].mean(1)
    centre = images[:, radius <= 0.5 * radius_px].mean(1)
    ratio = np.divide(
        centre, edge, out=np.full(len(images), np.nan), where=np.abs(edge) > 1e-6 * np.abs(centre).clip(1e-12)
    )
    return {"off_centre_A": off, "power_outside": beyond, "centre_to_edge": np.asarray(ratio, dtype=np.float64)}


def _write(folder: Path, final: Path, averages: Averages, table: "pd.DataFrame") -> None:
    k, box = averages.images.shape[:2]
    with mrc.StackWriter(folder / "classes.mrcs", k, box, averages.pixel_size_A) as writer:
        writer.append(averages.images)
    with atomic_path(folder / "classes.csv") as temporary, export.open_text(temporary, "w") as stream:
        table.to_csv(stream, index=False, float_format="%.6g")
    _write_model(folder / "run_model.star", _from_here(final / "classes.mrcs"), averages, table)
    _write_data(folder / "run_data.star", folder.parent / "particles.star")


def _write_data(destination: Path, particles: Path) -> None:
    """The run's particles with our classes where RELION looks for them."""
    table = star.StarFile.read(particles)
    block, ours = particle_block(table), kept_apart(CLASS)
    if ours in block.labels:
        star.write_with_columns(table, block.name, {CLASS: block.columns(ours)[ours]}, destination)
        return
    try:
        destination.symlink_to(Path("..") / particles.name)
    except OSError:  # a file system without links
        shutil.copyfile(particles, destination)


def _from_here(path: Path) -> str:
    """As RELION is to find it from the project's folder: relative where this is that folder."""
    absolute, here = path.absolute(), Path.cwd()
    return os.fspath(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def _write_model(destination: Path, images: str, averages: Averages, table: "pd.DataFrame") -> None:
    """What RELION's Class2D writes about its classes, as far as it applies (``MlModel::write``)."""
    import pandas as pd

    resolution = np.nan_to_num(averages.resolution_A(THRESHOLDS[0]), nan=UNRESOLVED_A).astype(np.float32)
    k, box = averages.images.shape[:2]
    general = {
        "rlnReferenceDimensionality": 2,
        "rlnDataDimensionality": 2,
        "rlnOriginalImageSize": box,
        "rlnCurrentResolution": resolution.min(),
        "rlnPixelSize": np.float32(averages.pixel_size_A),
        "rlnNrClasses": k,
        "rlnNrBodies": 1,
        "rlnNrGroups": 1,
    }
    classes = {
        "rlnReferenceImage": [image_name(n - 1, images) for n in table["class"]],
        "rlnClassDistribution": table["share"].astype(np.float32),
        "rlnEstimatedResolution": resolution,
    }
    frequency = np.arange(box // 2 + 1) / (box * averages.pixel_size_A)
    blocks = {"model_general": general, "model_classes": pd.DataFrame(classes)}
    rings_A = np.divide(1, frequency, out=np.full(len(frequency), UNRESOLVED_A), where=frequency > 0)
    rings = {"rlnSpectralIndex": np.arange(len(rings_A)), "rlnResolution": frequency, "rlnAngstromResolution": rings_A}
    for number, curve in zip(table["class"], averages.frc, strict=True):
        curves = pd.DataFrame(rings | {"rlnGoldStandardFsc": np.nan_to_num(curve)}, dtype=np.float32)
        blocks[f"model_class_{number}"] = curves.astype({"rlnSpectralIndex": int})
    star.write_new(destination, blocks)


def _tell(classes: Classes, averages: Averages, run: RunDir, label: str, say: Say) -> None:
    """The table, and where the rest is."""
    folder = run.path / "classes"
    how = "CTF taken out by a Wiener filter" if averages.ctf_corrected else "plain averages"
    total, box = int(classes.particles.sum()), classes.images.shape[-1]
    junk = classes.junk_share
    purity = classes.purity
    lines = [
        f"{len(classes)} classes of {total:,} particles; averages of {box} px, {classes.pixel_size_A:.4g} A ({how})",
        "  class  particles   share   A at FRC 0.143 / 0.5"
        + ("" if purity is None else "   purity")
        + ("" if junk is None else "   junk"),
    ]
    for at, (number, size) in enumerate(zip(classes.numbers, classes.particles, strict=True)):
        told = " / ".join("none" if np.isnan(value) else f"{value:.1f}" for value in classes.resolution_A[at])
        line = f"  {number:5d}  {size:9,}  {100 * classes.share[at]:5.1f} %  {told:>20}"
        line = line if purity is None else f"{line}  {purity[at]:6.2f}"
        marked = "" if junk is None or junk[at] < JUNK_CLASS else "  mostly junk"
        lines.append(line if junk is None else f"{line}  {100 * junk[at]:3.0f} %{marked}")
    lines.append(f"{folder / 'classes.mrcs'}, {folder / 'classes.csv'}; {label} in {run.star}")
    lines.append(
        f"to look at in RELION: relion_display --class --allow_save --i {shlex.quote(str(folder / 'run_model.star'))}"
    )
    for line in lines:
        run.log(line.strip())
        say(line)
