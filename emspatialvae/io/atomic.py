"""Results appear whole or not at all: written beside their place under a temporary name, renamed when complete.

Before a name is given, what it stands for is on the disk (``fsync``), so that a power loss leaves the old or the new, never an
empty file. Nothing that appears at a destination in the meantime is replaced unless that was asked for: the last step is a rename that
refuses to replace, or a hard link, both of which are atomic on NFS, too; no lock of the system is relied on.
"""

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from emspatialvae.errors import EmsvaeError, OutputExistsError
from emspatialvae.io import leftovers

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_UNKNOWN = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""What systems and file systems answer that do not know a way of renaming, or of syncing a folder."""
_AT_FDCWD, _NOREPLACE, _EXCHANGE = -100, 1, 2
_swept: set[Path] = set()
"""Folders that were looked through for leftovers: once per process is enough."""


@contextmanager
def atomic_path(destination: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to ``destination``; rename it there when the body ends well, remove it otherwise.

    Missing parent folders are created. A symbolic link at ``destination`` is replaced, never written through: in RELION
    projects links often point at somebody's raw data.

    Raises
    ------
    OutputExistsError
        ``destination`` exists and ``overwrite`` is false; raised before the body runs, and after it where it has appeared since.
    EmsvaeError
        The disk is full, the folder cannot be made or written to, or ``destination`` is a folder.
    """
    destination = Path(destination)
    check_writable(destination, overwrite)
    _make_parent(destination)
    temporary = leftovers.temporary_beside(destination)
    try:
        yield temporary
        sync(temporary)
        if overwrite:
            temporary.replace(destination)
        else:
            place_new(temporary, destination)
        sync(destination.parent)
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
    temporary = leftovers.temporary_beside(destination, ending="")
    try:
        _make_parent(temporary / "in it")
        yield temporary
        sync_tree(temporary)
        replace_folder(temporary, destination)
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


def check_writable(destination: Path, overwrite: bool) -> None:
    """Refuse a place as `atomic_path` would, without touching anything: to fail before the work, not after."""
    if not overwrite and (destination.exists() or destination.is_symlink()):
        raise OutputExistsError(destination)
    if destination.is_dir():
        raise EmsvaeError(f"{destination} is a folder, a file is to be written there; choose another --out")


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path] = ()) -> None:
    """Refuse outputs that are what is read, under any name or link, or that are one file: ``--force`` changes nothing about that.

    Raises
    ------
    EmsvaeError
        Names the first such output.
    """
    read = {_same(path): path for path in inputs}
    written: dict[object, Path] = {}
    for output in outputs:
        mark = _same(output)
        if mark in read:
            raise EmsvaeError(
                f"{output} is what is read ({read[mark]}): no command replaces its own input; choose another name"
            )
        if mark in written:
            raise EmsvaeError(f"{output} is asked for twice; give each output a name of its own")
        written[mark] = output


def _same(path: Path) -> object:
    """Equal for two paths that lead to one file."""
    try:
        found = path.stat()
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


# ------------------------------------------------------------------------------------------------------------- renames


def place_new(source: Path, destination: Path) -> None:
    """Give a file (or a folder) a name that nothing has.

    Raises
    ------
    OutputExistsError
        Something has it.
    """
    try:
        if _renameat2(source, destination, _NOREPLACE):
            return
        if source.is_dir():  # a folder replaces none but an empty one
            if os.path.lexists(destination) and not (destination.is_dir() and not any(destination.iterdir())):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(destination))
            source.rename(destination)
            return
        _link_or_claim(source, destination)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise OutputExistsError(destination) from None
        raise


def _link_or_claim(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except FileExistsError:
        # The answer of an NFS server may be lost and the request repeated: the number of links tells.
        if source.stat().st_nlink != 2 or not source.samefile(destination):
            raise
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        # A file system without hard links: the name is claimed, then the file put there.
        os.close(os.open(destination, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        source.replace(destination)
        return
    source.unlink()


def replace_folder(source: Path, destination: Path) -> None:
    """Give a folder the name that another (or a link) may have, which is removed; at no time is there none, where the system can do that."""
    if not os.path.lexists(destination):
        source.rename(destination)
        sync(destination.parent)
        return
    if _renameat2(source, destination, _EXCHANGE):
        sync(destination.parent)
        leftovers.remove(source)
        return
    old = leftovers.temporary_beside(destination, leftovers.OLD)
    destination.rename(old)
    try:
        source.rename(destination)
    except BaseException:
        old.rename(destination)
        raise
    sync(destination.parent)
    leftovers.remove(old)


def _renameat2(source: Path, destination: Path, flag: int) -> bool:
    """Linux's rename that does not replace, or that exchanges two names; False where it is not known here."""
    rename = _libc_renameat2()
    if rename is None:
        return False
    sys.audit("os.rename", os.fspath(source), os.fspath(destination), -1, -1)
    if rename(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(destination), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), os.fspath(destination))


def _libc_renameat2() -> "ctypes._NamedFuncPointer | None":
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


# ----------------------------------------------------------------------------------------------------------- the disk


def sync(path: Path) -> None:
    """Return when a file's bytes, or a folder's names, are on the disk; a file system that cannot say is believed."""
    folder = path.is_dir()
    if folder and sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (folder and error.errno in _UNKNOWN | {errno.EBADF}):
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync` a folder and all that is in it."""
    for place, _, names in os.walk(folder):
        for name in names:
            file = Path(place) / name
            if not file.is_symlink():
                sync(file)
        sync(Path(place))


def _make_parent(destination: Path) -> None:
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EmsvaeError(
            f"the folder {destination.parent} cannot be made ({error.strerror}); choose another --out"
        ) from error
    if destination.parent not in _swept:
        _swept.add(destination.parent)
        leftovers.sweep(destination.parent)


def _refusal(destination: Path, error: OSError) -> str:
    return f"{destination} cannot be written ({error.strerror}); nothing was left behind, choose another --out"
