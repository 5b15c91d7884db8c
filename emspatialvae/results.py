"""What a finished run is good for: results out of it, and poses for other particles."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from emspatialvae import export
from emspatialvae.config import Device, InputConfig, Poses
from emspatialvae.errors import ParticleFileError, RunFolderError
from emspatialvae.infer import Latents, infer, load_model
from emspatialvae.loading import load_particles
from emspatialvae.particles import ParticleStack
from emspatialvae.prepare import Portion, Preparation, check_ctf, prepare
from emspatialvae.progress import bar
from emspatialvae.run import RunDir

Say = Callable[[str], None]


def read_run(path: Path, project_dir: Path | None = None) -> tuple[RunDir, Latents, ParticleStack]:
    """A run with its results and its particles."""
    run = RunDir(path)
    manifest = run.manifest
    latents = export.read_csv(run.latents, manifest.config.model.z_dim, manifest.preparation.pixel_size_A)
    source = manifest.config.input
    stack = load_particles(dataclasses.replace(source, project_dir=project_dir or source.project_dir))
    if len(stack) != len(latents):
        raise RunFolderError(
            f"{stack.source} now has {len(stack)} particles, the run has {len(latents)}; train anew with --force"
        )
    return run, latents, stack


def export_run(
    path: Path,
    wanted: dict[str, Path],
    *,
    poses: Poses | None = None,
    project_dir: Path | None = None,
    force: bool = False,
    say: Say = print,
) -> None:
    """Write the results of a run; ``wanted`` maps star, cs, csv and aligned to the files to make."""
    for destination in wanted.values():
        export.check_free(destination, force=force)
    run, latents, stack = read_run(path, project_dir)
    for kind, destination in wanted.items():
        if kind == "aligned":
            with bar(len(stack), "aligning") as progress:
                export.write_aligned(latents, stack, destination, force=force, progress=progress)
        else:
            write = {"star": export.write_star, "cs": export.write_cs, "csv": export.write_csv}[kind]
            write(latents, stack, destination, poses=poses or run.manifest.config.poses, force=force)
        say(f"{len(latents):,} particles: {destination}")


def infer_other(
    run: RunDir,
    source: InputConfig,
    out: Path,
    *,
    poses: Poses,
    device: Device = "auto",
    force: bool = False,
    say: Say = print,
) -> None:
    """Infer the particles of another file with a trained model, prepared as the run's own were, and write them to ``out``."""
    from emspatialvae import compute

    export.check_destination(out, force=force)
    compute.keep_freed_memory()
    manifest, model = run.manifest, load_model(run)
    stack = load_particles(source)
    check_fits(stack, manifest.preparation, run)
    with bar(len(stack), "inferring poses") as progress:

        def portions() -> Iterator[Portion]:
            for portion in prepare(stack, manifest.preparation):
                yield portion
                progress(len(portion))

        settings = dataclasses.replace(manifest.config.train, device=device)
        latents = infer(model, portions(), stack.names, manifest.preparation.pixel_size_A, settings)
    export.write(latents, stack, out, poses=poses, force=force)
    say(f"{len(latents):,} particles, {int((~latents.used).sum())} unusable: {out}")


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
    check_ctf(stack, preparation.ctf, f"use a run trained with --ctf none ({run.path} was trained with the CTF)")
