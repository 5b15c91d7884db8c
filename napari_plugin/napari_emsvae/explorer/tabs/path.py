"""Walk between two particles, or along a line drawn in the scatter: a film of what the model draws, beside it real particles."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QTimer

from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.contrast import contrast_limits
from napari_emsvae.explorer.pictures.film import along_line, averages_beside, film_along, save_film
from napari_emsvae.explorer.pictures.mosaic import short_name
from napari_emsvae.explorer.pictures.picture import Picture
from napari_emsvae.explorer.run_data import RunData
from napari_emsvae.explorer.session import Session
from napari_emsvae.explorer.tabs.base import Tab
from napari_emsvae.qt.controls import button, choice, column, flow, together, whole_number, words
from napari_emsvae.qt.dialogs import ask_where_to_save, may_replace

if TYPE_CHECKING:
    from emspatialvae.analysis.figures.film import Film

WAYS = ("through the data", "straight")
FRAME_MS = 120
FEW = 10
"""With fewer particles near a step than that the model draws what was hardly ever seen."""


class PathTab(Tab):
    """The film between A and B."""

    title = "Path"
    group = "path"
    hint = "Pick a particle in the scatter and press A, pick another and press B; or draw a line (N)."
    tip = "Walk from one particle to another: the model's film, and beside it averages of real particles along the way"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.ends: list[int | None] = [None, None]
        self.line: Floats | None = None
        self.axes: tuple[str, str] = ("z1", "z2")
        """What the line was drawn in."""
        self.film: Film | None = None
        self.steps = whole_number(2, 200, 20, "Steps of the film")
        self.way = choice(
            WAYS,
            "Through the data: from particle to neighbouring particle, where there are some all along.\n"
            "Straight: along the line through latent space, where there may be none",
            lambda _: self._forget(),
        )
        self.from_to = words("", "The particles, or the line, that the path follows", wrap=True)
        self.about = words("", "How many particles lie near the step that is shown", wrap=True)
        self.play = button(
            "Play", "Play the film forth and back, or stop it (also: the arrow beside the slider)", self.toggle_play
        )
        self.play.setCheckable(True)
        self.setLayout(
            column(
                flow(
                    button("A = picked", "The path begins at the picked particle", lambda: self.set_end(0)),
                    button("B = picked", "The path ends at the picked particle", lambda: self.set_end(1)),
                    button("Swap", "Walk the other way round", self.swap),
                    words("or draw a line (N)", "The mode Line, above the scatter"),
                ),
                self.from_to,
                flow(
                    together("way", self.way),
                    together("steps", self.steps),
                    button("Make film", "Draw the path and average the real particles along it", self.make),
                    self.play,
                    button(
                        "Save\N{HORIZONTAL ELLIPSIS}",
                        "Save the film as .mrcs, .gif or .png (a strip of frames)",
                        self.ask_and_save,
                    ),
                ),
                self.about,
                None,
            )
        )
        self._work = self.background()
        self._timer = QTimer(self)
        self._timer.setInterval(FRAME_MS)
        self._timer.timeout.connect(self._next_frame)
        self._forward = True
        session.viewer.dims.events.current_step.connect(self._step_changed)
        self._describe()

    def end(self) -> None:
        """Leave the viewer alone."""
        self.session.viewer.dims.events.current_step.disconnect(self._step_changed)

    def run_opened(self) -> None:
        """See `Tab`."""
        self._stop()
        self.ends, self.line, self.film = [None, None], None, None
        self._describe()
        self.about.setText("")

    def refresh(self) -> None:
        """See `Tab`: the film comes back when the tab does."""
        if self.film is not None and self.session.stage.group != "path":
            self._put(self.film)

    def bring_to_front(self, in_front: bool) -> None:
        """See `Tab`: a film does not play behind another tab."""
        super().bring_to_front(in_front)
        if in_front:
            self._describe()
        else:
            self._stop()
            self.session.path.emit(None)

    # ------------------------------------------------------------------------------------------------------ the path

    def set_end(self, which: int, particle: int | None = None) -> None:
        """Begin (0) or end (1) the path at a particle, by default the picked one."""
        particle = self.session.row if particle is None else particle
        if particle is None:
            self.session.fail("no particle is picked; click one in the scatter")
            return
        if not self.session.data.latents.used[particle]:
            self.session.fail("the run could not use that particle, so it has no latent variable; pick another")
            return
        self.ends[which], self.line = particle, None
        self._forget()

    def swap(self) -> None:
        """The other way round."""
        self.ends.reverse()
        if self.line is not None:
            self.line = self.line[::-1]
        self._forget()

    def set_line(self, line: Floats, axes: tuple[str, str]) -> None:
        """Follow a line [k, 2] that was drawn in the plane of two axes."""
        self.line, self.axes, self.ends = line, axes, [None, None]
        self._forget()
        self.make()

    def _forget(self) -> None:
        """The film that there is belongs to another path."""
        self._stop()
        self.film = None
        self.about.setText("")
        self._describe()

    def _describe(self) -> None:
        if self.line is not None:
            self.from_to.setText(f"along the line drawn in {self.axes[0]}, {self.axes[1]}")
        else:
            names = ["not chosen" if end is None else str(self.session.data.latents.names[end]) for end in self.ends]
            self.from_to.setText(f"A: {names[0]}\nB: {names[1]}")
        if self.film is not None and self.session.stage.group == "path":
            self.session.path.emit(self.film.z)
        elif self.session.is_open and self.in_front:
            chosen = [self.session.data.latents.z[end] for end in self.ends if end is not None]
            self.session.path.emit(np.array(chosen) if chosen and self.line is None else None)

    def make(self) -> None:
        """Make the film."""
        if not self.session.is_read:
            self.session.fail("the particles and the model are not read yet; open a run, or wait a moment")
            return
        data, steps = self.session.data, self.steps.value()
        if self.line is not None:
            line, axes = self.line, self.axes
            self._work.start(*(_film_along_line, data, line, axes, steps), done=self._put, doing="making the film")
        elif None in self.ends or self.ends[0] == self.ends[1]:
            self.session.fail("a path has two different ends; pick a particle, press A, pick another, press B")
            return
        else:
            make = _film_through if self.way.currentText() == WAYS[0] else _film_between
            self._work.start(*(make, data, self.ends[0], self.ends[1], steps), done=self._put, doing="making the film")
        self.about.setText("drawing and averaging \N{HORIZONTAL ELLIPSIS}")

    def _put(self, film: "Film") -> None:
        self.film = film
        averages = film.averages
        assert averages is not None
        unit = self.session.data.unit
        pictures = [
            Picture(
                "path: model",
                self._shared(film.drawn),
                film.pixel_size_A,
                contrast_limits(film.drawn),
                "model",
                smooth=True,
                unit=unit,
            ),
            Picture(
                "path: particles",
                self._shared(averages),
                film.pixel_size_A,
                contrast_limits(averages),
                f"average of the {film.averaged} nearest particles",
                unit=unit,
            ),
        ]
        self.session.stage.show("path", pictures, columns=1)
        self.session.path.emit(film.z)
        dims = self.session.viewer.dims
        labels = list(dims.axis_labels)
        labels[self._axis] = "path"
        dims.axis_labels = tuple(labels)
        dims.set_current_step(self._axis, 0)
        self._step_changed()
        empty = int((film.near < FEW).sum())
        if empty:
            self.session.say(
                f"{empty} of {len(film.z)} steps have fewer than {FEW} particles near them: the model was hardly ever shown that"
            )
        else:
            self.session.say(
                f"{len(film.z)} steps over {film.travelled[-1]:.2f} in z from end to end; at least {film.near.min():,} particles near each"
            )

    def _shared(self, images: Any) -> Any:
        """Frames behind a slider of their own, where the reader's layers have one for the particles; takes no memory."""
        others = [layer for layer in self.session.viewer.layers if layer.metadata.get("emsvae", {}).get("kind")]
        n = max((layer.data.shape[0] for layer in others), default=0)
        return np.broadcast_to(images[:, None], (len(images), n, *images.shape[1:])) if n else images

    # ------------------------------------------------------------------------------------------------------- playing

    @property
    def _axis(self) -> int:
        """The dims slider that plays the film."""
        layer = self.session.stage.find("path", "path: model")
        return 0 if layer is None else self.session.viewer.dims.ndim - layer.ndim

    @property
    def step(self) -> int:
        """The step that is shown."""
        steps = 1 if self.film is None else len(self.film.z)
        return int(np.clip(self.session.viewer.dims.current_step[self._axis], 0, steps - 1))

    def toggle_play(self) -> None:
        """Play or stop."""
        if self.film is None or self.session.stage.group != "path":
            self.play.setChecked(False)
            self.session.fail("there is no film yet; make one first")
        elif self._timer.isActive():
            self._stop()
        else:
            self._timer.start()
            self.play.setChecked(True)
            self.play.setText("Stop")

    def _stop(self) -> None:
        self._timer.stop()
        self.play.setChecked(False)
        self.play.setText("Play")

    def _next_frame(self) -> None:
        if self.film is None or self.session.stage.group != "path":
            self._stop()
            return
        last = len(self.film.z) - 1
        if self.step >= last:
            self._forward = False
        elif self.step <= 0:
            self._forward = True
        self.session.viewer.dims.set_current_step(self._axis, self.step + (1 if self._forward else -1))

    def _step_changed(self, _: Any = None) -> None:
        if self.film is None or self.session.stage.group != "path" or not self.in_front:
            return
        film, at = self.film, self.step
        few = "  \N{WARNING SIGN} hardly any particle looks like this" if film.near[at] < FEW else ""
        self.about.setText(f"step {at + 1} of {len(film.z)}: {film.near[at]:,} particles within 2 s.d. of z{few}")
        self.session.placed.emit(film.z[at])

    # -------------------------------------------------------------------------------------------------------- saving

    def ask_and_save(self) -> None:
        """Ask where the film goes and write it there."""
        if self.film is None:
            self.session.fail("there is no film yet; make one first")
            return
        kinds = (("Film", ".gif"), ("Stack of images", ".mrcs"), ("Strip of frames", ".png"))
        answer = ask_where_to_save(self, "Save the film", self.session.data.path / "path.gif", kinds)
        if answer is None:
            return
        out, asked = answer
        beside = [averages_beside(out)] if out.suffix == ".mrcs" and self.film.averages is not None else []
        if may_replace(self, [*([] if asked else [out]), *beside]):
            self.save(out, replace=True)
        else:
            self.session.say("nothing was written")

    def save(self, destination: Path, *, replace: bool = False) -> None:
        """Write the film; with ``replace`` over files that are there, for those who have asked."""
        film = self.film
        if film is None:
            self.session.fail("there is no film yet; make one first")
        elif self.attempt(lambda: save_film(film, destination, force=replace)):
            self.session.say(f"saved {destination}")


def _film_between(data: RunData, first: int, last: int, steps: int) -> "Film":
    from emspatialvae.analysis.latent_space.paths import straight

    z, names = data.latents.z, data.latents.names
    return film_along(data, straight(z[first], z[last], steps), (short_name(names[first]), short_name(names[last])))


def _film_through(data: RunData, first: int, last: int, steps: int) -> "Film":
    from emspatialvae.analysis.latent_space.paths import through_data

    start, end = np.searchsorted(data.used, [first, last]).tolist()
    unit = data.neighbours.typical_sd
    points = through_data(data.neighbours.z / unit, start, end, steps) * unit
    names = data.latents.names
    return film_along(data, points, (short_name(names[first]), short_name(names[last])))


def _film_along_line(data: RunData, line: Floats, axes: tuple[str, str], steps: int) -> "Film":
    return film_along(data, data.axes.latents_at(along_line(line, steps), axes), ("A", "B"))
