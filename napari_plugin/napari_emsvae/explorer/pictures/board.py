"""Tiles on the canvas that are chosen with the mouse: framed where they are chosen, told by tile numbers."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from napari.layers import Image
from numpy.typing import NDArray

from napari_emsvae.explorer.pictures.mosaic import Mosaic
from napari_emsvae.explorer.pictures.picture import Picture
from napari_emsvae.explorer.pictures.stage import Labels, Stage
from napari_emsvae.qt import palette

Choosing = Literal["toggle", "add", "remove"]
FRAME = 24
"""The frame of a tile is so many times thinner than the tile."""
PART_DASHES = 6
"""A tile of which a part is chosen has a frame of so many dashes a side."""


class Board:
    """A mosaic on the canvas.

    Click toggles a tile, shift-click chooses all from the last one to this one, dragging chooses what lies in the rectangle,
    Ctrl-click (and Ctrl-drag) takes out, double-click opens.

    Parameters
    ----------
    chosen
        Called with tile numbers and what is to happen to them.
    clicked
        Called with the tile of a plain click, before ``chosen``; True: that was all.
    opened
        Called with the tile of a double-click.
    """

    def __init__(
        self,
        stage: Stage,
        group: str,
        chosen: Callable[[list[int], Choosing], object],
        opened: Callable[[int], object],
        clicked: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self.stage, self.group = stage, group
        self._chosen, self._opened, self._clicked = chosen, opened, clicked
        self.mosaic: Mosaic | None = None
        self._last: int | None = None
        self._pixel = 1.0

    def show(
        self, mosaic: Mosaic, picture: Picture, texts: list[str], size_pt: int, *, fit: bool | None = None
    ) -> Image:
        """Put a mosaic on the canvas, a text in the upper left corner of each tile (none: no texts)."""
        again = self.mosaic is not None and self.mosaic.image.shape == mosaic.image.shape
        self.mosaic, self._pixel = mosaic, picture.pixel_size_A
        if not again:
            self._last = None
        inside = self._thick + 1  # the frame would lie on the text otherwise
        corners = np.array([mosaic.corner(k) for k in range(len(texts))], dtype=float).reshape(-1, 2) + inside
        corners *= self._pixel
        if self.stage.find(self.group, "frames") is not None and not again:
            self.stage.drop(self.group, "frames")
        frames = Picture(
            "frames", self._frames(set(), set()), picture.pixel_size_A, (0, 1), unit=picture.unit, over=True
        )
        layers = self.stage.show(self.group, [picture, frames], Labels(texts, corners, size_pt, inside=True))
        layer = layers[0]
        if not again if fit is None else fit:
            self.stage.fit()
        layer.mouse_pan = False  # dragging chooses; the wheel zooms
        if self._dragged not in layer.mouse_drag_callbacks:
            layer.mouse_drag_callbacks.append(self._dragged)
            layer.mouse_double_click_callbacks.append(self._double_clicked)
        self.stage.viewer.layers.selection.active = layer
        return layer

    @property
    def _thick(self) -> int:
        """Of a frame, in pixels of the mosaic."""
        assert self.mosaic is not None
        return max(2, self.mosaic.box // FRAME)

    def frame(self, chosen: set[int], partly: set[int] | None = None, dragged: set[int] | None = None) -> None:
        """Frame tiles: those that are chosen, those of which a part is (dashed), and those within a rectangle being dragged."""
        if self.mosaic is not None and self.stage.group == self.group:
            self.stage.update(self.group, "frames", self._frames(chosen, partly or set(), dragged or set()))

    def _frames(self, chosen: set[int], partly: set[int], dragged: set[int] | None = None) -> NDArray[np.uint8]:
        """An image [h, w, 4] that is transparent but for the frames, each with an edge of the other brightness."""
        mosaic = self.mosaic
        assert mosaic is not None
        out = np.zeros((*mosaic.image.shape, 4), dtype=np.uint8)
        box, thick = mosaic.box, self._thick
        y, x = np.mgrid[:box, :box]
        edge = np.minimum(np.minimum(x, y), np.minimum(box - 1 - x, box - 1 - y))
        outer, inner = edge < thick, (edge >= thick) & (edge < thick + max(1, thick // 2))
        dashes = ((x + y) * PART_DASHES // box) % 2 == 0
        bright = np.array([*(255 * np.array(palette.to_rgb(palette.CHOSEN))), 255], dtype=np.uint8)
        dark = np.array([0, 0, 0, 255], dtype=np.uint8)
        for tiles, mask in ((partly, outer & dashes), (chosen, outer), (dragged or set(), outer & dashes)):
            for tile in tiles:
                top, left = mosaic.corner(tile)
                place = out[top : top + box, left : left + box]
                place[inner if tiles is chosen else np.zeros_like(inner)] = dark
                place[mask] = bright
        return out

    # --------------------------------------------------------------------------------------------------------- mouse

    def _tile(self, layer: Any, event: Any) -> int | None:
        row, column = layer.world_to_data(event.position)[-2:]
        return None if self.mosaic is None else self.mosaic.at(row, column)

    def _dragged(self, layer: Any, event: Any) -> Iterator[None]:
        """A press, the moves after it, and the release, as napari tells them."""
        modifiers = {str(getattr(key, "name", key)) for key in event.modifiers}
        first = layer.world_to_data(event.position)[-2:]
        began = self._tile(layer, event)
        boxed: list[int] = []
        yield
        while event.type == "mouse_move":
            boxed = self._between(first, layer.world_to_data(event.position)[-2:])
            if len(boxed) > 1:
                self.preview(boxed)
            yield
        if len(boxed) > 1:
            self._chosen(boxed, "remove" if "Control" in modifiers else "add")
        elif began is not None:
            self.press(began, modifiers)

    def _between(self, first: Any, last: Any) -> list[int]:
        """The tiles within a rectangle of the picture, given by two corners in pixels."""
        mosaic = self.mosaic
        assert mosaic is not None
        step = mosaic.box + mosaic.gap
        (top, bottom), (left, right) = (sorted((first[k], last[k])) for k in (0, 1))
        rows = range(max(0, int(top // step)), min(mosaic.rows - 1, int(bottom // step)) + 1)
        columns = range(max(0, int(left // step)), min(mosaic.columns - 1, int(right // step)) + 1)
        tiles = (row * mosaic.columns + column for row in rows for column in columns)
        return [tile for tile in tiles if tile < mosaic.count]

    def preview(self, tiles: list[int]) -> None:
        """Frame what is being dragged over, until the button is released."""
        self.frame(set(), set(), set(tiles))

    def press(self, tile: int, modifiers: set[str] | None = None) -> None:
        """A click on a tile."""
        modifiers = modifiers or set()
        if "Control" in modifiers:
            self._chosen([tile], "remove")
        elif "Shift" in modifiers and self._last is not None:
            low, high = sorted((self._last, tile))
            self._chosen(list(range(low, high + 1)), "add")
        elif "Shift" in modifiers:
            self._chosen([tile], "add")
        elif not self._clicked(tile):
            self._chosen([tile], "toggle")
        self._last = tile

    def _double_clicked(self, layer: Any, event: Any) -> None:
        tile = self._tile(layer, event)
        if tile is not None:
            self._opened(tile)
