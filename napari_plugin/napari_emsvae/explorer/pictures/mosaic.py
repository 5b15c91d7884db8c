"""Many small images as one: tiles in reading order, and which tile a point of the picture lies in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from emspatialvae.io.image_names import parse_image_name

if TYPE_CHECKING:
    from emspatialvae.imaging.arrays import Rows
    from napari_emsvae.explorer.run_data import RunData

GAP_PX = 1
Look = Literal["aligned, low-passed", "aligned", "raw, low-passed", "raw"]
LOOKS: tuple[Look, ...] = ("aligned, low-passed", "aligned", "raw, low-passed", "raw")


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Tiles in one image; ``image`` is [rows * (box + 1) - 1, columns * (box + 1) - 1], NaN-free."""

    image: NDArray[np.float32]
    box: int
    rows: int
    columns: int
    count: int
    gap: int = GAP_PX

    @classmethod
    def of(cls, tiles: NDArray[np.float32], columns: int | None = None, gap: int = GAP_PX) -> "Mosaic":
        """Lay tiles [n, box, box] in rows; by default about as many columns as rows. What stays empty is as dark as the darkest."""
        count, box = len(tiles), tiles.shape[-1]
        columns = max(1, columns or math.ceil(math.sqrt(count)))
        rows = max(1, math.ceil(count / columns))
        step = box + gap
        image = np.full((rows * step - gap, columns * step - gap), tiles.min(initial=0.0), dtype=np.float32)
        for k, tile in enumerate(tiles):
            top, left = k // columns * step, k % columns * step
            image[top : top + box, left : left + box] = tile
        return cls(image, box, rows, columns, count, gap)

    def corner(self, tile: int) -> tuple[int, int]:
        """Row and column of a tile's first pixel."""
        step = self.box + self.gap
        return tile // self.columns * step, tile % self.columns * step

    def at(self, row: float, column: float) -> int | None:
        """The tile that a point of the image (in pixels) lies in; None beside all of them."""
        step = self.box + self.gap
        down, across = math.floor((row + 0.5) / step), math.floor((column + 0.5) / step)
        tile = down * self.columns + across
        inside = 0 <= down < self.rows and 0 <= across < self.columns and tile < self.count
        return tile if inside else None


def montage(data: "RunData", rows: "Rows", look: Look, low_pass_A: float) -> tuple[Mosaic, float]:
    """Some particles side by side, each brought to background 0 and s.d. 1, and the pixel size of the tiles (angstrom)."""
    from napari_emsvae.explorer.pictures.picture import low_passed
    from napari_emsvae.explorer.pictures.upright import upright
    from napari_emsvae.layers import images

    if look.startswith("aligned"):
        tiles, _ = upright(data, rows)
        pixel_size_A = data.pixel_size_A
    else:
        grid = images.Grid.of(data.stack)
        tiles = np.nan_to_num(images.raw_images(data.stack, grid)[rows], posinf=0, neginf=0)
        pixel_size_A = grid.pixel_size_A
    if look.endswith("low-passed"):
        tiles = np.stack([low_passed(tile, low_pass_A / pixel_size_A) for tile in tiles])
    spread = tiles.std((1, 2), keepdims=True)
    levelled = (tiles - tiles.mean((1, 2), keepdims=True)) / np.where(spread > 0, spread, 1)
    return Mosaic.of(levelled.astype(np.float32)), pixel_size_A


def short_name(name: str) -> str:
    """What tells an image name ``000123@path/stack.mrcs`` from its neighbours: ``123@stack``."""
    image = parse_image_name(str(name))
    return image.path if image.number is None else str(image._replace(path=PurePosixPath(image.path).stem))


def tile_names(names: Sequence[str]) -> list[str]:
    """Names short enough for tiles: the number alone where all are of one stack, else with the end of the stack's name."""
    images = [parse_image_name(str(name)) for name in names]
    if len({image.path for image in images}) == 1 and images[0].number is not None:
        return [str(image.number) for image in images]
    return [short_name(name)[:16] for name in names]
