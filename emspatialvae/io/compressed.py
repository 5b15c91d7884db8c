"""Compressed stacks (gzip, bzip2, xz, zstd) and HDF5 stacks: unpacked into a temporary file that only this process sees, because images are read at random.

The temporary file has no name, so that nothing is left of it however the process ends. The last few are kept.
"""

import bz2
import errno
import gzip
import importlib
import lzma
import os
import shutil
import tempfile
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from emspatialvae.errors import ParticleFileError
from emspatialvae.io import hdf

_MAGIC = {hdf.MAGIC: "HDF5", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
ENDINGS = (".gz", ".bz2", ".xz", ".zst")
"""Of the names of such files."""
_KEPT_FILES = 16
_COPY_BYTES = 1 << 20
_kept: "OrderedDict[tuple[str, int, int], IO[bytes]]" = OrderedDict()
_one_at_a_time = threading.Lock()


def kind_of(head: bytes) -> str | None:
    """With what a file is compressed (or HDF5) that begins so; None: it lies there as it is."""
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def bare_name(path: Path) -> Path:
    """The name without the ending of a compressed file."""
    return path.with_suffix("") if path.suffix.lower() in ENDINGS else path


def unpacked(path: Path, kind: str) -> IO[bytes]:
    """What a compressed file holds, as an open file: to be mapped or read by whoever asks, not to be closed.

    Raises
    ------
    ParticleFileError
        Damaged or cut short; no room for what it holds; zstd without the package that reads it.
    OSError
        It cannot be opened.
    """
    state = path.stat()
    key = (os.path.realpath(path), state.st_mtime_ns, state.st_size)
    with _one_at_a_time:
        if key not in _kept:
            _kept[key] = _unpack(path, kind)
            while len(_kept) > _KEPT_FILES:
                # Those who have mapped it keep their map.
                _kept.popitem(last=False)[1].close()
        _kept.move_to_end(key)
        return _kept[key]


def _unpack(path: Path, kind: str) -> IO[bytes]:
    opened = None if kind == "HDF5" else _opener(path, kind)
    out = tempfile.TemporaryFile(prefix="emsvae_")  # noqa: SIM115  # it outlives this function
    try:
        if opened is None:
            hdf.write_as_mrc(path, out)
        else:
            with closing(opened(path)) as stream:
                shutil.copyfileobj(stream, out, _COPY_BYTES)
        out.flush()
    except Exception as error:
        out.close()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ParticleFileError(
                f"{path} is compressed ({kind}) and there is no room for its images in {tempfile.gettempdir()}; let TMPDIR name a folder with"
                " more room, or decompress it"
            ) from None
        if isinstance(error, (*_DAMAGED, ValueError)) or type(error).__name__ == "ZstdError":
            raise ParticleFileError(
                f"{path} is compressed ({kind}) and damaged or cut short ({error}); copy it again"
            ) from None
        raise
    return out


_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)


def _opener(path: Path, kind: str) -> Callable[[Path], Any]:
    if kind != "zstd":
        return {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}[kind]
    for name in ("compression.zstd", "zstandard"):  # the standard library has it from Python 3.14 on
        try:
            return importlib.import_module(name).open
        except ImportError:
            continue
    raise ParticleFileError(
        f'{path} is compressed (zstd), which needs a package to read: pip install "emspatialvae[zstd]", or decompress it with unzstd'
    )
