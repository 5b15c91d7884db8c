"""A run folder opened: its results and its particles."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

<<<<<<< 4c16a55bcebe315a00b63c70b60a96fd2a9ff943
from emspatialvae.errors import EmsvaeError, ParticleFileError, RunFolderError
from emspatialvae.particles.load import load_particles
=======
from emspatialvae.errors import EmsvaeError, ParticleFileError
from emspatialvae.identity import check_stacks, rows_of
from emspatialvae.particles.load import find_stack, load_particles
>>>>>>> 3035a19a38edd60558788c21b65dfae453d7ca54
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.preparation import Preparation, check_ctf
from emspatialvae.results import export
from emspatialvae.results.latents import Latents
from emspatialvae.results.run_folder import RunDir


def read_run(path: Path, project_dir: Path | None = None) -> tuple[RunDir, Latents, ParticleStack]:
    """A run with its results and its particles, both in the order of the particles' file as it is now.

    Rows that have moved in it since are followed by their image names.

    Raises
    ------
    RunFolderError
        The particles or their stacks are not those of the run any more.
    """
    run, latents = read_latents(path)
    stack, order = _particles(run, latents, project_dir)
    return run, latents if order is None else latents[np.argsort(order)], stack


def read_latents(path: Path) -> tuple[RunDir, Latents]:
    """A run with its results, in the order of ``latents.csv``; of its particles it looks at nothing."""
    run = RunDir(path)
    return run, export.results_of(run)


def read_particles(run: RunDir, latents: Latents, project_dir: Path | None = None) -> ParticleStack:
    """The particles of a run in the order of its results, whatever that of their file is by now; raises as `read_run`."""
    stack, order = _particles(run, latents, project_dir)
    return stack if order is None else stack.subset(order)


def input_paths(run: RunDir, project_dir: Path | None = None) -> list[Path]:
    """Files that the run was made from, as far as they are found now: no command that is given the run may write there."""
    source = run.manifest.config.input
    source = dataclasses.replace(source, project_dir=project_dir or source.project_dir)
    found = [source.particles, *([source.passthrough] if source.passthrough else [])]
    known = run.identity()
    for stack in [] if known is None else known.stacks:
        with contextlib.suppress(EmsvaeError):  # it was moved: then nobody writes over it by its name
            found.append(find_stack(stack.name, source))
    return [path for path in found if path.is_file()]


def _particles(
    run: RunDir, latents: Latents, project_dir: Path | None
) -> tuple[ParticleStack, NDArray[np.int64] | None]:
    """The particles as their file has them now, and where those of the results stand in it; None: in the same order."""
    source = run.manifest.config.input
    stack = load_particles(dataclasses.replace(source, project_dir=project_dir or source.project_dir))
    order = rows_of([str(name) for name in latents.names], [str(name) for name in stack.names], stack.source)
    known = run.identity()
    if known is not None:
        check_stacks(known, stack)
    return stack, order


def results_of(run: RunDir) -> Latents:
    """The run's results, without a look at its particles' files.

    Raises
    ------
    EmsvaeError
        There are none yet, or no particle could be used.
    """
    manifest = run.manifest
    latents = read_csv(run.latents, manifest.config.model.z_dim, manifest.preparation.pixel_size_A)
    if not latents.used.any():
        raise EmsvaeError(f"{run.path}: none of its particles could be used, so there is no content to draw")
    return latents


def check_fits(stack: ParticleStack, preparation: Preparation, run: RunDir) -> None:
    """Refuse a stack that the run's model cannot look at.

    Its field of view must hold the model's at the same scale, and its CTF must be known where the run's was used.
    """
    field_A = preparation.box * preparation.pixel_size_A
    widths = np.array([file.width for file in stack.files])[stack.file_of]
    smallest = float((widths * stack.pixel_size_A).min())
    if smallest < field_A * (1 - 1e-3) or stack.pixel_size_A.max() > preparation.pixel_size_A * (1 + 1e-3):
        raise ParticleFileError(
            f"{stack.source}: {smallest:.4g} A across at {stack.pixel_size_A.max():.4g} A per pixel; the model of {run.path} needs "
            f"{field_A:.4g} A at {preparation.pixel_size_A:.4g} A or finer; extract the particles in a larger box"
        )
    channels = run.manifest.images.channels
    if stack.channels != channels:
        raise ParticleFileError(
            f"{stack.source}: images of {stack.channels} channel(s); the model of {run.path} was trained on {channels}"
        )
    check_ctf(stack, preparation.ctf, f"use a run trained with --ctf none ({run.path} was trained with the CTF)")
