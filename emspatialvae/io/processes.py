"""Which process made a file or holds a lock, and whether it still lives; also where several machines see one disk."""

import os
import secrets
import socket
import sys
import zlib
from pathlib import Path

HOST = socket.gethostname()
HOST_NUMBER = f"{zlib.crc32(HOST.encode()):08x}"
"""Of the machine, for names of files."""
TOKEN = secrets.token_hex(4)
"""Of this process: its number may have belonged to another one before."""


def started(pid: int) -> int | None:
    """When a process of this machine began, in ticks since the machine did; None where the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name of the program comes second, in brackets, and may hold anything.
    words = stat.rpartition(")")[2].split()
    return int(words[19]) if len(words) > 19 else None


def lives(pid: int, began: int | None = None) -> bool:
    """Whether a process of this machine lives; with ``began``, whether it is the one that began then.

    Where that cannot be found out (Windows), it is taken to live.
    """
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    now = started(pid)
    return began is None or now is None or now == began
