"""Work away from the window: napari stays alive while images are read and drawn."""

from collections.abc import Callable
from typing import Any

from napari.qt.threading import create_worker
from napari.utils import notifications

from emspatialvae.errors import EmsvaeError


class Background:
    """One kind of work, the latest order of which counts: what an older one brings is dropped.

    Parameters
    ----------
    failed
        Told what went wrong, one line.
    busy
        Told whether work is under way.
    """

    def __init__(self, failed: Callable[[str], None], busy: Callable[[bool], None] = lambda _: None) -> None:
        self._failed, self._busy = failed, busy
        self._latest: Any = None

    @property
    def running(self) -> bool:
        """Whether the latest order is still under way."""
        return self._latest is not None

    def start(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        done: Callable[[Any], None] = lambda _: None,
        each: Callable[[Any], None] | None = None,
    ) -> None:
        """Call ``function(*arguments)`` in a thread.

        Parameters
        ----------
        done
            Called in the main thread with what it returned; of a generator, when it has ended.
        each
            Makes ``function`` a generator: called in the main thread with everything it yields but None.
        """
        self.stop()
        worker = create_worker(function, *arguments, _start_thread=False, _ignore_errors=True)
        self._latest = worker

        def current(call: Callable[[Any], None]) -> Callable[[Any], None]:
            def guarded(value: Any = None) -> None:
                if self._latest is worker:
                    call(value)

            return guarded

        def ended(_: Any) -> None:
            self._latest = None
            self._busy(False)

        if each is not None:
            worker.yielded.connect(current(lambda value: None if value is None else each(value)))
        worker.returned.connect(current(done))
        worker.errored.connect(current(self._explain))
        worker.finished.connect(current(ended))
        self._busy(True)
        worker.start()

    def stop(self) -> None:
        """Give up what is under way; a generator ends at its next yield, anything else is no longer waited for."""
        if self._latest is not None:
            self._latest.quit()
            self._latest = None
            self._busy(False)

    def _explain(self, error: Exception) -> None:
        if isinstance(error, EmsvaeError):
            self._failed(str(error))
            return
        # Not the user's fault: napari shows it with its traceback, so that it can be reported.
        self._failed(f"{type(error).__name__}: {error}")
        notifications.notification_manager.receive_error(type(error), error, error.__traceback__)
