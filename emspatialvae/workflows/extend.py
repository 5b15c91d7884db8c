"""A run that goes on with more particles: from its present weights, in a folder of its own."""

import dataclasses
from pathlib import Path

import numpy as np

from emspatialvae.config import InputConfig
from emspatialvae.imaging.arrays import Floats
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.results.identity import Identity, keys_of
from emspatialvae.results.latents import Latents
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows.progress import Say
from emspatialvae.workflows.run_images import open_images


def why_not(run: RunDir, stack: ParticleStack) -> str | None:
    """Why training on these particles cannot begin with the weights of a run; None where it can."""
    config = run.manifest.config
    if stack.optics_names != run.manifest.optics:
        return f"{stack.source} has other optics groups than {run.path}, whose noise is not known"
    if config.model.poses_fixed or config.train.init_poses:
        return "training begins with the poses of the file"
    return None


def extended_run(
    run: RunDir, source: InputConfig, stack: ParticleStack, known: Latents, out: Path, *, say: Say = print
) -> RunDir:
    """A new run on particles among which those of an older one are; `train_run` with ``resume`` then trains it.

    Images are prepared as for the older run, and its weights, noise and optimiser are the beginning. The latents that its model found are, too;
    poses are searched everywhere in the first epoch.

    Parameters
    ----------
    known
        What the older run's model says of the particles, or of some of them.

    Raises
    ------
    EmsvaeError
        ``out`` is not free, the images cannot be used, or the older run has no checkpoint.
    """
    import torch

    from emspatialvae.training.more_particles import for_more_particles

    manifest, state = run.manifest, run.load_checkpoint()
    config, epoch = dataclasses.replace(manifest.config, input=source), int(state["progress"]["epoch"])
    if config.train.epochs is not None:
        longer = dataclasses.replace(config.train, epochs=config.train.epochs + epoch)
        config = dataclasses.replace(config, train=longer)
    assumed = (f"training goes on from the weights of {run.path}, after its epoch {epoch}", *manifest.assumed)
    extended = dataclasses.replace(manifest, config=config, n_particles=len(stack), assumed=assumed)
    with RunDir.creating(out, extended, keep_lock=True) as new:
        new.save_identity(Identity.of(stack))
        new.log(f"{stack.source}: {len(stack):,} particles; {assumed[0]}")
        open_images(new, stack, say=say)
        new.save_checkpoint(for_more_particles(state, torch.from_numpy(_latents(stack, known))))
    return RunDir(out)


def _latents(stack: ParticleStack, known: Latents) -> Floats:
    """Z of each particle of a stack by its image name, 0 where nothing is known of it; [n, z_dim]."""
    row_of = {key: row for row, key in enumerate(keys_of(known.names))}
    rows = np.array([row_of.get(key, -1) for key in keys_of(stack.names)], np.int64)
    there = (rows >= 0) & known.used[rows]
    return np.where(there[:, None], known.z[rows], 0.0)
