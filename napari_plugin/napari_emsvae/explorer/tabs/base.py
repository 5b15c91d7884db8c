"""`Tab`: what the pages below the scatter have in common."""

from collections.abc import Callable

from qtpy.QtWidgets import QWidget

from emspatialvae.errors import EmsvaeError
from napari_emsvae.explorer.session import Session


class Tab(QWidget):
    """A page of the explorer. While it is not the one in front it does no work.

    Attributes
    ----------
    title, tip
        What stands on the tab, and what it says when the mouse rests there.
    """

    title = ""
    tip = ""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.in_front = False
        session.opened.connect(self.run_opened)
        session.read.connect(self._refreshed)
        session.picked.connect(self._picked)

    def run_opened(self) -> None:
        """Another run is open: its results are known, its images not yet."""

    def refresh(self) -> None:
        """Show what the tab is for; called when it comes to the front, and when the run has been read."""

    def particle_picked(self, row: int) -> None:
        """A particle was picked while the tab is in front."""

    def bring_to_front(self, in_front: bool) -> None:
        """The user chose this tab, or another."""
        self.in_front = in_front
        self._refreshed()

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
            self.refresh()

    def _picked(self, row: int | None) -> None:
        if self.in_front and self.session.is_read and row is not None:
            self.particle_picked(row)
