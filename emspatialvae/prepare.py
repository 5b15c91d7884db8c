"""From raw images of any box to the small, normalised ones that the model sees; prepared once and kept in a cache.

`decide` looks at the stack and settles what is to be done (`Preparation`, stored with the run); `prepare` does it to any
particles of any stack, now or at inference; `PreparedImages` keeps the result in a memory-mapped file.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emspatialvae import ctf, imaging
from emspatialvae.config import PrepareConfig, to_json
from emspatialvae.errors import EmsvaeError, ParticleFileError
from emspatialvae.io.atomic import atomic_path
from emspatialvae.loading import most_common_box
from emspatialvae.particles import ParticleStack

DEFAULT_BOX = 64
SAMPLE = 500
"""Particles looked at to find the contrast."""
CHUNK_BYTES = 32 << 20


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
    flip_phases: bool
    """Multiply each spatial frequency by the sign of the CTF."""
    hot_pixel_sd: float
    """Replace lone pixels beyond this many s.d.; 0 = never."""
    normalise: bool
    """Background mean 0, s.d. 1 (else the values, between 0 and 1, are taken as they are)."""


def decide(stack: ParticleStack, config: PrepareConfig, *, bernoulli: bool = False) -> tuple[Preparation, list[str]]:
    """Settle how a stack is prepared.

    Returns
    -------
    The preparation, and a sentence for everything that was assumed or found.

    Raises
    ------
    ParticleFileError, EmsvaeError
        Mixed boxes or pixel sizes without ``--box``; a box, mask or CTF request that the stack cannot meet.
    """
    box, pixel_size_A, said = _decide_size(stack, config)
    diameter_A = config.mask_diameter_A if config.mask_diameter_A is not None else 0.9 * box * pixel_size_A
    radius = diameter_A / 2 / pixel_size_A
    if radius > box / 2 or radius < 4:
        raise EmsvaeError(
            f"a mask of {diameter_A:.4g} A is {2 * radius:.1f} pixels across in a box of {box} ({box * pixel_size_A:.4g} A); "
            "choose --mask-diameter-a between 8 pixels and the box"
        )
    said.append(
        f"mask {diameter_A:.4g} A across ({2 * radius:.1f} px)"
        + ("" if config.mask_diameter_A else ", assumed: 0.9 of the box")
    )
    flip, sentence = _decide_ctf(stack, config)
    said.append(sentence)
    preparation = Preparation(box, pixel_size_A, radius, False, flip, config.hot_pixel_sd, not bernoulli)
    invert, sentence = _decide_contrast(stack, preparation, config)
    said.append(sentence)
    return Preparation(**{**vars(preparation), "invert": invert}), said


def _decide_size(stack: ParticleStack, config: PrepareConfig) -> tuple[int, float, list[str]]:
    """Box and pixel size after cropping: the same field of view for all, the smallest that occurs."""
    widths = np.array([file.width for file in stack.files])[stack.file_of]
    kinds = sorted({(int(w), round(float(p), 6)) for w, p in zip(widths, stack.pixel_size_A, strict=True)})
    field_A = min(w * p for w, p in kinds)
    largest = int(field_A / max(p for _, p in kinds) + 1e-3)
    if len(kinds) > 1 and config.box is None:
        listed = ", ".join(f"{w} px of {p:.4g} A" for w, p in kinds[:4])
        raise ParticleFileError(
            f"{stack.source}: images of different size ({listed}); expected one box and pixel size; "
            f"bring them to a common one with --box {min(DEFAULT_BOX, largest)}"
        )
    common = most_common_box(stack)
    box = config.box if config.box is not None else min(common, DEFAULT_BOX)
    pixel_size_A = field_A / box
    if box > largest:
        raise EmsvaeError(
            f"--box {box} would give pixels of {pixel_size_A:.4g} A, finer than the images' {max(p for _, p in kinds):.4g} A; "
            f"choose at most --box {largest}"
        )
    said = [f"pixel size {', '.join(f'{p:.4g}' for p in sorted({p for _, p in kinds}))} A"]
    if len(kinds) > 1 or box != common:
        said.append(
            f"Fourier-cropped from {', '.join(f'{w}' for w in stack.boxes)} to {box} px of {pixel_size_A:.4g} A"
        )
    else:
        said.append(f"box {box} px, used as it is")
    return box, pixel_size_A, said


def _decide_ctf(stack: ParticleStack, config: PrepareConfig) -> tuple[bool, str]:
    if config.ctf == "none":
        return False, "CTF left alone (--ctf none)"
    if stack.ctf is None or not stack.ctf.known.any():
        return False, "CTF left alone: no parameters in the file"
    unknown = np.flatnonzero(~stack.ctf.known)
    if len(unknown):
        raise ParticleFileError(
            f"{stack.source}: CTF parameters missing for {len(unknown)} of {len(stack)} particles, the first is "
            f"{stack.names[unknown[0]]}; complete them or use --ctf none"
        )
    used = [stack.optics[group] for group in np.unique(stack.optics_of)]
    done = [group.phase_flipped or group.ctf_premultiplied for group in used]
    if all(done):
        return False, "CTF left alone: the images are phase-flipped or CTF-multiplied already"
    if any(done):
        raise ParticleFileError(
            f"{stack.source}: some optics groups are phase-flipped and some are not; use --ctf none"
        )
    return True, "CTF: phases flipped"


def _decide_contrast(stack: ParticleStack, preparation: Preparation, config: PrepareConfig) -> tuple[bool, str]:
    if config.invert != "auto":
        return (
            config.invert == "yes",
            f"contrast {'inverted' if config.invert == 'yes' else 'kept'} (--invert {config.invert})",
        )
    if not preparation.normalise:
        return False, "contrast kept"
    rows = np.unique(np.linspace(0, len(stack) - 1, min(len(stack), SAMPLE)).astype(int))
    images = np.concatenate([batch[usable] for _, batch, usable in prepare(stack.subset(rows), preparation)])
    if not len(images):
        raise ParticleFileError(
            f"{stack.source}: every image looked at is constant or holds NaN; there is nothing to learn from"
        )
    brighter, error = imaging.brightness_of_centre(images, preparation.mask_radius_px)
    found = f"the centre is {brighter:+.3f} +- {error:.3f} background s.d. against the outside"
    if not np.isfinite(error) or abs(brighter) < 3 * error:
        return False, f"contrast unclear ({found}): kept; say --invert yes if particles are dark"
    return brighter < 0, f"particles are {'dark: inverted' if brighter < 0 else 'bright: kept'} ({found})"


def prepare_chunk(
    stack: ParticleStack, rows: NDArray[np.int64], preparation: Preparation
) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """Prepare particles of one box and optics group.

    Returns
    -------
    Images [k, box, box] (zero where unusable), usable [k], and how many hot pixels were replaced.
    """
    raw = stack.images(rows)
    usable = ~imaging.unusable(raw)
    raw[~usable] = 0
    if not preparation.normalise and (raw.min() < 0 or raw.max() > 1):
        raise EmsvaeError(
            f"--noise bernoulli needs images between 0 and 1, found {raw.min():.4g} to {raw.max():.4g}; use --noise unit"
        )
    hot = 0
    if preparation.hot_pixel_sd > 0:
        raw, replaced = imaging.replace_hot_pixels(raw, preparation.hot_pixel_sd)
        hot = int(replaced.sum())
    pixel_size_A = stack.optics[stack.optics_of[rows[0]]].pixel_size_A
    if preparation.flip_phases:
        assert stack.ctf is not None
        raw = ctf.flip_phases(raw, stack.ctf[rows], pixel_size_A)
    step = preparation.pixel_size_A / pixel_size_A
    if raw.shape[-1] != preparation.box or abs(step - 1) > 1e-6:
        raw = imaging.resample(raw, imaging.fourier_resampling(raw.shape[-1], preparation.box, max(step, 1.0)))
    # Cropping rings at sharp edges, a little below 0 and above 1.
    images = imaging.normalise(raw, preparation.mask_radius_px) if preparation.normalise else raw.clip(0, 1)
    if preparation.invert:
        images = -images if preparation.normalise else 1 - images
    return np.where(usable[:, None, None], images, np.float32(0)).astype(np.float32), usable, hot


def prepare(
    stack: ParticleStack, preparation: Preparation
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]]:
    """Prepare a whole stack in portions of bounded memory: ``(rows [k], images [k, box, box], usable [k])``.

    Portions come in the order of the disk; reading and arithmetic of the next ones go on while one is used.
    """
    if min(stack.boxes) < preparation.box:
        raise ParticleFileError(
            f"{stack.source}: images of {min(stack.boxes)} px are smaller than the {preparation.box} px the run was trained on"
        )
    size = max(1, CHUNK_BYTES // (4 * max(stack.boxes) ** 2))
    workers = min(4, os.cpu_count() or 1)

    def work(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        images, usable, _ = prepare_chunk(stack, rows, preparation)
        return rows, images, usable

    with ThreadPoolExecutor(workers) as pool:
        portions = stack.chunks(size)
        pending: deque[Future[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]]] = deque(
            pool.submit(work, rows) for rows in islice(portions, workers + 1)
        )
        while pending:
            done = pending.popleft().result()
            pending.extend(pool.submit(work, rows) for rows in islice(portions, 1))
            yield done


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """Prepared images of a stack, in the stack's order, memory-mapped."""

    pixels: NDArray[np.floating]
    """[n, box, box]"""
    usable: NDArray[np.bool_]
    """[n]; False for constant or NaN images, whose pixels are zero."""

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Images with a channel axis, ready for the model; shape [k, 1, box, box]."""
        return self.pixels[rows].astype(np.float32)[:, None]


def prepared_images(
    stack: ParticleStack,
    preparation: Preparation,
    cache: Path,
    dtype: str = "float16",
    progress: Callable[[int], None] = lambda _: None,
) -> PreparedImages:
    """Open the cache of a stack's prepared images, making it first if it is not there.

    Parameters
    ----------
    cache
        Folder; the file's name is a digest of the preparation and of the stacks' names, sizes and dates.
    progress
        Called with the number of particles prepared since the last call.
    """
    digest = _digest(stack, preparation, dtype)
    pixels_at, usable_at = cache / f"images_{digest}.npy", cache / f"usable_{digest}.npy"
    if not (pixels_at.is_file() and usable_at.is_file()):
        shape = (len(stack), preparation.box, preparation.box)
        usable = np.zeros(len(stack), dtype=np.bool_)
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        # Written, not mapped: where the disk is full a write says so, while a store into a mapped hole kills the program.
        with atomic_path(pixels_at, overwrite=True) as temporary, temporary.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            start = stream.tell()
            for rows, images, good in prepare(stack, preparation):
                for row, image in zip(rows.tolist(), images.astype(dtype), strict=True):
                    stream.seek(start + row * image.nbytes)
                    stream.write(image.data)
                usable[rows] = good
                progress(len(rows))
        with atomic_path(usable_at, overwrite=True) as temporary:
            np.save(temporary, usable)
    return PreparedImages(np.load(pixels_at, mmap_mode="r"), np.load(usable_at))


def _digest(stack: ParticleStack, preparation: Preparation, dtype: str) -> str:
    files = [(str(file.path), file.path.stat().st_size, file.path.stat().st_mtime_ns) for file in stack.files]
    digest = hashlib.sha256(json.dumps([to_json(preparation), dtype, files]).encode())
    digest.update(stack.file_of.tobytes() + stack.index_of.tobytes() + stack.pixel_size_A.tobytes())
    if stack.ctf is not None and preparation.flip_phases:
        digest.update(np.stack(list(vars(stack.ctf).values())).tobytes())
    return digest.hexdigest()[:16]
