"""The picked particle: five pictures on the canvas, and what is known of it in words."""

from qtpy.QtWidgets import QGridLayout

from napari_emsvae.explorer.pictures.particle_images import MEANT, described, pictures_of
from napari_emsvae.explorer.pictures.picture import Picture
from napari_emsvae.explorer.session import Session
from napari_emsvae.explorer.tabs.base import Tab
from napari_emsvae.qt.controls import column, number, row, words

LINES = 26
"""Most lines of text; more z than that are left out."""


class ParticleTab(Tab):
    """Raw, low-passed, aligned, reconstruction and residual of the picked particle."""

    title = "Particle"
    group = "particle"
    hint = "Click a particle in the scatter to see it."
    tip = "The picked particle as recorded, low-passed, upright, as the model draws it, and what is left over"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.low_pass = number(
            2,
            200,
            20,
            5,
            "Low-pass filter of the second picture: amplitudes are halved at this resolution",
            suffix=" \N{ANGSTROM SIGN}",
        )
        self.low_pass.valueChanged.connect(lambda _: self.refresh())
        self.prompt = words("Click a particle in the scatter.", wrap=True)
        self.shown: list[tuple[str, str]] = []
        self.facts = QGridLayout()
        self.facts.setColumnStretch(1, 1)
        self.facts.setVerticalSpacing(3)
        self.setLayout(column(row("low-pass", self.low_pass, None), self.prompt, self.facts, None))
        self._work = self.background()

    def run_opened(self) -> None:
        """See `Tab`."""
        self._write([])

    def refresh(self) -> None:
        """See `Tab`."""
        self.low_pass.setSuffix(f" {self.session.data.unit_sign}")
        if self.session.row is not None and self.session.is_read:
            self.particle_picked(self.session.row)

    def particle_picked(self, row: int) -> None:
        """See `Tab`."""
        data = self.session.data
        self._write(described(data, row))
        self._work.start(pictures_of, data, row, self.low_pass.value(), done=self._show, doing="reading the particle")

    def _show(self, pictures: list[Picture]) -> None:
        if pictures:
            self.session.stage.show("particle", pictures, columns=3)
        else:
            self.session.stage.clear()
            self.session.stage.tell("The run could not use this particle, and its raw image is not here.")

    def _write(self, facts: list[tuple[str, str]]) -> None:
        while self.facts.count():
            item = self.facts.takeAt(0)
            if item is not None and (widget := item.widget()) is not None:
                widget.deleteLater()
        self.shown = facts[:LINES]
        self.prompt.setVisible(not facts)
        for line, (what, value) in enumerate(self.shown):
            meaning = MEANT.get(
                what, f"Latent coordinate {what[1:]}, and its standard deviation" if what[0] == "z" else ""
            )
            self.facts.addWidget(words(what, meaning), line, 0)
            self.facts.addWidget(words(value, meaning, wrap=True), line, 1)

    def text(self) -> str:
        """What stands in the tab."""
        return "\n".join(f"{what} {value}" for what, value in self.shown)
