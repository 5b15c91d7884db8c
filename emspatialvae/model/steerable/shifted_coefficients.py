"""Coefficients of images that are moved back by many shifts at once: the product in which searches of poses spend most of their time."""

import math

import torch
from torch import Tensor

from emspatialvae.model.steerable.basis import SteerableBasis
from emspatialvae.model.steerable.fourier_plane import FourierPlane


class ShiftedCoefficients:
    """From images in the Fourier plane to their coefficients in a basis, at S shifts that lie symmetrically about zero.

    A component of even order is the same when it is turned by half a turn, and one of odd order becomes its negative: their transforms about
    the centre of the box are real and imaginary. So without a shift only one part of an image's transform counts; and of two opposite shifts,
    what one part says is the same at both of them, and what the other part says changes its sign. Half of the products are enough.

    Parameters
    ----------
    shifts
        In pixels, zero first; of two opposite ones only one is taken; [S, 2].
    columns
        The numbers of the coefficients that are wanted, C of them [default: all 2 R].
    power
        Where less than 1, frequencies are left out beyond the rings that hold this share of the basis functions' power.

    Attributes
    ----------
    shifts
        At which coefficients are given: zero, some, and the opposites of these; [S, 2].
    frequencies
        Those of the plane that are looked at.
    """

    def __init__(
        self,
        basis: SteerableBasis,
        plane: FourierPlane,
        shifts: Tensor,
        columns: Tensor | None = None,
        power: float = 1.0,
    ) -> None:
        upper = shifts[(shifts[:, 1] > 1e-6) | ((shifts[:, 1] > -1e-6) & (shifts[:, 0] > 1e-6))]
        self.shifts = torch.cat([torch.zeros_like(shifts[:1]), upper, -upper])
        wanted = basis.vectors if columns is None else basis.vectors[columns]
        order = torch.cat([basis.order, basis.order]) if columns is None else basis.order[columns % basis.size]
        functions = plane.transform(wanted.double().unflatten(-1, (basis.box, basis.box)))
        self.frequencies = torch.arange(len(plane.ring), device=plane.ring.device)
        if power < 1:
            of_ring = functions.new_zeros(plane.rings).index_add_(0, plane.ring, _power(functions, plane))
            enough = int((of_ring.cumsum(0) < power * of_ring.sum()).sum())
            self.frequencies = torch.nonzero(plane.ring <= enough)[:, 0]
        real, imaginary = ((part * plane.weight)[:, self.frequencies] for part in functions.chunk(2, 1))
        odd = (order % 2).bool()
        self._even = real[~odd].T.to(shifts).contiguous()
        self._odd = imaginary[odd].T.to(shifts).contiguous()
        self._in_place = torch.cat([torch.nonzero(~odd), torch.nonzero(odd)])[:, 0].argsort()
        self._parity = 1 - 2 * odd.to(shifts)
        # Moved back by a shift, a function f says Re(f conj(y) e^(i angle)) of an image y: of Re(y) and Im(y) separately.
        fx, fy = plane.fx.double()[self.frequencies], plane.fy.double()[self.frequencies]
        angle = 2 * math.pi * (upper[:, :1].double() * fx + upper[:, 1:].double() * fy)  # [H, f]
        cos, sin = torch.cos(angle).T[..., None], torch.sin(angle).T[..., None]
        re, im = real.T[:, None], imaginary.T[:, None]
        self._of_real = (re * cos + im * sin).flatten(1).to(shifts).contiguous()
        self._of_imaginary = (im * cos - re * sin).flatten(1).to(shifts).contiguous()

    def __len__(self) -> int:
        """C, the number of coefficients at each shift."""
        return len(self._parity)

    def __call__(self, images: Tensor) -> Tensor:
        """Coefficients [n, S, C] of images [n, 2 F]."""
        real, imaginary = images.chunk(2, 1)
        if len(self.frequencies) < real.shape[1]:
            real, imaginary = real[:, self.frequencies], imaginary[:, self.frequencies]
        still = torch.cat([real @ self._even, imaginary @ self._odd], 1)[:, None, self._in_place]
        if len(self.shifts) == 1:
            return still
        one, other = (
            (part @ matrix).view(len(images), -1, len(self))
            for part, matrix in ((real, self._of_real), (imaginary, self._of_imaginary))
        )
        return torch.cat([still, one + other, (one - other) * self._parity], 1)


def _power(functions: Tensor, plane: FourierPlane) -> Tensor:
    """Power of functions [C, 2 F] at each frequency; [F]."""
    real, imaginary = (functions**2).sum(0).chunk(2)
    return (real + imaginary) * plane.weight**2
