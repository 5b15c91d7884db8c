"""A run folder opened: its results and its particles."""

import dataclasses
from pathlib import Path

import numpy as np

from emspatialvae.errors import EmsvaeError, ParticleFileError, RunFolderError
from emspatialvae.particles.load import load_particles
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.preparation import Preparation, check_ctf
from emspatialvae.results.latents import Latents, read_csv
from emspatialvae.results.run_folder import RunDir


def read_run(path: Path, project_dir: Path | None = None) -> tuple[RunDir, Latents, ParticleStack]:
    """A run with its results and its particles."""
    run, latents = read_latents(path)
    return run, latents, read_particles(run, len(latents), project_dir)


def read_latents(path: Path) -> tuple[RunDir, Latents]:
    """A run with its results; of its particles it looks at nothing."""
    run = RunDir(path)
    manifest = run.manifest
    return run, read_csv(run.latents, manifest.config.model.z_dim, manifest.preparation.pixel_size_A)


def read_particles(run: RunDir, n: int, project_dir: Path | None = None) -> ParticleStack:
    """The particles of a run, which must be as many as the ``n`` that it has results for."""
    source = run.manifest.config.input
    stack = load_particles(dataclasses.replace(source, project_dir=project_dir or source.project_dir))
    if len(stack) != n:
        raise RunFolderError(f"{stack.source} now has {len(stack)} particles, the run has {n}; train anew with --force")
    return stack


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
