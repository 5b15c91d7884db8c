"""Whether a training fits: the memory and the disk that it needs, beside what is free, and how long it takes, said before it begins."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from emspatialvae.config import TrainConfig, train_for
from emspatialvae.io import room
from emspatialvae.preprocess.preparation import Preparation
from emspatialvae.training.stopping import portions_of
from emspatialvae.workflows.progress import duration

PROGRAM, PER_PARTICLE, PER_PIXEL = 400_000_000, 1400, 250_000
"""Bytes of the steerable engine on a CPU: the program itself, the pose table and results of each particle, templates and searches per pixel
of the prepared box. From the peaks in benchmarks/README.md (32 px: 0.68 GB for 100,000 and 1.98 GB for 1,000,000 particles; 64 px: 1.55 GB), which
it meets within a fifth; larger boxes are extrapolated."""
START_S, PREPARED_S = 30.0, 1.7e-4
"""Seconds of what every run does once, and of preparing one image of 64 px."""
STEPS_S, SEARCHED_S, INFERRED_S = (0.011, 0.08), (0.004, 0.05), (0.0015, 0.01)
"""Seconds on one thread, until the run has settled, of the steps of one particle of an epoch, and of the searches of one that is trained on, and of
inferring one, at 64 px: alike particles that say much, and crowded or faint ones and views from all directions. From the runs in
benchmarks/README.md; epochs, and how often poses are searched, are found by the run."""
SHARED = 0.7
"""Work on t threads takes the t ** SHARED th part of the time."""
GB = 1e9


def memory_needed(n: int, preparation: Preparation) -> int:
    """Bytes of memory that a training on n particles takes at its peak, about."""
    return PROGRAM + PER_PARTICLE * n + PER_PIXEL * preparation.box**2


def disk_needed(n: int, preparation: Preparation, dtype: str, channels: int = 1) -> int:
    """Bytes of the prepared images of n particles."""
    images = n * channels * preparation.box**2 * np.dtype(dtype).itemsize
    return images + (n * (preparation.box // 2 + 1) * 4 if preparation.ctf == "multiply" else 0)


def time_needed(n: int, trained: int, preparation: Preparation, width_px: int, threads: int) -> tuple[float, float]:
    """Seconds that a training without an option takes on CPU threads, from and to, about.

    ``trained`` of the n particles are trained on; their images are ``width_px`` wide on the disk.
    """
    reading = START_S + n * PREPARED_S * (width_px / 64) ** 2
    size = preparation.box / 64 / threads**SHARED
    epoch = trained / portions_of(trained, train_for(TrainConfig(), "steerable").batch_size or 1)
    least, most = (
        reading + size * (epoch * steps + trained * searched + n * inferred)
        for steps, searched, inferred in zip(STEPS_S, SEARCHED_S, INFERRED_S, strict=True)
    )
    return least, most


def time_sentence(n: int, trained: int, preparation: Preparation, width_px: int, threads: int) -> str:
    """`time_needed` in words."""
    least, most = time_needed(n, trained, preparation, width_px, threads)
    on = "1 thread" if threads == 1 else f"{threads} threads"
    return f"time: about {duration(least)} to {duration(most)} on {on}, as other stacks took; less where the processor is fast"


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
