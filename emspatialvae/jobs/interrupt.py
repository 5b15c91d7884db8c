"""Ctrl-C from afar: a computation is asked to end by a file that appears, from any process and any machine that sees the disk."""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOOK_EVERY_S = 1.0


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
