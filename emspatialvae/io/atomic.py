"""Results appear whole or not at all: written beside their place under a temporary name, renamed when complete."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emspatialvae.errors import EmsvaeError, OutputExistsError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def atomic_path(destination: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to ``destination``; rename it there when the body ends well, remove it otherwise.

    Missing parent folders are created. A symbolic link at ``destination`` is replaced, never written through: in RELION
    projects links often point at somebody's raw data.

    Raises
    ------
    OutputExistsError
        ``destination`` exists and ``overwrite`` is false; raised before the body runs.
    EmsvaeError
        The disk is full, the folder cannot be made or written to, or ``destination`` is a folder.
    """
    destination = Path(destination)
    check_writable(destination, overwrite)
    _make_parent(destination)
    # Stem cut short: with the random part a long name would pass the 255 bytes that file systems allow.
    temporary = destination.with_name(f".{destination.stem[:60]}.{secrets.token_hex(4)}{destination.suffix}")
    try:
        yield temporary
        temporary.replace(destination)
    except OSError as error:
        # An input that cannot be read is not our affair: only errors about the output (or about no file) are explained.
        ours = error.filename is None or Path(os.fsdecode(error.filename)) in (temporary, destination)
        if error.errno in _FULL:
            raise EmsvaeError(
                f"the disk is full: {destination} was not written and nothing left behind; make room and run again"
            ) from error
        if ours and error.errno in _REFUSED:
            raise EmsvaeError(_refusal(destination, error)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(destination: Path) -> Iterator[Path]:
    """Yield a new folder next to ``destination`` that takes its place when the body ends well and vanishes otherwise.

    What is at ``destination`` is replaced as a whole: for results that are derived from others and can be made again.

    Raises
    ------
    EmsvaeError
        The disk is full, the folder cannot be made, or ``destination`` is a file.
    """
    destination = Path(destination)
    if destination.exists() and not destination.is_dir():
        raise EmsvaeError(f"{destination} is a file, a folder is to be made there; move it away")
    temporary = destination.with_name(f".{destination.name[:60]}.{secrets.token_hex(4)}")
    replaced = temporary.with_name(f"{temporary.name}.old")
    try:
        _make_parent(temporary / "in it")
        yield temporary
        if destination.exists():
            destination.rename(replaced)
        temporary.rename(destination)
    except OSError as error:
        if error.errno in _FULL:
            raise EmsvaeError(
                f"the disk is full: {destination} was not written and nothing left behind; make room and run again"
            ) from error
        if error.errno in _REFUSED and error.filename is not None and Path(os.fsdecode(error.filename)) == destination:
            raise EmsvaeError(_refusal(destination, error)) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.exists() and not destination.exists():
            replaced.rename(destination)
        shutil.rmtree(replaced, ignore_errors=True)


def check_writable(destination: Path, overwrite: bool) -> None:
    """Refuse a place as `atomic_path` would, without touching anything: to fail before the work, not after."""
    if not overwrite and (destination.exists() or destination.is_symlink()):
        raise OutputExistsError(destination)
    if destination.is_dir():
        raise EmsvaeError(f"{destination} is a folder, a file is to be written there; choose another --out")


def _make_parent(destination: Path) -> None:
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EmsvaeError(
            f"the folder {destination.parent} cannot be made ({error.strerror}); choose another --out"
        ) from error


def _refusal(destination: Path, error: OSError) -> str:
    return f"{destination} cannot be written ({error.strerror}); nothing was left behind, choose another --out"
