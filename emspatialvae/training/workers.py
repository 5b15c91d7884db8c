"""Threads that work on parts of a batch or a stack side by side, each operation on a thread of its own.

A training step is many small operations. Spread over the cores one by one they wait for each other, and beside another busy program that wait made
training up to 38 times slower. Whole parts side by side lose no more than the share of the processor that the other program takes.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
U = TypeVar("U")

MOST_WORKERS = 16
WATCHED_S = 0.3
"""How long the machine is watched to see how many of its cores are idle,"""
FOLLOW_S = 120.0
"""and how long that is believed."""
STAT = Path("/proc/stat")
"""Where Linux counts the time that cores have been idle."""


class Workers:
    """``count`` threads; `each` is ordered, so that results do not depend on their number.

    Parameters
    ----------
    most
        With it `follow` takes as many threads as cores are idle, at most so many [default: always ``count``].
    say
        Told when that changes their number.
    """

    def __init__(self, count: int, most: int | None = None, say: Callable[[str], None] = lambda _: None) -> None:
        self.count, self.most, self.say = count, most, say
        self._pool = ThreadPoolExecutor(count) if count > 1 else None
        self._counted = time.monotonic()

    def each(self, work: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """``work`` of each item, in the order of the items."""
        return [work(item) for item in items] if self._pool is None else list(self._pool.map(work, items))

    def follow(self) -> None:
        """Look again how many cores are idle, now and then, while none of the threads is at work: a run takes hours, and other programs come and go."""
        if self.most is None or time.monotonic() - self._counted < FOLLOW_S:
            return
        count, sentence = _as_many_as_idle(self.most)
        self._counted = time.monotonic()
        if count != self.count:
            self.close()
            self.count, self._pool = count, ThreadPoolExecutor(count) if count > 1 else None
            self.say(f"from here on {sentence}")

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


ALONE = Workers(1)
"""No thread but the caller's."""


@contextmanager
def working(
    count: int, device: torch.device, most: int | None = None, say: Callable[[str], None] = lambda _: None
) -> Iterator[Workers]:
    """``count`` workers on a CPU (see `Workers`), each operation on one thread meanwhile; a GPU is one worker."""
    if device.type != "cpu":
        yield ALONE
        return
    with at_most(1), closing(Workers(count, most, say)) as workers:
        yield workers


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """Torch uses at most ``count`` threads of a CPU meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def worker_count(wanted: int | None, device: torch.device) -> tuple[int, str]:
    """How many workers to take, and a sentence about it.

    As many as ``wanted``; else as many as there are idle cores now, at most what torch was told (``OMP_NUM_THREADS``).
    """
    if device.type != "cpu":
        return 1, ""
    if wanted is not None:
        return wanted, f"{_threads(wanted)} (--threads)"
    return _as_many_as_idle(torch.get_num_threads())


def _as_many_as_idle(allowed: int) -> tuple[int, str]:
    """As many workers as there are idle cores, at most ``allowed``, and a sentence about it."""
    idle, cores = idle_cores(), usable_cores()
    count = max(1, min(allowed, idle, MOST_WORKERS))
    why = f", {max(idle, 0)} of {cores} cores are idle" if count < min(allowed, cores) else f" on {cores} cores"
    return count, f"{_threads(count)}{why} (--threads)"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def idle_cores() -> int:
    """How many of them no other program uses now: watched for a moment where the system tells, by its load average elsewhere."""
    cores = usable_cores()
    if STAT.exists():
        before = _idle_ticks()
        time.sleep(WATCHED_S)
        ticks = _idle_ticks() - before
        return min(cores, round(ticks / (os.sysconf("SC_CLK_TCK") * WATCHED_S)))
    if hasattr(os, "getloadavg"):
        return max(0, cores - round(os.getloadavg()[0]))
    return cores


def _idle_ticks() -> int:
    """Ticks that all cores have been idle, or waiting for a disk, since the machine was started."""
    fields = STAT.read_text().split("\n", 1)[0].split()
    return int(fields[4]) + int(fields[5])
