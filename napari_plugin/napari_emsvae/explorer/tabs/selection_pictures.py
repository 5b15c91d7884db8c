"""What the selection looks like: its average, what is left out, and the difference, while it is drawn and when it is made."""

from collections.abc import Callable

import numpy as np
from superqt.utils import qthrottled

from emspatialvae.imaging.arrays import Mask
from emspatialvae.imaging.contrast import contrast_limits
from napari_emsvae.explorer.pictures.picture import Image, Picture
from napari_emsvae.explorer.pictures.sample import Sample, warned_of_few
from napari_emsvae.explorer.pictures.selection_average import Statistics, statistics
from napari_emsvae.explorer.tabs.base import Tab

FOLLOW_MS = 100


class SelectionPictures:
    """The pictures of the selection on the canvas, for a tab.

    Parameters
    ----------
    always_follow
        Whether the average of the particles about the cursor is shown also while something is selected.

    Attributes
    ----------
    sample
        Particles that are aligned already; None before they are.
    shown
        What was found of all selected particles; None before it was.
    """

    def __init__(self, tab: Tab, always_follow: Callable[[], bool]) -> None:
        self._tab, self._always_follow = tab, always_follow
        self.session = session = tab.session
        self.sample: Sample | None = None
        self.shown: Statistics | None = None
        self._averaging, self._gathering = tab.background(), tab.background()
        self._follow = qthrottled(self._follow_now, timeout=FOLLOW_MS, parent=tab)
        session.enclosing.connect(self._enclosing)
        session.hovered.connect(self._hovered)

    def forget(self) -> None:
        """Another run is open."""
        self.sample, self.shown = None, None

    def gather(self) -> None:
        """Align a sample of the particles, unless that was begun before."""
        if self.sample is None and not self._gathering.running:
            self._gathering.start(
                Sample.gather, self.session.data, each=self._gathered, doing="aligning a sample of the particles"
            )

    def show(self) -> None:
        """The pictures of the selection: at once from the sample, then of more and more of its particles."""
        self.shown = None
        mask = self.session.selection.mask
        if not mask.any():
            self._averaging.stop()
            self._hint()
            return
        contrast = None if self.sample is None else self.sample.contrast(mask)
        rest = None if contrast is None else contrast.outside
        if contrast is not None:
            self._put(contrast.inside, contrast.outside, contrast.described())
        rows = self.session.selection.rows
        self._averaging.start(statistics, self.session.data, rows, rest, each=self._show_statistics, doing="averaging")

    def _hint(self) -> None:
        stage = self.session.stage
        if stage.group == self._tab.group:
            stage.clear()
        if self._tab.in_front:
            stage.tell(self._tab.hint)

    def _gathered(self, sample: Sample) -> None:
        self.sample = sample
        if self._tab.in_front and self.session.selection.count:
            self.show()

    def _show_statistics(self, found: Statistics) -> None:
        self.shown = found
        self._put(found.mean, found.rest, f"{found.described()}{warned_of_few(found.selected)}", found.sd)

    def _put(self, inside: Image, outside: Image | None, said: str, sd: Image | None = None) -> None:
        """Inside, outside and their difference; the standard deviation when it is known."""
        data = self.session.data
        limits = contrast_limits(inside)

        def picture(name: str, image: Image, limits: tuple[float, float], caption: str) -> Picture:
            return Picture(name, image, data.pixel_size_A, limits, caption, smooth=True, unit=data.unit)

        pictures = [picture("selected", inside, limits, f"selected: {said}")]
        if outside is not None:
            reach = float(np.abs(contrast_limits(inside - outside)).max())
            pictures += [
                picture("left out", outside, limits, "what is left out"),
                picture("difference", inside - outside, (-reach, reach), "selected less left out"),
            ]
        spread = sd if sd is not None else self._spread(inside)
        pictures.append(picture("differ", spread, contrast_limits(spread), "where the selected differ (s.d.)"))
        self.session.stage.show(self._tab.group, pictures, columns=2)

    def _spread(self, inside: Image) -> Image:
        """The standard deviation as it was shown last: it takes longer than the mouse moves."""
        layer = self.session.stage.find(self._tab.group, "differ")
        return np.zeros_like(inside) if layer is None or layer.data.shape != inside.shape else np.asarray(layer.data)

    def _enclosing(self, mask: Mask | None) -> None:
        """Something is being drawn in the scatter: what is inside so far; [n]."""
        if mask is None or not self._tab.in_front or self.sample is None or not self.session.is_read:
            return
        self._averaging.stop()
        contrast = self.sample.contrast(mask)
        if contrast is not None:
            self._put(contrast.inside, contrast.outside, contrast.described())

    def _hovered(self, row: int | None) -> None:
        if not self._tab.in_front or self.sample is None or not self.session.is_read:
            return
        selected = bool(self.session.selection.count)
        if selected and not self._always_follow():
            return
        if row is None:
            self.show()
        elif self.session.data.latents.used[row]:
            self._averaging.stop()
            self._follow(row)

    def _follow_now(self, row: int) -> None:
        if not (self._tab.in_front and self.sample is not None and row < len(self.session.data)):
            return
        contrast = self.sample.about(row)
        if contrast is not None:
            said = f"the {contrast.averaged} nearest in z to the cursor"
            self._put(contrast.inside, contrast.outside, said)
