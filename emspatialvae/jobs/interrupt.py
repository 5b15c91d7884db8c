"""How a computation is asked to end: Ctrl-C, the signals of queues and closed terminals, or a file that appears.

A training ends after its step and writes its results, whatever it was asked by; its exit code is 128 plus the signal's number (130, 143,
129, 138). Anything else ends at once, with one line.
"""

import _thread
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

LOOK_EVERY_S = 1.0
OF_QUEUES = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Slurm's scancel and time limit, a terminal that was closed, ``sbatch --signal``; Windows has the first only."""
EXIT_CODES = tuple(128 + number for number in (signal.SIGINT, *OF_QUEUES))
"""Of a training that was asked to end, and has written its results."""


class Ended(KeyboardInterrupt):
    """A signal asks the program to end; treated as Ctrl-C wherever that is."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


_heard: list[int] = []
"""Signals that a training has noticed."""
_in_training = False


def exit_code() -> int:
    """Of a training that did not come to its end: 128 plus the number of the first signal that it noticed, or of Ctrl-C."""
    return 128 + (_heard[0] if _heard else signal.SIGINT)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the body the signals of `OF_QUEUES` raise `Ended`, so that what is half made is removed; those that are ignored stay so."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    with _handled(end, [number for number in OF_QUEUES if _handler(number) == signal.SIG_DFL]):
        yield


@contextmanager
def noticed_by_training() -> Iterator[None]:
    """Within the body the signals of `OF_QUEUES` end nothing: `asked_to_end` says that they came.

    Queues send theirs more than once, so none of them keeps the results from being written.
    """
    global _in_training
    _heard.clear()
    with _handled(
        lambda number, _: _heard.append(number),
        [number for number in OF_QUEUES if _handler(number) != signal.SIG_IGN],
    ):
        _in_training = True
        try:
            yield
        finally:
            _in_training = False


@contextmanager
def asked_to_end() -> Iterator[Callable[[], bool]]:
    """Yield the answer whether the training is to end after its step: the first Ctrl-C is noticed, the second one is raised."""
    before = _handler(signal.SIGINT)
    if not _in_training:
        _heard.clear()

    def notice(number: int, frame: FrameType | None) -> None:
        _heard.append(number)
        signal.signal(signal.SIGINT, before)

    with _handled(notice, [signal.SIGINT]):
        yield lambda: bool(_heard)


def _handler(number: int) -> "Callable[[int, FrameType | None], object] | int | None":
    return signal.getsignal(number)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], object], numbers: list[int]) -> Iterator[None]:
    """Handle signals in another way; outside the main thread, where that cannot be, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, object] = {}
    try:
        for number in numbers:
            before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)  # pyright: ignore[reportArgumentType]


@contextmanager
def interrupted_by(file: Path) -> Iterator[None]:
    """Interrupt the main thread, as Ctrl-C does and once only, when ``file`` appears; it is removed when that was heard.

    A training then ends after its step and writes its results, anything else ends with `KeyboardInterrupt`.
    To be entered in the main thread.
    """
    done = threading.Event()

    def look() -> None:
        while not done.wait(LOOK_EVERY_S):
            if file.exists():
                file.unlink(missing_ok=True)
                _interrupt_main_thread()
                return

    # A shell starts its background jobs with Ctrl-C switched off, and then our own interrupt would not be heard either.
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    watcher = threading.Thread(target=look, name=f"waiting for {file.name}", daemon=True)
    try:
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
    finally:  # also where the interrupt comes before the body has begun, or after it has ended
        signal.signal(signal.SIGINT, before)


def _interrupt_main_thread() -> None:
    if sys.platform == "win32":
        _thread.interrupt_main()
    else:  # a signal of the system also wakes a thread that waits
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
