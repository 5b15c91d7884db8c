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


class FourierPlane(nn.Module):
    """The half plane of `rfft2` of a box, cut to the frequencies that matter, as real numbers [..., 2 F]: real, imaginary.

    There a shift is a phase, and CTF and noise are factors; rings are one Fourier pixel wide.
    """

    fx: Tensor
    fy: Tensor
    ring: Tensor
    where: Tensor
    weight: Tensor

    def __init__(self, box: int, max_ring: int | None = None) -> None:
        super().__init__()
        self.box = box
        self.rings = box // 2 + 1
        fx = torch.fft.rfftfreq(box).expand(box, -1).flatten()
        fy = torch.fft.fftfreq(box)[:, None].expand(-1, box // 2 + 1).flatten()
        ring = torch.round(torch.hypot(fx, fy) * box).long()
        where = torch.nonzero(ring <= (box if max_ring is None else max_ring))[:, 0]
        # Each column but the first (and the Nyquist of an even box) stands for its mirror image as well.
        weight = torch.where((fx > 0) & (fx * box < box / 2), 2.0, 1.0) / box**2
        for name, values in (("fx", fx), ("fy", fy), ("ring", ring.clamp(max=self.rings - 1)), ("weight", weight)):
            self.register_buffer(name, values[where], persistent=False)
        self.register_buffer("where", where, persistent=False)

    def transform(self, images: Tensor) -> Tensor:
        """``rfft2`` of images [..., box, box]; shape [..., 2 F]."""
        plane = torch.fft.rfft2(images).flatten(-2)[..., self.where]
        return torch.cat([plane.real, plane.imag], -1)

    def images(self, plane: Tensor) -> Tensor:
        """The inverse of `transform` (frequencies that were left out are zero); [..., 2 F] to [..., box, box]."""
        re, im = plane.chunk(2, -1)
        whole = torch.zeros(
            *plane.shape[:-1], self.box * (self.box // 2 + 1), dtype=torch.complex64, device=plane.device
        )
        whole[..., self.where] = torch.complex(re, im)
        return torch.fft.irfft2(whole.unflatten(-1, (self.box, -1)), s=(self.box, self.box))

    def move_back(self, plane: Tensor, shift_px: Tensor) -> Tensor:
        """Take shifts [..., 2] (x, y) out: the content moves by -shift."""
        angle = 2 * math.pi * (shift_px[..., :1] * self.fx + shift_px[..., 1:] * self.fy)
        cos, sin = torch.cos(angle), torch.sin(angle)
        re, im = plane.chunk(2, -1)
        return torch.cat([re * cos - im * sin, re * sin + im * cos], -1)

    def without_level(self, plane: Tensor) -> Tensor:
        """The images [..., 2 F] less their mean over the box: nothing at frequency zero, the first of the plane."""
        re, im = plane.chunk(2, -1)
        zero = torch.zeros_like(re[..., :1])
        return torch.cat([zero, re[..., 1:], zero, im[..., 1:]], -1)

    def by_ring(self, factors: Tensor) -> Tensor:
        """Factors per ring [..., rings] spread over the plane [..., 2 F], to be multiplied with it."""
        spread = factors[..., self.ring]
        return torch.cat([spread, spread], -1)

    def ring_means(self, plane: Tensor) -> Tensor:
        """Mean of |F|^2 / box^2 over each ring: 1 for white noise of s.d. 1; shape [..., rings]."""
        re, im = plane.chunk(2, -1)
        power = (re**2 + im**2) * self.weight
        sums = power.new_zeros(*power.shape[:-1], self.rings).index_add_(-1, self.ring, power)
        return sums / self.ring_sizes.clamp(min=1)

    @property
    def ring_sizes(self) -> Tensor:
        """Pixels of each ring of the whole plane; [rings]."""
        return self.weight.new_zeros(self.rings).index_add_(0, self.ring, self.weight * self.box**2)

    def analysis(self, basis: SteerableBasis, shifts_px: Tensor, some: Tensor | None = None) -> Tensor:
        """The matrix [2 F, S * 2 R] that gives coefficients of the content moved back by each of the shifts [S, 2].

        ``some``: the numbers of the coefficients that are wanted [default: all 2 R].
        """
        wanted = basis.vectors if some is None else basis.vectors[some]
        vectors = torch.fft.rfft2(wanted.double().unflatten(-1, (self.box, self.box))).flatten(-2)
        vectors = vectors[:, self.where] * self.weight
        columns = []
        for x, y in shifts_px.double():
            moved = vectors * torch.polar(
                torch.ones_like(self.fx, dtype=torch.float64), -2 * math.pi * (x * self.fx + y * self.fy).double()
            )
            columns.append(torch.cat([moved.real, moved.imag], 1).T.float())
        return torch.cat(columns, 1).contiguous()


def effective_ring(basis: SteerableBasis) -> int:
    """The ring (Fourier pixels) within which the components hold nearly all of what they have of a particle.

    What they lose beyond it they have at the edge of the disk, where there is no particle.
    """
    ring = basis.radial.shape[1] + LEAK_RINGS
    return ring if ring < basis.box // 2 else basis.box  # the last ring stands for the corners, too


class RingMetric(nn.Module):
    """Inner products of images weighted by a factor per ring of the Fourier plane: ``<a, b>_f = sum_k f(ring of k) A conj(B) / box^2``.

    A function cut off at the disk leaks into other rings, so this is computed from the components as they are drawn. Whatever the
    angle of the image, components of different orders do not mix, and the metric is one small symmetric matrix per order,
    linear in the factors: ``blocks`` [rings, entries], the matrices of one order after the other. ``level`` [2 R]: the inner product
    with it is the image's Fourier component at frequency zero, over the box.
    """

    blocks: Tensor
    level: Tensor
    in_sequence: Tensor
    trace: Tensor

    def __init__(self, basis: SteerableBasis, plane: FourierPlane) -> None:
        super().__init__()
        self.rings = plane.rings
        self.register_buffer("level", basis.vectors.sum(1) / basis.box, persistent=False)
        vectors = plane.transform(basis.vectors.unflatten(-1, (basis.box, basis.box))).double()
        re, im = vectors.chunk(2, -1)
        root = plane.weight.double().sqrt()
        re, im = re * root, im * root
        self.rows: list[Tensor] = []
        blocks = []
        for m in basis.order.unique().tolist():
            rows = torch.nonzero(basis.order == m)[:, 0]
            rows = rows if m == 0 else torch.cat([rows, rows + basis.size])
            self.rows.append(rows)
            block = torch.zeros(plane.rings, len(rows), len(rows), dtype=torch.float64)
            for ring in range(plane.rings):
                pixels = plane.ring == ring
                a, b = re[rows][:, pixels], im[rows][:, pixels]
                block[ring] = a @ a.T + b @ b.T
            if m > 0:
                # A ring has few pixels; turned by a quarter of a period the image meets others. The mean over both is what holds
                # at any angle.
                half = len(rows) // 2
                turned = torch.roll(block, (half, half), (1, 2))
                sign = torch.ones(len(rows), dtype=torch.float64)
                sign[:half] = -1
                block = (block + sign[:, None] * turned * sign) / 2
            blocks.append(block.flatten(1))
        self.register_buffer("blocks", torch.cat(blocks, 1).float(), persistent=False)
        self.register_buffer("in_sequence", torch.cat(self.rows), persistent=False)
        ones = [torch.eye(len(rows)).flatten() for rows in self.rows]
        self.register_buffer("trace", self.blocks @ torch.cat(ones).to(self.blocks), persistent=False)

    def matrices(self, factors: Tensor) -> list[Tensor]:
        """The metric of each order for factors [n, rings]: matrices [n, d, d]."""
        whole = factors @ self.blocks
        sizes = [len(rows) for rows in self.rows]
        parts = whole.split([d * d for d in sizes], -1)
        return [part.unflatten(-1, (d, d)) for part, d in zip(parts, sizes, strict=True)]

    def form(self, factors: Tensor | None) -> "RingForm":
        """The metric of n images with factors [n, rings]; None: 1 but at frequency zero, for all of them."""
        return RingForm(self, None if factors is None else self.matrices(factors), factors)

    def square(self, coefficients: Tensor, factors: Tensor) -> Tensor:
        """``<b, b>_f`` of coefficients [n, ..., 2 R] for factors [n, rings]; shape [n, ...]."""
        return self.products(coefficients, coefficients, factors)

    def products(self, a: Tensor, b: Tensor, factors: Tensor) -> Tensor:
        """``<a, b>_f`` of coefficients [n, ..., 2 R] each for factors [n, rings]; shape [n, ...]."""
        total = a.new_zeros(a.shape[:-1])
        for rows, matrix in zip(self.rows, self.matrices(factors), strict=True):
            left, right = a[..., rows], b[..., rows]
            flat = left.reshape(len(left), -1, left.shape[-1]) @ matrix
            total = total + (flat.view_as(left) * right).sum(-1)
        return total

    def applied(self, coefficients: Tensor, factors: Tensor) -> Tensor:
        """The coefficients [n, 2 R] of the image filtered by factors [n, rings], so that ``<a, b>_f = sum a applied(b)``."""
        out = torch.zeros_like(coefficients)
        for rows, matrix in zip(self.rows, self.matrices(factors), strict=True):
            out[:, rows] = (coefficients[:, None, rows] @ matrix)[:, 0]
        return out

    def without_level(self, coefficients: Tensor) -> Tensor:
        """Coefficients [..., 2 R] of the images less their mean over the box."""
        return coefficients - (coefficients @ self.level)[..., None] * self.level

    def ring_power(self, coefficients: Tensor) -> Tensor:
        """``sum |B|^2 / box^2`` over each ring, of coefficients [n, 2 R]; shape [n, rings]."""
        each = torch.eye(self.rings, device=coefficients.device)
        many = coefficients[:, None].expand(-1, self.rings, -1)
        return self.square(many.transpose(0, 1), each).T


class RingForm:
    """The metric of some images, with its matrices worked out once: coefficients b [n, ..., 2 R] in, ``f b`` and ``<b, b>_f / 2`` out."""

    def __init__(self, metric: RingMetric, matrices: list[Tensor] | None, factors: Tensor | None) -> None:
        self.metric, self.matrices, self.factors = metric, matrices, factors
        self._mean: tuple[Tensor, Tensor] | None = None

    def applied(self, coefficients: Tensor) -> Tensor:
        """``f b``, so that ``<a, b>_f = sum a (f b)``; shape as given, [n, ..., 2 R]."""
        if self.matrices is None:
            return self.metric.without_level(coefficients)
        flat = self._in_sequence(coefficients)
        found = flat.new_zeros(*flat.shape[:-1], coefficients.shape[-1])
        found.index_copy_(-1, self.metric.in_sequence, torch.cat(self._products(flat), -1))
        return found.view_as(coefficients)

    def half_square(self, coefficients: Tensor) -> Tensor:
        """``<b, b>_f / 2``; differentiable, [n, ..., 2 R] to [n, ...]."""
        if self.matrices is None:
            return 0.5 * ((coefficients**2).sum(-1) - (coefficients @ self.metric.level) ** 2)
        flat = self._in_sequence(coefficients)
        total = 0.5 * (torch.cat(self._products(flat), -1) * flat).sum(-1)
        return total.view(coefficients.shape[:-1])

    def mean(self) -> tuple[Tensor, Tensor]:
        """The mean metric of the images as one matrix [2 R, 2 R], and for each image the number [n] by which it is to be multiplied."""
        if self._mean is None:
            size = len(self.metric.level)
            if self.matrices is None or self.factors is None:
                level = self.metric.level
                self._mean = (torch.eye(size, device=level.device) - torch.outer(level, level), level.new_ones(1))
            else:
                whole = self.metric.level.new_zeros(size, size)
                for rows, matrix in zip(self.metric.rows, self.matrices, strict=True):
                    whole[rows[:, None], rows] = matrix.mean(0)
                # Rings count by what the components hold there.
                held = self.metric.trace
                self._mean = (whole, (self.factors @ held) / (self.factors.mean(0) @ held))
        return self._mean

    def _in_sequence(self, coefficients: Tensor) -> Tensor:
        """Coefficients [n, K, 2 R], order by order."""
        many = coefficients.reshape(len(coefficients), -1, coefficients.shape[-1])
        return many.index_select(-1, self.metric.in_sequence)

    def _products(self, flat: Tensor) -> list[Tensor]:
        assert self.matrices is not None
        sizes = [len(rows) for rows in self.metric.rows]
        return [part @ matrix for part, matrix in zip(flat.split(sizes, -1), self.matrices, strict=True)]

    def __getitem__(self, rows: Tensor | slice) -> "RingForm":
        if self.matrices is None or self.factors is None:
            return self
        return RingForm(self.metric, [matrix[rows] for matrix in self.matrices], self.factors[rows])
