"""Move through latent space by hand: sliders for z and the pose, the picture follows; and a map to jump to places on."""

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFormLayout, QScrollArea, QWidget
from superqt import QLabeledDoubleSlider
from superqt.utils import qthrottled

from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.contrast import contrast_limits
from napari_emsvae.explorer.pictures.model_images import draw, draw_map
from napari_emsvae.explorer.pictures.mosaic import Mosaic
from napari_emsvae.explorer.pictures.picture import Image, Picture
from napari_emsvae.explorer.session import Session
from napari_emsvae.explorer.tabs.base import Tab
from napari_emsvae.qt.controls import button, choice, column, flow, together, whole_number, words

if TYPE_CHECKING:
    from emspatialvae.analysis.latent_space.manifold import ZMap

ALONG = ("latent coordinates", "principal components")
Z_TIP = "Latent coordinate {}, in standard deviations of its prior (a normal distribution: 95 % lie within 2)"
PC_TIP = "Principal component {} of the latent coordinates, with its share of their variance; in the same units"
SIZE_UNIT = "\N{ANGSTROM SIGN}"
FEW = 10
"""With fewer particles near what is drawn it was hardly ever seen."""
REACH_SD = 3.0
"""The sliders of z go so many s.d. of its prior either way, farther where particles lie farther out."""
EVERY_MS = 25
"""The picture is drawn at most that often while a slider moves."""


class ModelTab(Tab):
    """Sliders for z and pose with what the model draws there, and the map of latent space."""

    title = "Model"
    group = "model"
    tip = "Move z and the pose by hand and see what the model draws; a map of latent space to jump on"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.z_sliders: list[QLabeledDoubleSlider] = []
        self.theta = _slider(-180, 180, 0, "In-plane rotation, degrees; positive turns from +x to +y (downwards)")
        self.shift = [_slider(-1, 1, 0, f"Shift along {axis}, angstrom") for axis in "xy"]
        self.form = QFormLayout()
        self.form.setContentsMargins(4, 4, 10, 4)
        inner = QWidget()
        inner.setLayout(self.form)
        area = QScrollArea()
        area.setWidget(inner)
        area.setWidgetResizable(True)
        area.setMinimumHeight(110)
        self.tiles = whole_number(3, 25, 11, "Tiles of the map along an axis")
        self.along = choice(
            ALONG,
            "What the sliders move along: single latent coordinates, or the directions in which particles differ most",
            lambda _: self._list_sliders(),
        )
        self.near = words(
            "", "How many particles have such latents: where there are none the model makes things up", wrap=True
        )
        self.near.setAccessibleName("How many particles look like this")
        self.took = words("", "How long the model took for the last picture")
        self.setLayout(
            column(
                flow(
                    together("along", self.along),
                    button("Picked particle", "Set the sliders to z and pose of the picked particle", self.use_picked),
                    button("Zero", "Set z and the pose to zero: the middle of latent space, upright", self.zero),
                    button("No pose", "Set rotation and shift to zero, leave z", self.no_pose),
                ),
                area,
                self.near,
                self.took,
                flow(
                    button(
                        "Map of latent space",
                        "Draw what the model makes of equally probable steps across latent space; click a tile to go there",
                        self.show_map,
                    ),
                    button("Hide map", "Show the model alone", self.hide_map),
                    together(self.tiles, "tiles along an axis"),
                ),
            )
        )
        for slider in (self.theta, *self.shift):
            slider.valueChanged.connect(self._moved)
        session.latent.connect(self.set_latent)
        self._map: tuple[ZMap, Mosaic] | None = None
        self._work = self.background()
        self._setting = False
        self._z = np.zeros(0)
        self._redraw = qthrottled(self.draw_now, timeout=EVERY_MS, parent=self)

    def run_opened(self) -> None:
        """See `Tab`."""
        self._map = None
        self.along.setCurrentText(ALONG[0])
        self.along.setEnabled(self.session.data.z_dim > 1)
        self._list_sliders(np.zeros(self.session.data.z_dim))

    def _list_sliders(self, z: Floats | None = None) -> None:
        """Sliders for what was chosen, set to the present latents."""
        if not self.session.is_open:
            return
        data = self.session.data
        z = self._z if z is None else z
        while self.form.rowCount():
            label = self.form.takeRow(0).labelItem
            if label is not None and (widget := label.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        for slider in self.z_sliders:
            slider.hide()
            slider.deleteLater()
        self.z_sliders = []
        components = self.along.currentText() == ALONG[1]
        places = data.axes.components if components else data.latents.z[data.used]
        farthest = np.abs(places).max(0, initial=0)
        share = data.axes.component_share
        for k in range(data.z_dim):
            reach = float(max(REACH_SD, np.ceil(farthest[k] * 2) / 2))
            name = f"PC{k + 1} ({100 * share[k]:.0f} %)" if components else f"z{k + 1} (s.d.)"
            tip = PC_TIP.format(k + 1) if components else Z_TIP.format(k + 1)
            slider = _slider(-reach, reach, 0, tip)
            slider.valueChanged.connect(self._moved)
            self.z_sliders.append(slider)
            self.form.addRow(name, slider)
        reach_A = data.manifest.preparation.box * data.pixel_size_A / 4
        self.form.addRow("theta (\N{DEGREE SIGN})", self.theta)
        for axis, slider in zip("xy", self.shift, strict=True):
            slider.setRange(-reach_A, reach_A)
            self.form.addRow(f"shift {axis} ({data.unit_sign if self.session.is_read else SIZE_UNIT})", slider)
        self._set_sliders(z)

    def refresh(self) -> None:
        """See `Tab`."""
        self.draw_now()

    def particle_picked(self, row: int) -> None:
        """See `Tab`."""
        self.set_latent(self.session.data.latents.z[row])

    # ------------------------------------------------------------------------------------------------------- sliders

    @property
    def z(self) -> Floats:
        """What the sliders of z say; [d]."""
        values = np.array([slider.value() for slider in self.z_sliders])
        if self.along.currentText() == ALONG[1] and self.session.is_open and len(values):
            return self.session.data.axes.from_components(values)
        return values

    def _set_sliders(self, z: Floats) -> None:
        self._z = np.asarray(z, dtype=float)
        values = z
        if self.along.currentText() == ALONG[1]:
            values = self.session.data.axes.to_components(np.asarray(z))
        self._setting = True
        for slider, value in zip(self.z_sliders, values, strict=True):
            slider.setValue(float(value))
        self._setting = False

    def set_latent(self, z: Floats) -> None:
        """Set the sliders of z [d]; the pose stays."""
        self._set_sliders(z)
        if self.in_front and self.session.is_read:
            self.draw_now()

    def set_pose(self, theta_deg: float, shift_A: Floats) -> None:
        """Set the sliders of the pose."""
        self._setting = True
        self.theta.setValue(theta_deg)
        for slider, value in zip(self.shift, shift_A, strict=True):
            slider.setValue(float(value))
        self._setting = False
        self._redraw()

    def use_picked(self) -> None:
        """Go to the picked particle."""
        if self.session.row is None:
            self.session.fail("no particle is picked; click one in the scatter")
            return
        data, at = self.session.data, self.session.row
        self.set_latent(data.latents.z[at])
        pose = data.latents.pose
        self.set_pose(float(np.degrees(pose.theta_rad[at])), pose.shift_px[at] * data.pixel_size_A)

    def zero(self) -> None:
        """The middle of latent space, upright."""
        self.set_latent(np.zeros(len(self.z_sliders)))
        self.no_pose()

    def no_pose(self) -> None:
        """Upright."""
        self.set_pose(0.0, np.zeros(2))

    def _moved(self, _: float) -> None:
        if not self._setting and self.in_front:
            self._z = self.z
            self._redraw()

    def draw_now(self) -> None:
        """Draw what the sliders say."""
        if not (self.session.is_read and self.in_front):
            return
        self.attempt(self._draw)

    def _draw_image(self) -> Image:
        from emspatialvae.imaging.geometry import Pose2D

        data = self.session.data
        shift_px = np.array([[slider.value() for slider in self.shift]]) / data.pixel_size_A
        model = data.model
        started = time.perf_counter()
        image = draw(model, self.z, Pose2D(np.radians([self.theta.value()]), shift_px))
        self.took.setText(f"drawn in {1000 * (time.perf_counter() - started):.1f} ms")
        return image

    def _draw(self) -> None:
        image = self._draw_image()
        self.session.placed.emit(self.z)
        self._warn()
        if not self.session.stage.update("model", "model", image):
            self._show(image)

    def _warn(self) -> None:
        """Say how many particles look like what is drawn."""
        near = self.session.data.neighbours.count(self.z)
        few = "" if near >= FEW else "  \N{WARNING SIGN} hardly any particle looks like this: the model makes it up"
        self.near.setText(f"{near:,} particles within 2 s.d. of z{few}")

    def _show(self, image: Image) -> None:
        """Model and map side by side."""
        pixel_size_A = self.session.data.pixel_size_A
        pictures = [
            Picture(
                "model",
                image,
                pixel_size_A,
                self._limits(image),
                "what the model draws here",
                smooth=True,
                unit=self.session.data.unit,
            )
        ]
        if self._map is not None:
            places, mosaic = self._map
            caption = f"map: {places.axes[0]} to the right" + (f", {places.axes[1]} up" if places.axes[1] else "")
            limits = contrast_limits(mosaic.image)
            pictures.insert(
                0,
                Picture(
                    "map",
                    mosaic.image,
                    pixel_size_A,
                    limits,
                    caption + "; click a tile",
                    smooth=True,
                    unit=self.session.data.unit,
                ),
            )
        layers = self.session.stage.show("model", pictures, columns=2)
        if self._map is not None:
            if self._clicked not in layers[0].mouse_drag_callbacks:
                layers[0].mouse_drag_callbacks.append(self._clicked)
            self.session.viewer.layers.selection.active = layers[0]

    def _limits(self, image: Any) -> tuple[float, float]:
        """A contrast that fits every latent: that of the present picture, a little wider."""
        low, high = contrast_limits(image)
        room = 0.15 * (high - low)
        return low - room, high + room

    # ----------------------------------------------------------------------------------------------------------- map

    def show_map(self) -> None:
        """Draw the map of latent space."""
        if self.attempt(lambda: self.session.data):
            self._work.start(
                draw_map, self.session.data, self.tiles.value(), done=self._put_map, doing="drawing the map"
            )

    def _put_map(self, made: "tuple[ZMap, Mosaic]") -> None:
        self._map = made
        places, _ = made
        empty = int((places.count == 0).sum())
        self._show(self._draw_image())
        self.session.stage.fit()
        self.session.say(
            f"{places.shape[0]} x {places.shape[1]} tiles, {empty} of them without a particle; click one to go there"
        )

    def hide_map(self) -> None:
        """The model alone."""
        if self._map is None:
            return
        self._map = None
        self._show(self._draw_image())
        self.session.stage.fit()

    def _clicked(self, layer: Any, event: Any) -> None:
        """A press on the map."""
        row_px, column_px = layer.world_to_data(event.position)[-2:]
        self.jump(row_px, column_px)

    def jump(self, row_px: float, column_px: float) -> None:
        """Go to the latent of the tile at a pixel of the map."""
        if self._map is None:
            return
        places, mosaic = self._map
        tile = mosaic.at(row_px, column_px)
        if tile is None:
            return
        self.session.say(
            f"tile with {places.count[tile]:,} particles: z = ({', '.join(f'{v:.2f}' for v in places.z[tile])})"
        )
        self.set_latent(places.z[tile])


def _slider(low: float, high: float, value: float, tip: str) -> QLabeledDoubleSlider:
    made = QLabeledDoubleSlider(Qt.Orientation.Horizontal)
    made.setRange(low, high)
    made.setDecimals(2 if high < 20 else 1)
    made.setValue(value)
    made.setToolTip(tip)
    made.setMinimumWidth(140)
    made.setAccessibleName(tip)
    return made
