"""Which few components of a disk hold what the particles have in common: principal components that stay steerable.

The covariance of images whose in-plane angles are uniform is block-diagonal in the angular order, so it needs no poses: each
order has a small Hermitian matrix, and what rises above the noise there spans the particles, shifted and turned as they
are. A hundred components do the work of a thousand pixels.

Source: Zhao, Shkolnisky, Singer, "Fast steerable principal component analysis" (IEEE Trans. Comput. Imaging 2016).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emspatialvae.steerable import Order, SteerableBasis, orthonormal_orders

Complexes = NDArray[np.complex128]


@dataclass(frozen=True, eq=False)
class Covariances:
    """Second moments of the coefficients of ``n`` images, per angular order: [r, r], Hermitian, per real dimension."""

    n: int
    per_order: list[Complexes]


class FullDisk:
    """All functions on a disk, and what images have in them."""

    def __init__(self, box: int, radius_px: float, max_frequency: float) -> None:
        self.box, self.radius_px = box, radius_px
        self.orders = orthonormal_orders(box, radius_px, max_frequency)
        self.basis = SteerableBasis.of_orders(box, radius_px, self.orders)

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
        """The components that stand out of white noise of s.d. 1.

        Parameters
        ----------
        least, most
            Bounds on the number of components.

        Returns
        -------
        The basis, and for each component the signal's variance over the noise's; shape [R].
        """
        found: list[tuple[float, float, int, Complexes]] = []
        for k, covariance in enumerate(images.per_order):
            variance, axes = np.linalg.eigh(covariance)
            # Largest eigenvalue of pure noise, Marchenko and Pastur: (1 + sqrt(r / n))^2.
            edge = (1 + np.sqrt(len(variance) / images.n)) ** 2
            found += [(float(s), float(s - edge), k, d) for s, d in zip(variance, axes.T, strict=True)]
        found.sort(key=lambda item: -item[0])
        count = int(np.clip(sum(above > 0 for _, above, _, _ in found), least, most))
        return self._basis(found[:count])

    def _basis(self, chosen: list[tuple[float, float, int, Complexes]]) -> tuple[SteerableBasis, Tensor]:
        orders: list[Order] = []
        ratios: list[float] = []
        for k in sorted({item[2] for item in chosen}):
            directions = np.stack([d for _, _, which, d in chosen if which == k])
            orders.append(self.orders[k].mixed(directions))
            ratios += [s - 1 for s, _, which, _ in chosen if which == k]
        return SteerableBasis.of_orders(self.box, self.radius_px, orders), torch.tensor(ratios).float()
