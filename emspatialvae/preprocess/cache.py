"""Prepared images on the disk, made once and opened again by what they were made of."""

import hashlib
import json
import mmap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.io.atomic import atomic_path
from emspatialvae.io.json_dataclass import to_json
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.preparation import Portion, Preparation, prepare


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """Prepared images of a stack, in the stack's order, memory-mapped."""

    pixels: NDArray[np.floating]
    """[n, box, box], of images with several channels [n, channels, box, box]"""
    usable: NDArray[np.bool_]
    """[n]; False for constant or NaN images, whose pixels are zero."""
    group: NDArray[np.int32]
    """[n], optics groups."""
    ctf_power: NDArray[np.float32] | None = None
    """[n, box // 2 + 1], see `Portion`."""

    def __len__(self) -> int:
        return len(self.pixels)

    def portion(self, rows: NDArray[np.int64]) -> Portion:
        """Some of the particles, in the order asked."""
        power = None if self.ctf_power is None else np.asarray(self.ctf_power[rows])
        images = self.pixels[rows].astype(np.float32)
        _forget(self.pixels)
        return Portion(rows, images, self.usable[rows], self.group[rows], power)


def _forget(mapped: NDArray[Any]) -> None:
    """Give the pages of a memory-mapped file back, or a few epochs would count the whole file as this process's memory.

    They stay in the system's cache, so that the next look costs next to nothing.
    """
    pages = getattr(mapped, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


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
    files = _cache_files(stack, preparation, cache, dtype)
    if not all(file.is_file() for file in files.values()):
        _make_cache(stack, preparation, files, dtype, progress)
    return _open_cache(stack, files)


def cached_images(
    stack: ParticleStack, preparation: Preparation, cache: Path, dtype: str = "float16"
) -> PreparedImages | None:
    """What `prepared_images` would open, None where it would have to make it first."""
    files = _cache_files(stack, preparation, cache, dtype)
    return _open_cache(stack, files) if all(file.is_file() for file in files.values()) else None


def _cache_files(stack: ParticleStack, preparation: Preparation, cache: Path, dtype: str) -> dict[str, Path]:
    digest = _digest(stack, preparation, dtype)
    kinds = ("images", "usable", "ctf") if preparation.ctf == "multiply" else ("images", "usable")
    return {kind: cache / f"{kind}_{digest}.npy" for kind in kinds}


def _open_cache(stack: ParticleStack, files: dict[str, Path]) -> PreparedImages:
    power = np.load(files["ctf"], mmap_mode="r") if "ctf" in files else None
    return PreparedImages(np.load(files["images"], mmap_mode="r"), np.load(files["usable"]), stack.optics_of, power)


def _make_cache(
    stack: ParticleStack, preparation: Preparation, files: dict[str, Path], dtype: str, progress: Callable[[int], None]
) -> None:
    n, box = len(stack), preparation.box
    usable = np.zeros(n, dtype=np.bool_)
    with ExitStack() as stack_of_files:
        shape = (n, box, box) if stack.channels == 1 else (n, stack.channels, box, box)
        put_images = stack_of_files.enter_context(_rows_file(files["images"], shape, dtype))
        put_power = None
        if "ctf" in files:
            put_power = stack_of_files.enter_context(_rows_file(files["ctf"], (n, box // 2 + 1), "float32"))
        for portion in prepare(stack, preparation):
            put_images(portion.rows, portion.images)
            if put_power is not None and portion.ctf_power is not None:
                put_power(portion.rows, portion.ctf_power)
            usable[portion.rows] = portion.usable
            progress(len(portion))
    with atomic_path(files["usable"], overwrite=True) as temporary:
        np.save(temporary, usable)


@contextmanager
def _rows_file(
    path: Path, shape: tuple[int, ...], dtype: str
) -> Iterator[Callable[[NDArray[np.int64], NDArray[np.floating]], None]]:
    """A .npy file whose rows may be written in any order: yields the function that writes some.

    Written, not mapped: where the disk is full a write says so, while a store into a mapped hole kills the program.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with atomic_path(path, overwrite=True) as temporary, temporary.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        start = stream.tell()

        def put(rows: NDArray[np.int64], values: NDArray[np.floating]) -> None:
            for row, value in zip(rows.tolist(), values.astype(dtype), strict=True):
                stream.seek(start + row * value.nbytes)
                stream.write(value.data)

        yield put


def _digest(stack: ParticleStack, preparation: Preparation, dtype: str) -> str:
    files = [(str(file.path), file.path.stat().st_size, file.path.stat().st_mtime_ns) for file in stack.files]
    digest = hashlib.sha256(json.dumps([to_json(preparation), dtype, files]).encode())
    digest.update(stack.file_of.tobytes() + stack.index_of.tobytes() + stack.pixel_size_A.tobytes())
    if preparation.ctf != "none":
        done = np.array([(group.phase_flipped, group.ctf_premultiplied) for group in stack.optics])
        digest.update(done[stack.optics_of].tobytes())
        if stack.ctf is not None:
            digest.update(np.stack(list(vars(stack.ctf).values())).tobytes())
    return digest.hexdigest()[:16]
