"""The raw images with rotation and shift taken out, as one stack."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging import alignment
from emspatialvae.io.mrc import StackWriter
from emspatialvae.io.pictures import NpyStack, npy_writer
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.results.latents import Latents

if TYPE_CHECKING:
    pass


CHUNK_BYTES = 64 << 20


def write_aligned(
    latents: Latents,
    stack: ParticleStack,
    destination: Path,
    *,
    force: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the raw, full-size images with rotation and shift taken out, in particle order; unused ones as they are.

    A destination that ends in .npy gets an array, with channels where the images have them; any other an MRC stack.
    """
    if len(stack.boxes) > 1:
        raise EmsvaeError(
            f"{stack.source} has boxes of {stack.boxes} px, one aligned stack has one; export the optics groups apart"
        )
    n, box = len(latents), max(stack.boxes)
    pose = latents.reported_pose.scaled(latents.pixel_size_A / stack.pixel_size_A[:n])
    size = max(1, CHUNK_BYTES // (4 * stack.channels * box**2))
    with _stack_writer(stack, destination, n, box, force) as append:
        for start in range(0, n, size):
            rows = np.arange(start, min(start + size, n))
            images = stack.channel_images(rows)
            used = latents.used[rows]
            for channel in images.swapaxes(0, 1):
                channel[used] = alignment.align(channel[used], pose[rows[used]])
            append(np.nan_to_num(images, posinf=0, neginf=0))
            progress(len(rows))


@contextmanager
def _stack_writer(
    stack: ParticleStack, destination: Path, n: int, box: int, force: bool
) -> Generator[Callable[[NDArray[np.float32]], None], None, None]:
    """Yields the function that takes the next images [k, channels, box, box]."""
    if destination.suffix == ".npy":
        source = stack.files[0]
        axes = source.axes if isinstance(source, NpyStack) else "n h w" if stack.channels == 1 else "n h w c"
        with npy_writer(destination, n, axes, stack.channels, box, overwrite=force) as append:
            yield append
        return
    if stack.channels > 1:
        raise EmsvaeError(f"{destination}: an MRC stack has no colour; end the name in .npy")
    with StackWriter(destination, n, box, float(stack.pixel_size_A[0]), overwrite=force) as writer:
        yield lambda images: writer.append(images[:, 0])
