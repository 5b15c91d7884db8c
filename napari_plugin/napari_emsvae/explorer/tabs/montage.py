"""Real particles side by side: those nearest to the cursor or to the picked one, or some of the selection."""

import numpy as np
from superqt.utils import qthrottled

from emspatialvae.imaging.arrays import Rows
from napari_emsvae.explorer.pictures.board import Board, Choosing
from napari_emsvae.explorer.pictures.mosaic import LOOKS, Mosaic, montage, tile_names
from napari_emsvae.explorer.pictures.picture import Picture
from napari_emsvae.explorer.session import Session
from napari_emsvae.explorer.tabs.base import Tab
from napari_emsvae.qt.controls import button, choice, column, flow, number, tick, together, whole_number, words

FOLLOW_MS = 150
CONTRAST = (-2.5, 3.5)
"""Of tiles that were brought to mean 0 and s.d. 1."""
NAME_PT = 7


class MontageTab(Tab):
    """Tiles of real particles with their names."""

    title = "Montage"
    group = "montage"
    hint = "Click a particle in the scatter, or select some: they appear here side by side."
    tip = "Real particles side by side: the nearest to the cursor or to the picked one, or some of the selection"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.rows: Rows = np.zeros(0, dtype=np.int64)
        self.count = whole_number(4, 144, 36, "Particles shown")
        self.look = choice(
            LOOKS,
            "Aligned: pose taken out, as the model sees it; raw: as recorded, at full size",
            lambda _: self._again(),
        )
        self.low_pass = number(
            2,
            200,
            20,
            5,
            "Low-pass filter, where one was chosen: amplitudes are halved at this resolution",
            suffix=" \N{ANGSTROM SIGN}",
        )
        self.low_pass.valueChanged.connect(lambda _: self._again())
        self.follow = tick(
            "follow the cursor", "Show the particles nearest in z to the one under the cursor, as it moves"
        )
        self.names = tick("names", "Write each particle's name above it", lambda _: self._again(), on=True)
        self.about = words("", "What the tiles are", wrap=True)
        self.setLayout(
            column(
                flow(together("show", self.count), self.look, together("low-pass", self.low_pass), self.names),
                flow(
                    button(
                        "Nearest to picked", "The particles whose z is nearest to the picked one's", self.show_nearest
                    ),
                    button("Of the selection", "Some of the selected particles, drawn at random", self.show_selected),
                    button("Others", "Other selected particles", self.show_others),
                    self.follow,
                ),
                self.about,
                None,
            )
        )
        self.count.valueChanged.connect(lambda _: self.refresh())
        self._seed, self._pool_name = 0, ""
        self._said = ""
        self._of_selection = False
        self._pool: Rows | None = None
        self._mosaic: Mosaic | None = None
        self.board = Board(session.stage, self.group, self.choose, self._pick_tile, self._click)
        session.selected.connect(self._frame)
        self._work = self.background()
        self._follow = qthrottled(self._show_about, timeout=FOLLOW_MS, parent=self)
        session.hovered.connect(self._hovered)

    def run_opened(self) -> None:
        """See `Tab`."""
        self.rows, self._mosaic, self._pool = np.zeros(0, dtype=np.int64), None, None
        self._of_selection, self._pool_name = False, ""
        self.about.setText("Click a particle in the scatter, or select some.")

    def refresh(self) -> None:
        """See `Tab`."""
        self.low_pass.setSuffix(f" {self.session.data.unit_sign}")
        if self._of_selection and self._pool is not None and len(self._pool):
            self._show_pool(self._pool_name)
        elif self.session.row is not None and self.session.data.latents.used[self.session.row]:
            self._show_about(self.session.row)
        elif self.session.selection.count:
            self.show_selected()

    def particle_picked(self, row: int) -> None:
        """See `Tab`. A tile that was clicked stays where it is."""
        if row not in self.rows:
            self._show_about(row)

    def show_nearest(self) -> None:
        """The neighbours of the picked particle."""
        if self.session.row is None:
            self.session.fail("no particle is picked; click one in the scatter")
        else:
            self._show_about(self.session.row)

    def show_selected(self) -> None:
        """Some of the selection."""
        if not self.attempt(lambda: self.session.selection):
            return
        rows = self.session.selection.rows
        if not len(rows):
            self.session.fail("nothing is selected; draw a lasso in the scatter first")
            return
        self._pool, self._of_selection = rows, True
        self._show_pool("selected particles")

    def show_members(self, rows: Rows, name: str) -> None:
        """Some of the particles ``rows``, of what has that name."""
        self._pool, self._pool_name, self._of_selection = rows, name, True
        if self.in_front and self.session.is_read:
            self._show_pool(f"of {name}")

    def _show_pool(self, name: str) -> None:
        assert self._pool is not None
        self._pool_name = name
        chosen = np.random.default_rng(self._seed).permutation(self._pool)[: self.count.value()]
        self._show(np.sort(chosen), f"{len(chosen)} of {len(self._pool):,}: {name}, drawn at random")

    def show_others(self) -> None:
        """Another draw from the selection."""
        self._seed += 1
        if self._of_selection and self._pool is not None and len(self._pool):
            self._show_pool(self._pool_name)
        else:
            self.show_selected()

    def _hovered(self, row: int | None) -> None:
        if row is not None and self.follow.isChecked() and self.in_front and self.session.is_read:
            self._follow(row)

    def _show_about(self, row: int) -> None:
        data = self.session.data
        if row >= len(data):
            return  # the cursor was on a particle of the run before
        if not data.latents.used[row]:
            self.session.fail("the run could not use that particle, so it has no latent variable and no neighbours")
            return
        self._of_selection = False
        rows = data.neighbours.nearest(data.latents.z[row], self.count.value())
        self._show(rows, f"the {len(rows)} particles nearest in z to {data.latents.names[row]}, the nearest first")

    def _again(self) -> None:
        if len(self.rows) and self.in_front:
            self._show(self.rows, self._said)

    def _show(self, rows: Rows, said: str) -> None:
        self.rows, self._said = rows, said
        self._work.start(
            *(montage, self.session.data, rows, self.look.currentText(), self.low_pass.value()),
            done=lambda made: self._put(rows, made),
            doing="reading particles",
        )

    def _put(self, rows: Rows, made: tuple[Mosaic, float]) -> None:
        mosaic, pixel_size_A = made
        self._mosaic = mosaic
        names = [str(name) for name in self.session.data.latents.names[rows]]
        # Inside the tile, at its upper edge: between tiles there is no room for a text.
        shown = tile_names(names) if self.names.isChecked() else []
        picture = Picture("montage", mosaic.image, pixel_size_A, CONTRAST, unit=self.session.data.unit)
        self.board.show(mosaic, picture, shown, NAME_PT)
        self._frame()
        self.about.setText(
            f"{self._said}. Click a tile to pick that particle, shift-click or drag to select, Ctrl-click to take out."
        )

    # -------------------------------------------------------------------------------------------------------- tiles

    def _frame(self) -> None:
        """Frame the tiles whose particles are selected."""
        if self._mosaic is None or not self.in_front or self.session.stage.group != self.group:
            return
        mask = self.session.selection.mask
        self.board.frame({tile for tile, row in enumerate(self.rows[: self._mosaic.count]) if mask[row]})

    def choose(self, tiles: list[int], choosing: Choosing) -> None:
        """Select the particles of tiles, or take them out."""
        mask = np.zeros(len(self.session.selection), dtype=np.bool_)
        mask[self.rows[tiles]] = True
        self.attempt(lambda: self.session.selection.apply(mask, "subtract" if choosing == "remove" else "add"))

    def _click(self, tile: int) -> bool:
        """A plain click picks; it selects nothing."""
        self._pick_tile(tile)
        return True

    def _pick_tile(self, tile: int) -> None:
        row = int(self.rows[tile])
        self.session.say(f"picked {self.session.data.latents.names[row]}")
        self.session.pick(row)

    def pick_at(self, row_px: float, column_px: float) -> None:
        """Pick the particle whose tile holds a pixel of the montage."""
        tile = None if self._mosaic is None else self._mosaic.at(row_px, column_px)
        if tile is not None:
            self._pick_tile(tile)
