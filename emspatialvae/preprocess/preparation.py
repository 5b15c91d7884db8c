"""From raw images of any box to the small, normalised ones that the model sees; prepared once and kept in a cache.

`Preparation` says what is to be done (`emspatialvae.preprocess.plan` settles it, it is stored with the run); `prepare` does it to any
particles of any stack, now or at inference; `PreparedImages` keeps the result in a memory-mapped file.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import EmsvaeError, ParticleFileError
from emspatialvae.imaging import ctf, normalisation, resampling
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.particles.load import missing_ctf_columns
from emspatialvae.particles.stack import OpticsGroup, ParticleStack

CHUNK_BYTES = 32 << 20

T = TypeVar("T")
U = TypeVar("U")
CtfTreatment = Literal["none", "phase-flip", "multiply"]


@dataclass(frozen=True)
class Preparation:
    """What is done to every image, in this order; everything decided, nothing automatic left."""

    box: int
    """Pixels after Fourier cropping."""
    pixel_size_A: float
    """Pixel size after Fourier cropping."""
    mask_radius_px: float
    """Of the circular mask, in prepared pixels."""
    invert: bool
    """Multiply by -1 (without ``normalise``: 1 minus the image)."""
    ctf: CtfTreatment
    """Multiply each spatial frequency by the sign of the CTF, before cropping; or by the CTF itself, last of all."""
    hot_pixel_sd: float
    """Replace lone pixels beyond this many s.d.; 0 = never."""
    normalise: bool
    """Background mean and slope 0, s.d. 1 (else the values, between 0 and 1, are taken as they are)."""
    highpass_A: float | None = None
    """Take out what is coarser, before cropping; half of the amplitude is left at this period."""
    particle_radius_px: float | None = None
    """Of the circle that holds the particle, in prepared pixels; None: it may fill the box."""
    skip_bad_ctf: bool = False
    """Particles whose CTF is needed and missing or absurd count as unusable."""


@dataclass(frozen=True, eq=False)
class Portion:
    """k prepared particles of a stack."""

    rows: NDArray[np.int64]
    """[k], their places in the stack."""
    images: NDArray[np.float32]
    """[k, box, box], of images with several channels [k, channels, box, box]; zero where unusable."""
    usable: NDArray[np.bool_]
    """[k]; False for constant or NaN images."""
    group: NDArray[np.int32]
    """[k], their optics groups in the stack."""
    ctf_power: NDArray[np.float32] | None = None
    """[k, box // 2 + 1], the rings of CTF^2 (`ctf.ring_power`) where the images are multiplied by the CTF, else None."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, some: Any) -> "Portion":
        power = None if self.ctf_power is None else self.ctf_power[some]
        return Portion(self.rows[some], self.images[some], self.usable[some], self.group[some], power)


def _ctf_needed(stack: ParticleStack, treatment: CtfTreatment) -> NDArray[np.bool_]:
    """Of which particles the treatment needs the CTF; [n]."""
    if treatment == "phase-flip":
        return np.array([not is_flipped(group) for group in stack.optics], bool)[stack.optics_of]
    return np.full(len(stack), treatment != "none")


def without_ctf(stack: ParticleStack, treatment: CtfTreatment) -> NDArray[np.bool_]:
    """Particles whose CTF is needed and missing or absurd; [n]."""
    needed = _ctf_needed(stack, treatment)
    return needed if stack.ctf is None else needed & ~stack.ctf.usable


def check_ctf(
    stack: ParticleStack,
    treatment: CtfTreatment,
    otherwise: str = "use --ctf none, or leave them out with --skip-bad-ctf",
    *,
    skip: bool = False,
) -> None:
    """Refuse a stack where a CTF that is needed is missing or absurd; ``otherwise`` the user may do something else.

    With ``skip``, single particles may lack theirs.

    Raises
    ------
    ParticleFileError
        Names the first such particle.
    """
    if treatment == "none":
        return
    if skip and not without_ctf(stack, treatment).all():
        return
    needed = _ctf_needed(stack, treatment)
    missing = needed if stack.ctf is None else needed & ~stack.ctf.known
    if missing.any():
        lacking = missing_ctf_columns(stack)
        raise ParticleFileError(
            f"{stack.source}: CTF parameters missing for {int(missing.sum())} of {len(stack)} particles, the first is "
            f"{stack.names[missing.argmax()]}{f' ({lacking})' if lacking else ''}; complete them or {otherwise}"
        )
    for absurd, values, wrong in () if stack.ctf is None else stack.ctf.absurdities():
        bad = needed & absurd
        if bad.any():
            raise ParticleFileError(
                f"{stack.source}: {int(bad.sum())} of {len(stack)} particles have an impossible CTF, the first is "
                f"{stack.names[bad.argmax()]} with {values[bad.argmax()]:g} {wrong}; correct them or {otherwise}"
            )


def file_poses(
    stack: ParticleStack, preparation: Preparation, asked: str, otherwise: str = "leave it out", *, all_set: bool = True
) -> Pose2D:
    """Poses of the file in prepared pixels; ``asked`` says what needs them, ``otherwise`` what the user may do.

    Raises
    ------
    ParticleFileError
        It has none, or (where all of them must be set) some particles have none.
    """
    if stack.pose is None:
        raise ParticleFileError(
            f"{stack.source}: {asked} needs rlnAnglePsi and rlnOriginX/YAngst (or alignments2D), found none; {otherwise}"
        )
    unset = np.flatnonzero(stack.pose.unset)
    if all_set and len(unset):
        raise ParticleFileError(
            f"{stack.source}: {asked} needs the pose of every particle, {len(unset):,} of {len(stack):,} have none, the first is "
            f"{stack.names[unset[0]]}; complete or remove them, or {otherwise}"
        )
    return stack.pose.scaled(stack.pixel_size_A / preparation.pixel_size_A)


def prepare_chunk(stack: ParticleStack, rows: NDArray[np.int64], preparation: Preparation) -> tuple[Portion, int]:
    """Prepare particles of one box and optics group.

    Returns
    -------
    The particles, and how many hot pixels were replaced.
    """
    colour = stack.channel_images(rows)
    usable = _usable(colour)
    params = None if stack.ctf is None else stack.ctf[rows]
    if preparation.skip_bad_ctf:
        left_out = without_ctf(stack.subset(rows), preparation.ctf)
        usable &= ~left_out
        params = None if params is None else params.with_typical(left_out)
    colour[~usable] = 0
    # What is done to an image is done to each of its channels.
    raw = colour.reshape(-1, *colour.shape[2:])
    if not preparation.normalise and (raw.min() < 0 or raw.max() > 1):
        found = f"between 0 and 1, found {raw.min():.4g} to {raw.max():.4g}"
        if stack.of_pictures:
            raise EmsvaeError(f"pictures must lie {found}; scale them, or use --normalise yes with --noise unit")
        raise EmsvaeError(f"--noise bernoulli needs images {found}; use --noise unit")
    hot = 0
    if preparation.normalise:
        raw = normalisation.moderate(raw)
    if preparation.hot_pixel_sd > 0:
        raw, replaced = normalisation.replace_hot_pixels(raw, preparation.hot_pixel_sd)
        hot = int(replaced.sum())
    optics = stack.optics[stack.optics_of[rows[0]]]
    if preparation.ctf == "phase-flip" and not is_flipped(optics):
        assert params is not None
        raw = ctf.flip_phases(raw, params, optics.pixel_size_A)
    if preparation.highpass_A is not None:
        raw = normalisation.highpass(raw, preparation.highpass_A / optics.pixel_size_A)
    step = preparation.pixel_size_A / optics.pixel_size_A
    if raw.shape[-1] != preparation.box or abs(step - 1) > 1e-6:
        raw = resampling.resample(raw, resampling.fourier_resampling(raw.shape[-1], preparation.box, max(step, 1.0)))
    # Cropping rings at sharp edges, a little below 0 and above 1.
    images = normalisation.normalise(raw, preparation.mask_radius_px) if preparation.normalise else raw.clip(0, 1)
    if preparation.invert:
        images = -images if preparation.normalise else 1 - images
    power = None
    if preparation.ctf == "multiply":
        assert params is not None
        images, power = _multiply_by_ctf(images, params, preparation.pixel_size_A, optics)
    if colour.shape[1] > 1:
        images = images.reshape(*colour.shape[:2], *images.shape[1:])
    seen = usable.reshape(-1, *[1] * (images.ndim - 1))
    images = np.where(seen, images, np.float32(0)).astype(np.float32)
    return Portion(rows, images, usable, stack.optics_of[rows], power), hot


def _usable(images: NDArray[np.float32]) -> NDArray[np.bool_]:
    """False where an image [k, c, box, box] holds NaN or is the same everywhere in every channel; [k].

    A channel of its own may be: a red thing has no blue.
    """
    if images.shape[1] == 1:
        return ~normalisation.unusable(images[:, 0])
    finite = np.isfinite(images).all((1, 2, 3))
    return finite & np.any([~normalisation.unusable(channel) for channel in images.swapaxes(0, 1)], axis=0)


def is_flipped(optics: OpticsGroup) -> bool:
    """The images' phases are right already."""
    return optics.phase_flipped or optics.ctf_premultiplied


def _multiply_by_ctf(
    images: NDArray[np.float32], params: ctf.CtfParams, pixel_size_A: float, optics: OpticsGroup
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Images [k, box, box] multiplied by their CTF unless they are already, and the rings of CTF^2."""
    box = images.shape[-1]
    power = ctf.ring_power(params, box, pixel_size_A)
    if not optics.ctf_premultiplied:
        return ctf.multiply(images, params, pixel_size_A, absolute=optics.phase_flipped), power
    # Their background has been brought to s.d. 1 after the multiplication; what it had before it, it must have: 1 as all others.
    scale = np.sqrt(np.average(power, axis=1, weights=ctf.ring_sizes(box))).astype(np.float32)
    return images * scale[:, None, None], power


def prepare(
    stack: ParticleStack,
    preparation: Preparation,
    share: Callable[[list[NDArray[np.int64]]], list[NDArray[np.int64]]] = lambda chunks: chunks,
) -> Iterator[Portion]:
    """Prepare a whole stack in portions of bounded memory.

    They come in the order of the disk; reading and arithmetic of the next ones go on while one is used. ``share`` picks some of them, by the
    rows that they hold.

    Raises
    ------
    ParticleFileError
        Images smaller than wanted, or no CTF parameters where the preparation needs them (see `check_ctf`).
    """
    if min(stack.boxes) < preparation.box:
        raise ParticleFileError(
            f"{stack.source}: images of {min(stack.boxes)} px are smaller than the {preparation.box} px the run was trained on"
        )
    check_ctf(stack, preparation.ctf, skip=preparation.skip_bad_ctf)
    size = max(1, CHUNK_BYTES // (4 * stack.channels * max(stack.boxes) ** 2))
    return ahead(lambda rows: prepare_chunk(stack, rows, preparation)[0], share(list(stack.chunks(size))))


def ahead(work: Callable[[T], U], items: Iterable[T], workers: int | None = None) -> Iterator[U]:
    """``work`` of each item, in their order; that of the next few goes on in threads while one is used."""
    workers = workers or min(4, os.cpu_count() or 1)
    rest = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[U]] = deque(pool.submit(work, item) for item in islice(rest, workers + 1))
        while pending:
            done = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield done
