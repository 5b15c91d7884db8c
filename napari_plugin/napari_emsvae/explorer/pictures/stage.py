"""What of the explorer is on the canvas: groups of image layers side by side, one group at a time.

The explorer's layers are ordinary napari layers, told by ``layer.metadata["emsvae"]["group"]``: they can be hidden, recoloured and saved
like any other. Showing one group takes the others away and hides the layers that the reader made; layers of anybody else stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Layer, Points
from numpy.typing import NDArray

from napari_emsvae.explorer.pictures.picture import Picture

LABEL_PT = 11
GAP, ROOM = 0.04, 0.14
"""Between pictures, and above them for their names, as parts of their width."""


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
        self._forget(group, {picture.name for picture in pictures})
        width_A = pictures[0].image.shape[-1] * pictures[0].pixel_size_A
        layers, names, corners, top, tallest = [], [], [], 0.0, 0.0
        for k, picture in enumerate(pictures):
            pixel = width_A / picture.image.shape[-1]
            if k % columns == 0:
                top, tallest = top + tallest, 0.0
            left = k % columns * width_A * (1 + GAP)
            layers.append(self._put(group, picture, pixel, (top + pixel / 2, left + pixel / 2)))
            names.append(picture.caption or picture.name)
            corners.append((top, left))
            tallest = max(tallest, picture.image.shape[-2] * pixel + ROOM * width_A)
        self._label(group, labels or Labels(names, np.array(corners)))
        self._bring(group)
        return layers

    def update(self, group: str, name: str, image: NDArray[np.floating]) -> bool:
        """Another image in a layer that is on stage; False if it is not, and `show` is needed."""
        if self.group != group:
            return False
        layer = self.find(group, name)
        if layer is None or layer.data.shape != image.shape:
            return False
        layer.data = image
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

    def clear(self) -> None:
        """Take all of the explorer's layers away."""
        for layer in [layer for layer in self.viewer.layers if "group" in tag(layer)]:
            self._remove(layer)
        self.group = None

    def _put(self, group: str, picture: Picture, pixel: float, corner: tuple[float, float]) -> Image:
        layer = self.find(group, picture.name)
        if layer is not None and layer.data.shape == picture.image.shape and layer.scale[-1] == pixel:
            layer.data = picture.image
            layer.contrast_limits = picture.limits
            layer.translate = (*[0] * (picture.image.ndim - 2), *corner)
            return layer
        if layer is not None:
            self._remove(layer)
        more = picture.image.ndim - 2
        layer = Image(
            picture.image,
            name=picture.name,
            scale=(*[1] * more, pixel, pixel),
            translate=(*[0] * more, *corner),
            contrast_limits=picture.limits,
            colormap="gray",
            interpolation2d="linear" if picture.smooth else "nearest",
            units=(*["pixel"] * more, "angstrom", "angstrom"),
            metadata={"emsvae": {"group": group, "name": picture.name}},
        )
        self.viewer.add_layer(layer)
        return layer

    def _label(self, group: str, labels: "Labels") -> None:
        name = f"{group}: names"
        if not labels.texts:
            return
        layer = Points(
            labels.corners,
            name=name,
            size=cast(Any, 1e-3),
            opacity=0.999,
            face_color="transparent",
            border_color="transparent",
            features={"said": np.array(labels.texts, dtype=object)},
            text={
                "string": "{said}",
                "anchor": "lower_left" if labels.inside else "upper_left",
                "size": labels.size_pt,
                "color": "white",
            },
            units=("angstrom", "angstrom"),
            metadata={"emsvae": {"group": group, "name": name}},
        )
        active = self.viewer.layers.selection.active
        self.viewer.add_layer(layer)
        # The names are in the way of clicks on the pictures otherwise.
        self.viewer.layers.selection.active = active if active in self.viewer.layers else None

    def _forget(self, group: str, kept: set[str]) -> None:
        """Take away the names, the pictures that the group no longer has, and all other groups."""
        ours = [layer for layer in self.viewer.layers if "group" in tag(layer)]
        stay = [x for x in ours if isinstance(x, Image) and tag(x)["group"] == group and tag(x)["name"] in kept]
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
        if self.group != group:
            self.group = group
            self.viewer.reset_view()


@dataclass(frozen=True, eq=False)
class Labels:
    """Texts whose lower left corners lie at points (y, x) of the world; angstrom from the group's upper left corner."""

    texts: Sequence[str]
    corners: NDArray[np.floating]
    """[k, 2]"""
    size_pt: int = LABEL_PT
    inside: bool = False
    """Below the point instead of above it: within a tile whose corner it is."""


def tag(layer: Layer) -> dict[str, Any]:
    """What the plugin noted on a layer; empty on layers of others."""
    found = layer.metadata.get("emsvae", {})
    return found if isinstance(found, dict) else {}
