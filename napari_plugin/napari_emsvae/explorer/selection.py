"""Which particles are selected, which regions have a name, and how one gets back: without Qt, saved beside the run.

A selection is a boolean mask over all particles of the run, in the order of its file. Regions are selections that were given a name;
each has a number and a colour, so that colour alone never tells them apart.
"""

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Mask
from emspatialvae.io.atomic import atomic_path

How = Literal["replace", "add", "subtract", "intersect"]

HOWS: tuple[How, ...] = ("replace", "add", "subtract", "intersect")
UNDO_STEPS = 100
FORMAT = 1
FILE = "selections.npz"


@dataclass(frozen=True, eq=False)
class Region:
    """A selection with a name."""

    number: int
    """From 1; stays the same while the region lives and picks its colour."""
    name: str
    mask: Mask

    @property
    def count(self) -> int:
        """How many particles it holds."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class _State:
    """What undo brings back; masks packed to bits, which never change."""

    mask: NDArray[np.uint8]
    regions: tuple[Region, ...]


class SelectionModel:
    """The selection among n particles, its history and its named regions.

    Parameters
    ----------
    selectable
        [n]; particles that may be selected. Those that the run could not use never are.
    changed
        Called after every change.
    """

    def __init__(self, selectable: Mask, changed: Callable[[], None] = lambda: None) -> None:
        self.selectable = selectable.copy()
        self.changed = changed
        self.mask: Mask = np.zeros(len(selectable), dtype=np.bool_)
        self.regions: tuple[Region, ...] = ()
        self._past: list[_State] = []
        self._future: list[_State] = []

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def count(self) -> int:
        """How many particles are selected."""
        return int(self.mask.sum())

    @property
    def rows(self) -> NDArray[np.int64]:
        """The selected particles, in the order of the file."""
        return np.flatnonzero(self.mask)

    def described(self) -> str:
        """Such as ``12 of 3,000 particles selected (0.4 %)``."""
        share = 100 * self.count / max(len(self), 1)
        return f"{self.count:,} of {len(self):,} particles selected ({share:.3g} %)"

    # ---------------------------------------------------------------------------------------------------- selecting

    def apply(self, mask: Mask, how: How = "replace") -> None:
        """Combine the selection with other particles [n]."""
        mask = mask & self.selectable
        combined = {
            "replace": lambda: mask,
            "add": lambda: self.mask | mask,
            "subtract": lambda: self.mask & ~mask,
            "intersect": lambda: self.mask & mask,
        }[how]()
        self._change(combined.copy(), self.regions)

    def invert(self) -> None:
        """Select what is not selected, and the other way round."""
        self._change(self.selectable & ~self.mask, self.regions)

    def clear(self) -> None:
        """Select nothing."""
        self._change(np.zeros_like(self.mask), self.regions)

    # ------------------------------------------------------------------------------------------------ named regions

    def name_region(self, name: str) -> Region:
        """Give the selection a name; a region of that name is replaced and keeps its number.

        Raises
        ------
        EmsvaeError
            Nothing is selected, or the name is empty.
        """
        name = name.strip()
        if not name:
            raise EmsvaeError("a region needs a name; type one beside the button")
        if not self.count:
            raise EmsvaeError(f"nothing is selected, so there is nothing to call {name!r}; draw a lasso first")
        old = next((region for region in self.regions if region.name == name), None)
        taken = {region.number for region in self.regions}
        number = old.number if old else next(k for k in range(1, len(taken) + 2) if k not in taken)
        region = Region(number, name, self.mask.copy())
        others = [other for other in self.regions if other.number != number]
        self._change(self.mask, tuple(sorted([*others, region], key=lambda r: r.number)))
        return region

    def rename_region(self, number: int, name: str) -> None:
        """Give a region another name."""
        renamed = (replace(region, name=name) if region.number == number else region for region in self.regions)
        self._change(self.mask, tuple(renamed))

    def remove_region(self, number: int) -> None:
        """Forget a region; the selection stays."""
        self._change(self.mask, tuple(region for region in self.regions if region.number != number))

    def region(self, number: int) -> Region:
        """The region with a number."""
        return next(region for region in self.regions if region.number == number)

    def region_codes(self) -> NDArray[np.int64]:
        """The number of the region that each particle lies in, 0 for none, the highest where they overlap; [n]."""
        codes = np.zeros(len(self), dtype=np.int64)
        for region in self.regions:
            codes[region.mask] = region.number
        return codes

    # ------------------------------------------------------------------------------------------------------ history

    def undo(self) -> bool:
        """Back by one change; False when there is none."""
        return self._travel(self._past, self._future)

    def redo(self) -> bool:
        """Forward again by one; False when there is none."""
        return self._travel(self._future, self._past)

    def _change(self, mask: Mask, regions: tuple[Region, ...]) -> None:
        self._past.append(self._state())
        del self._past[:-UNDO_STEPS]
        self._future.clear()
        self.mask, self.regions = mask, regions
        self.changed()

    def _travel(self, there: list[_State], back: list[_State]) -> bool:
        if not there:
            return False
        back.append(self._state())
        state = there.pop()
        self.mask = np.unpackbits(state.mask, count=len(self)).astype(np.bool_)
        self.regions = state.regions
        self.changed()
        return True

    def _state(self) -> _State:
        return _State(np.packbits(self.mask), self.regions)

    # ------------------------------------------------------------------------------------------------------- saving

    def save(self, file: Path, names: NDArray[Any]) -> None:
        """Write selection and regions whole or not at all; ``names`` [n] are the particles' image names.

        Raises
        ------
        EmsvaeError
            The folder cannot be written to.
        """
        arrays = {f"mask_{region.number}": np.packbits(region.mask) for region in self.regions}
        with atomic_path(file, overwrite=True) as temporary:
            np.savez(
                temporary,
                allow_pickle=False,
                format=FORMAT,
                particles=digest(names),
                selected=np.packbits(self.mask),
                numbers=np.array([region.number for region in self.regions], dtype=np.int64),
                names=np.array([region.name for region in self.regions], dtype=str),
                **arrays,
            )

    def load(self, file: Path, names: NDArray[Any]) -> None:
        """Take up what `save` wrote.

        Raises
        ------
        EmsvaeError
            The file is damaged, of a newer version, or belongs to other particles.
        """
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as saved:
                arrays = {key: saved[key] for key in saved.files}
            if int(arrays["format"]) > FORMAT:
                raise EmsvaeError(f"{file} was written by a newer emspatialvae; update it, or move the file away")
            if str(arrays["particles"]) != digest(names):
                raise EmsvaeError(f"{file} belongs to other particles than this run's; move it away to start anew")
            numbers = arrays["numbers"].tolist()
            masks = [np.unpackbits(arrays[f"mask_{k}"], count=len(self)).astype(np.bool_) for k in numbers]
            mask = np.unpackbits(arrays["selected"], count=len(self)).astype(np.bool_)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise EmsvaeError(f"{file} is damaged ({error}); move it away to start anew") from None
        parts = zip(numbers, arrays["names"].tolist(), masks, strict=True)
        self._change(mask & self.selectable, tuple(Region(*part) for part in parts))
        self._past.clear()


def digest(names: NDArray[Any]) -> str:
    """A short text that stands for these particles in this order."""
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()[:16]
