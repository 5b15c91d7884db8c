"""The Latent explorer: a dock widget with the particles in content space, and pages that act on what is picked or selected there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import napari
from napari.layers import Layer
from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QHideEvent, QKeySequence, QShortcut
from qtpy.QtWidgets import QFileDialog, QSplitter, QTabWidget, QWidget

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Floats
from napari_emsvae.explorer.pictures.stage import tag
from napari_emsvae.explorer.run_data import RunData
from napari_emsvae.explorer.scatter.canvas import Mode
from napari_emsvae.explorer.scatter.panel import ScatterPanel
from napari_emsvae.explorer.session import Session
from napari_emsvae.explorer.tabs.base import Tab
from napari_emsvae.explorer.tabs.model import ModelTab
from napari_emsvae.explorer.tabs.montage import MontageTab
from napari_emsvae.explorer.tabs.particle import ParticleTab
from napari_emsvae.explorer.tabs.path import PathTab
from napari_emsvae.explorer.tabs.select import SelectTab
from napari_emsvae.qt.controls import button, column, field, row, words

MODE_KEYS: dict[str, Mode] = {"L": "lasso", "B": "box", "N": "line", "Escape": "look"}


class LatentExplorer(QWidget):
    """See the module. Keys: L lasso, B box, N line, Esc look; I invert, Ctrl+Z undo, Ctrl+Shift+Z redo; Home all particles."""

    def __init__(self, viewer: napari.Viewer) -> None:
        super().__init__()
        # torch takes a second or two to import: that goes on while the widget is built and a folder chosen.
        Thread(target=import_module, args=("emspatialvae.inference.infer",), name="emsvae-import", daemon=True).start()
        self.session = Session(viewer, self)
        self.particle, self.model, self.path = ParticleTab(self.session), ModelTab(self.session), PathTab(self.session)
        self.select, self.montage = SelectTab(self.session), MontageTab(self.session)
        self.scatter = ScatterPanel(self.session, self.select.how)
        self.canvas = self.scatter.canvas
        self._opening = self.session.background()
        self._build()
        self._connect(viewer)
        for layer in viewer.layers:
            self._open_run_of(layer)

    @property
    def pages(self) -> tuple[Tab, ...]:
        """The tabs, from the left."""
        return self.particle, self.model, self.path, self.select, self.montage

    def _build(self) -> None:
        self.folder = field("run folder that `emsvae train` made", "The run: a folder with config.json and latents.csv")
        self.folder.returnPressed.connect(lambda: self.open(Path(self.folder.text())))
        self.message = words("", "What happened last", wrap=True)
        self.tabs = QTabWidget()
        for number, page in enumerate(self.pages):
            self.tabs.addTab(page, page.title)
            self.tabs.setTabToolTip(number, page.tip)
        split = QSplitter(Qt.Orientation.Vertical)
        split.addWidget(self.scatter)
        split.addWidget(self.tabs)
        split.setStretchFactor(0, 3)
        split.setStretchFactor(1, 2)
        split.setChildrenCollapsible(False)
        chooser = row(self.folder, button("Open\N{HORIZONTAL ELLIPSIS}", "Choose a run folder", self.ask_and_open))
        layout = column(chooser, split, self.message)
        layout.setContentsMargins(6, 6, 6, 6)
        self.setLayout(layout)
        self.setMinimumWidth(560)
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
        self.canvas.enclosed.connect(self.select.take)
        self.canvas.line_drawn.connect(self._line_drawn)
        self.tabs.currentChanged.connect(self._tab_changed)
        viewer.layers.events.inserted.connect(self._layer_added)
        self._tab_changed(0)
        parts = self.session.end, self.path.end, self.canvas.shut

        def end() -> None:
            viewer.layers.events.inserted.disconnect(self._layer_added)
            for part in parts:
                part()

        self.destroyed.connect(end)

    # -------------------------------------------------------------------------------------------------------- opening

    def ask_and_open(self) -> None:
        """Ask for a run folder and open it."""
        chosen = QFileDialog.getExistingDirectory(self, "Open a run folder", self.folder.text() or str(Path.cwd()))
        if chosen:
            self.open(Path(chosen))

    def open(self, path: Path) -> None:
        """Open a run folder; the scatter comes first, particles and model follow."""
        self.folder.setText(str(path))
        self.session.say(f"opening {path} \N{HORIZONTAL ELLIPSIS}")
        self._opening.start(read, path, each=self._opened)

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
        self.scatter.list_columns(data, rest.columns)
        coordinates = f"{data.z_dim} content coordinate{'s' * (data.z_dim > 1)}"
        self.session.say(f"{data.path.name}: {len(data):,} particles, {coordinates}")
        self.session.finish_reading()
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

    def _line_drawn(self, line: Floats) -> None:
        if self.session.is_open:
            self.tabs.setCurrentWidget(self.path)
            self.path.set_line(line, self.scatter.axes)

    def _tab_changed(self, _: int) -> None:
        self.session.placed.emit(None)
        front = self.tabs.currentWidget()
        for page in self.pages:
            page.bring_to_front(page is front)

    def _say(self, text: str, is_error: bool) -> None:
        self.message.setText(f"\N{WARNING SIGN} {text}" if is_error else text)

    def sizeHint(self) -> QSize:
        """As wide as the controls need; the rest of the window is for pictures."""
        return QSize(600, 900)

    def hideEvent(self, a0: QHideEvent | None) -> None:
        """Keep the selection: napari hides a dock widget before it removes it."""
        self.session.flush()
        super().hideEvent(a0)


@dataclass(frozen=True)
class Rest:
    """What was read after the results."""

    columns: tuple[str, ...]
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
    columns, trouble = (), []
    try:
        columns = data.column_names
    except EmsvaeError as error:
        trouble.append(str(error))
    for part in (lambda: data.model, lambda: data.images):
        try:
            part()
        except EmsvaeError as error:
            trouble.append(str(error))
    yield Rest(columns, tuple(trouble))
