"""MRC image stacks: headers that can be trusted, images read where they lie, stacks written as a stream.

Whether a file is a stack is decided by who reads it, not by its header: real stacks come with space group 1, without
the MAP stamp, with a cell of size zero, and a stack of one image looks like a 2-D image.
"""

import io
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.mrcinterpreter import MrcInterpreter
from numpy.typing import ArrayLike, NDArray

from emspatialvae.errors import ParticleFileError
from emspatialvae.io import compressed
from emspatialvae.io.atomic import atomic_path

_HEADER_BYTES = 1024
_NSYMBT = slice(92, 96)
_DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_LARGEST_SIDE = 1 << 20
_IMOD_STAMP, _IMOD_SIGNED_BYTES = 1146047817, 1
_IMOD_FIELDS = slice(152, 160)
"""IMOD's stamp and its flags (words 39 and 40 of the header), of which bit 0 says that the bytes of mode 0 are signed."""


@dataclass(frozen=True)
class MrcHeader:
    """What is needed to read the images of a stack.

    Attributes
    ----------
    path
        The file.
    n_images, height, width
        The images; height counts rows (y), width columns (x), both in pixels.
    dtype
        Of the pixels on disk, byte order included.
    offset_bytes
        Where the first image starts, behind the extended header.
    pixel_size_A
        In Angstrom; None where the header says 0 or 1 (unknown), or nonsense.
    ispg
        Space group as written: 0 for a stack, though many stacks say 1.
    notes
        What is odd about the file, half a sentence each, without its name.
    compression
        "gzip", say; None of a file that is read where it lies.
    """

    path: Path
    n_images: int
    height: int
    width: int
    dtype: np.dtype[Any]
    offset_bytes: int
    pixel_size_A: float | None
    ispg: int
    notes: tuple[str, ...] = ()
    compression: str | None = None


def read_header(path: Path) -> MrcHeader:
    """Read and check the header of an MRC file; no image is touched.

    Raises
    ------
    ParticleFileError
        Not found, unreadable, not an MRC file, a mode without real pixels, sizes that are not positive, or
        fewer images in the file than the header promises.
    """
    path = Path(path)
    try:
        head, size_bytes, kind = _head_of(path)
    except OSError as error:
        raise ParticleFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(head) < _HEADER_BYTES:
        raise ParticleFileError(
            f"{path} is not an MRC file: {len(head)} bytes long, the header alone takes {_HEADER_BYTES}"
        )
    fields, extended_bytes = _parse(head)
    _check_fields(path, fields)
    dtype, about_bytes = _dtype(fields, head)
    images_bytes = int(fields.nz) * int(fields.ny) * int(fields.nx) * dtype.itemsize
    offset_bytes, about_size = _offset_bytes(size_bytes, max(extended_bytes, 0), images_bytes)
    about_compression = ()
    if kind is not None:
        about_compression = (
            f"{'an HDF5 file' if kind == 'HDF5' else f'compressed ({kind})'}: every command unpacks it into a temporary file (TMPDIR), and RELION does not read it",
        )
    header = MrcHeader(
        path=path,
        n_images=int(fields.nz),
        height=int(fields.ny),
        width=int(fields.nx),
        dtype=dtype,
        offset_bytes=offset_bytes,
        pixel_size_A=_pixel_size_A(fields),
        ispg=int(fields.ispg),
        notes=(*about_compression, *about_bytes, *about_size),
        compression=kind,
    )
    held = max(size_bytes - header.offset_bytes, 0) // (header.height * header.width * dtype.itemsize)
    if held < header.n_images:
        raise ParticleFileError(
            f"{path} is cut short: its header promises {header.n_images} images of {header.height} x {header.width}"
            f" pixels, the file holds {held}; copy it again"
        )
    return header


def read_images(header: MrcHeader, indices: ArrayLike) -> NDArray[np.float32]:
    """Read images by 0-based index, in any order and with repeats: float32, native byte order, [k, height, width].

    The disk is visited in ascending order whatever the order asked for.

    Raises
    ------
    ParticleFileError
        An index outside the stack, or a file that has become shorter since its header was read.
    """
    wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
    outside = wanted[(wanted < 0) | (wanted >= header.n_images)]
    if len(outside):
        raise ParticleFileError(
            f"image {outside[0] + 1} (counted from 1) is asked for in {header.path}, which holds {header.n_images}"
        )
    out = np.empty((len(wanted), header.height, header.width), np.float32)
    shape = (header.n_images, header.height, header.width)
    try:
        source = compressed.unpacked(header.path, header.compression) if header.compression else header.path
        images = np.memmap(source, header.dtype, "r", header.offset_bytes, shape)
    except (OSError, ValueError) as error:
        raise ParticleFileError(f"{header.path} can no longer be read as its header says: {error}") from error
    for place in np.argsort(wanted, kind="stable"):
        out[place] = images[wanted[place]]
    return out


class StackWriter:
    """Write a float32 image stack of known length as a stream; it takes its name when it is complete.

    ::

        with StackWriter(path, n_images=len(rows), box=64, pixel_size_A=1.2) as writer:
            for batch in batches:
                writer.append(batch)

    Parameters
    ----------
    path
        Where the stack goes; see `emspatialvae.io.atomic.atomic_path` for what is raised.
    n_images, box
        How many square images will come, and their side in pixels.
    pixel_size_A
        In Angstrom; None writes 0, which readers take for unknown.
    overwrite
        Replace a file that is there.
    """

    def __init__(
        self, path: Path, n_images: int, box: int, pixel_size_A: float | None, overwrite: bool = False
    ) -> None:
        if n_images < 1 or box < 1:
            raise ValueError(f"a stack needs images: n_images {n_images}, box {box}")
        self.path, self.n_images, self.box, self.pixel_size_A = Path(path), n_images, box, pixel_size_A
        self._overwrite = overwrite
        self._n_written, self._mean, self._sum_squares = 0, 0.0, 0.0
        self._min, self._max = np.inf, -np.inf
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as resources:
            temporary = resources.enter_context(atomic_path(self.path, self._overwrite))
            self._stream = resources.enter_context(temporary.open("wb"))
            self._stream.write(bytes(_HEADER_BYTES))
            self._resources = resources.pop_all()
        return self

    def append(self, images: ArrayLike) -> None:
        """Write the next images, shape [k, box, box].

        Raises
        ------
        ValueError
            Another shape, more images than announced, or pixels that are not finite.
        """
        batch = np.ascontiguousarray(images, dtype="<f4")
        if batch.ndim != 3 or batch.shape[1:] != (self.box, self.box):
            raise ValueError(f"images of shape [k, {self.box}, {self.box}] expected, got {batch.shape}")
        if self._n_written + len(batch) > self.n_images:
            raise ValueError(f"{self._n_written + len(batch)} images for a stack announced with {self.n_images}")
        if not len(batch):
            return
        if not np.isfinite(batch).all():
            raise ValueError(f"pixels that are not finite in images {self._n_written} and following")
        self._stream.write(batch.data)
        self._count(batch)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._resources.__exit__(kind, error, trace)
            return
        with self._resources:
            if self._n_written != self.n_images:
                raise ValueError(f"{self.path}: {self.n_images} images announced, {self._n_written} written")
            self._stream.seek(0)
            self._stream.write(self._header())

    def _count(self, batch: NDArray[np.float32]) -> None:
        """Merge the batch into the running statistics (Chan's update: sums of squares alone would cancel)."""
        n_old, n_new = self._n_written * self.box**2, batch.size
        mean = float(batch.mean(dtype=np.float64))
        spread = float(batch.var(dtype=np.float64)) * n_new
        step = mean - self._mean
        self._mean += step * n_new / (n_old + n_new)
        self._sum_squares += spread + step**2 * n_old * n_new / (n_old + n_new)
        self._min, self._max = min(self._min, float(batch.min())), max(self._max, float(batch.max()))
        self._n_written += len(batch)

    def _header(self) -> bytes:
        """MRC2014, little-endian, as an image stack: ispg 0 and mz 1 (one section per image, not a volume)."""
        header = np.zeros((), HEADER_DTYPE.newbyteorder("<")).view(np.recarray)
        cell = self.box * (self.pixel_size_A or 0.0)
        header.nx, header.ny, header.nz = self.box, self.box, self.n_images
        header.mx, header.my, header.mz = self.box, self.box, 1
        header.mode, header.ispg = 2, 0
        header.mapc, header.mapr, header.maps = 1, 2, 3
        header.cella.x, header.cella.y, header.cella.z = cell, cell, self.pixel_size_A or 0.0
        header.cellb.alpha = header.cellb.beta = header.cellb.gamma = 90.0
        header.map, header.machst, header.nversion = b"MAP ", [0x44, 0x44, 0, 0], 20141
        header.dmin, header.dmax, header.dmean = self._min, self._max, self._mean
        header.rms = np.sqrt(self._sum_squares / (self.n_images * self.box**2))
        header.label[0], header.nlabl = b"emspatialvae", 1
        return header.tobytes()


def _head_of(path: Path) -> tuple[bytes, int, str | None]:
    """The header, the size of the file in bytes, and how it is compressed: both of what it holds then."""
    with path.open("rb") as stream:
        head = stream.read(_HEADER_BYTES)
        kind = compressed.kind_of(head)
        if kind is None:
            return head, stream.seek(0, io.SEEK_END), None
    held = compressed.unpacked(path, kind)
    held.seek(0)
    head = held.read(_HEADER_BYTES)
    return head, held.seek(0, io.SEEK_END), kind


def _parse(head: bytes) -> tuple[Any, int]:
    """Header fields in their byte order, and the length of the extended header in bytes.

    The length is hidden from mrcfile: it would read the extended header into memory, gigabytes of it when the file is
    something else. Where the stamp leaves the byte order open (mode 0 reads the same both ways), sensible sizes decide.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = io.BytesIO(head[: _NSYMBT.start] + bytes(4) + head[_NSYMBT.stop :])
        fields: Any = MrcInterpreter(stream, permissive=True, header_only=True).header
    if not _is_sensible(fields):
        swapped = fields.view(fields.dtype.newbyteorder())
        fields = swapped if _is_sensible(swapped) else fields
    extended_bytes = np.frombuffer(head[_NSYMBT], fields.nsymbt.dtype)[0]
    return fields, int(extended_bytes)


def _dtype(fields: Any, head: bytes) -> tuple[np.dtype[Any], tuple[str, ...]]:
    """Of the pixels; and what is odd about them. Bytes are signed (MRC2014), unless IMOD's stamp stands there and its flag does not."""
    dtype = np.dtype(_DTYPES[int(fields.mode)]).newbyteorder(fields.mode.dtype.byteorder)
    if int(fields.mode) != 0:
        return dtype, ()
    stamp, flags = np.frombuffer(head[_IMOD_FIELDS], fields.mode.dtype).tolist()
    if stamp != _IMOD_STAMP:
        return dtype, (
            "bytes (mode 0) without IMOD's stamp are read as signed, -128 to 127, as MRC2014 says; some programs write 0 to 255 instead, and"
            f" what is brightest then becomes darkest: the header gives {fields.dmin:.4g} as the least and {fields.dmax:.4g} as the greatest"
            " value; if they do not look right, write the stack in another mode",
        )
    return (dtype, ()) if flags & _IMOD_SIGNED_BYTES else (np.dtype("u1"), ())


def _offset_bytes(size_bytes: int, extended_bytes: int, images_bytes: int) -> tuple[int, tuple[str, ...]]:
    """Where the first image starts in a file of that size; and what is odd about it."""
    if extended_bytes and size_bytes == _HEADER_BYTES + images_bytes:
        return _HEADER_BYTES, (
            f"the header promises an extended header of {extended_bytes:,} bytes (nsymbt), but the file has exactly the size of header"
            " and images, so none is there and the images are read without it; RELION and others refuse such a file: set nsymbt to 0",
        )
    offset_bytes = _HEADER_BYTES + extended_bytes
    surplus = size_bytes - offset_bytes - images_bytes
    if surplus > 0:
        return offset_bytes, (
            f"the file is {surplus:,} bytes longer than its header says; what is behind the last image is not read, but should an"
            " extended header be missing from the header (nsymbt), all images are shifted: look at one",
        )
    return offset_bytes, ()


def _is_sensible(fields: Any) -> bool:
    sides = (int(fields.nx), int(fields.ny))
    return int(fields.mode) in _DTYPES and all(0 < side < _LARGEST_SIDE for side in sides) and int(fields.nz) > 0


def _check_fields(path: Path, fields: Any) -> None:
    mode, sizes = int(fields.mode), tuple(int(fields[name]) for name in ("nx", "ny", "nz"))
    stamped = bytes(fields["map"])[:3] == b"MAP"
    if not stamped and not _is_sensible(fields):
        raise ParticleFileError(
            f"{path} is not an MRC file: neither the MAP stamp nor sensible sizes are in its header"
        )
    if mode not in _DTYPES:
        kind = "complex numbers (a transform)" if mode in (3, 4) else "pixels in a format that is not supported"
        raise ParticleFileError(f"{path} holds {kind}, mode {mode}; modes {sorted(_DTYPES)} can be read")
    if min(sizes) <= 0:
        raise ParticleFileError(f"{path} has no usable size: its header says {sizes[0]} x {sizes[1]} x {sizes[2]}")


def _pixel_size_A(fields: Any) -> float | None:
    """Cell over sampling along x. 0 and 1 stand for "nobody set it" and are never used as a size."""
    cell, samples = float(fields.cella.x), int(fields.mx)
    size = cell / samples if samples > 0 else 0.0
    return size if np.isfinite(size) and size > 0 and abs(size - 1) > 1e-6 else None
