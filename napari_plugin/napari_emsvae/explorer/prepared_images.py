"""A run's images as its model sees them: from the cache, or, when that was deleted, made for the particles that are looked at."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.cache import ImageSource, PreparedImages, cached_images
from emspatialvae.preprocess.preparation import Portion, Preparation, prepare_chunk
from emspatialvae.results.run_folder import RunDir


@dataclass(frozen=True, eq=False)
class PreparedOnDemand:
    """Prepares the particles that are asked for; an `ImageSource`."""

    stack: ParticleStack
    preparation: Preparation

    def __len__(self) -> int:
        return len(self.stack)

    @property
    def box(self) -> int:
        """Pixels along an edge."""
        return self.preparation.box

    @property
    def has_ctf_power(self) -> bool:
        """Whether portions come with the CTF's power on rings."""
        return self.preparation.ctf == "multiply"

    def portion(self, rows: NDArray[np.int64]) -> Portion:
        """Read and prepare some of the particles, in the order asked."""
        width = np.array([file.width for file in self.stack.files])[self.stack.file_of[rows]]
        kind = self.stack.optics_of[rows].astype(np.int64) * (1 + int(width.max(initial=0))) + width
        channels = () if self.stack.channels == 1 else (self.stack.channels,)
        images = np.zeros((len(rows), *channels, self.box, self.box), dtype=np.float32)
        usable = np.zeros(len(rows), dtype=np.bool_)
        power = np.zeros((len(rows), self.box // 2 + 1), dtype=np.float32) if self.has_ctf_power else None
        for one in np.unique(kind):  # a chunk has one box and one optics group
            here = np.flatnonzero(kind == one)
            part, _ = prepare_chunk(self.stack, rows[here], self.preparation)
            images[here], usable[here] = part.images, part.usable
            if power is not None and part.ctf_power is not None:
                power[here] = part.ctf_power
        return Portion(rows, images, usable, self.stack.optics_of[rows], power)


def open_prepared(run: RunDir, stack: ParticleStack) -> ImageSource:
    """The prepared images of a run's own stack; reads none of them."""
    manifest = run.manifest
    wanted, preparation = manifest.config.prepare, manifest.preparation
    cached = cached_images(stack, preparation, wanted.cache or run.path / "cache", wanted.cache_dtype)
    return PreparedOnDemand(stack, preparation) if cached is None else cached


def open_cache_alone(run: RunDir, used: NDArray[np.bool_]) -> PreparedImages | None:
    """The prepared images of a run whose stack is not here, from its ``cache/``; None where that does not hold them.

    A cache is told by the shape of its images and by which of them could be used; of several that fit, the newest is taken.

    Parameters
    ----------
    used
        [n], which particles the run could use.
    """
    manifest = run.manifest
    folder = manifest.config.prepare.cache or run.path / "cache"
    box, n = manifest.preparation.box, len(used)
    for file in sorted(folder.glob("images_*.npy"), key=lambda file: file.stat().st_mtime, reverse=True):
        others = [file.with_name(file.name.replace("images", kind, 1)) for kind in ("usable", "ctf")]
        if not others[0].is_file() or others[1].is_file() != (manifest.preparation.ctf == "multiply"):
            continue
        try:
            pixels, usable = np.load(file, mmap_mode="r"), np.load(others[0])
            power = np.load(others[1], mmap_mode="r") if others[1].is_file() else None
        except (ValueError, OSError, EOFError):
            continue  # cut short while it was copied
        if pixels.shape[0] == n and pixels.shape[-2:] == (box, box) and not (used & ~usable).any():
            return PreparedImages(pixels, usable, np.zeros(n, dtype=np.int32), power)
    return None
