"""The legend beside the scatter: a histogram in the points' colours, whose handles are thresholds and whose bars are groups."""

from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from emspatialvae.imaging.arrays import Mask
from napari_emsvae.explorer.scatter.colouring import Colouring
from napari_emsvae.qt import palette

BINS, WIDTH = 64, 60
"""Bars, and the pixels of the longest one."""
MOST_GROUPS = 24
"""More groups than that have no bars of their own."""
REACH_PX = 9
"""The handles reach so far out of the axes."""
NAME_LETTERS = 12


class Legend:
    """What the colours mean, how many particles have which, and two thresholds to be dragged.

    Attributes
    ----------
    ends
        Where the thresholds stand, from below; of groups both are None.
    """

    def __init__(self, axes: Any) -> None:
        self.axes = axes
        self.colouring = Colouring("", np.zeros(0))
        self.ends: list[float] | None = None
        self._limits = (0.0, 1.0)
        self._held: int | None = None
        self._handles = [self._handle() for _ in range(2)]

    def _handle(self) -> Line2D:
        line = Line2D([0, 1], [0, 0], lw=2.2, marker="d", ms=7)
        line.set_figure(self.axes.figure)
        line.axes = self.axes
        line.set_transform(self.axes.get_yaxis_transform())
        line.set_clip_on(False)
        return line

    def show(self, colouring: Colouring) -> None:
        """Show another colouring; the thresholds go back to the ends."""
        self.colouring, self._held = colouring, None
        axes, theme = self.axes, palette.theme
        axes.clear()
        axes.set_facecolor(theme.background)
        axes.tick_params(colors=theme.text, labelsize=palette.FONT_PT - 1, length=2, pad=2)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xticks([])
        axes.yaxis.tick_right()
        axes.yaxis.set_label_position("right")
        self.ends = None
        axes.set_visible(bool(colouring.label) and len(colouring.values) > 0)
        if not axes.get_visible():
            return
        if colouring.is_groups:
            self._show_groups()
        else:
            self._show_numbers()

    def _show_numbers(self) -> None:
        low, high = self._limits = self.colouring.limits
        self.ends = [low, high]
        known = self.colouring.values[np.isfinite(self.colouring.values)]
        counts, _ = np.histogram(np.clip(known, low, high), BINS, (low, high))
        long = np.sqrt(counts / max(counts.max(initial=0), 1)) * (WIDTH - 2) + 2
        levels = low + (np.arange(BINS) + 0.5) / BINS * (high - low)
        bars = np.where((np.arange(WIDTH) < long[:, None]), levels[:, None], np.nan)
        rgba = np.ones((BINS, WIDTH, 4))
        rgba[..., :3], rgba[..., 3] = palette.of_levels(bars, low, high), np.isfinite(bars)
        self.axes.imshow(rgba, origin="lower", aspect="auto", extent=(0, 1, low, high), interpolation="nearest")
        self.axes.set_xlim(0, 1)
        self.axes.set_ylim(low, high)
        self.axes.set_ylabel(
            short(self.colouring.label, 28), color=palette.theme.text, fontsize=palette.FONT_PT, labelpad=2
        )

    def _show_groups(self) -> None:
        codes, names, first = self.colouring.values, self.colouring.names, self.colouring.first
        whole = np.where(np.isfinite(codes), codes, first - 1).astype(np.int64) - first
        counts = np.bincount(whole[whole >= 0], minlength=len(names))
        shown = np.flatnonzero(counts)
        if len(shown) > MOST_GROUPS:
            self.axes.set_yticks([])
            self.axes.text(
                *(0.0, 1.0, f"{len(shown):,} values;\ncolours repeat,\nhover for names"),
                transform=self.axes.transAxes,
                va="top",
                fontsize=palette.FONT_PT - 1,
                color=palette.theme.text,
            )
            return
        colours = [palette.of_number(int(code) + 1) for code in shown]
        share = np.sqrt(counts[shown] / max(counts.max(initial=0), 1))
        self.axes.barh(np.arange(len(shown)), share, color=colours, height=0.8)
        self.axes.set_ylim(max(len(shown), 1) - 0.5, -0.5)  # without particles there are no bars
        self.axes.set_xlim(0, 1)
        self.axes.set_yticks(np.arange(len(shown)), [short(names[code], NAME_LETTERS) for code in shown])
        self._groups = shown + first

    def draw(self) -> None:
        """Draw the handles over what is on the canvas."""
        if self.ends is None or not self.axes.get_visible():
            return
        theme = palette.theme
        for handle, value in zip(self._handles, self.ends, strict=True):
            handle.set_ydata([value, value])
            handle.set_color(theme.mark)
            handle.set_path_effects([withStroke(linewidth=4.5, foreground=theme.background)])
            self.axes.draw_artist(handle)

    # --------------------------------------------------------------------------------------------------------- mouse

    def take(self, event: Any) -> bool:
        """The mouse was pressed: take hold of a handle there; whether there was one."""
        if self.ends is None:
            return False
        places = [self.axes.transData.transform((0, value))[1] for value in self.ends]
        away = [abs(place - event.y) for place in places]
        # Above both ends the upper one is meant, even where they lie on each other.
        self._held = 1 if away[1] < away[0] or (away[1] == away[0] and event.y >= places[1]) else 0
        return True

    def holds(self, event: Any) -> bool:
        """Whether the cursor is on the legend or on what of its handles reaches out of it."""
        box, reach = self.axes.get_window_extent(), REACH_PX * self.axes.figure.canvas.device_pixel_ratio
        inside = box.x0 - reach <= event.x <= box.x1 + reach and box.y0 - reach <= event.y <= box.y1 + reach
        return self.axes.get_visible() and inside

    @property
    def is_held(self) -> bool:
        """Whether a handle is being dragged."""
        return self._held is not None

    def drag(self, event: Any) -> tuple[float, float]:
        """Move the handle that is held to the cursor; the range that is left."""
        assert self.ends is not None
        assert self._held is not None
        low, high = self._limits
        value = float(self.axes.transData.inverted().transform((event.x, event.y))[1])
        value = min(max(value, low), high)
        other = self.ends[1 - self._held]
        self.ends[self._held] = min(value, other) if self._held == 0 else max(value, other)
        return self.range

    def let_go(self) -> tuple[float, float]:
        """The mouse was released."""
        self._held = None
        return self.range

    @property
    def range(self) -> tuple[float, float]:
        """The values between the thresholds; a threshold at its end is none."""
        assert self.ends is not None
        low, high = self._limits
        return (-np.inf if self.ends[0] <= low else self.ends[0], np.inf if self.ends[1] >= high else self.ends[1])

    def group_at(self, event: Any) -> int | None:
        """The code of the group whose bar the cursor is on."""
        if not self.colouring.is_groups or not self.axes.patches:
            return None
        bar = round(float(self.axes.transData.inverted().transform((event.x, event.y))[1]))
        return int(self._groups[bar]) if 0 <= bar < len(self._groups) else None

    def inside(self, low: float, high: float) -> Mask:
        """Which particles lie in a range of what they are coloured by; [n]."""
        with np.errstate(invalid="ignore"):
            return (self.colouring.values >= low) & (self.colouring.values <= high)


def short(text: str, most: int) -> str:
    """A text cut in the middle, where it says least, to at most so many letters."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[: most - 1 - half]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - half :]}"
