"""Names of temporary files and folders, and their removal where the process that made them was killed.

A temporary name says who made it: ``.STEM.emsvae-MACHINE-PROCESS-TOKEN-NUMBER.suffix``. What a process of this machine that is no more
has left is removed the next time that something is written beside it. What was left by a process of another machine, which cannot be
asked, is removed when nobody has touched it for `ABANDONED_S`.
"""

import itertools
import os
import re
import shutil
import time
from pathlib import Path

from emspatialvae.io import processes

ABANDONED_S = 7 * 86400.0
STEM_BYTES = 60
"""Of a long name no more is kept: with all of it the temporary name might pass the 255 bytes that file systems allow."""
OLD = ".old"
"""Ending of a folder that was moved aside while another takes its place."""

_NAME = re.compile(
    r"\.(?P<stem>.+)\.emsvae-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<token>[0-9a-f]{8})-\d+(?P<ending>\.[^.]*)?",
    re.DOTALL,
)
_numbers = itertools.count()
_removed: list[str] = []


def temporary_beside(destination: Path, ending: str | None = None) -> Path:
    """A name beside ``destination`` that nobody has, with its suffix (or ``ending``)."""
    stem = os.fsdecode(os.fsencode(destination.stem if ending is None else destination.name)[:STEM_BYTES])
    mark = f"emsvae-{processes.HOST_NUMBER}-{os.getpid()}-{processes.TOKEN}-{next(_numbers)}"
    return destination.with_name(f".{stem}.{mark}{destination.suffix if ending is None else ending}")


def is_temporary(name: str) -> bool:
    """Whether a name is one of ours for something that is not whole yet."""
    return _NAME.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Remove from a folder what killed processes have left there; `told` says what.

    A folder that was moved aside by a process that was killed before another took its place goes back to it.
    """
    try:
        entries = [entry for entry in os.scandir(folder) if ".emsvae-" in entry.name]
    except OSError:
        return
    for entry in entries:
        found = _NAME.fullmatch(entry.name)
        if found is None or not _is_left(found, Path(entry.path)):
            continue
        place = folder / found["stem"]
        if found["ending"] == OLD and not os.path.lexists(place) and len(os.fsencode(found["stem"])) < STEM_BYTES:
            Path(entry.path).rename(place)
            _removed.append(f"{place} is back in its place, from which a command that was killed had moved it")
            continue
        remove(Path(entry.path))
        if not os.path.lexists(entry.path):
            _removed.append(f"removed {entry.path}, left by a command that was killed")


def note(sentence: str) -> None:
    """Have something more told, about what a killed command has left."""
    _removed.append(sentence)


def told() -> list[str]:
    """Sentences about what `sweep` has removed since the last call."""
    sentences = list(_removed)
    _removed.clear()
    return sentences


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, as far as that is allowed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            return


def _is_left(found: re.Match[str], path: Path) -> bool:
    if found["host"] != processes.HOST_NUMBER:
        return _touched(path) < time.time() - ABANDONED_S
    pid = int(found["pid"])
    if pid == os.getpid():
        return found["token"] != processes.TOKEN
    return not processes.lives(pid)


def _touched(path: Path) -> float:
    """When anything in it was written last."""
    newest = path.lstat().st_mtime
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            newest = max(newest, os.lstat(os.path.join(folder, name)).st_mtime)  # noqa: PTH118
    return newest
