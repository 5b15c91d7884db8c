"""The prepared images of a run."""

from emspatialvae.errors import ParticleFileError
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.cache import PreparedImages, forget_other_caches, prepared_images
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
