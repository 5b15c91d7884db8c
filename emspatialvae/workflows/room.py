"""Whether a training fits: the memory and the disk that it needs, beside what is free, said before it begins."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from emspatialvae.io import room
from emspatialvae.preprocess.preparation import Preparation

PROGRAM, PER_PARTICLE, PER_PIXEL = 400_000_000, 1400, 250_000
"""Bytes of the steerable engine on a CPU: the program itself, the pose table and results of each particle, templates and searches per pixel
of the prepared box. From the peaks in benchmarks/README.md (32 px: 0.68 GB for 100,000 and 1.98 GB for 1,000,000 particles; 64 px: 1.55 GB), which
it meets within a fifth; larger boxes are extrapolated."""
GB = 1e9


def memory_needed(n: int, preparation: Preparation) -> int:
    """Bytes of memory that a training on n particles takes at its peak, about."""
    return PROGRAM + PER_PARTICLE * n + PER_PIXEL * preparation.box**2


def disk_needed(n: int, preparation: Preparation, dtype: str, channels: int = 1) -> int:
    """Bytes of the prepared images of n particles."""
    images = n * channels * preparation.box**2 * np.dtype(dtype).itemsize
    return images + (n * (preparation.box // 2 + 1) * 4 if preparation.ctf == "multiply" else 0)


def sentences(n: int, preparation: Preparation, dtype: str, place: Path, channels: int = 1) -> Iterator[str]:
    """What a training needs and what is free, a line for memory and one for the disk; a warning where it is too little.

    ``place`` is the folder of the prepared images. What the system does not tell counts as enough.
    """
    memory, disk = memory_needed(n, preparation), disk_needed(n, preparation, dtype, channels)
    for what, needed, free, then in (
        ("memory", memory, room.free_memory(), "take a smaller --box, or a machine with more"),
        ("disk", disk, room.free_disk(place), "make room, or name another disk with --cache"),
    ):
        said = f"{what}: needs about {_size(needed)}" + ("" if free is None else f", {_size(free)} are free")
        if what == "disk":
            said += " (prepared images)"
        short = free is not None and needed > free
        yield f"warning: {said}; {then}" if short else said


def _size(count: int) -> str:
    return f"{count / GB:.1f} GB" if count >= 0.1 * GB else f"{count / 1e6:.0f} MB"
