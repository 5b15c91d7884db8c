"""`Tab`: what the pages below the scatter have in common."""

from collections.abc import Callable

from qtpy.QtWidgets import QWidget

from emspatialvae.errors import EmsvaeError
from napari_emsvae.explorer.session import Session
from napari_emsvae.qt.background_work import Background


class Tab(QWidget):
    """A page of the explorer. While it is not the one in front it does no work.

    Attributes
    ----------
    title, tip
        What stands on the tab, and what it says when the mouse rests there.
    group
        The group of pictures that the tab puts on the canvas; those of other tabs go when it comes to the front.
    hint
        What to do next, while it has no picture to show.
    """

    title = ""
    tip = ""
    group = ""
    hint = ""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.in_front = False
        self._works: list[Background] = []
        session.opened.connect(self.run_opened)
        session.read.connect(self._refreshed)
        session.picked.connect(self._picked)

    def run_opened(self) -> None:
        """Another run is open: its results are known, its images not yet."""

    def refresh(self) -> None:
        """Show what the tab is for; called when it comes to the front, and when the run has been read."""

    def particle_picked(self, row: int) -> None:
        """A particle was picked while the tab is in front."""

    def restyle(self) -> None:
        """The theme of napari has changed."""

    def bring_to_front(self, in_front: bool) -> None:
        """The user chose this tab, or another."""
        self.in_front = in_front
        if in_front:
            self._clear_others()
        self._refreshed()

    def background(self) -> Background:
        """Work whose results wait until the tab is in front; see `Session.background`."""
        work = self.session.background(lambda: self.in_front)
        self._works.append(work)
        return work

    def _clear_others(self) -> None:
        """The canvas shows this tab's pictures or none, never those that an earlier tab left."""
        stage = self.session.stage
        if stage.group != self.group:
            stage.clear()
            stage.tell(self.hint if self.session.is_open else "")

    def attempt(self, action: Callable[[], object]) -> bool:
        """Call ``action``; an error that the user can mend becomes a message, and False."""
        try:
            action()
        except EmsvaeError as error:
            self.session.fail(str(error))
            return False
        return True

    def _refreshed(self) -> None:
        if self.in_front and self.session.is_read:
            self._clear_others()
            self.refresh()
            for work in self._works:
                work.deliver()

    def _picked(self, row: int | None) -> None:
        if self.in_front and self.session.is_read and row is not None:
            self.particle_picked(row)
