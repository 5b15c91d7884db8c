"""Images as coefficients of functions that only change phase when they are turned.

A *component* i of angular order m is ``V_i(r, phi) = g_i(r) exp(i m phi)`` on a disk about the pixel ``box // 2``, its radial
part a sum of Bessel functions ``J_m(2 pi k_j r)`` on the rings ``k_j = (j + 1/2) / box`` (cycles per pixel). The coefficient of
an image is ``a_i = sum_p y(p) conj(V_i(p))``, the image of coefficients ``Re sum_i a_i V_i``. Then

* turning the content by theta multiplies ``a_i`` by ``exp(-i m theta)``;
* the inner product of an image with a turned one is ``Re sum_m exp(i m theta) sum_(i of order m) a_i conj(b_i)``, for all
  angles at once a small matrix product;
* components of one order are orthonormal on the pixel grid (of different orders nearly so): white noise stays white, and sums of
  squares stay sums of squares.

Coefficients are real tensors [..., 2 R]: R real parts, then R imaginary parts (zero for order 0). Complex arithmetic is slow on
a CPU, real matrix products are fast.

Source: the trial behind section 4b of the design; for the idea Zhao, Singer, "Rotationally invariant image representation for
viewing direction classification in cryo-EM" (2014), and Zhao, Shkolnisky, Singer, "Fast steerable PCA" (2016).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor, nn

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging import geometry

INDEPENDENT = 0.3
"""Combinations of Bessel functions whose norm on the disk is below this share of the largest are multiples of the others."""
LEAK_RINGS = 2
"""Functions cut off at the edge of a disk have power on so many rings beyond their own; further ones are left out."""
MAX_BYTES = 3 << 29
"""Of the full Bessel basis of one box."""


def bessel_rings(box: int, radius_px: float, max_frequency: float = 0.5) -> list[NDArray[np.float64]]:
    """For each angular order m = 0, 1, ... the ring frequencies (cycles/px) of its Bessel functions.

    Order m on ring k lives from radius ``m / (2 pi k)`` outwards, so within the disk ``m <= 2 pi k radius + 2``.
    """
    k = (np.arange(box // 2) + 0.5) / box
    k = k[k <= max_frequency]
    orders = 0 if not len(k) else math.ceil(2 * np.pi * k[-1] * radius_px) + 3
    return [k[m <= np.ceil(2 * np.pi * k * radius_px) + 2] for m in range(orders)]


def affordable_frequency(box: int, radius_px: float) -> float:
    """The resolution limit (cycles/px) up to which the Bessel basis of a box fits into memory."""
    for highest in np.linspace(0.5, 0.02, 49):
        functions = sum(len(k) for k in bessel_rings(box, radius_px, highest))
        if 8 * functions * np.pi * radius_px**2 <= MAX_BYTES:
            return float(highest)
    raise EmsvaeError(f"a box of {box} px is too large for this engine; use --box 256 or less")


@dataclass(frozen=True, eq=False)
class Order:
    """The components of one angular order: ``combine`` [r, rings] (complex) mixes the Bessel functions of ``rings`` [rings]."""

    m: int
    rings: NDArray[np.float64]
    combine: NDArray[np.complex128]
    disk: "Disk"

    def radial(self, r_px: NDArray[np.floating]) -> NDArray[np.complex128]:
        """``g_i(r)`` at radii [...]; shape [components, ...]."""
        unique, where = np.unique(np.round(np.asarray(r_px, dtype=np.float64), 9), return_inverse=True)
        values = special.jv(self.m, 2 * np.pi * self.rings[:, None] * unique) * self.disk.window(unique)
        return (self.combine @ values)[:, where.reshape(np.shape(r_px))]

    def mixed(self, mix: NDArray[np.complexfloating]) -> "Order":
        """Components that are combinations ``mix`` [new, r] of these."""
        return Order(self.m, self.rings, mix @ self.combine, self.disk)


@dataclass(frozen=True)
class Disk:
    """Where a canonical image lives: a disk in a box, beyond which it is zero.

    Attributes
    ----------
    radius_px
        Of the disk.
    edge_px
        Width of its soft edge, half a cosine wide, that ends at the radius; 0 for a hard one.
    """

    box: int
    radius_px: float
    edge_px: float = 0.0

    def window(self, r_px: NDArray[np.floating]) -> NDArray[np.float64]:
        """1 in the middle of the disk, 0 at its radius [...] and beyond."""
        r = np.asarray(r_px, dtype=np.float64)
        if self.edge_px <= 0:
            return (r <= self.radius_px).astype(np.float64)
        beyond = (r - (self.radius_px - self.edge_px)) / self.edge_px
        return (1 + np.cos(np.pi * beyond.clip(0, 1))) / 2


class SteerableBasis(nn.Module):
    """R components on a disk in a box.

    Buffers: ``vectors`` [2 R, box^2], the real images that coefficients multiply; ``order`` [R], the angular order m of each;
    ``radial`` [2 R, rings], their mixture of Bessel functions, by which they can be drawn at any sampling.
    """

    vectors: Tensor
    order: Tensor
    radial: Tensor
    by_order: Tensor

    def __init__(self, disk: Disk, size: int, rings: int) -> None:
        super().__init__()
        self.disk, self.box, self.radius_px = disk, disk.box, disk.radius_px
        box = disk.box
        self.register_buffer("vectors", torch.zeros(2 * size, box * box))
        self.register_buffer("order", torch.zeros(size))
        self.register_buffer("radial", torch.zeros(2 * size, rings))

    @classmethod
    def of_orders(cls, disk: Disk, orders: Sequence[Order]) -> "SteerableBasis":
        """The basis of given components, all of them on one disk."""
        x, y = geometry.pixel_grid(disk.box)
        r, phi = np.hypot(x, y).ravel(), np.arctan2(y, x).ravel()
        inside = r <= disk.radius_px
        size, rings = sum(len(o.combine) for o in orders), max(len(o.rings) for o in orders)
        basis = cls(disk, size, rings)
        row = 0
        for o in orders:
            rows, images = slice(row, row + len(o.combine)), o.radial(r[inside]) * np.exp(1j * o.m * phi[inside])
            for part, combine, start in ((images.real, o.combine.real, 0), (-images.imag, o.combine.imag, size)):
                block = basis.vectors[start + rows.start : start + rows.stop]
                block[:, torch.from_numpy(inside)] = torch.from_numpy(np.ascontiguousarray(part)).float()
                # Rings of high orders begin further out: they are the last ones.
                basis.radial[start + rows.start : start + rows.stop, rings - len(o.rings) :] = torch.from_numpy(
                    np.ascontiguousarray(combine)
                ).float()
            basis.order[rows] = o.m
            row = rows.stop
        return basis

    @classmethod
    def full(cls, disk: Disk, max_frequency: float = 0.5) -> "SteerableBasis":
        """All functions on the disk up to a frequency in cycles/px, orthonormal within each order.

        Raises
        ------
        EmsvaeError
            The box is below 16 px.
        """
        return cls.of_orders(disk, orthonormal_orders(disk, max_frequency))

    @property
    def size(self) -> int:
        """Number R of components."""
        return len(self.order)

    @property
    def highest_order(self) -> int:
        """Largest angular order m."""
        return int(self.order.max())

    def coefficients(self, images: Tensor) -> Tensor:
        """Coefficients [..., 2 R] of images [..., box, box]."""
        return images.flatten(-2) @ self.vectors.T

    def images(self, coefficients: Tensor) -> Tensor:
        """The images [..., box, box] that coefficients [..., 2 R] stand for."""
        return (coefficients @ self.vectors).unflatten(-1, (self.box, self.box))

    def rotate(self, coefficients: Tensor, theta_rad: Tensor) -> Tensor:
        """Turn the content by angles [...], from +x towards +y; ``a_m -> a_m exp(-i m theta)``."""
        phase = self.order * theta_rad[..., None]
        cos, sin = torch.cos(phase), torch.sin(phase)
        re, im = coefficients.chunk(2, -1)
        return torch.cat([re * cos + im * sin, im * cos - re * sin], -1)

    def turning(self, coefficients: Tensor) -> Tensor:
        """Derivative of `rotate` by theta at theta = 0; shape as given."""
        re, im = coefficients.chunk(2, -1)
        return torch.cat([self.order * im, -self.order * re], -1)

    def correlate(self, a: Tensor, b: Tensor, angles_rad: Tensor) -> Tensor:
        """Inner products of images a with b turned by each of the angles [G]: ``<a, rotate(b, angle)>``.

        ``a`` and ``b`` [..., 2 R] broadcast; the result is [..., G].
        """
        return self.sum_over_orders(*self.products(a, b), angles_rad)

    def products(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of ``a conj(b)`` summed over the components of each order; two of shape [..., M]."""
        (a_re, a_im), (b_re, b_im) = a.chunk(2, -1), b.chunk(2, -1)
        members = self.members
        return (a_re * b_re + a_im * b_im) @ members, (a_im * b_re - a_re * b_im) @ members

    def sum_over_orders(self, real: Tensor, imaginary: Tensor, angles_rad: Tensor) -> Tensor:
        """``Re sum_m (real + i imaginary) exp(i m angle)``: orders [..., M] to angles [..., G]."""
        cos, sin = self.waves(angles_rad)
        return real @ cos - imaginary @ sin

    def waves(self, angles_rad: Tensor) -> tuple[Tensor, Tensor]:
        """``cos(m angle)`` and ``sin(m angle)``; each of shape [M, G]."""
        m = torch.arange(self.highest_order + 1, device=angles_rad.device)[:, None]
        return torch.cos(m * angles_rad), torch.sin(m * angles_rad)

    @property
    def live(self) -> Tensor:
        """One for coefficients that mean something, zero for the imaginary parts of order 0; [2 R]."""
        return torch.cat([torch.ones_like(self.vectors[: self.size, 0]), (self.order > 0).to(self.vectors.dtype)])

    @property
    def members(self) -> Tensor:
        """One where component (row) is of order (column); shape [R, M]."""
        m = torch.arange(self.highest_order + 1, device=self.order.device)
        return (self.order[:, None] == m).to(self.vectors.dtype)

    def draw(self, coefficients: Tensor, box: int) -> Tensor:
        """Images [..., box, box] with ``box`` pixels over the same field of view (band-limited, so any number will do)."""
        if box == self.box:
            return self.images(coefficients)
        x, y = geometry.pixel_grid(box)
        r, phi = np.hypot(x, y).ravel() * self.box / box, np.arctan2(y, x).ravel()
        inside = r <= self.radius_px
        k = (np.arange(self.box // 2) + 0.5) / self.box
        k = k[: self.radial.shape[1]]
        vectors = coefficients.new_zeros(2 * self.size, box * box)
        unique, where = np.unique(np.round(r[inside], 9), return_inverse=True)
        radial = self.radial.cpu().double().numpy()
        combine = radial[: self.size] + 1j * radial[self.size :]
        for m in np.unique(self.order.cpu().numpy()):
            rows = np.flatnonzero(self.order.cpu().numpy() == m)
            values = special.jv(m, 2 * np.pi * k[:, None] * unique) * self.disk.window(unique)
            images = (combine[rows] @ values)[:, where] * np.exp(1j * m * phi[inside])
            for part, start in ((images.real, 0), (-images.imag, self.size)):
                block = torch.zeros(len(rows), box * box)
                block[:, torch.from_numpy(inside)] = torch.from_numpy(np.ascontiguousarray(part)).float()
                vectors[torch.from_numpy(rows + start)] = block.to(vectors)
        return (coefficients @ vectors).unflatten(-1, (box, box))


def orthonormal_orders(disk: Disk, max_frequency: float) -> list[Order]:
    """All components of a disk, order by order, made orthonormal on the pixel grid."""
    if disk.box < 16:
        raise EmsvaeError(f"a box of {disk.box} px is too small for this engine; expected at least 16")
    x, y = geometry.pixel_grid(disk.box)
    r = np.hypot(x, y).ravel()
    r = r[r <= disk.radius_px]
    orders = []
    for m, rings in enumerate(bessel_rings(disk.box, disk.radius_px, max_frequency)):
        plain = Order(m, rings, np.eye(len(rings), dtype=np.complex128), disk)
        values = plain.radial(r).real * np.sqrt(rings)[:, None]
        norm, mix = np.linalg.eigh(values @ values.T)
        kept = norm > INDEPENDENT * norm.max()
        # Real and imaginary part of an order above 0 share its norm: sqrt(2) makes each a unit vector.
        scale = np.sqrt(1 if m == 0 else 2) / np.sqrt(norm[kept])
        combine = (mix[:, kept] * scale).T * np.sqrt(rings)
        if kept.any():
            orders.append(Order(m, rings, combine.astype(np.complex128), disk))
    return orders
