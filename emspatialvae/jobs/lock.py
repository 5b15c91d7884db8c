"""A lock on a file, which the system lets go of whatever its holder dies of."""

import sys
from typing import IO


def lock(stream: IO[bytes], *, wait: bool) -> None:
    """Lock a file until it is closed. Without ``wait`` this is a look whether one could: OSError where another process holds it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_SH | fcntl.LOCK_NB)
