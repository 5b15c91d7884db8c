"""What is printed comes out line by line, and output that is gone never ends the work: a closed terminal, ``| head``, a dead ``tee``."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _Steady(io.FileIO):
    """Standard output (or error) by its number; once nobody takes what is written, it goes nowhere instead of raising."""

    lost: int | None = None
    """The error that it was lost by."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.lost = error.errno
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


@dataclass
class Lost:
    """Whether output was lost, known when it has been written to the end."""

    full: bool = False
    """For want of room on a disk: not what a reader has chosen who went away."""
    _raws: list[_Steady] = field(default_factory=list)


@contextmanager
def steady_output() -> Iterator[Lost]:
    """Let standard output and error of this process fail without a word; the value says after the body what was lost."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would be taken for it
            os.open(os.devnull, os.O_RDWR)
    lost, before = Lost(), (sys.stdout, sys.stderr)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not None and (
            stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper)
        ):
            continue  # somebody catches what is printed: not ours to change
        raw = _Steady(number, "wb", closefd=False)
        lost._raws.append(raw)
        encoding, errors, through = "utf-8", "backslashreplace", False
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.flush()
            encoding, errors = stream.encoding, stream.errors or "strict"
            through = stream.write_through
        # Where the terminal's encoding lacks a letter, a sentence about results must not end the work either.
        errors = "backslashreplace" if errors == "strict" else errors
        # Line by line into files and pipes, too: who looks into a cluster's log wants to see how far a run has come.
        steady = io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, None, True, through)
        setattr(sys, name, steady)
    try:
        yield lost
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        lost.full = any(raw.lost in FULL for raw in lost._raws)
        sys.stdout, sys.stderr = before
