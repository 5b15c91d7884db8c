"""How strong the noise is, per ring of the Fourier plane and optics group, where an image shows nothing else."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from emspatialvae.imaging import geometry
from emspatialvae.model.batch import Batch
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.groups import Reliability, shrunk_spectra

LOW_RINGS, UNUSUAL = 4, 3.0
"""Images whose power on so many first rings outside the particle lies that many s.d. above the usual say nothing about the noise."""
SAMPLES = 2000
"""Particles from whose scatter it is learned how much one particle tells."""
FEW = 20
"""Particles; a group of fewer cannot tell what is unusual in it."""
SURE_REACH = 1.6
"""Pixels of a disk that lie farther apart than so many radii make less than a tenth of its pairs: what they say of the correlation is mostly chance."""
PLANE_STEPS = 12
"""To put back what was lost with level and slope: half on the first ring, so that what is left out is a thousandth."""


@torch.no_grad()
def noise_within(
    batches: Callable[[], Iterable[Batch]],
    window: Tensor,
    groups: int,
    plane: FourierPlane,
    reach_px: float = math.inf,
) -> Tensor:
    """Power of the noise per group and ring from a part of the images only, times their CTF; [groups + 1, rings], the last row of all.

    ``window`` [box, box] is one there and zero elsewhere. A window's edge spreads strong frequencies over weak ones, so not the
    windowed images' power is taken but their autocorrelation, divided by the window's own, up to ``reach_px`` where the window is small
    (see `SURE_REACH`). Normalisation took level and slope within the window, and with them a part of the lowest frequencies, which is
    put back (where images are multiplied by their CTF, the first ring is taken to be at least as strong as the second). Images with much
    more at low frequencies there than is usual in their group (edges of ice, neighbours) are left out. Groups of few particles borrow
    from all (`emspatialvae.model.steerable.groups`).
    """
    seen_through = _Window(window, plane, reach_px)
    found = Sums(groups, plane.rings)
    usual = _usual_limits(batches, window, groups, plane)
    with_ctf = False
    for whole in batches():
        batch = whole[_low_power(whole, window, plane) <= usual[whole.group]]
        with_ctf = batch.ctf_power is not None
        images = batch.images[:, 0].cpu()
        images = images if with_ctf else seen_through.flattened(images)
        squares = seen_through.transform(images * window).abs() ** 2
        group, weight = batch.group.cpu(), ctf_power(batch, plane.rings).cpu()
        if found.samples_wanted:
            found.add(group, seen_through.ring_power(seen_through.back(squares)), weight)
        else:  # one inverse transform for each group instead of each image
            present, of = group.unique(return_inverse=True)
            sums = squares.new_zeros(len(present), *squares.shape[1:]).index_add_(0, of, squares)
            found.add_sums(present, seen_through.ring_power(seen_through.back(sums)), group, weight)
    return found.noise(_first_ring_as_next if with_ctf else lambda power, _: seen_through.put_back(power))


def _first_ring_as_next(power: Tensor, weight: Tensor) -> Tensor:
    """Power [n, rings] of noise times a CTF^2 of sum ``weight`` with the first ring at least as strong as the second.

    It went with the slope before the CTF, and hardly anything is left of it.
    """
    of_next = power[:, 2] * weight[:, 1] / weight[:, 2].clamp(min=1e-6)
    return torch.cat([power[:, :1], torch.maximum(power[:, 1], of_next)[:, None], power[:, 2:]], 1)


class Sums:
    """Power of images that hold noise times their CTF, summed over the particles of each group; see `noise`.

    Attributes
    ----------
    power, weight, square_weight
        Sums of the power, of CTF^2 and of CTF^4; [groups, rings].
    particles
        Of each group; [groups].
    samples
        Group, power and CTF^2 of some of the particles one by one.
    """

    def __init__(self, groups: int, rings: int, device: torch.device | None = None) -> None:
        self.power, self.weight, self.square_weight = (torch.zeros(groups, rings, device=device) for _ in range(3))
        self.particles = torch.zeros(groups, device=device)
        self.samples: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def samples_wanted(self) -> bool:
        """The scatter from particle to particle is not known well yet."""
        return len(self.particles) > 1 and sum(len(group) for group, _, _ in self.samples) < SAMPLES

    def add(self, group: Tensor, power: Tensor, weight: Tensor) -> None:
        """Add particles of groups [n] with a power and a CTF^2 [n, rings] each."""
        self.add_sums(group, power, group, weight)
        if self.samples_wanted:
            self.samples.append((group, power, weight))

    def add_sums(self, present: Tensor, power: Tensor, group: Tensor, weight: Tensor) -> None:
        """The same with powers summed over particles beforehand: ``power`` [k, rings] of groups ``present`` [k]."""
        self.power.index_add_(0, present, power)
        self.weight.index_add_(0, group, weight)
        self.square_weight.index_add_(0, group, weight**2)
        self.particles.index_add_(0, group, torch.ones_like(group, dtype=self.particles.dtype))

    def noise(self, corrected: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """Power of the noise of each group and, in the last row, of all; [groups + 1, rings].

        Groups of few particles borrow from all. ``corrected``: what is done to powers [n, rings] of a CTF^2 [n, rings] first.
        """
        correct = corrected or (lambda power, _: power)
        sums = (self.power.cpu(), self.weight.cpu())  # some devices have no double precision
        all_of_them = (part.sum(0, keepdim=True) for part in sums)
        pooled, own = (correct(p, w)[:, 1:] / w[:, 1:].clamp(min=1e-6) for p, w in (all_of_them, sums))
        pooled = pooled.clamp(min=1e-6 * float(pooled.max().clamp(min=1e-6)))
        if len(own) == 1:
            own = pooled
        else:
            group, power, weight = (torch.cat(parts).cpu() for parts in zip(*self.samples, strict=True))
            reliability = Reliability.of(group, correct(power, weight)[:, 1:], weight[:, 1:])
            own = shrunk_spectra(own, pooled[0], self._independent_particles(), self.particles.cpu(), reliability)
        found = torch.cat([own, pooled]).to(self.power.device)
        return torch.cat([found[:, :1], found], 1)  # of the level, which is not known, as of the first ring

    def _independent_particles(self) -> Tensor:
        """How many particles without CTF would tell as much of each group's power as its own do; [groups, rings - 1]."""
        # At a zero of the CTF there is what leaks in from elsewhere, though the weight is small.
        leaking = self.particles[:, None] * self.square_weight.sum(0) / self.particles.sum().clamp(min=1)
        square = (self.square_weight + leaking) / 2
        return (self.weight**2 / square.clamp(min=1e-12))[:, 1:].cpu()


def level_as_next(power: Tensor) -> Tensor:
    """Power of noise per ring [n, rings], of the level, which is not known, as on the first ring."""
    return torch.cat([power[:, 1:2], power[:, 1:]], 1)


class _Window:
    """The autocorrelation of noise that is seen through a window [box, box], without its level and slope there.

    Sums of products over all pairs of pixels are made in the Fourier plane of a box twice as wide, where nothing wraps round.
    """

    def __init__(self, window: Tensor, plane: FourierPlane, reach_px: float) -> None:
        self.window, self.plane, self.reach_px = window, plane, reach_px
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

    def put_back(self, kept: Tensor) -> Tensor:
        """Power of the noise [n, rings] of which `ring_power` without level and slope is ``kept``."""
        lost = self.lost(torch.eye(self.plane.rings))
        found = kept
        for _ in range(PLANE_STEPS):
            found = level_as_next(kept + found @ lost)
        return found

    def ring_power(self, pairs: Tensor) -> Tensor:
        """Power per ring [n, rings] in the transform of a box, by sums over pairs of pixels in the window [n, 2 box, 2 box], lag zero first.

        A box is cut out of a larger image, and its opposite edges do not meet: in its transform the jump spreads strong frequencies over weak
        ones. That is said by how many pairs of pixels of the box lie so far apart, and each lag counts by that. Up to a ``reach_px`` lags
        fade out like a Gaussian, too. Its transform is positive and has no side lobes, so where a spectrum falls steeply weak rings
        come out too strong, and never too weak.
        """
        box, plane = self.plane.box, self.plane
        lag = torch.arange(-(box // 2), box - box // 2)
        near = (pairs / self.overlap)[:, lag[:, None], lag]  # negative lags lie at the end
        along = (1 - lag.abs() / box) * torch.exp(-4.5 * (lag / self.reach_px) ** 2)
        fade = along[:, None] * along
        spectra = torch.fft.fft2(torch.fft.ifftshift(near * fade, dim=(-2, -1))).real
        flat = spectra[:, :, : box // 2 + 1].flatten(1)[:, plane.where] * plane.weight * box**2
        sums = flat.new_zeros(len(flat), plane.rings).index_add_(1, plane.ring, flat)
        return sums / plane.ring_sizes.clamp(min=1)


def _low_power(batch: Batch, window: Tensor, plane: FourierPlane) -> Tensor:
    """Log power of the first rings within a window; [n]."""
    means = plane.ring_means(plane.transform(batch.images[:, 0].cpu() * window))
    return torch.log(means[:, 1 : LOW_RINGS + 1].mean(1).clamp(min=1e-12))


def _usual_limits(batches: Callable[[], Iterable[Batch]], window: Tensor, groups: int, plane: FourierPlane) -> Tensor:
    """The log power (see `_low_power`) above which an image is unusual, per optics group, or of all where it has few; [groups]."""
    found = [(batch.group, _low_power(batch, window, plane)) for batch in batches()]
    group, power = (torch.cat(parts) for parts in zip(*found, strict=True))
    limits = torch.full((groups,), torch.inf)
    for g in group.unique():
        own = power[group == g]
        own = own if len(own) >= FEW else power
        limits[g] = own.median() + UNUSUAL * 1.4826 * (own - own.median()).abs().median() + 1e-6
    return limits


def ctf_power(batch: Batch, rings: int) -> Tensor:
    """CTF^2 per particle and ring [n, rings]; ones without a CTF."""
    return torch.ones(len(batch), rings, device=batch.images.device) if batch.ctf_power is None else batch.ctf_power
