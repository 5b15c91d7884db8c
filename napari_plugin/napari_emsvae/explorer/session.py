"""What the parts of the explorer share: the run, the selection, the picked particle, the canvas, and a place for messages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.utils import notifications
from qtpy.QtCore import QObject, QTimer, Signal  # pyright: ignore[reportPrivateImportUsage]

from emspatialvae.errors import EmsvaeError
from napari_emsvae.explorer.pictures.stage import Stage, tag
from napari_emsvae.explorer.run_data import RunData
from napari_emsvae.explorer.selection import FILE, SelectionModel
from napari_emsvae.qt.background_work import Background
from napari_emsvae.qt.messages import in_the_window

AUTOSAVE_MS = 800


class Session(QObject):
    """A run under examination.

    Signals: ``opened`` (a run's results are there), ``read`` (its particles and its model, too), ``picked`` (row or None), ``hovered``
    (row or None), ``selected`` (selection or regions changed), ``latent`` (z [d] that the model shall draw),
    ``placed`` (z [d] that it draws at present, or None), ``path`` (z [k, d] of a path, or None), ``enclosing`` (the mask [n] of what is being
    drawn round at this moment, None when it is done), ``said`` (a message and
    whether it is an error), ``working`` (what is under way in the background, empty when nothing is).
    """

    opened = Signal()
    read = Signal()
    picked = Signal(object)
    hovered = Signal(object)
    selected = Signal()
    latent = Signal(object)
    placed = Signal(object)
    path = Signal(object)
    enclosing = Signal(object)
    said = Signal(str, bool)
    working = Signal(str)

    def __init__(self, viewer: ViewerModel, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.viewer = viewer
        self.stage = Stage(viewer)
        self.row: int | None = None
        self.is_read = False
        self._slider_at: int | None = None
        self._data: RunData | None = None
        self._selection: SelectionModel | None = None
        self._autosave = QTimer(self)
        self._autosave.setSingleShot(True)
        self._autosave.setInterval(AUTOSAVE_MS)
        self._autosave.timeout.connect(self.save_selection)
        self._works: list[Background] = []
        self._others: list[Background] = []
        self._doing: dict[int, str] = {}
        viewer.dims.events.current_step.connect(self._follow_slider)

    def background(self, wanted: Callable[[], bool] = lambda: True, *, of_run: bool = True) -> Background:
        """A kind of work that tells the user when it fails, and ends with the session.

        Parameters
        ----------
        wanted
            See `Background`.
        of_run
            It is about the run that is open: it ends, results and all, when another one is.
        """
        number = len(self._works) + len(self._others)
        work = Background(self.fail, lambda text: self._tell_work(number, text), wanted)
        (self._works if of_run else self._others).append(work)
        return work

    def tell_opening(self, text: str) -> None:
        """A run is being opened: work that is of no run yet."""
        self._tell_work(-1, text)

    def _tell_work(self, number: int, text: str) -> None:
        self._doing.pop(number, None)
        if text:
            self._doing[number] = text
        self.working.emit(", ".join(dict.fromkeys(self._doing.values())))

    @property
    def is_working(self) -> bool:
        """Whether anything is under way in the background."""
        return any(work.running for work in (*self._works, *self._others))

    def end(self) -> None:
        """Give up what is under way and leave the viewer alone; the session's widgets may be gone already."""
        for work in (*self._works, *self._others):
            work.stop()
        self.viewer.dims.events.current_step.disconnect(self._follow_slider)

    # ----------------------------------------------------------------------------------------------------- the run

    @property
    def data(self) -> RunData:
        """The run.

        Raises
        ------
        EmsvaeError
            None is open.
        """
        if self._data is None:
            raise EmsvaeError("no run is open; choose a run folder, above the scatter")
        return self._data

    @property
    def selection(self) -> SelectionModel:
        """The selection among the run's particles; raises as `data` does."""
        if self._selection is None:
            raise EmsvaeError("no run is open; choose a run folder, above the scatter")
        return self._selection

    @property
    def is_open(self) -> bool:
        """Whether a run is open."""
        return self._data is not None

    def use(self, data: RunData) -> None:
        """Take up a run whose results were read; the selection is the one that was saved beside them."""
        self.flush()
        for work in self._works:
            work.stop()
        self.stage.clear()
        self._data, self.row, self.is_read = data, None, False
        self._slider_at = self._slider()
        self._selection = SelectionModel(data.latents.used)
        file = data.path / FILE
        if file.is_file():
            try:
                self._selection.load(file, data.latents.names)
            except EmsvaeError as error:
                self.fail(str(error))
        self._selection.changed = self._selection_changed
        self.opened.emit()
        self.selected.emit()

    def finish_reading(self) -> None:
        """The particles and the model are there as well."""
        self.is_read = True
        self.read.emit()

    def pick(self, row: int | None) -> None:
        """Make a particle the one that is looked at."""
        if row is not None and not (self.is_open and 0 <= row < len(self.data)):
            return
        self.row = row
        axis = self._particle_axis()
        if row is not None and axis is not None:
            self.viewer.dims.set_current_step(axis, row)
        self.picked.emit(row)

    # ------------------------------------------------------------------------------------------------- the selection

    def _selection_changed(self) -> None:
        self._autosave.start()
        self.said.emit("", False)  # what was said of the selection before holds no longer
        self.selected.emit()

    def save_selection(self) -> None:
        """Write the selection beside the run; it comes back with the run."""
        if self._data is None or self._selection is None:
            return
        self._autosave.stop()
        try:
            self._selection.save(self._data.path / FILE, self._data.latents.names)
        except EmsvaeError as error:
            self.fail(f"the selection is not kept: {error}")

    def flush(self) -> None:
        """Write at once what waits to be written."""
        if self._autosave.isActive():
            self.save_selection()

    # ------------------------------------------------------------------------------------------------------ messages

    def say(self, text: str) -> None:
        """Tell the user something."""
        self.said.emit(text, False)

    def fail(self, text: str) -> None:
        """Tell the user what went wrong: in the explorer and as napari's notification. The viewer lives on."""
        text = in_the_window(text)
        self.said.emit(text, True)
        notifications.show_error(text)

    # -------------------------------------------------------------------------------------- the reader's own slider

    def _particle_axis(self) -> int | None:
        """The slider of the layers that the reader made of this run; None without such layers."""
        if self._data is None:
            return None
        for layer in self.viewer.layers:
            if "kind" in tag(layer) and _same(tag(layer).get("run"), self._data.path):
                return self.viewer.dims.ndim - layer.ndim
        return None

    def _follow_slider(self, _: Any = None) -> None:
        row = self._slider()
        # Where napari put it when the run was opened, nobody has picked a particle.
        if row is not None and row not in (self.row, self._slider_at):
            self.row, self._slider_at = row, None
            self.picked.emit(row)

    def _slider(self) -> int | None:
        """The particle that the slider stands at; None without one."""
        axis = self._particle_axis()
        return None if axis is None else int(np.clip(self.viewer.dims.current_step[axis], 0, len(self.data) - 1))


def _same(run: str | None, path: Path) -> bool:
    return run is not None and Path(run).absolute() == path
