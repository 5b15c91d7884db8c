"""Averages of a selection and of what it leaves out, fast enough to follow the mouse: from a sample that is aligned once."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emspatialvae.imaging.arrays import Floats, Mask, Rows
from napari_emsvae.explorer.pictures.picture import Image
from napari_emsvae.explorer.pictures.upright import upright
from napari_emsvae.explorer.run_data import RunData

SAMPLE, SAMPLE_BYTES = 4096, 96 << 20
"""Particles of the sample, and the memory that it may take."""
STEP = 128
"""Images that are aligned at a time; in between the work can be given up."""
ENOUGH, MORE = 32, 64
"""With fewer members in the sample some more of them are aligned at once, so many."""
FEW = 30
"""Fewer particles than that show noise rather than structure."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """What some particles look like against the others."""

    inside: Image
    """[box, box]; average, with the CTF taken out where the images were multiplied by it."""
    outside: Image
    """[box, box]; of what is left out. Zeros where nothing is."""
    averaged: int
    """Particles in the average inside,"""
    count: int
    """and how many there are."""

    @property
    def difference(self) -> Image:
        """Inside less outside."""
        return self.inside - self.outside

    def described(self) -> str:
        """Such as ``512 of 1,234 particles``, with a warning where they are few."""
        said = f"all {self.count:,}" if self.averaged == self.count else f"{self.averaged:,} of {self.count:,}"
        return f"{said} particles{warned_of_few(self.count)}"


def warned_of_few(count: int) -> str:
    """What is said behind a number of particles that are too few for an average; empty where they are enough."""
    return "  \N{WARNING SIGN} few particles here" if count < FEW else ""


class Sample:
    """Some of a run's particles, aligned once.

    Attributes
    ----------
    rows
        [m], drawn at random.
    """

    def __init__(self, data: RunData, rows: Rows, images: NDArray[np.float32], power: Floats | None) -> None:
        self.data, self.rows = data, rows
        self.box = images.shape[-1]
        self._flat = images.reshape(len(images), -1)
        self._power = power
        self._total = self._flat.sum(0, dtype=np.float64)
        self._total_power = None if power is None else power.sum(0)

    @classmethod
    def gather(cls, data: RunData) -> "Iterator[Sample | None]":
        """Align a sample; None in between, where a caller may want to stop."""
        box = data.images.box
        most = min(SAMPLE, max(256, SAMPLE_BYTES // (4 * box * box)))
        shuffled = np.random.default_rng(0).permutation(data.used)[:most]
        images, powers = [], []
        for start in range(0, len(shuffled), STEP):
            part = np.sort(shuffled[start : start + STEP])
            shuffled[start : start + STEP] = part
            aligned, portion = upright(data, part)
            images.append(aligned)
            powers.append(portion.ctf_power)
            yield None
        power = None if not powers or powers[0] is None else np.concatenate(powers)
        yield cls(data, shuffled, np.concatenate(images) if images else np.zeros((0, box, box), np.float32), power)

    def contrast(self, mask: Mask) -> Contrast | None:
        """The particles of a mask [n] against the others; None of none."""
        count = int(mask.sum())
        if not count:
            return None
        own = mask[self.rows]
        weights = own.astype(np.float32)
        total = (weights @ self._flat).astype(np.float64)
        power = None if self._power is None else weights @ self._power
        rest = self._total - total
        rest_power = None if self._total_power is None or power is None else self._total_power - power
        averaged = int(own.sum())
        if averaged < min(ENOUGH, count):
            rows = np.flatnonzero(mask)
            rows = np.sort(np.random.default_rng(0).permutation(rows)[:MORE])
            images, portion = upright(self.data, rows)
            total, averaged = images.sum(0, dtype=np.float64).ravel(), len(rows)
            power = None if portion.ctf_power is None else portion.ctf_power.sum(0)
        others = len(self.rows) - int(own.sum())
        return Contrast(self._mean(total, averaged, power), self._mean(rest, others, rest_power), averaged, count)

    def about(self, row: int, count: int = 100) -> Contrast | None:
        """The particles of the sample nearest in z to one particle against the others."""
        z, spread = self.data.latents.z, self.data.neighbours.spread
        if not len(self.rows):
            return None
        distance = (((z[self.rows] - z[row]) / spread) ** 2).sum(1)
        mask = np.zeros(len(z), dtype=np.bool_)
        mask[self.rows[np.argsort(distance)[:count]]] = True
        return self.contrast(mask)

    def _mean(self, total: Floats, count: int, power: Floats | None) -> Image:
        from emspatialvae.model.render import restored

        images = total.reshape(self.box, self.box)
        if not count:
            return np.zeros_like(images, dtype=np.float32)
        if power is None:
            return (images / count).astype(np.float32)
        return restored(images[None], np.asarray(power)[None])[0].astype(np.float32)
