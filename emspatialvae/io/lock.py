"""One command at a time writes into a run folder: a file ``lock.json`` in it says who does.

The file is made by a rename or hard link that does not replace, which is atomic on every disk that several machines see; no lock of
the system is used, which NFS may lack. Whoever holds it touches it every now and then. A lock whose process is no more (or, of another
machine, that was not touched for `STALE_S`) is taken over, and that is said.
"""

import atexit
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from emspatialvae.errors import EmsvaeError, OutputExistsError, RunFolderError
from emspatialvae.io import leftovers, processes
from emspatialvae.io.atomic import atomic_path, place_new

NAME = "lock.json"
TOUCH_EVERY_S, STALE_S = 30.0, 600.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    pid: int
    host: str
    token: str
    began: int | None
    """See `processes.started`."""
    since: str
    command: str

    @classmethod
    def this_process(cls) -> "Holder":
        """Ourselves."""
        words = [Path(sys.argv[0]).name, *sys.argv[1:]]
        pid = os.getpid()
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(pid, processes.HOST, processes.TOKEN, processes.started(pid), now, " ".join(words)[:500])

    @property
    def is_us(self) -> bool:
        """Whether it is this process."""
        return (self.host, self.pid, self.token) == (processes.HOST, os.getpid(), processes.TOKEN)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"


def holder(folder: Path) -> Holder | None:
    """Who holds the lock of a folder, alive or not; None where nobody does, or a damaged file does not say who."""
    try:
        found = json.loads((folder / NAME).read_text())
        return Holder(**found)
    except (OSError, ValueError, TypeError):
        return None


def in_use_by(folder: Path) -> Holder | None:
    """Another process that is at work in a folder; None where there is none."""
    found = holder(folder)
    return None if found is None or found.is_us or _is_stale(folder, found) else found


def acquire(folder: Path) -> str | None:
    """Take the lock of a folder, which is kept until `release` or the end of the process; again and again changes nothing.

    Returns
    -------
    A sentence about a stale lock that was in the way; None where there was none.

    Raises
    ------
    RunFolderError
        Another process holds it.
    EmsvaeError
        The folder cannot be written to.
    """
    said = None
    for _ in range(3):
        try:
            with atomic_path(folder / NAME) as temporary:
                temporary.write_text(json.dumps(asdict(Holder.this_process())))
        except OutputExistsError:
            found = holder(folder)
            if found is not None and found.is_us:
                return None
            if not _is_stale(folder, found):
                raise RunFolderError(
                    f"{folder} is in use by {found or 'somebody whose lock.json is damaged'}; wait until that has ended, or stop it"
                ) from None
            said = f"{folder / NAME} was left by {found or 'a command'}, which was killed; taken over"
            _take_away(folder, found)
        else:
            _held.add(folder.absolute())
            _touch_from_now_on()
            return said
    raise RunFolderError(f"{folder} is in use by another command that has just begun; wait until that has ended")


def release(folder: Path) -> None:
    """Give the lock of a folder back; nothing happens where this process does not hold it."""
    _held.discard(folder.absolute())
    found = holder(folder)
    if found is not None and found.is_us:
        (folder / NAME).unlink(missing_ok=True)


def moved(before: Path, now: Path) -> None:
    """A folder whose lock we hold has another name."""
    _held.discard(before.absolute())
    _held.add(now.absolute())


@contextmanager
def locked(folder: Path) -> Iterator[str | None]:
    """`acquire`, and `release` after the body unless this process held the lock before; yields what `acquire` said."""
    before = holder(folder)
    ours = before is not None and before.is_us
    said = acquire(folder)
    try:
        yield said
    finally:
        if not ours:
            release(folder)


def _is_stale(folder: Path, found: Holder | None) -> bool:
    if found is not None and found.host == processes.HOST:
        return not processes.lives(found.pid, found.began)
    probe = leftovers.temporary_beside(folder / NAME)
    try:
        # Compared by the clock of the disk, which both machines see.
        probe.touch()
        return probe.stat().st_mtime - (folder / NAME).stat().st_mtime > STALE_S
    except FileNotFoundError:
        return True
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def _take_away(folder: Path, stale: Holder | None) -> None:
    """Remove a stale lock, but not that of somebody who has taken it over before us."""
    aside = leftovers.temporary_beside(folder / NAME)
    try:
        (folder / NAME).rename(aside)
    except FileNotFoundError:
        return
    try:
        taken = Holder(**json.loads(aside.read_text()))
    except (ValueError, TypeError):
        taken = None
    if taken != stale:
        place_new(aside, folder / NAME)
    aside.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ while we hold some

_held: set[Path] = set()
_toucher: threading.Thread | None = None


def _touch_from_now_on() -> None:
    global _toucher
    if _toucher is None or not _toucher.is_alive():
        _toucher = threading.Thread(target=_touch, name="locks are touched", daemon=True)
        _toucher.start()


def _touch() -> None:
    pause = threading.Event()
    while not pause.wait(TOUCH_EVERY_S):
        for folder in list(_held):
            found = holder(folder)
            if found is not None and found.is_us:
                try:
                    os.utime(folder / NAME)
                except OSError:
                    continue  # the disk is away for a moment; it is tried again


@atexit.register
def _release_all() -> None:
    for folder in list(_held):
        try:
            release(folder)
        except (OSError, EmsvaeError):
            continue
