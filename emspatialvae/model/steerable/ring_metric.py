"""Inner products of steerable images, weighted ring by ring."""

import torch
from torch import Tensor, nn

from emspatialvae.model.steerable.basis import LEAK_RINGS, SteerableBasis
from emspatialvae.model.steerable.fourier_plane import FourierPlane


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
