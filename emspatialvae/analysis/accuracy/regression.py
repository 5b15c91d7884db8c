"""Polynomials fitted to one half of the particles and read off at the other, so that no fit flatters its own score."""

from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.imaging.arrays import Floats, Rows

Halves = tuple[Rows, Rows]

PARTICLES_PER_TERM = 10  # a polynomial is fitted only with that many particles for each of its terms


def halves(n: int) -> Halves:
    """Two halves at random, always the same: rows of a file may come in an order that means something."""
    rows = np.random.default_rng(0).permutation(n)
    return np.sort(rows[: n // 2]), np.sort(rows[n // 2 :])


def affordable_degree(wanted: int, d: int, n: int) -> int:
    """The highest degree up to ``wanted`` whose terms have `PARTICLES_PER_TERM` particles each in half the data."""
    if d == 0:
        return 0
    return next((q for q in range(wanted, 0, -1) if comb(d + q, q) * PARTICLES_PER_TERM <= n // 2), 0)


@dataclass(frozen=True, eq=False)
class Polynomial:
    """All monomials of a standardised z up to a total degree: a function of z [n, d], real or complex."""

    monomials: tuple[tuple[int, ...], ...]
    """Per term, the coordinates that it multiplies; () is the constant."""
    coefficients: NDArray[Any]
    """[terms]"""
    low: Floats
    high: Floats
    """[d] each; z is limited to this range: a polynomial may be trusted little beyond what it was fitted to."""
    centre: Floats
    spread: Floats
    """[d] each; the standardisation."""

    @classmethod
    def fit(cls, z: Floats, target: NDArray[Any], degree: int) -> "Polynomial":
        """Least squares of ``target`` [n] over z [n, d]."""
        d = z.shape[1]
        margin = 0.05 * np.ptp(z, axis=0)
        spread = z.std(0)
        empty = cls(
            tuple(c for q in range(degree + 1) for c in combinations_with_replacement(range(d), q)),
            np.zeros(0, target.dtype),
            z.min(0) - margin,
            z.max(0) + margin,
            z.mean(0),
            np.where(spread > 0, spread, 1.0),
        )
        u = empty._standardised(z)
        terms = np.stack([_product(u, monomial) for monomial in empty.monomials], -1)
        coefficients = np.linalg.lstsq(terms, target, rcond=None)[0]
        return cls(**{**vars(empty), "coefficients": coefficients})

    def values(self, z: Floats) -> NDArray[Any]:
        """The polynomial at z; shape [n]."""
        u = self._standardised(z)
        terms = np.stack([_product(u, monomial) for monomial in self.monomials], -1)
        return terms @ self.coefficients

    def slopes(self, z: Floats) -> NDArray[Any]:
        """Its gradient at z; shape [n, d]. Beyond the range it is that at the border."""
        u = self._standardised(z)
        slopes = np.zeros(z.shape, self.coefficients.dtype)
        for coefficient, monomial in zip(self.coefficients, self.monomials, strict=True):
            for place, k in enumerate(monomial):  # the product rule; a square comes up twice
                slopes[:, k] += coefficient * _product(u, monomial[:place] + monomial[place + 1 :])
        return slopes / self.spread

    def _standardised(self, z: Floats) -> Floats:
        return (np.clip(z, self.low, self.high) - self.centre) / self.spread


def _product(u: Floats, monomial: tuple[int, ...]) -> Floats:
    return np.prod(u[:, list(monomial)], axis=1)


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Two polynomials, each with the half of the particles that it was *not* fitted to."""

    z: Floats
    """[n, d]"""
    parts: tuple[tuple[Rows, Polynomial], ...]

    @classmethod
    def fit(cls, z: Floats, target: NDArray[Any], degree: int, split: Halves) -> "CrossFit":
        """Fit ``target`` [n], real or complex, as a function of z [n, d] on either half."""
        parts = []
        for rows, score in (split, split[::-1]):
            rows = rows if len(rows) else score  # a single particle has no other half
            parts.append((score, Polynomial.fit(z[rows], target[rows], degree)))
        return cls(z, tuple(parts))

    @property
    def values(self) -> NDArray[Any]:
        """Prediction of every particle by the fit to the other half; shape [n]."""
        first = self.parts[0][1]
        out = np.empty(len(self.z), first.coefficients.dtype)
        for rows, polynomial in self.parts:
            out[rows] = polynomial.values(self.z[rows])
        return out

    @property
    def slopes(self) -> NDArray[Any]:
        """Gradient of that prediction; shape [n, d]."""
        out = np.empty(self.z.shape, self.parts[0][1].coefficients.dtype)
        for rows, polynomial in self.parts:
            out[rows] = polynomial.slopes(self.z[rows])
        return out
