"""Questions that the system's own file dialogs do not ask."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from qtpy.QtWidgets import QFileDialog, QMessageBox, QWidget


def ask_where_to_save(
    parent: QWidget, title: str, proposed: Path, kinds: Sequence[tuple[str, str]]
) -> tuple[Path, bool] | None:
    """Where a file is to go, and whether the dialog has asked about replacing exactly that file; None if nowhere.

    Parameters
    ----------
    kinds
        What can be written: name and suffix. A name that was typed without one of them gets that of the chosen kind.
    """
    filters = {f"{name} (*{suffix})": suffix for name, suffix in kinds}
    text, chosen = QFileDialog.getSaveFileName(parent, title, str(proposed), ";;".join(filters))
    if not text:
        return None
    path = completed(Path(text), filters.get(chosen, kinds[0][1]), [suffix for _, suffix in kinds])
    return path, path == Path(text)


def completed(path: Path, suffix: str, known: Iterable[str]) -> Path:
    """A file name with a suffix: its own where that is a known one or looks like one that was meant, else ``suffix``."""
    meant = path.suffix[1:].isalpha() and len(path.suffix) <= 5
    return path if path.suffix in known or meant else path.with_name(path.name + suffix)


def may_replace(parent: QWidget, files: Iterable[Path]) -> bool:
    """Whether files that are there may be replaced, which the user is asked; True without a question when none is there."""
    there = [file for file in files if file.exists()]
    if not there:
        return True
    names = " and ".join(file.name for file in there)
    answer = QMessageBox.question(
        parent,
        "Replace?",
        f"{names} exist{'s' * (len(there) == 1)} already in {there[0].parent}. Replace?",
        QMessageBox.StandardButton.Yes | QMessageBox.StandardButton.No,
        QMessageBox.StandardButton.No,
    )
    return answer == QMessageBox.StandardButton.Yes
