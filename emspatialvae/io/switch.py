"""Several results of one command take their places together: all are written aside, then one rename decides that they count.

``FOLDER/.switch`` holds the new files and folders and a list of what to do (``moves.json``); it gets its name in one rename when all of
it is on the disk. From then on the list is carried out, by whoever comes next if the process was killed in the middle of it.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from emspatialvae.errors import EmsvaeError, RunFolderError
from emspatialvae.io import leftovers, lock
from emspatialvae.io.atomic import atomic_path, sync, sync_tree

NAME = ".switch"
_MOVES, _NEW, _OLD = "moves.json", "new", "old"
WAIT_S = 20.0


@dataclass
class Switch:
    """What will take its place in a folder."""

    folder: Path
    """Where to write: what is made here, a file or a folder, replaces that of the same name."""
    remove: list[str] = field(default_factory=list)
    """Names of files and folders that go."""


@contextmanager
def switching(folder: Path) -> Iterator[Switch]:
    """Yield a `Switch`; when the body ends well all of it takes its place in ``folder``, otherwise nothing does.

    Raises
    ------
    EmsvaeError
        The disk is full, or the folder cannot be written to.
    """
    finish(folder)
    temporary = leftovers.temporary_beside(folder / "switch", ending="")
    try:
        try:
            for part in (_NEW, _OLD):
                (temporary / part).mkdir(parents=True)
        except OSError as error:
            raise EmsvaeError(f"{folder} cannot be written ({error.strerror}); nothing was changed") from error
        asked = Switch(temporary / _NEW)
        yield asked
        replaced = sorted(entry.name for entry in asked.folder.iterdir())
        for name in replaced:
            _check_kind(asked.folder / name, folder / name)
        moves = {"replace": replaced, "remove": asked.remove}
        with atomic_path(temporary / _MOVES) as file:
            file.write_text(json.dumps(moves))
        sync_tree(temporary)
        temporary.rename(folder / NAME)
        sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _carry_out(folder)


def finish(folder: Path) -> bool:
    """Carry out what a killed command has decided; to be called before a folder is read.

    Returns
    -------
    Whether there was anything.

    Raises
    ------
    RunFolderError
        It cannot be carried out: the folder is write-protected.
    """
    if not os.path.lexists(folder / NAME):
        return False
    until = time.monotonic() + WAIT_S
    while lock.in_use_by(folder) is not None and (folder / NAME).exists() and time.monotonic() < until:
        time.sleep(0.05)  # its owner lives and is at it
    if not os.path.lexists(folder / NAME):
        return False
    try:
        with lock.locked(folder):
            _carry_out(folder)
    except (OSError, EmsvaeError) as error:
        raise RunFolderError(
            f"{folder}: a command was killed while its results took their places, and they cannot be put there now ({error}); make the "
            "folder writable and try again"
        ) from None
    return True


def _check_kind(new: Path, place: Path) -> None:
    """A file takes the place of a file or link, a folder that of a folder or link; anything else is not ours."""
    if os.path.lexists(place) and not place.is_symlink() and place.is_dir() != new.is_dir():
        found, wanted = ("folder", "file") if place.is_dir() else ("file", "folder")
        raise EmsvaeError(f"{place} is a {found}, where a {wanted} of results is to go; move it away")


def _carry_out(folder: Path) -> None:
    pending = folder / NAME
    if (pending / _MOVES).is_file():
        moves = json.loads((pending / _MOVES).read_text())
        for name in moves["remove"]:
            if os.path.lexists(folder / name) and not os.path.lexists(pending / _OLD / name):
                (folder / name).rename(pending / _OLD / name)
        for name in moves["replace"]:
            new, old = pending / _NEW / name, pending / _OLD / name
            if not os.path.lexists(new):
                continue
            if new.is_dir() and os.path.lexists(folder / name):
                (folder / name).rename(old)
            new.replace(folder / name)
        sync(folder)
        (pending / _MOVES).unlink()
    shutil.rmtree(pending, ignore_errors=True)
