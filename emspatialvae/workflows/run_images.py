"""The prepared images of a run."""

import socket

from emspatialvae.errors import EmsvaeError, ParticleFileError
from emspatialvae.jobs import ranks
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.cache import PreparedImages, cached_images, forget_other_caches, prepared_images
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows.progress import Say, bar


def open_images(run: RunDir, stack: ParticleStack, say: Say = lambda _: None) -> PreparedImages:
    """The prepared images of a run's own stack, from its cache, made if need be.

    Raises
    ------
    ParticleFileError
        None of them can be used.
    """
    manifest = run.manifest
    cache = manifest.config.prepare.cache or run.path / "cache"
    with bar(len(stack), "preparing images", say) as progress:
        images = prepared_images(stack, manifest.preparation, cache, manifest.config.prepare.cache_dtype, progress, say)
    if manifest.config.prepare.cache is None:
        forget_other_caches(stack, manifest.preparation, cache, manifest.config.prepare.cache_dtype)
    if not images.usable.any():
        raise ParticleFileError(f"{stack.source}: every image is constant or holds NaN; there is nothing to learn from")
    return images


def images_of_rank(run: RunDir, stack: ParticleStack, say: Say = lambda _: None) -> PreparedImages:
    """`open_images` for each of several ranks: made, and every byte looked at, by one rank of each machine.

    On a disk that all machines see the first rank makes them; where ``--cache`` names a disk of each machine's own, one rank of each does.

    Raises
    ------
    EmsvaeError
        Images that one rank has made are not there for another one of its machine.
    """
    team = ranks.present()
    if team.count == 1:
        return open_images(run, stack, say)
    team.by_first(lambda: len(open_images(run, stack, say)))
    if team.local_rank == 0 and not team.first:
        open_images(run, stack)
    team.exchanged(None)
    prepare = run.manifest.config.prepare
    cache = prepare.cache or run.path / "cache"
    images = cached_images(stack, run.manifest.preparation, cache, prepare.cache_dtype)
    if images is None:
        raise EmsvaeError(
            f"rank {team.rank} on {socket.gethostname()} does not see the prepared images that rank 0 of that machine has in {cache}; name a "
            "folder that all ranks of a machine see with --cache"
        )
    return images
