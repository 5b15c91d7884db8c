"""``emsvae infer``: poses and latent variables of other particles, from a trained run."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emspatialvae.config import Device, InputConfig, Poses
from emspatialvae.inference.infer import infer, load_model
from emspatialvae.io.atomic import check_outputs
from emspatialvae.jobs import ranks
from emspatialvae.particles.load import followed, input_files, load_particles
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.preparation import Portion, file_poses, prepare
from emspatialvae.results import export
from emspatialvae.results.latents import Latents
from emspatialvae.results.manifest import Manifest
from emspatialvae.results.own_files import check_not_own
from emspatialvae.results.read_run import check_fits, input_paths
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows.progress import Say, bar


def infer_other(
    run: RunDir,
    source: InputConfig,
    out: Path,
    *,
    poses: Poses,
    skip_bad_ctf: bool = False,
    device: Device = "auto",
    force: bool = False,
    say: Say = print,
) -> None:
    """Infer the particles of another file with a trained model, prepared as the run's own were, and write them to ``out``."""
    source = followed(source)
    export.check_destination(out, force=force)
    check_not_own([out])
    check_outputs([out], [*input_files(load_particles(source), source), *input_paths(run, source.project_dir)])
    latents, stack = inferred(run, source, skip_bad_ctf=skip_bad_ctf, device=device, say=say)
    if not ranks.present().first:
        return
    if run.manifest.config.model.poses_fixed:
        poses = "keep" if poses == "auto" else poses
    export.write(latents, stack, out, poses=poses, force=force)
    say(f"{len(latents):,} particles, {int((~latents.used).sum())} unusable: {out}")


def inferred(
    run: RunDir, source: InputConfig, *, skip_bad_ctf: bool = False, device: Device = "auto", say: Say = print
) -> tuple[Latents, ParticleStack]:
    """What a trained model says of the particles of another file, prepared as the run's own were, and these particles.

    Raises
    ------
    EmsvaeError
        The particles cannot be used, or do not fit the model.
    """
    stack = load_particles(source)
    return inferred_stack(run, stack, skip_bad_ctf=skip_bad_ctf, device=device, say=say), stack


def inferred_stack(
    run: RunDir, stack: ParticleStack, *, skip_bad_ctf: bool = False, device: Device = "auto", say: Say = print
) -> Latents:
    """`inferred`, of particles that were read already."""
    from emspatialvae.model.device import keep_freed_memory

    keep_freed_memory()
    manifest, model = run.manifest, load_model(run)
    preparation = manifest.preparation
    if skip_bad_ctf:
        preparation = dataclasses.replace(preparation, skip_bad_ctf=True)
    check_fits(stack, preparation, run)
    given = None
    if manifest.config.model.poses_fixed:
        asked = f"{run.path} was trained with --poses-fixed, which"
        given = file_poses(stack, manifest.preparation, asked, "give a file that has them")
    groups = _groups_of_run(stack, manifest, say)
    team = ranks.present()
    team.check_alike([str(name) for name in stack.names], f"the ranks see different particles as {stack.source}")
    with bar(len(stack), "inferring poses", say) as progress:

        def portions() -> Iterator[Portion]:
            for portion in prepare(stack, preparation, team.share):
                yield dataclasses.replace(portion, group=groups[portion.group])
                progress(len(portion) * team.count)

        settings = dataclasses.replace(manifest.config.train, device=device)
        return infer(model, portions(), stack.names, manifest.preparation.pixel_size_A, settings, given, team)


def _groups_of_run(stack: ParticleStack, manifest: Manifest, say: Say) -> NDArray[np.int32]:
    """Which number each optics group of another file has in the run, by its name; beyond the last where the run does not know it."""
    numbers = {name: number for number, name in enumerate(manifest.optics)}
    found = np.array([numbers.get(group.name, len(numbers)) for group in stack.optics], np.int32)
    unknown = [stack.optics[group].name for group in np.unique(stack.optics_of) if found[group] == len(numbers)]
    if unknown and len(numbers) > 1 and manifest.config.model.engine == "steerable":
        others = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        say(
            f"optics group {unknown[0]}{others} did not occur in training: the noise of all particles of the run is taken"
        )
    return found
