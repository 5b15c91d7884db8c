"""Prepared images on the disk, made once and opened again by what they were made of."""

import hashlib
import json
import mmap
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import EmsvaeError
from emspatialvae.io.atomic import atomic_path
from emspatialvae.io.json_dataclass import to_json
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.preparation import Portion, Preparation, prepare

SUMMED_ROWS = 4096
"""Of the cache, whose sums are compared before their memory is given back."""


class ImageSource(Protocol):
    """A run's images as its model sees them, wherever they come from."""

    @property
    def box(self) -> int:
        """Pixels along an edge."""
        ...

    @property
    def has_ctf_power(self) -> bool:
        """Whether portions come with the CTF's power on rings."""
        ...

    def __len__(self) -> int:
        """How many particles there are."""
        ...

    def portion(self, rows: NDArray[np.int64], /) -> Portion:
        """Some of the particles, in the order asked."""
        ...


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

    @property
    def box(self) -> int:
        """Pixels along an edge."""
        return self.pixels.shape[-1]

    @property
    def has_ctf_power(self) -> bool:
        """Whether portions come with the CTF's power on rings."""
        return self.ctf_power is not None

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
    say: Callable[[str], None] = lambda _: None,
) -> PreparedImages:
    """Open the cache of a stack's prepared images, making it first if it is not there, or anew if it is damaged.

    Every byte of it is looked at, against the sums that were written with it.

    Parameters
    ----------
    cache
        Folder; the file's name is a digest of the preparation and of the stacks' names, sizes and dates.
    progress
        Called with the number of particles prepared since the last call.
    say
        Receives a sentence where the cache was damaged.
    """
    files = _cache_files(stack, preparation, cache, dtype)
    if all(file.is_file() for file in files.values()):
        found = _open_cache(stack, preparation, files, dtype)
        if found is not None and _is_sound(found, files):
            return found
        say(f"the prepared images in {cache} are damaged; they are made again")
    _make_cache(stack, preparation, files, dtype, progress)
    made = _open_cache(stack, preparation, files, dtype)
    if made is None:
        raise EmsvaeError(f"the prepared images in {cache} cannot be read back; choose another place with --cache")
    return made


def cached_images(
    stack: ParticleStack, preparation: Preparation, cache: Path, dtype: str = "float16"
) -> PreparedImages | None:
    """What `prepared_images` would open, None where it would have to make it first; its sums are not looked at."""
    files = _cache_files(stack, preparation, cache, dtype)
    return _open_cache(stack, preparation, files, dtype) if all(file.is_file() for file in files.values()) else None


def forget_other_caches(stack: ParticleStack, preparation: Preparation, cache: Path, dtype: str) -> None:
    """Remove from a run's own cache what was prepared from the stacks before they were moved or copied: nobody will open it again."""
    kept = set(_cache_files(stack, preparation, cache, dtype).values())
    for kind in ("images", "usable", "ctf", "sums"):
        for file in set(cache.glob(f"{kind}_{'[0-9a-f]' * 16}.npy")) - kept:
            file.unlink(missing_ok=True)


def _cache_files(stack: ParticleStack, preparation: Preparation, cache: Path, dtype: str) -> dict[str, Path]:
    digest = _digest(stack, preparation, dtype)
    kinds = ("images", "usable", *(["ctf"] if preparation.ctf == "multiply" else []), "sums")
    return {kind: cache / f"{kind}_{digest}.npy" for kind in kinds}


def _open_cache(
    stack: ParticleStack, preparation: Preparation, files: dict[str, Path], dtype: str
) -> PreparedImages | None:
    """The cache as it lies on the disk; None where it is not what its name says."""
    try:
        opened = {
            kind: np.load(file, mmap_mode="r", allow_pickle=False) for kind, file in files.items() if kind != "sums"
        }
    except (ValueError, EOFError, OSError):
        return None
    found = PreparedImages(opened["images"], np.array(opened["usable"]), stack.optics_of, opened.get("ctf"))
    n, box = len(stack), preparation.box
    wanted = {
        "images": (_images_shape(stack, preparation), np.dtype(dtype)),
        "usable": ((n,), np.dtype(bool)),
        "ctf": ((n, box // 2 + 1), np.dtype(np.float32)),
    }
    return found if all((rows.shape, rows.dtype) == wanted[kind] for kind, rows in opened.items()) else None


def _is_sound(found: PreparedImages, files: dict[str, Path]) -> bool:
    """Whether every row has the sum that was written with it."""
    try:
        sums = np.load(files["sums"], allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return False
    parts = [found.pixels] if found.ctf_power is None else [found.pixels, found.ctf_power]
    if sums.shape != (len(parts) + 1, len(found)) or not np.array_equal(sums[-1], found.usable):
        return False
    for rows, known in zip(parts, sums, strict=False):
        plain = np.asarray(rows)
        for start in range(0, len(plain), SUMMED_ROWS):
            some = plain[start : start + SUMMED_ROWS]
            if known[start : start + SUMMED_ROWS].tolist() != [zlib.crc32(row) for row in some]:
                return False
            _forget(rows)
    return True


def _images_shape(stack: ParticleStack, preparation: Preparation) -> tuple[int, ...]:
    channels = () if stack.channels == 1 else (stack.channels,)
    return len(stack), *channels, preparation.box, preparation.box


def _make_cache(
    stack: ParticleStack, preparation: Preparation, files: dict[str, Path], dtype: str, progress: Callable[[int], None]
) -> None:
    n, box = len(stack), preparation.box
    usable = np.zeros(n, dtype=np.bool_)
    sums = np.zeros((len(files) - 1, n), np.uint32)  # of the images, of the CTF where there is one, and who is usable
    with ExitStack() as stack_of_files:
        shape = _images_shape(stack, preparation)
        put_images = stack_of_files.enter_context(_rows_file(files["images"], shape, dtype, sums[0]))
        put_power = None
        if "ctf" in files:
            put_power = stack_of_files.enter_context(_rows_file(files["ctf"], (n, box // 2 + 1), "float32", sums[1]))
        for portion in prepare(stack, preparation):
            put_images(portion.rows, portion.images)
            if put_power is not None and portion.ctf_power is not None:
                put_power(portion.rows, portion.ctf_power)
            usable[portion.rows] = portion.usable
            progress(len(portion))
    sums[-1] = usable
    for kind, values in (("usable", usable), ("sums", sums)):
        with atomic_path(files[kind], overwrite=True) as temporary:
            np.save(temporary, values)


@contextmanager
def _rows_file(
    path: Path, shape: tuple[int, ...], dtype: str, sums: NDArray[np.uint32]
) -> Iterator[Callable[[NDArray[np.int64], NDArray[np.floating]], None]]:
    """A .npy file whose rows may be written in any order: yields the function that writes some, and puts their CRC into ``sums``.

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
                sums[row] = zlib.crc32(value)

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
