"""Select particles by region, class, range or condition; name regions; see what the selected ones have in common; save them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import QLayout, QListWidgetItem

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Mask
from napari_emsvae.explorer.columns import RunColumns
from napari_emsvae.explorer.run_data import RunData
from napari_emsvae.explorer.selection import HOWS, How
from napari_emsvae.explorer.session import Session
from napari_emsvae.explorer.tabs.base import Tab
from napari_emsvae.explorer.tabs.selection_pictures import SelectionPictures
from napari_emsvae.qt import palette
from napari_emsvae.qt.controls import Entries, button, choice, column, field, flow, row, tick, together
from napari_emsvae.qt.dialogs import ask_where_to_save, may_replace


class SelectTab(Tab):
    """Everything that makes, names and saves selections, apart from lasso and box, which are in the scatter."""

    title = "Select"
    group = "selection"
    hint = "Draw a lasso in the scatter (L), or choose classes: their average appears here, what is left out, and the difference."
    tip = "Select by class, range or condition; combine; name regions; save what is kept and what is excluded"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.how = choice(HOWS, "What a new lasso, box, class list, range or condition does with the present selection")
        self.column = choice([], "A column of RUN/particles.star")
        self.low, self.high = (
            field("from", "Smallest value; empty: no limit", 70),
            field("to", "Largest value; empty: no limit", 70),
        )
        self.members = field("1, 4", "Values of the column, with commas between them: class numbers, micrographs", 110)
        self.condition = field(
            "junk < 0.5 and z1 > 0.5",
            'A condition on columns, as in `emsvae select --where`: names (emsvaeZ1 or z1), numbers, "texts", comparisons, and, or, not, in',
        )
        self.condition.returnPressed.connect(self.select_where)
        self.members.returnPressed.connect(self.select_members)
        self.region_name = field("name", "What the present selection is to be called", 180)
        self.region_name.returnPressed.connect(self.name_region)
        self.regions = Entries()
        self.regions.setAccessibleName("Named regions")
        self.regions.setToolTip("Named regions: number, name, particles. Double-click to select one")
        self.regions.setMinimumHeight(64)
        self.regions.itemDoubleClicked.connect(lambda _: self.select_region())
        self.follow = tick(
            "follow the cursor",
            "Show the average of the 100 particles nearest in z to the one under the cursor, also while something is selected",
        )
        self.setLayout(
            column(
                self._change_row(),
                self._values_row(),
                row(self.condition, button("Find", "Select particles that meet the condition", self.select_where)),
                self._regions_row(),
                self._saving_row(),
                None,
            )
        )
        self._work = session.background()
        self._saving = session.background(of_run=False)
        self.pictures = SelectionPictures(self, self.follow.isChecked)
        session.selected.connect(self._selection_changed)

    def _change_row(self) -> QLayout:
        """Changes of the present selection."""
        return flow(
            button("Invert", "Select what is not selected (I)", self.invert),
            button("Clear", "Select nothing", self.clear),
            button("Undo", "Back by one change (Ctrl+Z)", self.undo),
            button("Redo", "Forward by one change (Ctrl+Shift+Z)", self.redo),
            self.follow,
        )

    def _values_row(self) -> QLayout:
        """Selection by the values of a column."""
        return flow(
            self.column,
            together(
                self.low,
                self.high,
                button("Range", "Select particles whose column lies between these values", self.select_range),
            ),
            together(
                self.members,
                button("Values", "Select particles whose column has one of these values", self.select_members),
            ),
        )

    def _regions_row(self) -> QLayout:
        """Named regions."""
        return column(
            flow(
                together(
                    self.region_name,
                    button(
                        "Name it",
                        "Give the present selection a name; it gets a number and a colour",
                        self.name_region,
                    ),
                ),
                button("Select", "Select the region marked in the list", self.select_region),
                button("Forget", "Remove the region from the list; the particles stay", self.forget_region),
            ),
            self.regions,
        )

    def _saving_row(self) -> QLayout:
        """Files."""
        return flow(
            button(
                "Save kept and excluded\N{HORIZONTAL ELLIPSIS}",
                "Write the selected particles to one file and all others to another (STAR or .cs), as `emsvae select` does",
                lambda: self.ask_and_save(both=True),
            ),
            button(
                "Save kept only\N{HORIZONTAL ELLIPSIS}",
                "Write the selected particles to a file",
                lambda: self.ask_and_save(both=False),
            ),
        )

    def run_opened(self) -> None:
        """See `Tab`."""
        self.pictures.forget()
        self.column.clear()

    def refresh(self) -> None:
        """See `Tab`: columns are known and averages can be made once the particles are read."""
        if not self.column.count():
            self.attempt(self._list_columns)
        self.pictures.gather()
        self.pictures.show()

    def _list_columns(self) -> None:
        names = self.session.data.columns.names
        self.column.addItems(list(names))
        wanted = next(
            (name for name in ("rlnClassNumber", "emsvaeJunk", "emsvaeMisfit", "emsvaeZ1") if name in names), names[0]
        )
        self.column.setCurrentText(wanted)

    # ----------------------------------------------------------------------------------------------------- selecting

    @property
    def combination(self) -> How:
        """What a new selection does with the present one."""
        return HOWS[self.how.currentIndex()]

    def take(self, mask: Mask) -> None:
        """A lasso or box was drawn: combine what it holds [n] with the selection."""
        self.attempt(lambda: self.session.selection.apply(mask, self.combination))

    def select_range(self) -> None:
        """By the values of a column."""
        try:
            low, high = (
                float(field.text()) if field.text().strip() else default
                for field, default in ((self.low, -np.inf), (self.high, np.inf))
            )
        except ValueError:
            self.session.fail(
                f"{self.low.text()!r} to {self.high.text()!r} is no range; expected two numbers, or one and nothing"
            )
            return
        self._select(RunColumns.in_range, self.column.currentText(), low, high)

    def select_members(self) -> None:
        """By a list of classes."""
        wanted = [word.strip().strip("\"'") for word in self.members.text().split(",") if word.strip()]
        if not wanted:
            self.session.fail("no values were given; type class numbers with commas between them, as in 1, 4")
            return
        self._select(RunColumns.one_of, self.column.currentText(), wanted)

    def select_where(self) -> None:
        """By a condition."""
        text = self.condition.text().strip()
        if not text:
            self.session.fail(f"no condition was given; type one, as in {self.condition.placeholderText()}")
            return
        self._select(RunColumns.where, text)

    def _select(self, which: Callable[..., Mask], *arguments: object) -> None:
        """Combine what ``which(columns, *arguments)`` finds with the selection; reading a column may take seconds."""
        if self.attempt(lambda: self.session.data):
            self._work.start(which, self.session.data.columns, *arguments, done=self._found)

    def _found(self, mask: Mask) -> None:
        if (mask & self.session.selection.selectable).any():
            self.take(mask)
        else:
            self.session.say("no particle is like that; the selection stays as it was")

    def invert(self) -> None:
        """Select the others."""
        self.attempt(lambda: self.session.selection.invert())

    def clear(self) -> None:
        """Select nothing."""
        self.attempt(lambda: self.session.selection.clear())

    def undo(self) -> None:
        """Back by one change."""
        self.attempt(lambda: self.session.selection.undo() or self.session.say("nothing to undo"))

    def redo(self) -> None:
        """Forward by one."""
        self.attempt(lambda: self.session.selection.redo() or self.session.say("nothing to redo"))

    # ------------------------------------------------------------------------------------------------------- regions

    def name_region(self) -> None:
        """Name the selection."""
        if self.attempt(lambda: self.session.selection.name_region(self.region_name.text())):
            self.region_name.clear()

    def marked_region(self) -> int:
        """The number of the region that is marked in the list.

        Raises
        ------
        EmsvaeError
            None is.
        """
        item = self.regions.currentItem()
        if item is None:
            raise EmsvaeError("no region is marked; click one in the list, or name the selection first")
        return int(item.text().split(".")[0])

    def select_region(self) -> None:
        """Select the marked region, combined as chosen."""
        self.attempt(
            lambda: self.session.selection.apply(
                self.session.selection.region(self.marked_region()).mask, self.combination
            )
        )

    def forget_region(self) -> None:
        """Remove the marked region."""
        self.attempt(lambda: self.session.selection.remove_region(self.marked_region()))

    def _selection_changed(self) -> None:
        marked = self.regions.currentRow()
        self.regions.clear()
        for region in self.session.selection.regions:
            item = QListWidgetItem(_icon(region.number), f"{region.number}. {region.name}: {region.count:,} particles")
            self.regions.addItem(item)
        self.regions.setCurrentRow(min(marked, self.regions.count() - 1))
        if self.in_front and self.session.is_read:
            self.pictures.show()

    # -------------------------------------------------------------------------------------------------------- saving

    def ask_and_save(self, *, both: bool) -> None:
        """Ask for a name and write the selection there."""
        if not self.attempt(lambda: self.session.selection):
            return
        if not self.session.selection.count:
            self.session.fail("nothing is selected, so there is nothing to save; draw a lasso in the scatter first")
            return
        data = self.session.data
        kinds = [("RELION STAR", ".star")]
        if data.run.star.with_suffix(".cs").is_file():
            kinds.append(("cryoSPARC", ".cs"))
        proposed = data.path.with_name(f"{data.path.name}_kept.star")
        answer = ask_where_to_save(self, "Save the selected particles", proposed, kinds)
        if answer is None:
            return
        out, asked = answer
        others = [*([] if asked else [out]), *([excluded_beside(out)] if both else [])]
        if may_replace(self, others):
            self.save(out, both=both, replace=True)
        else:
            self.session.say("nothing was written")

    def save(self, out: Path, *, both: bool, replace: bool = False) -> None:
        """Write the selected particles, and with ``both`` the others beside them, as ..._excluded.

        With ``replace`` files of these names are replaced: for those who have asked.
        """
        excluded = excluded_beside(out) if both else None
        mask = self.session.selection.mask.copy()
        said = f"{int(mask.sum()):,} particles: {out}" + (
            f"; the other {int((~mask).sum()):,}: {excluded}" if both else ""
        )
        self._saving.start(
            *(_save, self.session.data, mask, out, excluded, replace),
            done=lambda _: self.session.say(said),
            doing=f"saving {out.name}",
        )


def excluded_beside(out: Path) -> Path:
    """Where the particles go that are left out of ``out``: a_kept.star has a_excluded.star beside it."""
    return out.with_stem(f"{out.stem.removesuffix('_kept')}_excluded")


def _icon(number: int) -> QIcon:
    pixels = QPixmap(12, 12)
    pixels.fill(QColor.fromRgbF(*palette.of_number(number)))
    return QIcon(pixels)


def _save(data: RunData, mask: Mask, out: Path, excluded: Path | None, replace: bool) -> None:
    from emspatialvae.workflows.select import write_selection

    write_selection(data.run, mask, out, excluded=excluded, force=replace)
