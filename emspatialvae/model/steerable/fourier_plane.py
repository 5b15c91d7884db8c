"""Images in the Fourier plane: what of it counts, and how coefficients get there."""

import math

import torch
from torch import Tensor, nn


class FourierPlane(nn.Module):
    """The half plane of the transform of a box about its centre, cut to the frequencies that matter, as real numbers [..., 2 F]: real, imaginary.

    There a shift is a phase, and CTF and noise are factors; rings are one Fourier pixel wide.
    """

    fx: Tensor
    fy: Tensor
    ring: Tensor
    where: Tensor
    weight: Tensor
    centre: Tensor

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
        # The transform counts pixels from a corner of the box; poses turn about its centre.
        angle = 2 * math.pi * (box // 2) * (fx + fy)[where].double()
        self.register_buffer("centre", torch.polar(torch.ones_like(angle), angle).to(torch.complex64), persistent=False)

    def transform(self, images: Tensor) -> Tensor:
        """The transform of images [..., box, box]; shape [..., 2 F]."""
        plane = torch.fft.rfft2(images).flatten(-2)[..., self.where] * self.centre
        return torch.cat([plane.real, plane.imag], -1)

    def images(self, plane: Tensor) -> Tensor:
        """The inverse of `transform` (frequencies that were left out are zero); [..., 2 F] to [..., box, box]."""
        re, im = plane.chunk(2, -1)
        whole = torch.zeros(
            *plane.shape[:-1], self.box * (self.box // 2 + 1), dtype=torch.complex64, device=plane.device
        )
        whole[..., self.where] = torch.complex(re, im) * self.centre.conj()
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
