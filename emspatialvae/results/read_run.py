"""A run folder opened: its results and its particles."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import EmsvaeError, ParticleFileError, RunFolderError
from emspatialvae.particles.load import find_stack, load_particles
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.preparation import Preparation, check_ctf
from emspatialvae.results.identity import check_stacks, rows_of
from emspatialvae.results.latents import Latents, read_csv
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
    return run, latents_of(run)


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


def latents_of(run: RunDir) -> Latents:
    """The results of a run.

    Raises
    ------
    RunFolderError
        There are none yet, or they are damaged, or not as many as the run has particles.
    """
    manifest = run.manifest
    latents = read_csv(run.latents, manifest.z_dim, manifest.preparation.pixel_size_A)
    if len(latents) != manifest.n_particles:
        raise RunFolderError(
            f"{run.latents} is damaged ({len(latents):,} rows for {manifest.n_particles:,} particles); run `emsvae train ... --resume` "
            "to write it again"
        )
    return latents


def results_of(run: RunDir) -> Latents:
    """The run's results, of which there is something to draw, without a look at its particles' files.

    Raises
    ------
    EmsvaeError
        There are none yet, they are not those of the model, or no particle could be used.
    """
    latents = latents_of(run)
    run.check_results_belong()
    if not latents.used.any():
        raise EmsvaeError(f"{run.path}: none of its particles could be used, so there is no latent to draw")
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
    otherwise = f"use a run trained with --ctf none ({run.path} was trained with the CTF), or leave them out with --skip-bad-ctf"
    check_ctf(stack, preparation.ctf, otherwise, skip=preparation.skip_bad_ctf)
