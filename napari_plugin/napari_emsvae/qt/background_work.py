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
        Told what is under way, in words, and an empty text when nothing is any more.
    wanted
        Whether results can be shown at present; until they can (see `deliver`) the latest one is kept.
    """

    def __init__(
        self,
        failed: Callable[[str], None],
        busy: Callable[[str], None] = lambda _: None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._failed, self._busy, self._wanted = failed, busy, wanted
        self._latest: Any = None
        self._kept: Callable[[], None] | None = None

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
        ended: Callable[[], object] = lambda: None,
        doing: str = "working",
    ) -> None:
        """Call ``function(*arguments)`` in a thread.

        Parameters
        ----------
        done
            Called in the main thread with what it returned; of a generator, when it has ended.
        each
            Makes ``function`` a generator: called in the main thread with everything it yields but None.
        ended
            Called in the main thread when it is over, well or not, unless it was given up.
        doing
            What is going on, for the user who waits for it.
        """
        self.stop()
        worker = create_worker(function, *arguments, _start_thread=False, _ignore_errors=True)
        self._latest = worker

        def current(call: Callable[[Any], None]) -> Callable[[Any], None]:
            def guarded(value: Any = None) -> None:
                if self._latest is worker:
                    call(value)

            return guarded

        def shown(call: Callable[[Any], None]) -> Callable[[Any], None]:
            def when_wanted(value: Any = None) -> None:
                if self._wanted():
                    self._kept = None
                    call(value)
                else:
                    self._kept = lambda: call(value)

            return when_wanted

        def over(_: Any) -> None:
            self._latest = None
            self._busy("")
            ended()

        if each is not None:
            worker.yielded.connect(current(lambda value: None if value is None else shown(each)(value)))
        worker.returned.connect(current(done if each is not None else shown(done)))
        worker.errored.connect(current(self._explain))
        worker.finished.connect(current(over))
        self._busy(doing)
        worker.start()

    def deliver(self) -> None:
        """Hand over the result that came while none was wanted."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept()

    def stop(self) -> None:
        """Give up what is under way and what was kept; a generator ends at its next yield, anything else is no longer waited for."""
        self._kept = None
        if self._latest is not None:
            self._latest.quit()
            self._latest = None
            self._busy("")

    def _explain(self, error: Exception) -> None:
        if isinstance(error, EmsvaeError):
            self._failed(str(error))
            return
        # Not the user's fault: napari shows it with its traceback, so that it can be reported.
        self._failed(f"{type(error).__name__}: {error}")
        notifications.notification_manager.receive_error(type(error), error, error.__traceback__)
