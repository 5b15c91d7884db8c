"""What of the explorer is on the canvas: groups of image layers side by side, one group at a time.

The explorer's layers are ordinary napari layers, told by ``layer.metadata["emsvae"]["group"]``: they can be hidden, recoloured and saved
like any other. Showing one group takes the others away and hides the layers that the reader made; layers of anybody else stay.
"""

import gc
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Layer, Points
from napari.utils.theme import get_theme
from numpy.typing import NDArray

from napari_emsvae.explorer.pictures.picture import Picture

LABEL_PT = 9
GAP, ROOM = 0.04, 0.2
"""Between pictures, and above them for their names, as parts of their width."""
HINT_PT, HINT_LETTERS, MARGIN = 11, 48, 0.05
CAPTION_LETTERS, LETTERS_BETWEEN = 52, 2
"""That many letters of captions go on a line over the whole width of the canvas, and so many stay free between two; longer ones are wrapped."""


class Stage:
    """The groups of a viewer's explorer layers."""

    def __init__(self, viewer: ViewerModel) -> None:
        self.viewer = viewer
        self.group: str | None = None

    def show(
        self, group: str, pictures: Sequence[Picture], labels: "Labels | None" = None, *, columns: int = 1
    ) -> list[Image]:
        """Put pictures in rows of ``columns``, all as wide as the first, their names above them; other groups go.

        A layer that is there already gets the new image and keeps what the user changed about it. By default the labels are the names.
        """
        leave_packages_out_of_garbage_collections()
        self._forget(group, {picture.name for picture in pictures})
        beside = [picture for picture in pictures if not picture.over]
        width_A = beside[0].image.shape[-1] * beside[0].pixel_size_A
        pixels = [width_A / picture.image.shape[-1] for picture in beside]
        tall = [picture.image.shape[-2] * pixel for picture, pixel in zip(beside, pixels, strict=True)]
        heights = [max(tall[k : k + columns]) + ROOM * width_A for k in range(0, len(beside), columns)]
        # The middle lies at 0, where that of the reader's layers lies: hidden as they are, they count when the view is reset.
        middle = (
            np.array([sum(heights) - 2 * ROOM * width_A, (min(columns, len(beside)) * (1 + GAP) - GAP) * width_A]) / 2
        )
        corners = np.array(
            [(sum(heights[: k // columns]), k % columns * width_A * (1 + GAP)) for k in range(len(beside))]
        )
        layers = [
            self._put(group, picture, pixel, tuple(corner - middle + pixel / 2))
            for picture, pixel, corner in zip(beside, pixels, corners, strict=True)
        ]
        for picture in pictures:
            if picture.over:
                layers.append(self._put(group, picture, float(layers[0].scale[-1]), tuple(layers[0].translate[-2:])))
        if labels is None:
            letters = CAPTION_LETTERS // max(1, min(columns, len(beside))) - LETTERS_BETWEEN
            labels = Labels([textwrap.fill(picture.caption or picture.name, letters) for picture in beside], corners)
        self._label(group, replace(labels, corners=np.asarray(labels.corners) - middle))
        self._bring(group)
        return layers

    def update(self, group: str, name: str, image: NDArray[np.floating] | NDArray[np.uint8]) -> bool:
        """Another image in a layer that is on stage; False if it is not, and `show` is needed."""
        if self.group != group:
            return False
        layer = self.find(group, name)
        if layer is None or layer.data.shape != image.shape:
            return False
        layer.data = cast(Any, image)  # napari asks for a protocol that arrays of numpy have
        return True

    def find(self, group: str, name: str) -> Image | None:
        """The layer of a picture."""
        for layer in self.members(group):
            if isinstance(layer, Image) and layer.metadata["emsvae"]["name"] == name:
                return layer
        return None

    def members(self, group: str) -> list[Layer]:
        """The layers of a group."""
        return [layer for layer in self.viewer.layers if tag(layer).get("group") == group]

    def drop(self, group: str, name: str) -> None:
        """Take one picture away."""
        layer = self.find(group, name)
        if layer is not None:
            self._remove(layer)

    def clear(self) -> None:
        """Take all of the explorer's layers away."""
        for layer in [layer for layer in self.viewer.layers if "group" in tag(layer)]:
            self._remove(layer)
        self.group = None
        self.tell("")
        for layer in self.viewer.layers:
            if "kind" in tag(layer):
                layer.visible = False

    def _put(self, group: str, picture: Picture, pixel: float, corner: tuple[float, float]) -> Image:
        layer = self.find(group, picture.name)
        if layer is not None and layer.data.shape == picture.image.shape and layer.scale[-1] == pixel:
            layer.data = cast(Any, picture.image)
            if not picture.over:
                layer.contrast_limits = picture.limits
            layer.translate = (*[0] * (layer.ndim - 2), *corner)
            return layer
        if layer is not None:
            self._remove(layer)
        more = 0 if picture.over else picture.image.ndim - 2
        grey = {} if picture.over else {"contrast_limits": picture.limits, "colormap": "gray"}
        layer = Image(
            picture.image,
            rgb=picture.over,
            **grey,
            name=picture.name,
            scale=(*[1] * more, pixel, pixel),
            translate=(*[0] * more, *corner),
            interpolation2d="linear" if picture.smooth else "nearest",
            units=(*["pixel"] * more, picture.unit, picture.unit),
            metadata={"emsvae": {"group": group, "name": picture.name}},
        )
        self.viewer.add_layer(layer)
        return layer

    def _label(self, group: str, labels: "Labels") -> None:
        """Write the names. The layer is kept from one picture to the next: that is quicker than a new one."""
        name = f"{group}: names"
        old = next((layer for layer in self.members(group) if isinstance(layer, Points)), None)
        if not labels.texts or (old is not None and len(old.data) != len(labels.texts)):
            if old is not None:
                self._remove(old)
            old = None
        if not labels.texts:
            return
        texts = np.array(labels.texts, dtype=object)
        if old is not None:
            if not np.array_equal(old.data, labels.corners):
                old.data = labels.corners
            if old.features["said"].tolist() != texts.tolist():
                old.features = {"said": texts}
            return
        layer = Points(
            labels.corners,
            name=name,
            size=cast(Any, 1e-3),
            opacity=0.999,
            face_color="transparent",
            border_color="transparent",
            features={"said": texts},
            text={
                "string": "{said}",
                "anchor": "lower_left" if labels.inside else "upper_left",
                "size": labels.size_pt,
                "color": "yellow" if labels.inside else self.ink,
            },
            units=(self._unit(group), self._unit(group)),
            metadata={"emsvae": {"group": group, "name": name, "on_images": labels.inside}},
        )
        active = self.viewer.layers.selection.active
        self.viewer.add_layer(layer)
        # The names are in the way of clicks on the pictures otherwise.
        self.viewer.layers.selection.active = active if active in self.viewer.layers else None

    def relabel(self, group: str, texts: Sequence[str]) -> None:
        """Other texts at the same places."""
        for layer in self.members(group):
            if isinstance(layer, Points) and layer.features["said"].tolist() != list(texts):
                layer.features = {"said": np.array(texts, dtype=object)}

    def _unit(self, group: str) -> str:
        image = next((layer for layer in self.members(group) if isinstance(layer, Image)), None)
        return "angstrom" if image is None else str(image.units[-1])

    @property
    def ink(self) -> str:
        """Colour of texts on the canvas, which is white in napari's light theme."""
        return "white" if is_dark(self.viewer) else "black"

    def follow_theme(self) -> None:
        """Texts stay legible when the theme changes."""
        for layer in self.viewer.layers:
            if isinstance(layer, Points) and "group" in tag(layer) and not tag(layer).get("on_images"):
                cast(Any, layer.text).color = self.ink
        self._overlay.color = self.ink

    @property
    def _overlay(self) -> Any:
        """What napari calls its text overlay: since 0.9 it belongs to the canvas."""
        canvas: Any = getattr(self.viewer, "canvas", None)
        return self.viewer.text_overlay if canvas is None else canvas.overlays.text

    def tell(self, text: str) -> None:
        """Write what to do next where pictures will be; an empty text takes it away."""
        overlay = self._overlay
        lines = [textwrap.fill(line, HINT_LETTERS) for line in text.splitlines()]
        overlay.text, overlay.color, overlay.font_size = "\n".join(lines), self.ink, HINT_PT
        overlay.position = "top_left"
        overlay.visible = bool(text)

    def fit(self) -> None:
        """Bring the group's pictures to the middle of the canvas, as large as fits."""
        self.viewer.reset_view(margin=MARGIN)

    def _forget(self, group: str, kept: set[str]) -> None:
        """Take away the pictures that the group no longer has, and all other groups."""
        ours = [layer for layer in self.viewer.layers if "group" in tag(layer)]
        kept = {*kept, f"{group}: names"}
        stay = [x for x in ours if tag(x)["group"] == group and tag(x)["name"] in kept]
        for layer in ours:
            if layer not in stay:
                self._remove(layer)

    def _remove(self, layer: Layer) -> None:
        # Out of sight first: napari 0.9 may draw in the middle of a removal (a slider that goes resizes the canvas), and drawing a visible
        # layer whose buffers are gone ends the process (seen with Mesa's software GL, 6 of 6 times; never with hidden layers).
        layer.visible = False
        self.viewer.layers.remove(layer)

    def _bring(self, group: str) -> None:
        for layer in self.viewer.layers:
            if tag(layer):
                layer.visible = tag(layer).get("group") == group
        self.tell("")
        if self.group != group:
            self.group = group
            self.fit()


@cache
def leave_packages_out_of_garbage_collections() -> None:
    """Once per process: what is loaded by now stays, and is not looked through again.

    napari collects garbage whenever a layer is removed (a fault of drivers on Windows asks for it). With napari, torch and matplotlib that is half a
    million objects and a third of a second per layer, a tenth of that without them. The layers made after this are collected as before.
    """
    gc.collect()
    gc.freeze()


@dataclass(frozen=True, eq=False)
class Labels:
    """Texts whose lower left corners lie at points (y, x) of the world; angstrom from the group's upper left corner."""

    texts: Sequence[str]
    corners: NDArray[np.floating]
    """[k, 2]"""
    size_pt: int = LABEL_PT
    inside: bool = False
    """Below the point instead of above it: within a tile whose corner it is."""


def is_dark(viewer: ViewerModel) -> bool:
    """Whether napari's present theme is a dark one."""
    colour = get_theme(viewer.theme).canvas.as_rgb_tuple()
    return sum(colour[:3]) < 3 * 128


def tag(layer: Layer) -> dict[str, Any]:
    """What the plugin noted on a layer; empty on layers of others."""
    found = layer.metadata.get("emsvae", {})
    return found if isinstance(found, dict) else {}
