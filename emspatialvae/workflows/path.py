"""``emsvae path``: a film between two particles."""

from pathlib import Path

import numpy as np

from emspatialvae.analysis.classes.averages import average
from emspatialvae.analysis.figures import film
from emspatialvae.analysis.figures import run as figures
from emspatialvae.analysis.latent_space import paths
from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging import resampling
from emspatialvae.inference.infer import load_model
from emspatialvae.inference.junk_score import LIKELY
from emspatialvae.io.atomic import check_outputs, check_writable
from emspatialvae.io.mrc import StackWriter
from emspatialvae.model.render import canonical
from emspatialvae.particles.find_particle import find_particle
from emspatialvae.results import read_run
from emspatialvae.results.latents import Latents
from emspatialvae.results.own_files import check_not_own
from emspatialvae.results.read_run import results_of
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows.progress import Say, bar

FILM_SUFFIXES = (".mrcs", ".gif", ".png")


def write_path(
    run: RunDir,
    ends: tuple[str, str],
    steps: int,
    out: Path,
    *,
    averages: bool = True,
    project_dir: Path | None = None,
    force: bool = False,
    say: Say = print,
) -> None:
    """Decode the straight line in z between two particles: a stack, a film and a strip of pictures.

    Parameters
    ----------
    ends
        Image names; see `find_particle`.
    out
        A name ending in .mrcs, .gif or .png; all three are written, side by side.
    averages
        Lay beside every frame the average of the real particles nearest to it, which needs their images.

    Raises
    ------
    EmsvaeError
        A particle that is not in the run, that was not used, or twice the same; fewer than 2 steps; another ending.
    """
    if out.suffix not in FILM_SUFFIXES:
        raise EmsvaeError(f"{out}: cannot tell the format; expected a name ending in {', '.join(FILM_SUFFIXES)}")
    if steps < 2:
        raise EmsvaeError(f"--steps is {steps}; a path has at least 2, its ends")
    files = {suffix: out.with_suffix(suffix) for suffix in FILM_SUFFIXES}
    for file in files.values():
        check_writable(file, force)
    check_not_own(files.values())
    check_outputs(files.values(), read_run.input_paths(run, project_dir))
    latents = results_of(run)
    first, last = (_row(latents, name) for name in ends)
    if first == last:
        raise EmsvaeError(f"--from and --to are both {latents.names[first]}; give two particles")
    made = film_between(run, latents, (first, last), steps, averages=averages, project_dir=project_dir)
    box = made.drawn.shape[-1]
    with StackWriter(files[".mrcs"], steps, box, latents.pixel_size_A, overwrite=force) as writer:
        writer.append(made.drawn)
    film.write_gif(made, files[".gif"], force=force)
    figures.save(film.strip(made), files[".png"], dpi=130)
    for row in (first, last):
        if latents.junk is not None and latents.junk[row] > LIKELY:
            say(
                f"{latents.names[row]} is probably junk (score {latents.junk[row]:.2f}): the path leads out of the particles"
            )
    away = made.travelled[-1]
    say(
        f"{steps} steps between {made.ends[0]} and {made.ends[1]}, {away:.2f} apart in z: {', '.join(map(str, files.values()))}"
    )
    empty = int((made.near < film.FEW).sum())
    if empty:
        say(f"{empty} of them have fewer than {film.FEW} particles near them: what is drawn there was hardly ever seen")


def film_between(
    run: RunDir,
    latents: Latents,
    ends: tuple[int, int],
    steps: int,
    *,
    averages: bool = True,
    project_dir: Path | None = None,
) -> film.Film:
    """The film between two particles, rows of ``latents``; see `write_path`."""
    rows = np.flatnonzero(latents.used)
    points = paths.straight(latents.z[ends[0]], latents.z[ends[1]], steps)
    path = paths.walk(points, latents.z[rows], paths.typical_sd(latents.z_sd[rows]))
    drawn = canonical(load_model(run), points)
    real = None
    if averages:
        stack = read_run.read_particles(run, latents, project_dir)
        weights = paths.membership(path, rows, len(latents))
        with bar(int((weights.sum(1) > 0).sum()), "averaging") as progress:
            made = average(stack, latents, weights, run.manifest.preparation, progress=progress)
        real = resampling.fourier_crop(made.images, drawn.shape[-1])
    return film.Film(
        drawn=drawn,
        averages=real,
        averaged=path.members.shape[1],
        z=points,
        travelled=path.travelled,
        near=path.near,
        ends=(str(latents.names[ends[0]]), str(latents.names[ends[1]])),
        pixel_size_A=latents.pixel_size_A,
    )


def _row(latents: Latents, name: str) -> int:
    row = find_particle(latents.names, name)
    if not latents.used[row]:
        raise EmsvaeError(
            f"{latents.names[row]} could not be used (its image is constant or holds NaN, or lies beyond --limit)"
        )
    return row
