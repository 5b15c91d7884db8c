"""The learning curve while a model trains."""

import numpy as np
from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from qtpy.QtCore import QSize

from emspatialvae.jobs.background import LearningCurve
from napari_emsvae.qt import palette


class LearningCurveView(FigureCanvasQTAgg):
    """ELBO of training and held-out particles per epoch."""

    def __init__(self) -> None:
        figure = Figure(facecolor=palette.theme.background, layout="constrained")
        super().__init__(figure)
        self.setToolTip(
            "ELBO per epoch, in nats per particle: higher is better.\nHeld-out far below training means over-fitting."
        )
        self.setMinimumSize(240, 130)
        self.axes = figure.add_subplot()
        self.shown: LearningCurve | None = None
        self.show_curve(LearningCurve([], [], [], ""))

    def sizeHint(self) -> QSize:
        """What the layout may rely on; matplotlib's own hint is too wide for a dock."""
        return QSize(420, 200)

    def show_curve(self, curve: LearningCurve) -> None:
        """Draw a curve; the same one again costs nothing."""
        if self.shown is not None and self.shown.epochs == curve.epochs:
            return
        self.shown, axes = curve, self.axes
        axes.clear()
        axes.set_facecolor(palette.theme.background)
        axes.tick_params(colors=palette.theme.faint, labelcolor=palette.theme.text, labelsize=palette.FONT_PT - 1)
        for spine in axes.spines.values():
            spine.set_color(palette.theme.faint)
        axes.set_xlabel("epoch", color=palette.theme.text, fontsize=palette.FONT_PT)
        axes.set_ylabel("ELBO, nats/particle", color=palette.theme.text, fontsize=palette.FONT_PT)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if curve.epochs:
            self._plot(curve)
        else:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.text(
                *(0.5, 0.5, "the learning curve appears\nwhen the first epoch is done"),
                transform=axes.transAxes,
                ha="center",
                va="center",
                color=palette.theme.faint,
                fontsize=palette.FONT_PT,
            )
        self.draw_idle()

    def _plot(self, curve: LearningCurve) -> None:
        axes = self.axes
        curves = (("training", curve.train_elbo, "o-"), ("held out", curve.held_out_elbo, "s--"))
        for (name, elbo, style), color in zip(curves, palette.theme.distinct, strict=False):
            if np.isfinite(elbo).any():
                axes.plot(curve.epochs, elbo, style, ms=4, color=color, label=f"{name} {elbo[-1]:.2f}")
        # The first epochs climb from an untrained model and would flatten all that matters.
        values = sorted(value for value in (*curve.train_elbo, *curve.held_out_elbo) if np.isfinite(value))
        if values:
            low, high = values[len(values) // 10], values[-1]
            room = max(high - low, 1e-3)
            axes.set_ylim(low - 0.15 * room, high + 0.1 * room)
        axes.grid(color=palette.theme.faint, alpha=0.25)
        axes.legend(
            loc="lower right",
            fontsize=palette.FONT_PT,
            facecolor=palette.theme.background,
            labelcolor=palette.theme.text,
            edgecolor=palette.theme.faint,
        )
