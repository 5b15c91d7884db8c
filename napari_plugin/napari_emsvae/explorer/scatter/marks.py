"""What lies over the points of a scatter and moves without them."""

from typing import Any, TypeVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.text import Annotation, Text

from emspatialvae.imaging.arrays import Floats
from napari_emsvae.qt import palette

A = TypeVar("A", bound=Artist)


class Marks:
    """What lies over the points: the particle under the cursor, the picked one, the path, the latent that is drawn.

    The artists are not among the axes' children: matplotlib's selectors would draw the whole figure twice for each of them.
    """

    def __init__(self, axes: Any) -> None:
        self.axes = axes
        self.hover: Floats | None = None
        self.picked: Floats | None = None
        self.latent: Floats | None = None
        self.text = ""
        self._hover = self._line_of("o", ms=11, mfc="none", mew=1.5)
        self._picked = self._line_of("o", ms=16, mfc="none", mew=2.2)
        self._latent = self._line_of("D", ms=8)
        self._line = self._line_of(".", ls="-", lw=1.6, ms=4)
        style = {"fontsize": palette.FONT_PT + 2, "fontweight": "bold"}
        self._ends = [self._own(Text(0, 0, name, visible=False, **style)) for name in "AB"]
        self._said = self._own(
            Annotation(
                "",
                (0, 0),
                xytext=(9, 9),
                textcoords="offset points",
                fontsize=palette.FONT_PT,
                bbox={"boxstyle": "round,pad=0.35", "alpha": 0.92},
            )
        )
        self.restyle()

    def restyle(self) -> None:
        """Take the theme's colours. Each mark has an edge of the other brightness, so that it is seen on points of any colour."""
        mark, background = palette.theme.mark, palette.theme.background

        def edge(width: float) -> list[AbstractPathEffect]:
            return [withStroke(linewidth=width, foreground=background)]

        for line, width in ((self._hover, 3.5), (self._picked, 5.5), (self._line, 3.6)):
            line.set_color(mark)
            line.set_markeredgecolor(mark)
            line.set_path_effects(edge(width))
        self._latent.set_markerfacecolor(mark)
        self._latent.set_markeredgecolor(background)
        for text in self._ends:
            text.set_color(mark)
            text.set_path_effects(edge(3))
        self._said.set_color(palette.theme.text)
        box = self._said.get_bbox_patch()
        assert box is not None
        box.set_facecolor(background)
        box.set_edgecolor(palette.theme.faint)

    def _line_of(self, marker: str, **style: Any) -> Line2D:
        return self._own(Line2D([], [], **{"ls": "", "marker": marker, **style}))

    def _own(self, artist: A) -> A:
        artist.set_figure(self.axes.figure)
        artist.axes = self.axes
        if not artist.is_transform_set():
            artist.set_transform(self.axes.transData)
        artist.set_clip_path(self.axes.patch)
        return artist

    def clear(self) -> None:
        """Nothing is marked."""
        self.hover = self.picked = self.latent = None
        self.set_line(None)

    def set_line(self, line: Floats | None) -> None:
        """See `ScatterCanvas.set_line`."""
        shown = np.zeros((0, 2)) if line is None else line
        self._line.set_data(shown[:, 0], shown[:, 1])
        for text, end in zip(self._ends, (0, -1), strict=True):
            text.set_visible(len(shown) > 1 or (end == 0 and len(shown) == 1))
            if len(shown):
                text.set_position(shown[end])

    def draw(self) -> None:
        """Draw them over what is on the canvas."""
        places = ((self._hover, self.hover), (self._picked, self.picked), (self._latent, self.latent))
        for artist, place in places:
            artist.set_data(*([[], []] if place is None else [[place[0]], [place[1]]]))
        self._said.set_visible(self.hover is not None and bool(self.text))
        if self.hover is not None:
            self._said.set_text(self.text)
            self._said.xy = float(self.hover[0]), float(self.hover[1])
            self._keep_inside()
        for artist in (self._line, self._latent, *self._ends, self._picked, self._hover, self._said):
            if artist.get_visible():
                self.axes.draw_artist(artist)

    def _keep_inside(self) -> None:
        """The text lies towards the middle of the axes, so that it is never cut off."""
        x, y = self.axes.transAxes.inverted().transform(self.axes.transData.transform(self._said.xy))
        self._said.set_horizontalalignment("right" if x > 0.55 else "left")
        self._said.set_verticalalignment("top" if y > 0.7 else "bottom")
        self._said.xyann = (-11 if x > 0.55 else 11, -11 if y > 0.7 else 11)
