"""The same stack through RELION's Class2D and through us, on the same cores: agreement with the truth, junk, averages, seconds.

    python benchmarks/against_relion.py [--folder DIR] [--particles 1500] [--k 20] [--iterations 12] [--snr 0.1] [--map MAP]
    python benchmarks/against_relion.py --stack ../shared/data/real/betagal_10017.star --limit 1200 --k 6

A simulated stack holds views of a map from all directions, 64 px of 5 A, CTF of 1 to 2.5 um, coloured noise, shifts of 2 px and 10 %
junk. With ``--stack`` any STAR file takes its place; nothing is known of its truth, and a figure of contrast is all there is to say.
Both programs run with one thread; seconds are those of the processor, user and system together, so that others on the machine
matter little. RELION works through some 20 particles and iterations a second at 64 px and 20 classes: the default takes a quarter
of an hour, the usual size (``--particles 10000 --k 50 --iterations 25``) seven hours.

RELION's run is kept in DIR/relion with its seconds; ``--skip-relion`` compares with it again without running it, as when only our
side has changed. Printed is a table in Markdown; DIR/averages.png shows ours, RELION's particles averaged in the same way, and the
references that RELION wrote itself, each from the largest class to the smallest.

Averages are compared as follows, for both in the same way: the raw images of each class, aligned with the poses that the program
reports, prepared as our run prepared them. Resolutions are means over the classes, weighted with their particles, of those that have
one; the share of the particles in the others stands beside it. The halves of a class are two random ones, compared at a correlation
(FRC) of 0.143. They share the references that they were aligned to, and where noise was aligned they agree on that noise, so this
figure is too good, for a program that aligns to finer detail the more so. The map does not deceive: with a known truth, each
average is compared with the projection of the map in the mean view of the class, moved to where it fits best; what is given is the
mean of their ring correlations down to 20 A. Contrast is the s.d. over the angle of an average, ring by ring about the centre: its mean over the rings of the particle, over its mean from
3 px beyond the particle to the edge of the box. Noise alone has 1.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from emspatialvae.analysis.classes.restore import Averages
    from emspatialvae.particles.stack import ParticleStack
    from emspatialvae.preprocess.preparation import Preparation
    from emspatialvae.results.latents import Latents

EMSVAE = [sys.executable, "-W", "ignore", "-m", "emspatialvae"]
MAP = Path("../shared/data/real/ribosome_70S_65px.mrc")
WIDER = 1.1
"""RELION's mask over the diameter of the simulated particle, for its shifts."""
FINEST_A = 20.0
"""Of what averages are compared with the map in."""
OF_FIELD = 0.6
"""RELION's mask over the field of view, where nobody gave a diameter."""


@dataclass(frozen=True)
class Case:
    """A stack for both programs.

    Attributes
    ----------
    name
        For a person.
    folder
        Where everything goes.
    ours, limit
        STAR file for us, and how many of its particles.
    theirs
        The same particles for RELION, in the same order: image N of one stack is row N of ``ours``.
    truth, density
        STAR file, and the map that was projected; None where they are not known.
    diameter_A
        Of RELION's mask.
    with_ctf
        The CTF of every particle is known.
    """

    name: str
    folder: Path
    ours: Path
    limit: int | None
    theirs: Path
    truth: Path | None
    density: Path | None
    diameter_A: float
    with_ctf: bool


# ------------------------------------------------------------------------------------------------------------------ stacks


def simulated(asked: argparse.Namespace) -> Case:
    """Views of a map from all directions; simulated once, and kept."""
    stack = asked.folder / "stack"
    if not (stack / "truth.star").exists():
        words = ["simulate", "views", "--map", str(asked.map), "--views", "all", "--out", str(stack), "--box", "64"]
        words += ["--particles", str(asked.particles), "--pixel-size-a", "5", "--ctf", "--defocus-min-a", "10000"]
        words += ["--defocus-max-a", "25000", "--noise-colour", "coloured", "--snr", str(asked.snr), "--snr-after-ctf"]
        timed([*EMSVAE, *words, "--shift-px", "2", "--junk", "0.1"], asked.folder / "simulate.log")
    made = json.loads((stack / "simulation.json").read_text())
    if (made["particles"], made["snr"]) != (asked.particles, asked.snr):
        sys.exit(f"{stack} holds {made['particles']} particles of SNR {made['snr']}; choose another --folder")
    name = f"{made['particles']:,} simulated views of {Path(made['map']).stem}, SNR {made['snr']:g}"
    particles = stack / "particles.star"
    diameter_A = asked.diameter or WIDER * made["particle_diameter_A"]
    return Case(name, asked.folder, particles, None, particles, stack / "truth.star", asked.map, diameter_A, True)


def existing(asked: argparse.Namespace) -> Case:
    """A stack that is there, and a copy of it for RELION: one file, background at 0 and s.d. 1, particles bright."""
    from emspatialvae.config import InputConfig
    from emspatialvae.imaging import normalisation
    from emspatialvae.io import star
    from emspatialvae.io.mrc import StackWriter
    from emspatialvae.particles.load import load_particles
    from emspatialvae.particles.read_star import particle_block

    stack = load_particles(InputConfig(asked.stack, limit=asked.limit))
    n, box, pixel_A = len(stack), stack.boxes[0], float(stack.pixel_size_A[0])
    diameter_A = asked.diameter or OF_FIELD * box * pixel_A
    copy = asked.folder / "stack"
    copy.mkdir(exist_ok=True)
    radius_px = diameter_A / pixel_A / 2
    first = normalisation.normalise(stack.images(slice(500)), radius_px)
    sign = -1 if normalisation.brightness_of_centre(first, radius_px)[0] < 0 else 1
    with StackWriter(copy / "particles.mrcs", n, box, pixel_A, overwrite=True) as writer:
        for start in range(0, n, 500):
            writer.append(sign * normalisation.normalise(stack.images(slice(start, start + 500)), radius_px))
    table = star.StarFile.read(asked.stack)
    block = particle_block(table)
    names = [f"{number:06d}@particles.mrcs" for number in range(1, n + 1)]
    with (copy / "particles.star").open("wb") as out:
        star.write_rows(table, block.name, np.arange(block.n_rows) < n, out, {"rlnImageName": names})
    name = f"first {n:,} of {asked.stack.stem}"
    with_ctf = stack.ctf is not None and bool(stack.ctf.known.all())
    return Case(name, asked.folder, asked.stack, asked.limit, copy / "particles.star", None, None, diameter_A, with_ctf)


# -------------------------------------------------------------------------------------------------------------------- runs


def timed(command: list[str], log: Path, folder: Path | None = None) -> dict[str, float]:
    """Run a command with one thread; its seconds of the processor, its children's among them, and of the clock."""
    began = time.perf_counter()
    with log.open("w") as stream:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        child = subprocess.Popen(command, cwd=folder, stdout=stream, stderr=stream, env={**os.environ, **threads})
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)} ended with {child.returncode}; see {log}")
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "wall_s": time.perf_counter() - began}


def run_relion(case: Case, k: int, iterations: int) -> None:
    """Class2D with RELION's own settings for a new data set."""
    out = case.folder.absolute() / "relion"
    out.mkdir(exist_ok=True)
    command = [
        "relion_refine",
        "--i",
        case.theirs.name,
        "--o",
        str(out / "run"),
        "--K",
        str(k),
        "--iter",
        str(iterations),
    ]
    command += [
        "--tau2_fudge",
        "2",
        "--particle_diameter",
        f"{case.diameter_A:.0f}",
        "--flatten_solvent",
        "--zero_mask",
    ]
    command += [
        "--oversampling",
        "1",
        "--psi_step",
        "10",
        "--offset_range",
        "5",
        "--offset_step",
        "2",
        "--norm",
        "--scale",
    ]
    command += ["--pad", "2", "--j", "1", "--dont_combine_weights_via_disc", "--pool", "30", "--dont_check_norm"]
    command += ["--random_seed", "1", *(["--ctf"] if case.with_ctf else [])]
    seconds = timed(command, case.folder / "relion.log", case.theirs.parent)
    (out / "seconds.json").write_text(json.dumps({**seconds, "k": k, "iterations": iterations}))


def run_ours(case: Case, k: int) -> dict[str, float]:
    """Train with no option, then make classes."""
    run, limit = str(case.folder / "run"), [] if case.limit is None else ["--limit", str(case.limit)]
    train = [*EMSVAE, "train", str(case.ours), "--out", run, "--force", *limit]
    parts = [timed(train, case.folder / "train.log")]
    parts.append(timed([*EMSVAE, "classes", run, "--k", str(k)], case.folder / "classes.log"))
    total = {key: sum(part[key] for part in parts) for key in parts[0]}
    return {**total, "train_s": parts[0]["cpu_s"], "classes_s": parts[1]["cpu_s"]}


# --------------------------------------------------------------------------------------------------------------- comparison


def relion_latents(case: Case, stack: "ParticleStack", iterations: int) -> "tuple[Latents, dict[str, NDArray[Any]]]":
    """RELION's poses and classes of our particles, in our order, and its scores of each image."""
    from emspatialvae.imaging.geometry import from_relion
    from emspatialvae.io.star import StarFile
    from emspatialvae.particles.read_star import particle_block
    from emspatialvae.results.latents import Latents

    block = particle_block(StarFile.read(relion_file(case, iterations, "data.star")))
    origin = ["rlnOriginXAngst", "rlnOriginYAngst"]
    scores = ["rlnMaxValueProbDistribution", "rlnLogLikeliContribution"]
    wanted = ["rlnAnglePsi", "rlnClassNumber", *origin, *scores]
    texts, numbers = block.read(["rlnImageName"], wanted)
    row = np.array([int(name.partition("@")[0]) - 1 for name in texts["rlnImageName"]])
    n = len(stack)
    if sorted(row) != list(range(n)):
        sys.exit(f"{block.path} does not hold each of {n} images once; run RELION again")
    found = {label: values[np.argsort(row)] for label, values in numbers.items()}
    pixel_A = float(stack.pixel_size_A[0])
    latents = Latents(
        names=stack.names,
        used=np.ones(n, bool),
        z=np.zeros((n, 1)),
        z_sd=np.zeros((n, 1)),
        pose=from_relion(found["rlnAnglePsi"], np.stack([found[label] for label in origin], -1), pixel_A),
        theta_sd_rad=np.zeros(n),
        shift_sd_px=np.zeros((n, 2)),
        log_likelihood=found[scores[1]],
        pixel_size_A=pixel_A,
        peak_weight=found[scores[0]],
        class_number=found["rlnClassNumber"].astype(np.int64),
    )
    return latents, {label: found[label] for label in scores}


def relion_file(case: Case, iterations: int, end: str) -> Path:
    """What RELION wrote after its last iteration."""
    return case.folder / "relion" / f"run_it{iterations:03d}_{end}"


def averages_of(stack: "ParticleStack", latents: "Latents", preparation: "Preparation") -> "Averages":
    """Averages of the raw images; classes without particles stay zero."""
    from emspatialvae.analysis.classes.averages import class_averages

    return class_averages(stack, latents, preparation)


def contrast(averages: "Averages", radius_px: float) -> float:
    """S.d. over the angle inside a circle over that outside, a mean over averages weighted with their particles."""
    from emspatialvae.imaging.geometry import pixel_grid

    box = averages.images.shape[-1]
    ring = np.rint(np.hypot(*pixel_grid(box))).astype(int)
    spread = np.stack([averages.images[:, ring == r].std(1) for r in range(1, box // 2)], -1)
    radius = np.arange(1, box // 2)
    inside, outside = spread[:, radius <= radius_px].mean(1), spread[:, radius > radius_px + 3].mean(1)
    filled = averages.count > 0
    return float(np.average(inside[filled] / outside[filled], weights=averages.count[filled]))


def of_averages(averages: "Averages", radius_px: float) -> dict[str, Any]:
    """How many there are, how large, how well resolved, and their contrast."""
    return {
        "classes": int((averages.count > 0).sum()),
        "largest": float(averages.count.max() / averages.count.sum()),
        "halves": resolution_of(averages.resolution_A(0.143), averages.count),
        "contrast": contrast(averages, radius_px),
    }


def resolution_of(resolution_A: "NDArray[np.floating]", count: "NDArray[np.integer]") -> str:
    """The mean of those that are known, weighted with particles, and the share of the others."""
    known = ~np.isnan(resolution_A)
    mean = np.average(resolution_A[known], weights=count[known]) if count[known].any() else np.nan
    return f"{mean:.1f} ({100 * count[~known].sum() / count.sum():.1f} %)"


def against_map(averages: "Averages", latents: "Latents", case: Case) -> "NDArray[np.floating]":
    """Mean correlation of each average with the map in the mean view of its class, over the rings down to `FINEST_A`; [k]."""
    from emspatialvae.analysis.accuracy.views import mean_rotation
    from emspatialvae.analysis.classes.restore import SOFT_EDGE
    from emspatialvae.imaging import masks, resolution
    from emspatialvae.simulation.density import read_density
    from emspatialvae.simulation.projection import MapProjector

    assert case.density is not None
    assert case.truth is not None
    assert latents.class_number is not None
    pixel_A, box = averages.pixel_size_A, averages.images.shape[-1]
    density = read_density(case.density, None, pixel_A)
    projector = MapProjector(density.values, density.voxel_A, pixel_A)
    real, left = true_rotations(latents, case.truth)
    mask = masks.soft_mask(box, min(case.diameter_A / pixel_A / 2, (0.5 - SOFT_EDGE) * box), SOFT_EDGE * box)
    found = np.zeros(len(averages))
    for n in range(len(averages)):
        members = latents.class_number[real] == n + 1
        if not members.any():
            continue
        view = mean_rotation(left[members])[None]
        shift = np.zeros((1, 2))
        for _ in range(2):  # where it lies roughly, then whether it lies there
            canvas = np.zeros((1, box, box))
            projector.draw(view, shift, np.zeros(1, np.int64), canvas)
            shift = shift + best_shift(averages.images[n], canvas[0])
        canvas = np.zeros((1, box, box))
        projector.draw(view, shift, np.zeros(1, np.int64), canvas)
        curve = resolution.fourier_ring_correlation(averages.images[n][None] * mask, canvas.astype(np.float32) * mask)
        found[n] = np.nanmean(curve[0, 1 : int(box * pixel_A / FINEST_A) + 1])
    return found


def best_shift(image: "NDArray[np.floating]", template: "NDArray[np.floating]") -> "NDArray[np.floating]":
    """By how many pixels (x, y), to a quarter, a template [b, b] must move to fit an image [b, b] best."""
    box = len(image)
    product = np.fft.rfft2(image) * np.fft.rfft2(template).conj()
    product[0, 0] = 0
    fine = np.zeros((4 * box, 2 * box + 1), complex)
    fine[: box // 2, : box // 2], fine[-(box // 2) :, : box // 2] = (
        product[: box // 2, :-1],
        product[-(box // 2) :, :-1],
    )
    correlation = np.fft.irfft2(fine, s=(4 * box, 4 * box))
    move = np.array(np.unravel_index(correlation.argmax(), correlation.shape), float)[::-1] / 4
    return np.where(move > box / 2, move - box, move)


def true_rotations(latents: "Latents", truth: Path) -> "tuple[NDArray[np.intp], NDArray[np.floating]]":
    """Rows of the particles that are no junk, and their rotations once the reported angles were taken out."""
    from emspatialvae.analysis.accuracy.views import rotations_left
    from emspatialvae.imaging.geometry import from_relion
    from emspatialvae.io.star import StarFile
    from emspatialvae.particles.read_star import particle_block

    block = particle_block(StarFile.read(truth))
    columns = block.read(numbers=["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "emsvaeTrueJunk"])[1]
    real = np.flatnonzero((columns["emsvaeTrueJunk"] == 0) & latents.used)
    rot, tilt = (np.radians(columns[label][real]) for label in ("rlnAngleRot", "rlnAngleTilt"))
    true_rad = from_relion(columns["rlnAnglePsi"][real], np.zeros((len(real), 2)), 1.0).theta_rad
    return real, rotations_left(rot, tilt, true_rad, latents.pose.theta_rad[real])


def of_truth(what: Path, latents: "Latents", truth: Path) -> dict[str, Any]:
    """What ``emsvae evaluate`` says, and how many of the sure poses are wrong, judged by the class for both alike."""
    from emspatialvae.analysis.accuracy.views import view_scores

    command = [*EMSVAE, "evaluate", str(what), "--truth", str(truth), "--json", "--oracle-particles", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    real, left = true_rotations(latents, truth)
    assert latents.class_number is not None
    peak = None if latents.peak_weight is None else latents.peak_weight[real]
    by_class = view_scores(left, latents.class_number[real], None, peak)
    is_junk = ~np.isin(np.arange(len(latents)), real) & latents.used
    return {**json.loads(done.stdout), "sure_wrong_by_class": by_class.view_sure_wrong, "is_junk": is_junk}


def picture(rows: "list[tuple[str, NDArray[np.floating], NDArray[np.integer]]]", radius_px: float, out: Path) -> None:
    """Sets of class averages one above the other, each from the largest class to the smallest, with their particles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from emspatialvae.imaging import masks

    across = min(10, max(len(images) for _, images, _ in rows))
    lines = [-(-len(images) // across) for _, images, _ in rows]
    figure, axes = pyplot.subplots(sum(lines), across, squeeze=False, figsize=(1.15 * across, 1.4 * sum(lines)))
    for axis in axes.flat:
        axis.axis("off")
    top = 0
    for (title, images, count), height in zip(rows, lines, strict=True):
        near = masks.circular_mask(images.shape[-1], radius_px)
        for at, n in enumerate(np.argsort(-count, kind="stable")[: int((count > 0).sum())]):
            axis = axes[top + at // across, at % across]
            low, high = np.percentile(images[n][near], [1, 99.5])
            axis.imshow(images[n], cmap="gray", vmin=low, vmax=high)
            axis.set_title(f"{count[n]:,}", fontsize=7, pad=1.5)
        axes[top, 0].text(
            -0.12, 0.5, title, rotation=90, va="center", ha="right", fontsize=7, transform=axes[top, 0].transAxes
        )
        top += height
    figure.tight_layout(pad=0.4)
    figure.savefig(out, dpi=130)


def compare(case: Case, k: int, ours: dict[str, float], iterations: int) -> str:
    """The table of a case, in Markdown; its picture goes into the folder."""
    from sklearn.metrics import adjusted_mutual_info_score

    from emspatialvae.analysis.accuracy.junk import auc_of_low
    from emspatialvae.io import mrc
    from emspatialvae.results.read_run import read_run

    theirs = json.loads((case.folder / "relion" / "seconds.json").read_text())
    if (theirs["k"], theirs["iterations"]) != (k, iterations):
        sys.exit(f"{case.folder / 'relion'} holds {theirs['k']} classes, {theirs['iterations']} iterations")
    run, latents, stack = read_run(case.folder / "run")
    reported, scores = relion_latents(case, stack, iterations)
    preparation = run.manifest.preparation
    averages = [averages_of(stack, each, preparation) for each in (latents, reported)]
    radius_px = case.diameter_A / averages[0].pixel_size_A / 2
    mine, relions = (of_averages(each, radius_px) for each in averages)
    rows: list[tuple[str, ...]] = [
        ("classes asked; with particles", *(f"{k}; {a['classes']}" for a in (mine, relions)))
    ]
    rows += [("share of the largest class", *(f"{100 * a['largest']:.1f} %" for a in (mine, relions)))]
    if case.truth is not None:
        with_truth = of_truth(run.path, latents, case.truth)
        rows += rows_of_truth(with_truth, of_truth(relion_file(case, iterations, "data.star"), reported, case.truth))
        is_junk = with_truth["is_junk"]
        own = [] if latents.junk is None else [auc_of_low(-latents.junk, is_junk)]
        aucs = [auc_of_low(score, is_junk) for score in scores.values()]
        told = [", ".join("-" if auc is None else f"{auc:.3f}" for auc in each) or "-" for each in (own, aucs)]
        rows += [("junk, AUC (emsvaeJunk; rlnMaxValueProbDistribution, rlnLogLikeliContribution)", *told)]
    rows += [("resolution of the averages, halves, A (particles without)", mine["halves"], relions["halves"])]
    if case.density is not None:
        told = []
        for each, of_whom in zip(averages, (latents, reported), strict=True):
            told.append(f"{np.average(against_map(each, of_whom, case), weights=each.count):.2f}")
        rows += [("correlation with the map in the mean view, rings to 20 A", *told)]
    rows += [("contrast of the averages (noise: 1)", *(f"{a['contrast']:.2f}" for a in (mine, relions)))]
    n = len(stack)
    parts = f"{ours['cpu_s']:.0f} (train {ours['train_s']:.0f}, classes {ours['classes_s']:.0f})"
    rows += [
        ("processor seconds", parts, f"{theirs['cpu_s']:.0f} ({iterations} iterations)"),
        ("seconds of the clock", f"{ours['wall_s']:.0f}", f"{theirs['wall_s']:.0f}"),
        ("particles per processor second", *(f"{n / each['cpu_s']:.2f}" for each in (ours, theirs))),
        ("speed over RELION's", f"{theirs['cpu_s'] / ours['cpu_s']:.1f}", "1"),
    ]
    both = latents.used
    assert latents.class_number is not None
    assert reported.class_number is not None
    alike = adjusted_mutual_info_score(latents.class_number[both], reported.class_number[both])
    header = mrc.read_header(relion_file(case, iterations, "classes.mrcs"))
    references = mrc.read_images(header, np.arange(header.n_images))
    pictured = [
        ("ours", averages[0].images, averages[0].count),
        ("RELION's, averaged alike", averages[1].images, averages[1].count),
        ("RELION's own", references, averages[1].count),
    ]
    picture(pictured, radius_px, case.folder / "averages.png")
    lines = [
        f"{case.name}, K = {k}, {time.strftime('%Y-%m-%d')}, {machine()}:",
        "",
        "| | ours | RELION |",
        "|---|---|---|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", f"Adjusted mutual information of the two sets of classes: {alike:.2f}."])


def rows_of_truth(mine: dict[str, Any], relions: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the table that need to know the true views."""

    def said(key: str, percent: bool, best: str = "") -> list[str]:
        texts = []
        for found in (mine, relions):
            values = [found.get(name) for name in (key, best) if name]
            told = ["-" if v is None else f"{100 * v:.1f} %" if percent else f"{v:.1f}" for v in values]
            texts.append(f"{told[0]} ({told[1]})" if best else told[0])
        return texts

    return [
        (
            "view, angle to the mean of the class, median, deg (best)",
            *said("view_class_median_deg", False, "view_best_median_deg"),
        ),
        ("the same, share within 30 deg (best)", *said("view_class_within_30", True, "view_best_within_30")),
        ("most of ten neighbours in z over 30 deg off", *said("view_neighbours_off", True)),
        ("pose called more than 99 % sure", *said("view_sure", True)),
        ("of these over 30 deg from the mean of their class", *said("sure_wrong_by_class", True)),
    ]


def machine() -> str:
    """Cores and processor."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return f"{os.cpu_count()} cores, {model[1] if model else 'unknown processor'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("against_relion"))
    parser.add_argument("--particles", type=int, default=1500)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--map", type=Path, default=MAP)
    parser.add_argument("--stack", type=Path, help="a STAR file instead of a simulation")
    parser.add_argument("--limit", type=int, help="the first so many of --stack")
    parser.add_argument("--diameter", type=float, help="of RELION's mask, in angstrom")
    parser.add_argument("--skip-relion", action="store_true", help="compare with the run that lies in the folder")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    case = existing(asked) if asked.stack else simulated(asked)
    if not asked.skip_relion:
        run_relion(case, asked.k, asked.iterations)
    elif not (case.folder / "relion" / "seconds.json").exists():
        sys.exit(f"{case.folder} holds no finished run of RELION; leave --skip-relion out")
    ours = run_ours(case, asked.k)
    print(compare(case, asked.k, ours, asked.iterations), flush=True)


if __name__ == "__main__":
    main()
