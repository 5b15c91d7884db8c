"""The three pictures of a particle that napari shows: as recorded, with its pose taken out, and as the model draws it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from emspatialvae.imaging import alignment
from emspatialvae.imaging.arrays import Images, Rows
from emspatialvae.particles.stack import ParticleStack
from napari_emsvae.layers.lazy_images import LazyImages

if TYPE_CHECKING:
    from emspatialvae.model.interface import ParticleVAE
    from emspatialvae.results.latents import Latents


@dataclass(frozen=True)
class Grid:
    """The pixels that a layer is shown on."""

    box: int
    pixel_size_A: float

    @classmethod
    def of(cls, stack: ParticleStack) -> "Grid":
        """Box and pixel size of most of the particles."""
        return cls(*_kinds(stack).most_common(1)[0][0])

    @property
    def translate_A(self) -> float:
        """World coordinate of pixel 0 along either axis: the centre, pixel ``box // 2``, lies at 0 in every layer."""
        return -(self.box // 2) * self.pixel_size_A

    def fit(self, images: Images, pixel_size_A: float) -> Images:
        """Images of another box or pixel size on this grid, centre on centre; those of this grid come back untouched."""
        box, step = images.shape[-1], self.pixel_size_A / pixel_size_A
        if box == self.box and abs(step - 1) < 1e-5:
            return images
        corner = box // 2 - step * (self.box // 2)
        out = np.empty((len(images), self.box, self.box), dtype=np.float32)
        for image, target in zip(images, out, strict=True):
            target[:] = ndimage.affine_transform(
                image, [step, step], corner, target.shape, order=1, cval=float(image.mean())
            )
        return out


def is_mixed(stack: ParticleStack) -> bool:
    """Whether boxes or pixel sizes differ, so that some images are resampled to be shown with the others."""
    return len(_kinds(stack)) > 1


def raw_images(stack: ParticleStack, grid: Grid) -> LazyImages:
    """The images as they were recorded, in the order of the metadata file."""
    return _from_stack(stack, grid, len(stack), lambda images, rows: images)


def aligned_images(stack: ParticleStack, latents: "Latents", grid: Grid) -> LazyImages:
    """Raw, full-size images with rotation and shift taken out; particles without a pose as they are (as in the export)."""
    pose = latents.pose.scaled(latents.pixel_size_A / stack.pixel_size_A)

    def align(images: Images, rows: Rows) -> Images:
        used = latents.used[rows]
        images[used] = alignment.align(images[used], pose[rows[used]])
        return images

    return _from_stack(stack, grid, len(latents), align)


def reconstructions(model: "ParticleVAE", latents: "Latents", box: int) -> LazyImages:
    """What the model draws for the content of each particle, at pose zero; blank for particles that it could not use."""
    from emspatialvae.model.render import canonical

    def draw(rows: Rows) -> Images:
        images = canonical(model, latents.z[rows])
        images[~latents.used[rows]] = 0
        return images

    return LazyImages(len(latents), box, draw)


def _kinds(stack: ParticleStack) -> Counter[tuple[int, float]]:
    """How many particles have which box and pixel size."""
    groups = len(stack.optics)
    pairs, counts = np.unique(stack.file_of.astype(np.int64) * groups + stack.optics_of, return_counts=True)
    kinds: Counter[tuple[int, float]] = Counter()
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        file, group = divmod(pair, groups)
        kinds[stack.files[file].width, round(stack.optics[group].pixel_size_A, 6)] += count
    return kinds


def _from_stack(stack: ParticleStack, grid: Grid, n: int, change: Callable[[Images, Rows], Images]) -> LazyImages:
    """Images of the stack, changed on their own pixels, then brought to the grid."""
    width = np.array([file.width for file in stack.files])

    def make(rows: Rows) -> Images:
        out = np.empty((len(rows), grid.box, grid.box), dtype=np.float32)
        boxes, groups = width[stack.file_of[rows]], stack.optics_of[rows]
        for box, group in sorted(set(zip(boxes.tolist(), groups.tolist(), strict=True))):
            here = np.flatnonzero((boxes == box) & (groups == group))
            images = change(stack.images(rows[here]), rows[here])
            out[here] = grid.fit(images, stack.optics[group].pixel_size_A)
        return out

    return LazyImages(n, grid.box, make)
