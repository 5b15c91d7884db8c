"""What the selected particles have in common: their average and how much they differ, with their poses taken out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from emspatialvae.imaging.arrays import Rows
from napari_emsvae.explorer.pictures.picture import Image
from napari_emsvae.explorer.pictures.upright import upright
from napari_emsvae.explorer.run_data import RunData

PORTIONS = (128, 512, 2048)
"""Particles in the average as it gets better; the first is there in the blink of an eye."""
STEP = 128
"""Images that are aligned at a time; in between the work can be given up."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Average and standard deviation of some particles."""

    mean: Image
    """[box, box]; where the images were multiplied by the CTF, restored by a Wiener filter."""
    sd: Image
    """[box, box], of the images as the model sees them."""
    rest: Image | None
    """[box, box]; the average of what is left out, as ``mean``; None where nothing is."""
    averaged: int
    """How many particles these are of,"""
    selected: int
    """and how many there were to choose from."""

    def described(self) -> str:
        """Such as ``512 of 1,234 particles``."""
        if self.averaged == self.selected:
            return f"all {self.selected:,} particles"
        return f"{self.averaged:,} of {self.selected:,} particles"


def statistics(data: RunData, rows: Rows, rest: Image | None = None) -> Iterator[Statistics | None]:
    """Statistics of ever more of the particles ``rows`` [k], drawn at random; None where a caller may want to stop in between.

    Parameters
    ----------
    rest
        The average of what is left out, which is passed on.
    """
    from emspatialvae.model.render import restored

    images = data.images
    shuffled = np.random.default_rng(0).permutation(rows)
    box = images.box
    total, squares = np.zeros((box, box)), np.zeros((box, box))
    power = np.zeros(box // 2 + 1) if images.has_ctf_power else None
    done = 0
    for goal in (min(size, len(rows)) for size in PORTIONS):
        if goal == done:
            return
        while done < goal:
            part = np.sort(shuffled[done : min(done + STEP, goal)])
            aligned, portion = upright(data, part)
            total += aligned.sum(0)
            squares += (aligned.astype(np.float64) ** 2).sum(0)
            if power is not None and portion.ctf_power is not None:
                power += portion.ctf_power.sum(0)
            done += len(part)
            yield None
        mean = total / done
        sd = np.sqrt(np.maximum(squares / done - mean**2, 0))
        shown = mean if power is None else restored(total[None], power[None])[0]
        yield Statistics(shown.astype(np.float32), sd.astype(np.float32), rest, done, len(rows))
