"""Average and standard deviation of the selected particles, as two small pictures."""

from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
from matplotlib.figure import Figure
from qtpy.QtCore import QSize

from napari_emsvae.explorer.pictures.picture import limits_of
from napari_emsvae.explorer.pictures.selection_average import Statistics
from napari_emsvae.qt import palette


class StatisticsView(FigureCanvasQTAgg):
    """Average and standard deviation side by side."""

    def __init__(self) -> None:
        figure = Figure(facecolor=palette.BACKGROUND)
        super().__init__(figure)
        self.setToolTip(
            "The selected particles with rotation and shift taken out: what they share, and where they differ"
        )
        self.setMinimumSize(250, 150)
        self.axes = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.02, right=0.98, top=0.86, bottom=0.13, wspace=0.06)
        self.caption = figure.text(0.5, 0.03, "", color=palette.TEXT, fontsize=8, ha="center")
        self.shown: Statistics | None = None
        self.clear("")

    def sizeHint(self) -> QSize:
        """Room for two small pictures."""
        return QSize(300, 170)

    def show_statistics(self, found: Statistics) -> None:
        """Show these."""
        self.shown = found
        for axes, image, name in zip(self.axes, (found.mean, found.sd), ("average", "standard deviation"), strict=True):
            axes.clear()
            low, high = limits_of(image)
            axes.imshow(image, cmap="gray", vmin=low, vmax=high)
            axes.set_title(name, color=palette.TEXT, fontsize=9, pad=3)
            axes.set_axis_off()
        self.caption.set_text(found.described())
        self.draw_idle()

    def clear(self, text: str) -> None:
        """Show none, and a text instead."""
        self.shown = None
        for axes in self.axes:
            axes.clear()
            axes.set_axis_off()
        self.caption.set_text(text)
        self.draw_idle()
