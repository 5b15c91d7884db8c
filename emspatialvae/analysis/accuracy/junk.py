"""How good a reported probability of being junk is, where the truth is known."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from emspatialvae.analysis.accuracy.calibration import PeakWeightBin, peak_weight_bins
from emspatialvae.imaging.arrays import Floats

JUNK = 0.5
"""Probability from which on a particle is called junk."""


@dataclass(frozen=True)
class JunkScore:
    """Reported probabilities of being junk against what is junk.

    Attributes
    ----------
    auc
        Area under the ROC curve; None without junk, or without particles.
    found, lost
        Shares of the junk, and of the particles, that score 0.5 or more and that `--where "junk < 0.5"` leaves out; None where
        there are none of them.
    bins
        Reported probability and share of junk, bin by bin.
    """

    auc: float | None
    found: float | None
    lost: float | None
    bins: tuple[PeakWeightBin, ...]

    @classmethod
    def of(cls, probability: Floats, is_junk: NDArray[np.bool_]) -> "JunkScore":
        """Of n particles."""
        out = probability >= JUNK
        found, lost = (float(out[group].mean()) if group.any() else None for group in (is_junk, ~is_junk))
        return cls(auc_of_low(-probability, is_junk), found, lost, peak_weight_bins(probability, is_junk))

    def table(self) -> str:
        """For a person."""
        shares = {"junk": self.found, "particles": self.lost}
        said = ", ".join(f"{100 * share:.2f} % of the {name}" for name, share in shares.items() if share is not None)
        auc = "" if self.auc is None else f"area under its ROC curve {self.auc:.3f}; "
        bins = [
            f"junk score {own.low:.2f} to {own.high:.2f}: {own.reported:.3f} reported, {own.found:.3f} found, {own.n} particles"
            for own in self.bins
        ]
        return "\n".join([f"junk score: {auc}{JUNK:g} or more: {said}", *bins])


def auc_of_low(score: Floats, wanted: NDArray[np.bool_]) -> float | None:
    """Chance that one of the wanted has a lower score than one of the others (ties: half); None if either is missing."""
    n, others = int(wanted.sum()), int((~wanted).sum())
    if not n or not others:
        return None
    return float(1 - (stats.rankdata(score)[wanted].sum() - n * (n + 1) / 2) / (n * others))
