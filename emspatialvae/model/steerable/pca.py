"""Which few components of a disk hold what the particles have in common: principal components that stay steerable.

The covariance of images whose in-plane angles are uniform is block-diagonal in the angular order, so it needs no poses: each
order has a small Hermitian matrix, and what rises above the noise there spans the particles, shifted and turned as they
are. A hundred components do the work of a thousand pixels.

Source: Zhao, Shkolnisky, Singer, "Fast steerable principal component analysis" (IEEE Trans. Comput. Imaging 2016).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emspatialvae.model.steerable.basis import Disk, Order, SteerableBasis, orthonormal_orders

Complexes = NDArray[np.complex128]

ALWAYS = 1e6
"""Times the variance of all the rest: what is given to a direction that shall be a component whatever the images hold of it."""


@dataclass(frozen=True, eq=False)
class Covariances:
    """Second moments of the coefficients of ``n`` images, per angular order: [r, r], Hermitian, per real dimension."""

    n: int
    per_order: list[Complexes]


class Direction(NamedTuple):
    """One component in the making: a combination ``mix`` [r] of the functions of the k-th order."""

    above: float
    """How far its strength lies above that of pure noise."""
    strength: float
    """Its variance, and what was given to it beyond."""
    variance: float
    """In the images."""
    mix: Complexes
    k: int


class FullDisk:
    """All functions on a disk, and what images have in them."""

    def __init__(self, disk: Disk, max_frequency: float) -> None:
        self.disk = disk
        self.orders = orthonormal_orders(disk, max_frequency)
        self.basis = SteerableBasis.of_orders(disk, self.orders)

    def covariances(self, batches: Iterable[Tensor]) -> Covariances:
        """Of batches of images [k, box, box]."""
        n, size = 0, self.basis.size
        sums = [np.zeros((len(o.combine),) * 2, dtype=np.complex128) for o in self.orders]
        rows = np.split(np.arange(size), np.cumsum([len(o.combine) for o in self.orders])[:-1])
        for images in batches:
            coefficients = self.basis.coefficients(images).cpu().numpy()
            a = coefficients[:, :size] + 1j * coefficients[:, size:]
            for total, r in zip(sums, rows, strict=True):
                total += a[:, r].T @ a[:, r].conj()
            n += len(images)
        return Covariances(
            n, [total / max(n, 1) / (1 if o.m == 0 else 2) for total, o in zip(sums, self.orders, strict=True)]
        )

    def principal(self, images: Covariances, *, least: int, most: int) -> tuple[SteerableBasis, Tensor]:
        """The components that stand out of white noise of s.d. 1, and the disk's constant.

        Of an image the level is not known, so images come without it. A particle does not: without its level it would end in a
        step at the edge of the disk, which stays where it is when the particle moves.

        Parameters
        ----------
        least, most
            Bounds on the number of components.

        Returns
        -------
        The basis, and for each component the signal's variance over the noise's; shape [R].
        """
        found: list[Direction] = []
        for k, covariance in enumerate(images.per_order):
            level = self._level(k)
            strength, axes = np.linalg.eigh(covariance + ALWAYS * np.trace(covariance) * np.outer(level, level.conj()))
            variance = (axes.conj() * (covariance @ axes)).sum(0).real
            # Largest eigenvalue of pure noise, Marchenko and Pastur: (1 + sqrt(r / n))^2.
            edge = (1 + np.sqrt(len(variance) / images.n)) ** 2
            found += [Direction(*item, k) for item in zip(strength - edge, strength, variance, axes.T, strict=True)]
        found.sort(key=lambda direction: -direction.strength)
        count = int(np.clip(sum(direction.above > 0 for direction in found), least, most))
        return self._basis(found[:count])

    def _level(self, k: int) -> Complexes:
        """The direction of the disk's constant among the functions of an order [r]; zero but for order 0."""
        size = len(self.orders[k].combine)
        if self.orders[k].m > 0:
            return np.zeros(size, dtype=np.complex128)
        level = self.basis.vectors[:size].double().sum(1).numpy()  # of the images of order 0, which come first
        return (level / np.linalg.norm(level)).astype(np.complex128)

    def _basis(self, chosen: list[Direction]) -> tuple[SteerableBasis, Tensor]:
        orders: list[Order] = []
        ratios: list[float] = []
        for k in sorted({direction.k for direction in chosen}):
            of_order = [direction for direction in chosen if direction.k == k]
            orders.append(self.orders[k].mixed(np.stack([direction.mix for direction in of_order])))
            ratios += [direction.variance - 1 for direction in of_order]
        return SteerableBasis.of_orders(self.disk, orders), torch.tensor(ratios).float()
