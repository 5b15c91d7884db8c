"""Averages of the raw, full-size particles with their poses taken out: of classes, or along a path in z.

One pass over the disk serves any number of averages: `accumulate` adds up each particle's share in each of them, `restore`
turns the sums into images. Images are prepared as the run's own were (hot pixels, background, contrast), but not made smaller.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from emspatialvae.analysis.classes.restore import Averages, Sums, restore
from emspatialvae.imaging import alignment, ctf, normalisation
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.jobs.ranks import ALONE, Ranks
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.preparation import Preparation, ahead, check_ctf, prepare_chunk
from emspatialvae.results.latents import Latents

CHUNK_BYTES = 8 << 20
"""Of raw images worked on at once by a thread."""

Progress = Callable[[int], None]


def class_averages(
    stack: ParticleStack,
    latents: Latents,
    preparation: Preparation,
    *,
    seed: int = 0,
    progress: Progress = lambda _: None,
    ranks: Ranks = ALONE,
) -> Averages:
    """The average of each class, 1 to the highest class number.

    Parameters
    ----------
    stack, latents
        The particles and what is known of them: ``latents.class_number``, 0 where a particle belongs to none.
    preparation
        How the run's own images were prepared.
    seed
        Of the random halves that each class is split into for its resolution.
    progress
        Called with the number of particles added since the last call.
    ranks
        Processes that add up a part of the particles each; all of them get the averages.
    """
    assert latents.class_number is not None
    number = np.where(latents.used, latents.class_number, 0).astype(np.int64)
    rows = np.flatnonzero(number > 0)
    weights = sparse.csr_array(
        (np.ones(len(rows), np.float32), (rows, number[rows] - 1)), shape=(len(number), max(number.max(initial=1), 1))
    )
    return average(stack, latents, weights, preparation, half=split(number, seed), progress=progress, ranks=ranks)


def average(
    stack: ParticleStack,
    latents: Latents,
    weights: ArrayLike | sparse.sparray,
    preparation: Preparation,
    *,
    half: NDArray[np.int64] | None = None,
    seed: int = 0,
    progress: Progress = lambda _: None,
    ranks: Ranks = ALONE,
) -> Averages:
    """Weighted averages of a stack's raw images in the frame of the object, with CTF taken out where it is known.

    Parameters
    ----------
    weights
        Of each particle in each average, 0 or more, dense or sparse; shape [n, k]. Unused particles count nothing.
    half
        Which half set each particle belongs to, 0 or 1; shape [n] [default: by chance, `split`].
    stack, latents, preparation, seed, progress, ranks
        As for `class_averages`.

    Raises
    ------
    ParticleFileError
        An image file that cannot be read, or a CTF that no microscope has.
    """
    given: Any = weights  # an array or a sparse one: csr_array takes both, which its types do not say
    used = np.flatnonzero(latents.used)
    # Particles that lie one after the other on the disk are read by one rank.
    own = np.zeros(len(latents), np.float32)
    own[np.array_split(used, ranks.count)[ranks.rank]] = 1
    counted: Any = sparse.diags_array(own) @ sparse.csr_array(given, dtype=np.float32)
    share = sparse.csr_array(counted)
    share.eliminate_zeros()
    half = split(latents.used.astype(np.int64), seed) if half is None else half
    whole = full_size(stack, preparation, used)
    pose = latents.reported_pose.scaled(latents.pixel_size_A / whole.pixel_size_A)
    sums = _over_ranks(accumulate(stack, pose, share, half, whole, progress), ranks)
    return restore(sums, whole.pixel_size_A, whole.mask_radius_px)


def _over_ranks(sums: Sums, ranks: Ranks) -> Sums:
    """The sums of all ranks together."""
    if ranks.count == 1:
        return sums
    import torch

    def together(values: NDArray[Any]) -> NDArray[Any]:
        return ranks.summed(torch.from_numpy(values)).numpy()

    return Sums(
        images=together(sums.images),
        ctf_power=None if sums.ctf_power is None else together(sums.ctf_power),
        weight=together(sums.weight),
        squares=together(sums.squares),
        count=together(sums.count),
    )


def split(group: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Half sets, 0 or 1, by chance: those of the particles of each group [n] are of one size, to within one; shape [n]."""
    order = np.random.default_rng(seed).permutation(len(group))
    order = order[np.argsort(group[order], kind="stable")]
    starts = np.flatnonzero(np.diff(group[order], prepend=group[order[:1]] - 1))
    place = np.arange(len(group)) - np.repeat(starts, np.diff(starts, append=len(group)))
    half = np.empty(len(group), dtype=np.int64)
    half[order] = place % 2
    return half


def full_size(stack: ParticleStack, preparation: Preparation, rows: NDArray[np.int64]) -> Preparation:
    """The preparation of a run, without making images smaller than some particles' differing boxes and pixels ask for.

    They are brought to the coarsest pixel size and the smallest field of view that occurs. The CTF is multiplied with where the
    run looked at it and it is known for all; else what the run did is done.
    """
    if not len(rows):
        return preparation
    pixel_size_A = stack.pixel_size_A[rows]
    width = np.array([file.width for file in stack.files])[stack.file_of[rows]]
    coarsest = float(pixel_size_A.max())
    known = stack.ctf is not None and bool(stack.ctf.known[rows].all())
    return replace(
        preparation,
        box=int((width * pixel_size_A).min() / coarsest + 1e-3),
        pixel_size_A=coarsest,
        mask_radius_px=preparation.mask_radius_px * preparation.pixel_size_A / coarsest,
        ctf="multiply" if known and preparation.ctf != "none" else preparation.ctf,
    )


def accumulate(
    stack: ParticleStack,
    pose: Pose2D,
    share: sparse.csr_array,
    half: NDArray[np.int64],
    preparation: Preparation,
    progress: Progress = lambda _: None,
) -> Sums:
    """Add up particles with their poses taken out.

    Parameters
    ----------
    pose
        n poses, in prepared pixels.
    share
        Weights of the particles in each average; shape [n, k].
    half
        0 or 1 for each particle; shape [n].
    preparation
        With ``ctf="multiply"`` the sums of CTF^2 are kept beside those of the images.
    """
    shape: Any = share.shape
    (n, k), box = shape, preparation.box
    per_row = np.diff(share.indptr)
    wanted = np.flatnonzero(per_row)
    # Twice as many sums as averages: those of the half sets lie side by side.
    column = 2 * share.indices + np.repeat(half, per_row)
    halves: Any = sparse.csr_array((share.data, column, share.indptr), shape=(n, 2 * k))
    with_ctf = preparation.ctf == "multiply"
    images = np.zeros((2 * k, box * box), dtype=np.float32)
    power = np.zeros((2 * k, box * (box // 2 + 1)), dtype=np.float32) if with_ctf else None
    counted = np.zeros(n, dtype=np.bool_)
    for rows, aligned, ctf_power in _aligned(stack.subset(wanted), pose[wanted], preparation):
        some = halves[wanted[rows]]
        here, place = np.unique(some.indices, return_inverse=True)  # most averages have no particle among these
        some = sparse.csr_array((some.data, place, some.indptr), shape=(len(rows), len(here))).T
        images[here] += some @ aligned.reshape(len(rows), -1)
        if power is not None and ctf_power is not None:
            power[here] += some @ ctf_power.reshape(len(rows), -1)
        counted[wanted[rows]] = True
        progress(len(rows))
    used: Any = sparse.diags_array(counted.astype(np.float64)) @ halves
    return Sums(
        images=images.reshape(k, 2, box, box),
        ctf_power=None if power is None else power.reshape(k, 2, box, box // 2 + 1),
        weight=np.asarray(used.sum(0)).reshape(k, 2),
        squares=np.asarray(used.power(2).sum(0)).reshape(k, 2),
        count=np.asarray((used > 0).sum(0)).reshape(k, 2),
    )


def _aligned(
    stack: ParticleStack, pose: Pose2D, preparation: Preparation
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32] | None]]:
    """Portions of a stack in the object's frame: rows [m], images [m, b, b], and CTF^2 in that frame [m, b, b // 2 + 1]."""
    if not len(stack):
        return iter(())
    check_ctf(stack, preparation.ctf, skip=preparation.skip_bad_ctf)
    size = max(1, CHUNK_BYTES // (4 * max(stack.boxes) ** 2))

    def work(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32] | None]:
        portion, _ = prepare_chunk(stack, rows, preparation)
        portion = portion[portion.usable]
        own = pose[portion.rows]
        aligned = alignment.align_by_shears(normalisation.brightness(portion.images), own)
        if preparation.ctf != "multiply" or stack.ctf is None:
            return portion.rows, aligned, None
        # An image turned back by theta has its CTF turned back, too.
        turned = stack.ctf[portion.rows].turned(-own.theta_rad)
        transfer = ctf.ctf_2d(turned, preparation.box, preparation.pixel_size_A)
        return portion.rows, aligned, np.square(transfer, out=transfer)

    return ahead(work, stack.chunks(size))
