"""The scatter as a widget: a matplotlib canvas that zooms, pans, tells the particle under the cursor and draws lassos.

The points are one image (see `napari_emsvae.explorer.scatter.colouring`), so that a million of them cost no more than a thousand.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, cast

import numpy as np
from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.widgets import LassoSelector, RectangleSelector
from numpy.typing import NDArray
from qtpy.QtCore import QSize, Qt, Signal  # pyright: ignore[reportPrivateImportUsage]
from qtpy.QtWidgets import QSizePolicy
from scipy.spatial import KDTree
from superqt.utils import qthrottled

from emspatialvae.imaging.arrays import Floats, Mask
from napari_emsvae.explorer.scatter import raster
from napari_emsvae.explorer.scatter.colouring import Colouring, paint, places_of_names
from napari_emsvae.explorer.scatter.legend import Legend, short
from napari_emsvae.explorer.scatter.marks import Marks
from napari_emsvae.explorer.scatter.raster import Window
from napari_emsvae.qt import palette

Mode = Literal["look", "lasso", "box", "line"]
MODES: tuple[Mode, ...] = ("look", "lasso", "box", "line")

NEAR_PX = 14
"""The cursor finds particles that near."""
CLICK_PX = 4
"""A press that moves less is a click, not a pan."""
ZOOM_STEP = 0.8
BOTTOM_PX, LEGEND_PX, GAP_PX, TOP_PX, MARGIN_PX = 46, 46, 10, 10, 6
"""Around the axes: below for ticks and label, the width of the legend and the gap before it, and at the edges of the widget."""
LABEL_LETTERS = 26
LIVE_MS = 60
"""While a lasso or a threshold moves it is followed at most that often."""


class ScatterCanvas(FigureCanvasQTAgg):
    """Points in a plane.

    Signals: ``hovered`` and ``clicked`` carry the row of a particle (hovered: None beside all of them), ``enclosed`` the mask [n]
    of what a lasso or box holds, ``enclosing`` the same while it is drawn (None: no longer), ``line_drawn`` the points [k, 2] of a line.
    ``range_moved`` and ``range_chosen`` carry the masks [n] of what lies between the legend's thresholds, while they move and when
    they have been let go.
    """

    hovered = Signal(object)
    clicked = Signal(int)
    enclosed = Signal(object)
    enclosing = Signal(object)
    line_drawn = Signal(object)
    range_moved = Signal(object)
    range_chosen = Signal(object)

    def __init__(self) -> None:
        figure = Figure(facecolor=palette.theme.background)
        super().__init__(figure)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAccessibleName("Scatter of the particles")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setMinimumSize(260, 170)
        self.axes, self.scale_axes = figure.add_axes((0.1, 0.1, 0.7, 0.8)), figure.add_axes((0.85, 0.1, 0.02, 0.8))
        self._dress()
        self.points: Floats = np.zeros((0, 2))
        self.colouring = Colouring("", np.zeros(0))
        self.selected: Mask | None = None
        self.mode: Mode = "look"
        self._home = self._window = Window(-1, 1, -1, 1)
        self._names: list[Any] = []
        self._search: Future[KDTree] | None = None
        self._searchers = ThreadPoolExecutor(1, thread_name_prefix="emsvae-nearest")
        self._press: tuple[float, float, Window] | None = None
        self._background: Any = None
        self._marks = Marks(self.axes)
        self.legend = Legend(self.scale_axes)
        self._drawn_line: list[tuple[float, float]] = []
        self._follow_drawing = qthrottled(self._tell_enclosing, timeout=LIVE_MS, parent=self)
        self._follow_range = qthrottled(self._tell_range, timeout=LIVE_MS, parent=self)
        self._lasso = LassoSelector(
            self.axes, self._lasso_done, useblit=True, props={"color": palette.theme.mark, "lw": 1.5}
        )
        self._box = RectangleSelector(
            self.axes,
            self._box_done,
            useblit=True,
            props={"ec": palette.theme.mark, "fc": "none", "lw": 1.5, "fill": False},
        )
        for name, slot in {
            "scroll_event": self._scrolled,
            "button_press_event": self._pressed,
            "motion_notify_event": self._moved,
            "button_release_event": self._released,
            "axes_leave_event": lambda _: self._hover(None),
            "figure_leave_event": lambda _: self._hover(None),
            "resize_event": lambda _: self._lay_out(),
            "draw_event": self._drawn,
        }.items():
            self.mpl_connect(cast(Any, name), slot)
        self.set_mode("look")

    def sizeHint(self) -> QSize:
        """What the layout may rely on; matplotlib's own hint is too wide for a dock."""
        return QSize(560, 430)

    # ------------------------------------------------------------------------------------------------- what is shown

    def restyle(self) -> None:
        """Take the theme's colours."""
        self.figure.set_facecolor(palette.theme.background)
        self._colour_frame()
        self._marks.restyle()
        self._lasso.set_props(color=palette.theme.mark)
        self._box.set_props(ec=palette.theme.mark)
        for axis in (self.axes.xaxis, self.axes.yaxis):
            axis.label.set_color(palette.theme.text)
        self.set_colouring(self.colouring)

    def set_points(self, points: Floats, labels: tuple[str, str]) -> None:
        """Show other points [n, 2]; NaN has no place. The view shows all of them."""
        self.points = points
        self.axes.set_xlabel(short(labels[0], LABEL_LETTERS), color=palette.theme.text, fontsize=palette.FONT_PT)
        self.axes.set_ylabel(short(labels[1], LABEL_LETTERS), color=palette.theme.text, fontsize=palette.FONT_PT)
        self._home = self._window = Window.around(points)
        self._search = self._searchers.submit(_search_tree, points, np.array(self._home.size))
        if len(self.colouring.values) != len(points):
            self.colouring = Colouring("", np.zeros(len(points)))
        if self.selected is not None and len(self.selected) != len(points):
            self.selected = None
        self._marks.clear()
        self.set_colouring(self.colouring)

    def set_colouring(self, colouring: Colouring) -> None:
        """Colour the points by something else; what was meant for other points is dropped."""
        if len(colouring.values) != len(self.points):
            return
        self.colouring = colouring
        for text in self._names:
            text.remove()
        self._names = [
            self.axes.text(
                x,
                y,
                name,
                color=palette.theme.mark,
                fontsize=palette.FONT_PT + 2,
                fontweight="bold",
                ha="center",
                va="center",
                clip_on=True,
                path_effects=[withStroke(linewidth=3, foreground=palette.theme.background)],
            )
            for name, x, y in places_of_names(self.points, colouring)
        ]
        self.legend.show(colouring)
        self._lay_out()

    def set_selected(self, selected: Mask | None) -> None:
        """Show which points [n] are selected."""
        self.selected = selected
        self.repaint_points()

    def set_mode(self, mode: Mode) -> None:
        """What dragging the mouse does: pan, or draw a lasso, a box or a line."""
        self.mode = mode
        self._lasso.set_active(mode in ("lasso", "line"))
        self._box.set_active(mode == "box")
        self.setCursor(Qt.CursorShape.ArrowCursor if mode == "look" else Qt.CursorShape.CrossCursor)

    def mark(self, row: int | None) -> None:
        """Mark the picked particle."""
        self._marks.picked = self._place(row)
        self._draw_marks()

    def set_line(self, line: Floats | None) -> None:
        """Show a path [k, 2] with its ends called A and B."""
        self._marks.set_line(line)
        self._draw_marks()

    def set_latent_mark(self, point: Floats | None) -> None:
        """Show where [2] in the plane the latent lies that the model draws at present."""
        self._marks.latent = point
        self._draw_marks()

    def say_at(self, row: int | None, text: str) -> None:
        """Write something beside a point."""
        self._marks.hover, self._marks.text = self._place(row), text
        self._draw_marks()

    def show_all(self) -> None:
        """Back to the view of all points."""
        self.look_at(self._home)

    def look_at(self, window: Window) -> None:
        """Show another part of the plane."""
        self._window = window
        self._lay_out()

    @property
    def view(self) -> Window:
        """The part of the plane in view."""
        return self._window

    def nearest(self, x: float, y: float) -> int | None:
        """The particle nearest to a point of the plane, None if none is within reach of the cursor."""
        if self._search is None or not self._search.done() or not len(self.points):
            return None
        scale = np.array(self._home.size)
        distance, row = self._search.result().query(np.array([x, y]) / scale)
        if not np.isfinite(distance):
            return None
        there = self.axes.transData.transform(self.points[row])
        here = self.axes.transData.transform((x, y))
        return int(row) if np.hypot(*(there - here)) <= NEAR_PX * self.device_pixel_ratio else None

    def wait_for_search(self) -> None:
        """Wait until `nearest` knows the present points."""
        if self._search is not None:
            self._search.result()

    def repaint_points(self) -> None:
        """Draw the points anew, for the present window and size."""
        box = self.axes.get_window_extent()
        shape = max(int(box.height), 1), max(int(box.width), 1)
        window = self._window
        rgba = paint(self.points, window, shape, self.colouring, self.selected)
        self._image.set_data(rgba)
        self._image.set_extent((window.left, window.right, window.bottom, window.top))
        self.axes.set_xlim(window.left, window.right)
        self.axes.set_ylim(window.bottom, window.top)
        self.draw_idle()

    def shut(self) -> None:
        """Let the search thread go."""
        self._searchers.shutdown(wait=False, cancel_futures=True)

    # -------------------------------------------------------------------------------------------------------- mouse

    def _scrolled(self, event: Any) -> None:
        if event.inaxes is self.axes:
            factor = ZOOM_STEP if event.button == "up" else 1 / ZOOM_STEP
            self.look_at(self._window.zoomed((event.xdata, event.ydata), factor))

    def _pressed(self, event: Any) -> None:
        self._hover(None)
        if event.button == 1 and self.legend.holds(event):
            group = self.legend.group_at(event)
            if group is not None:
                self.range_chosen.emit(self.colouring.values == group)
            else:
                self.legend.take(event)
            return
        if event.inaxes is self.axes and self.mode in ("lasso", "box") and event.button == 1:
            self._drawn_line = [(event.xdata, event.ydata)]
        if event.inaxes is self.axes and self.mode == "look" and event.button == 1:
            if event.dblclick:
                self.show_all()
                return
            self._press = event.x, event.y, self._window

    def _moved(self, event: Any) -> None:
        if self.legend.is_held:
            self.legend.drag(event)
            self._draw_marks()
            self._follow_range()
        elif self._drawn_line and event.inaxes is self.axes:
            self._drawn_line.append((event.xdata, event.ydata))
            self._follow_drawing()
        elif self._press is not None:
            x, y, window = self._press
            box = self.axes.get_window_extent()
            span_x, span_y = window.size
            self.look_at(window.moved((x - event.x) / box.width * span_x, (y - event.y) / box.height * span_y))
        elif event.inaxes is self.axes and event.button is None and self.mode == "look":
            self._hover(self.nearest(event.xdata, event.ydata))

    def _tell_enclosing(self) -> None:
        if len(self._drawn_line) > 1:
            line = np.array(self._drawn_line)
            inside = raster.inside_box if self.mode == "box" else None
            self.enclosing.emit(
                inside(self.points, line[0], line[-1]) if inside else raster.inside_polygon(self.points, line)
            )

    def _tell_range(self) -> None:
        if self.legend.is_held:
            self.range_moved.emit(self.legend.inside(*self.legend.range))

    def _released(self, event: Any) -> None:
        if self.legend.is_held:
            self.range_chosen.emit(self.legend.inside(*self.legend.let_go()))
        if self._drawn_line:
            self._drawn_line = []
            self.enclosing.emit(None)
        if self._press is None:
            return
        x, y, _ = self._press
        self._press = None
        if abs(x - event.x) < CLICK_PX and abs(y - event.y) < CLICK_PX and event.inaxes is self.axes:
            row = self.nearest(event.xdata, event.ydata)
            if row is not None:
                self.clicked.emit(row)

    def _hover(self, row: int | None) -> None:
        if row is None and self._marks.hover is None:
            return
        if row is None:
            self.say_at(None, "")
        self.hovered.emit(row)

    def _lasso_done(self, corners: list[tuple[float, float]]) -> None:
        line = np.array(corners)
        self._draw_marks()
        if self.mode == "line" and len(line) > 1:
            self.line_drawn.emit(line)
        elif self.mode == "lasso" and len(line) > 2:
            self.enclosed.emit(raster.inside_polygon(self.points, line))

    def _box_done(self, press: Any, release: Any) -> None:
        corners = np.array([[press.xdata, press.ydata], [release.xdata, release.ydata]])
        self._box.clear()
        self.enclosed.emit(raster.inside_box(self.points, corners[0], corners[1]))

    # ------------------------------------------------------------------------------------------------------- drawing

    def _dress(self) -> None:
        self._image = self.axes.imshow(np.zeros((1, 1, 4)), origin="lower", aspect="auto", interpolation="nearest")
        self._colour_frame()

    def _colour_frame(self) -> None:
        self.axes.set_facecolor(palette.theme.background)
        self.axes.tick_params(colors=palette.theme.text, labelsize=palette.FONT_PT)
        for spine in self.axes.spines.values():
            spine.set_color(palette.theme.faint)

    def _lay_out(self) -> None:
        """Room for the labels as they are, which do not grow with the window; then the points."""
        width, height = (max(side, 1) for side in self.get_width_height())
        ratio = self.device_pixel_ratio
        self.axes.set_xlim(self._window.left, self._window.right)
        self.axes.set_ylim(self._window.bottom, self._window.top)
        renderer = self.get_renderer()

        def reach(axes: Any) -> float:
            """How far the labels of a vertical axis reach out of the axes, in pixels of the window."""
            if not axes.get_visible():
                return 0.0
            found, box = axes.yaxis.get_tightbbox(renderer), axes.get_window_extent()
            return 0.0 if found is None else max(box.x0 - found.x0, found.x1 - box.x1, 0.0) / ratio

        has_legend = self.scale_axes.get_visible()
        left = reach(self.axes) + MARGIN_PX
        right = (reach(self.scale_axes) + LEGEND_PX + GAP_PX if has_legend else 0) + MARGIN_PX
        tall = max(height - BOTTOM_PX - TOP_PX, 20) / height
        wide = max(width - left - right, 40) / width
        bottom = BOTTOM_PX / height
        self.axes.set_position((left / width, bottom, wide, tall))
        self.scale_axes.set_position((left / width + wide + GAP_PX / width, bottom, LEGEND_PX / width, tall))
        self.repaint_points()

    def _place(self, row: int | None) -> NDArray[np.floating] | None:
        return (
            None
            if row is None or row >= len(self.points) or not np.isfinite(self.points[row]).all()
            else self.points[row]
        )

    def _drawn(self, _: Any) -> None:
        # Not blitted here: this happens within a paint event, and what is drawn now goes to the screen with it.
        self._background = self.copy_from_bbox(self.figure.bbox)
        self._marks.draw()
        self.legend.draw()

    def _draw_marks(self) -> None:
        """Only what moves: the rest comes back from memory, or a hover would redraw a million points."""
        if self._background is None:
            return
        self.restore_region(self._background)
        self._marks.draw()
        self.legend.draw()
        self.update()

    def blit(self, bbox: Any = None) -> None:
        """Show soon what was drawn, not at once as matplotlib does: that would make napari's canvas draw in the middle of things."""
        self.update()


def _search_tree(points: Floats, scale: Floats) -> KDTree:
    # Points without a place lie infinitely far away, so that row numbers stay what they are.
    return KDTree(np.where(np.isfinite(points).all(1, keepdims=True), points / scale, 1e30))
