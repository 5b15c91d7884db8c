"""``metrics.csv``: train and held-out ELBO per epoch, with its parts."""

import csv
from pathlib import Path
from typing import Any

from emspatialvae.errors import RunFolderError
from emspatialvae.io.atomic import atomic_path


class MetricsFile:
    """The table at ``path``, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Add the row of one epoch; a full disk leaves the file as it was."""
        rows = self._rows()
        if rows and not row.keys() <= rows[0].keys():  # an older version wrote one column more
            raise self._damaged(f"columns {', '.join(rows[0])}"[:100])
        self._write([*rows, row])

    def read(self) -> list[dict[str, float]]:
        """The rows; empty cells are NaN.

        Raises
        ------
        RunFolderError
            It is damaged.
        """
        rows = self._rows()
        if rows and not {"train_elbo", "test_elbo"} <= rows[0].keys():
            raise self._damaged(f"columns {', '.join(rows[0])}"[:100])
        try:
            return [{k: float(v) if v else float("nan") for k, v in row.items()} for row in rows]
        except ValueError as error:
            raise self._damaged(str(error)) from None

    def forget_after(self, epoch: int) -> None:
        """Drop the rows of epochs that a resumed run will do again."""
        rows = self._rows()
        if not self.read():
            return
        try:
            self._write([row for row in rows if int(row["epoch"]) <= epoch] or rows[:0], list(rows[0]))
        except ValueError as error:
            raise self._damaged(str(error)) from None

    def _rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        try:
            with self.path.open(newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                rows = list(reader)
        except (ValueError, csv.Error) as error:
            raise self._damaged(str(error)) from None
        for row in rows:
            if "epoch" not in row or None in row or None in row.values():
                raise self._damaged(f"a row of {sum(value is not None for value in row.values())} numbers")
        return rows

    def _write(self, rows: list[dict[str, Any]], names: list[str] | None = None) -> None:
        with (
            atomic_path(self.path, overwrite=True) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.DictWriter(stream, names or list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def _damaged(self, found: str) -> RunFolderError:
        return RunFolderError(
            f"{self.path} is damaged ({found}); remove it: the learning curve so far is lost then, nothing else"
        )
