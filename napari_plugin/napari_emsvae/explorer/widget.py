"""The Latent explorer: a dock widget with the particles in latent space, and pages that act on what is picked or selected there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import napari
from napari.layers import Layer
from qtpy.QtCore import QMimeData, QSize, Qt, QTimer
from qtpy.QtGui import QDragEnterEvent, QDropEvent, QHideEvent, QKeySequence, QShortcut, QShowEvent
from qtpy.QtWidgets import QDockWidget, QFileDialog, QMainWindow, QProgressBar, QSplitter, QTabWidget, QWidget

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Floats, Rows
from napari_emsvae.explorer.pictures.stage import is_dark, tag
from napari_emsvae.explorer.run_data import RunData
from napari_emsvae.explorer.scatter.canvas import Mode
from napari_emsvae.explorer.scatter.panel import ScatterPanel
from napari_emsvae.explorer.session import Session
from napari_emsvae.explorer.tabs.base import Tab
from napari_emsvae.explorer.tabs.classes import ClassesTab
from napari_emsvae.explorer.tabs.model import ModelTab
from napari_emsvae.explorer.tabs.montage import MontageTab
from napari_emsvae.explorer.tabs.particle import ParticleTab
from napari_emsvae.explorer.tabs.path import PathTab
from napari_emsvae.explorer.tabs.select import SelectTab
from napari_emsvae.qt import palette
from napari_emsvae.qt.background_work import Background
from napari_emsvae.qt.controls import button, column, field, row, scrolled, words
from napari_emsvae.qt.window import fit_into_screen
from napari_emsvae.reader import is_run_folder, prefer_for_runs

LEAST_PX = 360
"""Least width."""
BUSY_AFTER_MS = 400
"""Work that is done sooner is not told of."""
WINDOW_PX = 170
"""Height of what napari has above and below a dock widget."""
WANTED = QSize(1500, 940)
"""Of the window, where the screen has room for it: controls on the right, and still most of it for pictures."""
WELCOME = "Choose a run folder on the right, or drop one there;\nthe Train form makes one from particles."
MODE_KEYS: dict[str, Mode] = {"L": "lasso", "B": "box", "N": "line", "Escape": "look"}


class LatentExplorer(QWidget):
    """See the module. Keys: L lasso, B box, N line, Esc look; I invert, Ctrl+Z undo, Ctrl+Shift+Z redo; Home all particles."""

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        super().__init__()
        viewer = napari_viewer
        # torch takes a second or two to import: that goes on while the widget is built and a folder chosen.
        Thread(target=import_module, args=("emspatialvae.inference.infer",), name="emsvae-import", daemon=True).start()
        self.session = Session(viewer, self)
        self.particle, self.model, self.path = ParticleTab(self.session), ModelTab(self.session), PathTab(self.session)
        self.select, self.montage = SelectTab(self.session), MontageTab(self.session)
        self.classes = ClassesTab(self.session, lambda both: self.select.ask_and_save(both=both), self._show_members)
        self.scatter = ScatterPanel(self.session, self.select.how)
        self.canvas = self.scatter.canvas
        self._opening = Background(self._not_opened, self.session.tell_opening)
        self._locating = self.session.background()
        self._fitted = False
        self._build()
        self._connect(viewer)
        for layer in viewer.layers:
            self._open_run_of(layer)
        if not self.folder.text():
            self.session.stage.tell(WELCOME)
        prefer_for_runs()

    @property
    def pages(self) -> tuple[Tab, ...]:
        """The tabs, from the left."""
        return self.classes, self.select, self.particle, self.montage, self.path, self.model

    def _build(self) -> None:
        self.folder = field("run folder that `emsvae train` made", "The run: a folder with config.json and latents.csv")
        self.folder.returnPressed.connect(lambda: self.open(Path(self.folder.text())))
        self.message = words("", "What happened last", wrap=True)
        self.tabs = QTabWidget()
        self.tabs.setUsesScrollButtons(True)
        for number, page in enumerate(self.pages):
            self.tabs.addTab(scrolled(page), page.title)
            self.tabs.setTabToolTip(number, page.tip)
        self.busy = QProgressBar()
        self.busy.setRange(0, 0)
        self.busy.setFixedHeight(5)
        self.busy.setTextVisible(False)
        self.busy.setAccessibleName("Work is under way")
        self.busy_text = words("", "What is under way in the background", wrap=True)
        self._busy_soon = QTimer(self)
        self._busy_soon.setSingleShot(True)
        self._busy_soon.setInterval(BUSY_AFTER_MS)
        self._busy_soon.timeout.connect(lambda: self._show_busy(True))
        self._show_busy(False)
        split = QSplitter(Qt.Orientation.Vertical)
        split.addWidget(self.scatter)
        split.addWidget(self.tabs)
        split.setStretchFactor(0, 3)
        split.setStretchFactor(1, 2)
        split.setChildrenCollapsible(False)
        self.locate = button(
            "Locate stack\N{HORIZONTAL ELLIPSIS}",
            "The raw images are not where they were: choose the project's folder, from which their names lead to them.\n"
            "Until then the explorer works with the prepared images in the run's cache",
            self.ask_and_locate,
        )
        self.locate.setVisible(False)
        chooser = row(
            self.folder,
            button("Open\N{HORIZONTAL ELLIPSIS}", "Choose a run folder", self.ask_and_open),
            self.locate,
        )
        layout = column(chooser, split, self.busy, self.busy_text, self.message)
        layout.setContentsMargins(6, 6, 6, 6)
        self.setLayout(layout)
        self.setMinimumWidth(LEAST_PX)
        self.setAcceptDrops(True)
        for key, mode in MODE_KEYS.items():
            self._key(key, lambda mode=mode: self.scatter.set_mode(mode))
        self._key("I", self.select.invert)
        self._key("Ctrl+Z", self.select.undo)
        self._key("Ctrl+Shift+Z", self.select.redo)
        self._key("Home", self.canvas.show_all)

    def _key(self, key: str, action: Callable[[], object]) -> None:
        shortcut = QShortcut(QKeySequence(key), self)
        shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
        shortcut.activated.connect(action)

    def _connect(self, viewer: napari.Viewer) -> None:
        self.session.said.connect(self._say)
        self.session.working.connect(self._working)
        viewer.events.theme.connect(self._restyle)
        self._restyle()
        self.canvas.enclosed.connect(self.select.take)
        self.canvas.line_drawn.connect(self._line_drawn)
        self.classes.made.connect(self.open)
        self.tabs.currentChanged.connect(self._tab_changed)
        viewer.layers.events.inserted.connect(self._layer_added)
        self._tab_changed(0)
        parts = self._opening.stop, self.session.end, self.path.end, self.canvas.shut

        def end() -> None:
            viewer.layers.events.inserted.disconnect(self._layer_added)
            viewer.events.theme.disconnect(self._restyle)
            for part in parts:
                part()

        self.destroyed.connect(end)

    # -------------------------------------------------------------------------------------------------------- opening

    def ask_and_open(self) -> None:
        """Ask for a run folder and open it."""
        chosen = QFileDialog.getExistingDirectory(self, "Open a run folder", self.folder.text() or str(Path.cwd()))
        if chosen:
            self.open(Path(chosen))

    def ask_and_locate(self) -> None:
        """Ask where the stack is now."""
        chosen = QFileDialog.getExistingDirectory(self, "The project's folder", str(Path.cwd()))
        if chosen and self.session.is_open:
            self.locate_stack(Path(chosen))

    def locate_stack(self, folder: Path) -> None:
        """Look for the run's stack from a folder on."""
        data = self.session.data
        self._locating.start(data.locate_stack, folder, done=lambda _: self._located(), doing="looking for the stack")

    def _located(self) -> None:
        self.locate.setVisible(False)
        self.session.say(f"the stack is found from {self.session.data.project_dir} on; this is kept with the run")
        self.session.read.emit()

    def dragEnterEvent(self, a0: QDragEnterEvent | None) -> None:
        """Run folders can be dropped here."""
        if a0 is not None and _dropped_run(a0.mimeData()) is not None:
            a0.acceptProposedAction()

    def dropEvent(self, a0: QDropEvent | None) -> None:
        """Open the run folder that was dropped."""
        run = None if a0 is None else _dropped_run(a0.mimeData())
        if run is not None:
            self.open(run)

    def open(self, path: Path) -> None:
        """Open a run folder; the scatter comes first, particles and model follow."""
        self.folder.setText(str(path))
        self.session.say(f"opening {path} \N{HORIZONTAL ELLIPSIS}")
        self._opening.start(read, path, each=self._opened, doing=f"opening {path.name}")

    def _not_opened(self, text: str) -> None:
        """The folder could not be opened: the field names the run that is still open, not the one that failed."""
        self.folder.setText(str(self.session.data.path) if self.session.is_open else "")
        self.session.fail(text)

    def _opened(self, found: "RunData | Rest") -> None:
        """The results are there; or, the second time, the rest."""
        if isinstance(found, Rest):
            self._finish_reading(found)
            return
        self.scatter.prepare_for(found)
        self.session.use(found)
        self.scatter.place_points()
        self.session.say(
            f"{found.path.name}: {len(found):,} particles; reading images and model \N{HORIZONTAL ELLIPSIS}"
        )

    def _finish_reading(self, rest: "Rest") -> None:
        data = self.session.data
        self.scatter.list_columns(data, rest.columns, rest.numbers)
        coordinates = f"{data.z_dim} latent coordinate{'s' * (data.z_dim > 1)}"
        self.session.say(f"{data.path.name}: {len(data):,} particles, {coordinates}")
        self.session.finish_reading()
        self.locate.setVisible(not data.has_stack)
        if rest.trouble:
            self.session.fail("; ".join(rest.trouble))

    def _layer_added(self, event: Any) -> None:
        self._open_run_of(event.value)

    def _open_run_of(self, layer: Layer) -> None:
        """Open the run that the reader made a layer of."""
        run = tag(layer).get("run")
        if run is not None and run != self.folder.text():
            self.open(Path(run))

    # --------------------------------------------------------------------------------------------------------- others

    def _show_members(self, rows: Rows, name: str) -> None:
        """Particles of a class, side by side."""
        self.montage.show_members(rows, name)
        self.show_page(self.montage)

    def _line_drawn(self, line: Floats) -> None:
        if self.session.is_open:
            self.show_page(self.path)
            self.path.set_line(line, self.scatter.axes)

    def _tab_changed(self, _: int) -> None:
        self.session.placed.emit(None)
        front = self.page
        for page in self.pages:
            if page is not front:
                page.bring_to_front(False)
        front.bring_to_front(True)

    @property
    def page(self) -> Tab:
        """The page in front."""
        return self.pages[self.tabs.currentIndex()]

    def show_page(self, page: Tab) -> None:
        """Bring a page to the front."""
        self.tabs.setCurrentIndex(self.pages.index(page))

    def _working(self, text: str) -> None:
        self.busy_text.setText(f"{text} \N{HORIZONTAL ELLIPSIS}" if text else "")
        if not text:
            self._busy_soon.stop()
            self._show_busy(False)
        elif not self._busy_soon.isActive() and not self.busy.isVisible():
            self._busy_soon.start()

    def _show_busy(self, busy: bool) -> None:
        self.busy.setVisible(busy)
        self.busy_text.setVisible(busy)

    def _restyle(self, _: Any = None) -> None:
        """The theme of napari has changed."""
        palette.use(dark=is_dark(self.session.viewer))
        self.scatter.restyle()
        self.session.stage.follow_theme()
        for page in self.pages:
            page.restyle()

    def _say(self, text: str, is_error: bool) -> None:
        self.message.setText(f"\N{WARNING SIGN} {text}" if is_error else text)

    def sizeHint(self) -> QSize:
        """As wide as the controls need, and never more than the screen has; the rest of the window is for pictures."""
        screen = self.screen()
        room = QSize(1600, 1000) if screen is None else screen.availableGeometry().size()
        return QSize(min(600, int(0.4 * room.width())), min(900, room.height() - WINDOW_PX))

    def showEvent(self, a0: QShowEvent | None) -> None:
        """The first time: a window that has grown beyond the screen by our width is brought back into it."""
        super().showEvent(a0)
        if not self._fitted:
            self._fitted = True
            QTimer.singleShot(0, self._fit_window)

    def _fit_window(self) -> None:
        dock, window = self.parentWidget(), self.window()
        while dock is not None and not isinstance(dock, QDockWidget):
            dock = dock.parentWidget()
        if dock is None or dock.isFloating():
            return
        fit_into_screen(self, WANTED)
        if isinstance(window, QMainWindow):
            window.resizeDocks([dock], [self.sizeHint().width()], Qt.Orientation.Horizontal)

    def hideEvent(self, a0: QHideEvent | None) -> None:
        """Keep the selection: napari hides a dock widget before it removes it."""
        self.session.flush()
        super().hideEvent(a0)


@dataclass(frozen=True)
class Rest:
    """What was read after the results."""

    columns: tuple[str, ...]
    numbers: tuple[str, ...]
    """Those that hold numbers."""
    trouble: tuple[str, ...]
    """What could not be read; everything else works all the same."""


def read(path: Path) -> Iterator[RunData | Rest]:
    """The run as soon as its results are read, then the rest of it.

    Raises
    ------
    EmsvaeError
        It is no run, or one without results.
    """
    data = RunData.open(path)
    yield data
    columns, numbers, trouble = (), (), []
    try:
        columns, numbers = data.columns.names, data.columns.numbers
    except EmsvaeError as error:
        trouble.append(str(error))
    for part in (lambda: data.model, lambda: data.images, lambda: data.neighbours.tree, lambda: data.classes):
        try:
            part()
        except EmsvaeError as error:
            trouble.append(str(error))
    if not data.has_stack:
        trouble.append(f"the raw images are not here, the prepared ones are shown ({data._stack})")
    yield Rest(columns, numbers, tuple(dict.fromkeys(trouble)))


def _dropped_run(dropped: QMimeData | None) -> Path | None:
    """The run folder among what is dragged."""
    urls = [] if dropped is None else dropped.urls()
    paths = [Path(url.toLocalFile()) for url in urls if url.isLocalFile()]
    return next((path for path in paths if is_run_folder(path)), None)
