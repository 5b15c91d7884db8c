"""The front page: averages of the classes side by side, to be kept or thrown out by looking at them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import Qt, Signal  # pyright: ignore[reportPrivateImportUsage]
from qtpy.QtWidgets import QListWidgetItem

from emspatialvae.imaging.arrays import Mask, Rows
from emspatialvae.imaging.contrast import contrast_limits
from napari_emsvae.explorer.pictures.board import Board, Choosing
from napari_emsvae.explorer.pictures.mosaic import Mosaic
from napari_emsvae.explorer.pictures.picture import Picture
from napari_emsvae.explorer.run_data import RunData
from napari_emsvae.explorer.session import Session
from napari_emsvae.explorer.tabs.base import Tab
from napari_emsvae.qt.controls import Entries, button, choice, column, flow, together, whole_number, words

if TYPE_CHECKING:
    from emspatialvae.results.classes import Classes

Order = Literal["size", "resolution", "junk", "similarity"]
ORDERS: tuple[Order, ...] = ("size", "resolution", "junk", "similarity")
LARGEST_TILE_PX = 96
GAP_PX = 3
TEXT_PT = 8
FRC = 0
"""Column of the resolutions that is told: at FRC 0.143."""
TICK = "\N{CHECK MARK}"


@dataclass(frozen=True, eq=False)
class Gallery:
    """The classes as tiles in some order."""

    classes: "Classes"
    order: NDArray[np.int64]
    """[k]; the place in ``classes`` of each tile."""
    mosaic: Mosaic
    limits: tuple[float, float]
    pixel_size_A: float
    members: list[Rows]
    """Of each tile, the rows of its particles."""

    def words(self, tile: int) -> str:
        """What is known of a class, in one line."""
        classes, at = self.classes, int(self.order[tile])
        resolution = classes.resolution_A[at, FRC]
        said = [f"{classes.particles[at]:,} particles ({100 * classes.share[at]:.1f} %)"]
        said.append("no resolution" if np.isnan(resolution) else f"{resolution:.1f} \N{ANGSTROM SIGN}")
        if classes.junk_share is not None:
            said.append(f"{100 * classes.junk_share[at]:.0f} % junk")
        return f"class {classes.numbers[at]}: {', '.join(said)}"


class ClassesTab(Tab):
    """The gallery of class averages. ``made`` says that a run has got new classes and wants to be read again."""

    title = "Classes"
    group = "classes"
    tip = "Averages of the classes: choose those to keep, see their particles in the scatter, save both parts"
    hint = "Reading the classes \N{HORIZONTAL ELLIPSIS}"

    made = Signal(object)

    def __init__(
        self, session: Session, save: Callable[[bool], object], members: Callable[[Rows, str], object]
    ) -> None:
        super().__init__(session)
        self.gallery: Gallery | None = None
        self._open_members = members
        self.order = choice(ORDERS, "What the averages are sorted by", lambda _: self._arrange())
        self.number = whole_number(2, 500, 50, "How many classes to make")
        self.make_button = button(
            "Make classes",
            "Put the particles into classes by what they look like, and average each: takes seconds to minutes.\n"
            "Older classes of the run are replaced",
            self.make,
        )
        self.about = words("Open a run to see its classes.", "What is chosen", wrap=True)
        self.list = Entries()
        self.list.setAccessibleName("Classes: tick those to keep")
        self.list.setToolTip("The same classes for the keyboard: tick those to keep")
        self.list.setMinimumHeight(70)
        self.list.itemChanged.connect(self._ticked)
        self.setLayout(
            column(
                flow(
                    together("sort by", self.order),
                    button("All", "Choose all classes", lambda: self._all(True)),
                    button("None", "Choose no class", lambda: self._all(False)),
                    button("Junk", "Choose the classes that are mostly junk", self.choose_junk),
                    button("Members", "Show particles of the chosen classes side by side", self.open_chosen),
                    button(
                        "Save kept\N{HORIZONTAL ELLIPSIS}",
                        "Save the particles of the chosen classes, and all others beside them: STAR, or .cs of a run on a .cs file",
                        lambda: save(True),
                    ),
                    together(self.number, self.make_button),
                ),
                self.about,
                self.list,
            )
        )
        self.board = Board(session.stage, self.group, self.choose, self.open_members)
        self._work = self.background()
        self._making = session.background()
        self._filling = False
        session.selected.connect(self._selection_changed)

    # ------------------------------------------------------------------------------------------------------- showing

    def run_opened(self) -> None:
        """See `Tab`."""
        self.gallery = None
        self.make_button.setEnabled(True)
        self.list.clear()
        self.about.setText("Reading the classes \N{HORIZONTAL ELLIPSIS}")

    def refresh(self) -> None:
        """See `Tab`."""
        if self.gallery is not None:
            if self.session.stage.group != self.group:
                self._put(self.gallery)
            return
        data = self.session.data
        if not self.attempt(lambda: data.classes):
            return
        if data.classes is None:
            self._show_consensus()
        else:
            self._arrange()

    def _show_consensus(self) -> None:
        """Without classes: what all particles have in common, and how to make some."""
        data = self.session.data
        self.about.setText(
            f"{len(data.used):,} particles and no classes yet. Press \N{LEFT DOUBLE QUOTATION MARK}Make classes"
            "\N{RIGHT DOUBLE QUOTATION MARK} to see what kinds there are, or click particles in the scatter."
        )
        self._work.start(_consensus, data, done=self._put_consensus, doing="drawing the consensus")

    def _put_consensus(self, image: NDArray[np.float32]) -> None:
        data = self.session.data
        caption = f"consensus of {len(data.used):,} particles; make classes to tell kinds apart"
        self.session.stage.show(
            "classes",
            [
                Picture(
                    "consensus", image, data.pixel_size_A, contrast_limits(image), caption, smooth=True, unit=data.unit
                )
            ],
        )

    def _arrange(self) -> None:
        """Sort the averages as chosen and show them."""
        if self.session.is_open and self.session.is_read and self.session.data.classes is not None:
            self._work.start(arranged, self.session.data, self.order.currentText(), done=self._put, doing="sorting")

    def _put(self, gallery: Gallery) -> None:
        self.gallery = gallery
        unit = self.session.data.unit
        picture = Picture(
            "averages", gallery.mosaic.image, gallery.pixel_size_A, gallery.limits, smooth=True, unit=unit
        )
        self.board.show(gallery.mosaic, picture, self._texts(), TEXT_PT)
        self._fill_list()
        self._frame()

    def _texts(self) -> list[str]:
        """Above each tile: class, particles, a tick where it is chosen."""
        gallery = self.gallery
        assert gallery is not None
        chosen, partly = self.chosen()
        texts = []
        for tile, at in enumerate(gallery.order):
            mark = f" {TICK}" if tile in chosen else f" ({100 * partly[tile]:.0f} %)" if tile in partly else ""
            texts.append(f"{gallery.classes.numbers[at]}: {gallery.classes.particles[at]:,}{mark}")
        return texts

    def _fill_list(self) -> None:
        gallery, (chosen, _) = self.gallery, self.chosen()
        assert gallery is not None
        self._filling = True
        self.list.clear()
        for tile in range(len(gallery.order)):
            item = QListWidgetItem(gallery.words(tile))
            item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            item.setCheckState(Qt.CheckState.Checked if tile in chosen else Qt.CheckState.Unchecked)
            self.list.addItem(item)
        self._filling = False

    # ------------------------------------------------------------------------------------------------------ choosing

    def chosen(self) -> tuple[set[int], dict[int, float]]:
        """The tiles all of whose particles are selected, and the share of those that are of others."""
        if self.gallery is None or not self.session.is_open:
            return set(), {}
        mask = self.session.selection.mask
        share = [float(mask[rows].mean()) if len(rows) else 0.0 for rows in self.gallery.members]
        whole = {tile for tile, value in enumerate(share) if value == 1}
        return whole, {tile: value for tile, value in enumerate(share) if 0 < value < 1}

    def choose(self, tiles: list[int], choosing: Choosing) -> None:
        """Choose classes or take them out; their particles are the selection."""
        gallery = self.gallery
        if gallery is None:
            return
        selection, (whole, _) = self.session.selection, self.chosen()
        rows = np.concatenate([gallery.members[tile] for tile in tiles])
        mask: Mask = np.zeros(len(selection), dtype=np.bool_)
        mask[rows] = True
        if choosing == "toggle":
            choosing = "remove" if set(tiles) <= whole else "add"
        selection.apply(mask, "subtract" if choosing == "remove" else "add")

    def _all(self, keep: bool) -> None:
        if self.gallery is not None:
            self.choose(list(range(len(self.gallery.order))), "add" if keep else "remove")
        else:
            self.session.fail("there are no classes yet; make some first")

    def choose_junk(self) -> None:
        """Choose what is mostly junk."""
        gallery = self.gallery
        if gallery is None or gallery.classes.junk_share is None:
            self.session.fail("the run does not tell junk from particles, or has no classes yet")
            return
        tiles = [tile for tile, at in enumerate(gallery.order) if gallery.classes.junk_share[at] >= 0.5]
        if tiles:
            self.choose(tiles, "add")
        else:
            self.session.say("no class is mostly junk")

    def _ticked(self, item: QListWidgetItem) -> None:
        if not self._filling:
            checked = item.checkState() == Qt.CheckState.Checked
            self.choose([self.list.row(item)], "add" if checked else "remove")

    def _selection_changed(self) -> None:
        if self.gallery is None or not self.session.is_open:
            return
        chosen, _ = self.chosen()
        self._filling = True
        for tile in range(self.list.count()):
            item = self.list.item(tile)
            if item is not None:
                item.setCheckState(Qt.CheckState.Checked if tile in chosen else Qt.CheckState.Unchecked)
        self._filling = False
        self._frame()

    def _frame(self) -> None:
        gallery, (chosen, partly) = self.gallery, self.chosen()
        if gallery is None:
            return
        kept = int(sum(len(gallery.members[tile]) for tile in chosen))
        self.about.setText(
            f"{len(chosen)} of {len(gallery.order)} classes chosen: {kept:,} particles. Click a tile, shift-click up to it, drag over "
            "some, Ctrl-click to take out, double-click for its particles."
        )
        if self.in_front and self.session.stage.group == self.group:
            self.board.frame(chosen, set(partly))
            self.session.stage.relabel(self.group, self._texts())

    # ------------------------------------------------------------------------------------------------------- members

    def open_members(self, tile: int) -> None:
        """Show particles of a class."""
        if self.gallery is not None:
            self._open_members(self.gallery.members[tile], self.gallery.words(tile))

    def open_chosen(self) -> None:
        """Show particles of the chosen classes."""
        gallery, (chosen, _) = self.gallery, self.chosen()
        if gallery is None or not chosen:
            self.session.fail("no class is chosen; click one")
            return
        rows = np.concatenate([gallery.members[tile] for tile in sorted(chosen)])
        self._open_members(rows, f"{len(chosen)} chosen classes")

    # -------------------------------------------------------------------------------------------------------- making

    def make(self) -> None:
        """Make classes; the run is read again when they are there."""
        if not self.session.is_open:
            self.session.fail("no run is open; choose a run folder, above the scatter")
            return
        self.make_button.setEnabled(False)
        data = self.session.data
        self._making.start(
            *(_make, data, self.number.value()),
            done=self.made.emit,
            ended=lambda: self.make_button.setEnabled(True),
            doing=f"making {self.number.value()} classes of {len(data.used):,} particles",
        )


def _make(data: RunData, k: int) -> Path:
    from emspatialvae.workflows.classes import classify_run

    classify_run(data.path, k, project_dir=data.project_dir, say=lambda _: None)
    return data.path


def _consensus(data: RunData) -> NDArray[np.float32]:
    from emspatialvae.model.render import consensus

    return consensus(data.model, data.latents.z[data.used])


def arranged(data: RunData, order: Order) -> Gallery:
    """The classes of a run as tiles in some order, small enough that two hundred of them are one picture."""
    from emspatialvae.imaging import resampling

    classes = data.classes
    assert classes is not None
    images, pixel_size_A = classes.images, classes.pixel_size_A
    if images.shape[-1] > LARGEST_TILE_PX:
        pixel_size_A *= images.shape[-1] / LARGEST_TILE_PX
        images = resampling.fourier_crop(images, LARGEST_TILE_PX)
    places = _sorted(classes, images, order)
    level = images - images.mean((1, 2), keepdims=True)
    level = level / np.maximum(level.std((1, 2), keepdims=True), 1e-12)
    mosaic = Mosaic.of(level[places].astype(np.float32), _columns(len(places)), GAP_PX)
    class_of = data.latents.class_number
    assert class_of is not None
    members = [np.flatnonzero((class_of == classes.numbers[at]) & data.latents.used) for at in places]
    shown = replace(classes, images=images)
    return Gallery(shown, places, mosaic, contrast_limits(level), pixel_size_A, members)


def _columns(count: int) -> int:
    """A little wider than high, as the canvas is."""
    return max(1, int(np.ceil(np.sqrt(count * 1.25))))


def _sorted(classes: "Classes", images: NDArray[np.float32], order: Order) -> NDArray[np.int64]:
    if order == "resolution":
        return np.argsort(np.nan_to_num(classes.resolution_A[:, FRC], nan=np.inf), kind="stable")
    if order == "junk" and classes.junk_share is not None:
        return np.argsort(-classes.junk_share, kind="stable")
    if order == "similarity" and len(classes) > 2:
        return by_similarity(images)
    return np.argsort(-classes.particles, kind="stable")


def by_similarity(images: NDArray[np.float32]) -> NDArray[np.int64]:
    """An order in which neighbours look alike, of images [k, box, box] that lie in one frame, k > 2."""
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering

    flat = images.reshape(len(images), -1).astype(np.float64)
    flat = flat - flat.mean(1, keepdims=True)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    tree: Any = linkage(flat, "average")
    return leaves_list(optimal_leaf_ordering(tree, flat)).astype(np.int64)
