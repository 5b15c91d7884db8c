"""The upper half of the explorer: the scatter with the choice of its axes and colours, and of what dragging the mouse does."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from qtpy.QtWidgets import QButtonGroup, QComboBox, QWidget

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Floats
from napari_emsvae.explorer.pictures.mosaic import short_name
from napari_emsvae.explorer.run_data import RunData
from napari_emsvae.explorer.scatter.canvas import MODES, Mode, ScatterCanvas
from napari_emsvae.explorer.scatter.colouring import Colouring, column_colouring
from napari_emsvae.explorer.scatter.raster import density
from napari_emsvae.explorer.selection import How
from napari_emsvae.explorer.session import Session
from napari_emsvae.qt.controls import button, choice, column, flow, together, words

DENSITY, REGIONS = "density", "regions"
MODE_TIPS: dict[Mode, str] = {
    "look": "Drag to move, wheel to zoom, double-click for everything; click a particle to pick it (Esc)",
    "lasso": "Drag round particles to select them (L)",
    "box": "Drag a box to select what is in it (B)",
    "line": "Drag a line to make a path along it (N)",
}
PANEL_PX = 320
"""Least height: the controls in three lines, and a scatter in which something is seen."""
SHOWN_Z = 4
"""Coordinates that are told of the particle under the cursor."""


class ScatterPanel(QWidget):
    """The particles in a plane.

    Parameters
    ----------
    how
        The choice of what a new lasso does with the present selection; it stands beside the modes.
    """

    def __init__(self, session: Session, how: QComboBox) -> None:
        super().__init__()
        self.session = session
        self.how: Callable[[], How] = lambda: cast(How, how.currentText())
        self.canvas = ScatterCanvas()
        self.axes: tuple[str, str] = ("z1", "z2")
        """What the points are placed by."""
        self.across = choice([], "What runs to the right", lambda _: self.place_points())
        self.up = choice([], "What runs upwards", lambda _: self.place_points())
        self.colour = choice(
            [],
            "What the particles are coloured by: how crowded it is there, regions, or a column",
            lambda _: self.recolour(),
        )
        self.modes = {mode: button(mode.capitalize(), MODE_TIPS[mode], partial(self.set_mode, mode)) for mode in MODES}
        one_of_them = QButtonGroup(self)
        for made in self.modes.values():
            made.setCheckable(True)
            one_of_them.addButton(made)
        self.modes["look"].setChecked(True)
        self.count = words("no run is open", "How many particles are selected")
        self.count.setStyleSheet("font-weight: bold")
        show_all = button("All", "Show all particles (Home)", self.canvas.show_all)
        self.setLayout(
            column(
                flow(together("x", self.across), together("y", self.up), together("colour", self.colour)),
                flow(*self.modes.values(), show_all, together("selecting will", how)),
                self.canvas,
                self.count,
            )
        )
        self.setMinimumHeight(PANEL_PX)
        self._placing, self._colouring = session.background(), session.background()
        session.selected.connect(self._selection_changed)
        session.picked.connect(self.canvas.mark)
        session.placed.connect(self._mark_latent)
        session.path.connect(self._mark_path)
        self.canvas.clicked.connect(session.pick)
        self.canvas.hovered.connect(self._hovered)
        self.canvas.enclosing.connect(self._enclosing)
        self.canvas.range_moved.connect(self._enclosing)
        self.canvas.range_chosen.connect(self._range_chosen)

    # ------------------------------------------------------------------------------------------------- what is where

    def prepare_for(self, data: RunData) -> None:
        """Another run is about to be shown: begin with its first plane, coloured by density."""
        for work in (self._placing, self._colouring):
            work.stop()
        self.axes = data.axes.first
        self.list_columns(data, (), ())
        self.colour.setCurrentText(DENSITY)

    def list_columns(self, data: RunData, columns: Sequence[str], numbers: Sequence[str]) -> None:
        """Offer columns as colours, and those that hold numbers as axes; what is chosen stays."""
        names = dict.fromkeys((*data.axes.names, *self.axes, *numbers))
        for box, axis in zip((self.across, self.up), self.axes, strict=True):
            _fill(box, tuple(names), axis)
        _fill(self.colour, (DENSITY, REGIONS, *columns), self.colour.currentText() or DENSITY)

    def place_points(self) -> None:
        """Place the particles by the chosen axes."""
        if self.session.is_open:
            names = self.across.currentText(), self.up.currentText()
            slow = " (some minutes; it is kept with the run)" if any("UMAP" in name for name in names) else ""
            self._placing.start(
                _places,
                self.session.data,
                names,
                done=self._put_points,
                doing=f"placing by {' and '.join(names)}{slow}",
            )

    def _put_points(self, found: "tuple[tuple[str, str], Floats]") -> None:
        self.axes, points = found
        self.canvas.set_points(points, self.axes)
        self.canvas.set_selected(self.session.selection.mask)
        self.canvas.mark(self.session.row)
        self.recolour()

    def recolour(self) -> None:
        """Colour the particles by what was chosen."""
        if not self.session.is_open or not len(self.canvas.points):
            return
        wanted = self.colour.currentText()
        if wanted == REGIONS:
            self._colour_regions()
        else:
            points = self.canvas.points
            self._colouring.start(
                *(_coloured, self.session.data, wanted, points),
                done=self.canvas.set_colouring,
                doing=f"reading {wanted}",
            )

    def _colour_regions(self) -> None:
        selection = self.session.selection
        highest = max((region.number for region in selection.regions), default=0)
        named = {region.number: f"{region.number} {region.name}" for region in selection.regions}
        names = tuple(named.get(number, "") for number in range(1, highest + 1)) or ("",)
        self.canvas.set_colouring(Colouring(REGIONS, selection.region_codes().astype(float), names, first=1))

    def set_mode(self, mode: Mode) -> None:
        """What dragging does."""
        self.modes[mode].setChecked(True)
        self.canvas.set_mode(mode)

    def restyle(self) -> None:
        """Take the theme's colours."""
        self.canvas.restyle()
        if self.colour.currentText() == REGIONS:
            self.recolour()

    # ---------------------------------------------------------------------------------------------- what others tell

    def _enclosing(self, mask: Any) -> None:
        """Something is being drawn: say how many particles it holds, and let others show what they are."""
        if not self.session.is_open:
            return
        if mask is None:
            self.count.setText(self.session.selection.described())
        else:
            mask = mask & self.session.selection.selectable
            self.count.setText(f"{int(mask.sum()):,} particles inside")
        self.session.enclosing.emit(mask)

    def _range_chosen(self, mask: Any) -> None:
        if self.session.is_open:
            self.session.enclosing.emit(None)
            self.session.selection.apply(mask, self.how())

    def _selection_changed(self) -> None:
        selection = self.session.selection
        self.count.setText(selection.described())
        if len(self.canvas.points) == len(selection):
            self.canvas.set_selected(selection.mask)
            if self.colour.currentText() == REGIONS:
                self._colour_regions()

    def _hovered(self, particle: int | None) -> None:
        if particle is not None:
            data = self.session.data
            z = ", ".join(f"{value:.2f}" for value in data.latents.z[particle][:SHOWN_Z])
            more = ", \N{HORIZONTAL ELLIPSIS}" if data.z_dim > SHOWN_Z else ""
            colouring = self.canvas.colouring
            lines = [short_name(data.latents.names[particle]), f"z = ({z}{more})"]
            lines.append(f"{colouring.label}: {_value(colouring, particle)}")
            self.canvas.say_at(particle, "\n".join(lines))
        self.session.hovered.emit(particle)

    def _mark_latent(self, z: Floats | None) -> None:
        place = None if z is None else self._place(z[None])
        self.canvas.set_latent_mark(None if place is None else place[0])

    def _mark_path(self, z: Floats | None) -> None:
        self.canvas.set_line(None if z is None else self._place(z))

    def _place(self, z: Floats) -> Floats | None:
        try:
            return self.session.data.axes.place(z, self.axes)
        except EmsvaeError as error:
            self.session.say(str(error))
            return None


def _fill(box: QComboBox, options: Sequence[str], wanted: str) -> None:
    box.clear()
    box.addItems(list(options))
    box.setCurrentText(wanted)


def _places(data: RunData, names: tuple[str, str]) -> tuple[tuple[str, str], Floats]:
    return names, np.stack([data.axes.coordinate(name) for name in names], 1)


def _coloured(data: RunData, wanted: str, points: Floats) -> Colouring:
    if wanted == DENSITY:
        return Colouring("density (log\N{SUBSCRIPT ONE}\N{SUBSCRIPT ZERO})", density(points))
    return column_colouring(wanted, data.columns.read(wanted))


def _value(colouring: Colouring, particle: int) -> Any:
    value = colouring.values[particle]
    if not colouring.is_groups:
        return f"{value:.4g}"
    code = int(value) - colouring.first
    return colouring.names[code] if 0 <= code < len(colouring.names) else "none"
