"""How strong the noise is, per ring of the Fourier plane and optics group, where an image shows nothing else."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from emspatialvae import geometry
from emspatialvae.model.batch import Batch
from emspatialvae.steerable import FourierPlane

LOW_RINGS, UNUSUAL = 4, 3.0
"""Images whose power on so many first rings outside the particle lies that many s.d. above the usual say nothing about the noise."""
PLANE_STEPS = 12
"""To put back what was lost with level and slope: half on the first ring, so that what is left out is a thousandth."""


@torch.no_grad()
def noise_within(batches: Callable[[], Iterable[Batch]], window: Tensor, groups: int, plane: FourierPlane) -> Tensor:
    """Power of the noise per group and ring from a part of the images only, times their CTF; [groups, rings].

    ``window`` [box, box] is one there and zero elsewhere. A window's edge spreads strong frequencies over weak ones, so not the
    windowed images' power is taken but their autocorrelation, divided by the window's own. Normalisation took level and slope within
    the window, and with them a part of the lowest frequencies, which is put back (where images are multiplied by their CTF, there
    was little to take). Images with much more at low frequencies there than is usual in their group (edges of ice, neighbours) are
    left out.
    """
    seen_through = _Window(window, plane)
    power = torch.zeros(groups, 2 * plane.box, plane.box + 1)
    weight = torch.zeros(groups, plane.rings)
    usual = _usual_limits(batches, window, groups, plane)
    with_ctf = False
    for whole in batches():
        batch = whole[_low_power(whole, window, plane) <= usual[whole.group]]
        images = batch.images[:, 0].cpu()
        if batch.ctf_power is None:
            images = seen_through.flattened(images)
        else:
            with_ctf = True
        power.index_add_(0, batch.group, seen_through.transform(images * window).abs() ** 2)
        weight.index_add_(0, batch.group, ctf_power(batch, plane.rings))
    kept = level_as_next(seen_through.ring_power(seen_through.back(power)).clamp(min=0))
    found = kept
    if not with_ctf:
        lost = seen_through.lost(torch.eye(plane.rings))
        for _ in range(PLANE_STEPS):
            found = level_as_next(kept + found @ lost)
    return level_as_next(found / weight.clamp(min=1e-6))


def level_as_next(power: Tensor) -> Tensor:
    """Power of noise per ring [n, rings], of the level, which is not known, as on the first ring."""
    return torch.cat([power[:, 1:2], power[:, 1:]], 1)


class _Window:
    """The autocorrelation of noise that is seen through a window [box, box], without its level and slope there.

    Sums of products over all pairs of pixels are made in the Fourier plane of a box twice as wide, where nothing wraps round.
    """

    def __init__(self, window: Tensor, plane: FourierPlane) -> None:
        self.window, self.plane = window, plane
        self.padded = (2 * plane.box, 2 * plane.box)
        self.overlap = self.back(self.transform(window).abs() ** 2).clamp(min=1.0)
        x, y = (torch.from_numpy(axis).float() for axis in geometry.pixel_grid(plane.box))
        planes = torch.stack([window, window * x / plane.box, window * y / plane.box]).flatten(1)
        self.planes = torch.linalg.qr(planes.T).Q.T.reshape(3, plane.box, plane.box)
        f = torch.fft.fftfreq(2 * plane.box)
        self.ring = torch.hypot(f[:, None], f[None, : plane.box + 1]) * plane.box

    def transform(self, images: Tensor) -> Tensor:
        """``rfft2`` of images [..., box, box] in the wide box."""
        return torch.fft.rfft2(images, s=self.padded)

    def back(self, transform: Tensor) -> Tensor:
        """The inverse; [..., 2 box, 2 box]."""
        return torch.fft.irfft2(transform, s=self.padded)

    def flattened(self, images: Tensor) -> Tensor:
        """Images [n, box, box] without the plane that fits them best within the window."""
        return images - torch.einsum("nij,kij,kab->nab", images, self.planes, self.planes)

    def lost(self, power: Tensor) -> Tensor:
        """What goes from `ring_power` with level and slope, on average, of stationary noise of a power [n, rings]; linear in it.

        With q_k the three orthonormal planes and C the covariance of the pixels, C loses
        ``sum_k (q_k (C q_k)^T + (C q_k) q_k^T) - sum_kl (q_k^T C q_l) q_k q_l^T``.
        """
        below = self.ring.floor().long().clamp(max=power.shape[1] - 1)
        above = (below + 1).clamp(max=power.shape[1] - 1)
        share = self.ring - self.ring.floor()
        spectrum = power[:, below] * (1 - share) + power[:, above] * share
        box, planes = self.plane.box, self.transform(self.planes)
        with_planes = self.back(spectrum[:, None] * planes)[..., :box, :box] * self.window
        between = torch.einsum("nkij,lij->nkl", with_planes, self.planes).to(planes.dtype)
        crossed = (2 * self.transform(with_planes) - torch.einsum("nkl,lij->nkij", between, planes)) * planes.conj()
        return self.ring_power(self.back(crossed.sum(1).real.to(planes.dtype)))

    def ring_power(self, pairs: Tensor) -> Tensor:
        """Power per ring [n, rings] of sums over pairs of pixels [n, 2 box, 2 box], lag zero first; long lags, which are noisy, fade out."""
        box, plane = self.plane.box, self.plane
        lag = torch.arange(-(box // 2), box - box // 2)
        near = (pairs / self.overlap)[:, lag[:, None], lag]  # negative lags lie at the end
        length = torch.hypot(lag[:, None].float(), lag[None].float())
        fade = torch.cos(math.pi / 2 * length / (box / math.sqrt(2))).clamp(min=0)
        spectra = torch.fft.fft2(torch.fft.ifftshift(near * fade, dim=(-2, -1))).real
        flat = spectra[:, :, : box // 2 + 1].flatten(1)[:, plane.where] * plane.weight * box**2
        sums = flat.new_zeros(len(flat), plane.rings).index_add_(1, plane.ring, flat)
        return sums / plane.ring_sizes.clamp(min=1)


def _low_power(batch: Batch, window: Tensor, plane: FourierPlane) -> Tensor:
    """Log power of the first rings within a window; [n]."""
    means = plane.ring_means(plane.transform(batch.images[:, 0].cpu() * window))
    return torch.log(means[:, 1 : LOW_RINGS + 1].mean(1).clamp(min=1e-12))


def _usual_limits(batches: Callable[[], Iterable[Batch]], window: Tensor, groups: int, plane: FourierPlane) -> Tensor:
    """The log power (see `_low_power`) above which an image is unusual, per optics group; [groups]."""
    found = [(batch.group, _low_power(batch, window, plane)) for batch in batches()]
    group, power = (torch.cat(parts) for parts in zip(*found, strict=True))
    limits = torch.full((groups,), torch.inf)
    for g in group.unique():
        own = power[group == g]
        limits[g] = own.median() + UNUSUAL * 1.4826 * (own - own.median()).abs().median() + 1e-6
    return limits


def ctf_power(batch: Batch, rings: int) -> Tensor:
    """CTF^2 per particle and ring [n, rings]; ones without a CTF."""
    return torch.ones(len(batch), rings, device=batch.images.device) if batch.ctf_power is None else batch.ctf_power
