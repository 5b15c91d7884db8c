"""What an optics group of few particles borrows from all others: noise and amplitude, shrunk towards what the groups share.

A group of thousands has a spectrum of its own. One of two particles (beam-image shift makes hundreds of them) would have one that
is hardly more than these particles' own noise, and a likelihood that believes it. So the power of a group's noise is

    N_g(r) = N(r) (1 + gain_g + shape_g(r) + detail_g(r)),    gain ~ N(0, s^2), shape a smooth and detail a rough function of the ring

with N the spectrum of all particles, and the posterior mean of the bracket is taken given what the group shows and how well it is
known. How well is seen from the scatter of the particles within groups; the s.d. of gain and shape from the scatter of the groups
beyond that (empirical Bayes). Where there are few groups to tell, they stay near what is usual.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

USUAL_GAIN_SD, USUAL_SHAPE_SD, DETAIL_SD = 0.2, 0.1, 0.05
"""S.d. of the relative power from group to group."""
USUAL_SCALE_SD = 0.1
"""S.d. of the amplitude from group to group."""
LEAST_PARTICLE_GAIN_SD, LEAST_PARTICLE_SHAPE_SD = 0.05, 0.15
"""S.d. of the relative power from particle to particle, beyond chance: one can say that its group is louder, but not much of a shape."""
PRIOR_GROUPS = 2.0
"""So many groups' worth of evidence the usual s.d. count as."""
LEAST_SD = 0.01
CLIPPED_SDS = 3.0
"""A group that is farther off than this says no more about the others than one that is not."""
FEW_PARTICLES, FEW_DEGREES = 20, 50
"""Groups of fewer particles have no mean of their own to scatter about; with less freedom within groups, all particles are one."""
OUTLIER_SDS = 6.0
"""Particles are no farther from their group than this: junk must not make all groups look uncertain."""
BANDS = 6
"""A shape hardly changes within this share of the rings."""
LEAST_SHARE = 0.05
"""Of the pooled noise; no group has less."""
REWEIGHTINGS, AT_ONCE = 3, 256


@dataclass(frozen=True)
class Reliability:
    """How well one particle tells the power of its group's noise.

    Attributes
    ----------
    evidence
        Independent numbers per ring: the s.d. is ``sqrt(2 / evidence)`` of the power; [rings].
    gain_variance, shape_variance
        Of the relative power from particle to particle beyond that: all rings up or down together, and a smooth function of the ring.
    """

    evidence: Tensor
    gain_variance: float = LEAST_PARTICLE_GAIN_SD**2
    shape_variance: float = LEAST_PARTICLE_SHAPE_SD**2

    @classmethod
    def of(cls, group: Tensor, power: Tensor, weight: Tensor) -> "Reliability":
        """From particles of groups [n] whose noise shows a power of ``weight`` times the group's; both [n, rings]."""
        pooled = (power.sum(0) / weight.sum(0).clamp(min=1e-9)).clamp(min=1e-9)
        _, of, count = group.unique(return_inverse=True, return_counts=True)
        if len(group) - len(count) < FEW_DEGREES:
            of, count = torch.zeros_like(of), torch.tensor([len(group)], device=group.device)
        zeros = torch.zeros(len(count), power.shape[1], device=power.device)
        mean = zeros.index_add(0, of, power) / zeros.index_add(0, of, weight).clamp(min=1e-9)
        level = torch.where(count[:, None] >= FEW_PARTICLES, mean, pooled).clamp(min=1e-9)[of]
        free = (1 - 1 / count)[of, None]
        off = (power - weight * mean[of]) / level / (weight**2).mean(0).clamp(min=1e-9).sqrt()
        usual = 1.4826 * off[free[:, 0] > 0].abs().median(0).values
        off = off.clamp(min=-OUTLIER_SDS * usual, max=OUTLIER_SDS * usual)
        off = off - (zeros.index_add(0, of, off) / count[:, None])[of]  # the mean without outliers
        evidence = 2 * free.sum() / (off**2).sum(0).clamp(min=1e-9)
        band = torch.arange(power.shape[1], device=power.device) * BANDS // power.shape[1]
        whole, by_chance = _weighted_mean(off, evidence / 2, torch.zeros_like(band), 1)
        gain = float((whole**2).sum() / free.sum() - by_chance[0, 0])
        of_band, by_chance = _weighted_mean(off - whole, evidence / 2, band, BANDS)
        shape = float(((of_band**2).sum(0) / free.sum() - by_chance[0]).mean())
        return cls(evidence, max(gain, LEAST_PARTICLE_GAIN_SD**2), max(shape, LEAST_PARTICLE_SHAPE_SD**2))


def shrunk_spectra(own: Tensor, pooled: Tensor, weight: Tensor, particles: Tensor, reliability: Reliability) -> Tensor:
    """Noise power of each group; [groups, rings].

    Parameters
    ----------
    own
        Power as the group alone shows it; anything where there is no evidence, also negative by chance; [groups, rings].
    pooled
        Power as all particles show it; [rings].
    weight
        Particles that went into ``own``, in units of those of `Reliability`; [groups, rings].
    particles
        Of each group; [groups].
    """
    off = torch.where(weight > 0, own / pooled - 1, torch.zeros_like(own)).double()
    precision = (weight * reliability.evidence / 2).double().clamp(min=1e-9)
    smooth = _smooth(own.shape[1]).to(off)
    of_particle = reliability.gain_variance + reliability.shape_variance * smooth
    share = (particles / particles.sum().clamp(min=1)).double()
    n = particles.double().clamp(min=1e-6)
    covariance = _covariance(off, precision, reliability, n, share)
    ratios = [
        _posterior_ratio(*parts, of_particle, covariance)
        for parts in zip(off.split(AT_ONCE), precision.split(AT_ONCE), n.split(AT_ONCE), strict=True)
    ]
    return (torch.cat(ratios) * pooled).to(own)


def _posterior_ratio(off: Tensor, precision: Tensor, n: Tensor, of_particle: Tensor, covariance: Tensor) -> Tensor:
    """Posterior mean of the power of groups of n particles relative to the pooled one; [groups, rings]."""
    ratio = torch.ones_like(off)
    for _ in range(REWEIGHTINGS):  # what is stronger is known less well
        error = torch.diag_embed(1 / precision) + of_particle / n[:, None, None]
        error = error * ratio[:, :, None] * ratio[:, None, :]
        ratio = 1 + torch.linalg.solve(covariance + error, off[..., None])[..., 0] @ covariance
        ratio = ratio.clamp(min=LEAST_SHARE)
    return ratio


def _smooth(rings: int) -> Tensor:
    """Covariance [rings, rings] of a smooth function of the ring, of variance 1."""
    ring = torch.arange(rings, dtype=torch.float64)
    return torch.exp(-0.5 * ((ring[:, None] - ring) * BANDS / rings) ** 2)


def _covariance(off: Tensor, precision: Tensor, reliability: Reliability, n: Tensor, share: Tensor) -> Tensor:
    """Prior covariance of the relative power [rings, rings], from the scatter of the groups."""
    rings, n, share = off.shape[1], n[:, None], share[:, None]
    band = torch.arange(rings, device=off.device) * BANDS // rings
    gain, by_chance = _weighted_mean(off, precision, torch.zeros_like(band), 1)
    of_gain = between_variance(gain, by_chance + reliability.gain_variance / n, share, USUAL_GAIN_SD)
    shape, by_chance = _weighted_mean(off - gain, precision, band, BANDS)
    of_shape = between_variance(shape, by_chance + reliability.shape_variance / n, share, USUAL_SHAPE_SD)
    return of_gain + of_shape * _smooth(rings).to(off) + DETAIL_SD**2 * torch.eye(rings).to(off)


def _weighted_mean(values: Tensor, precision: Tensor, band: Tensor, bands: int) -> tuple[Tensor, Tensor]:
    """Means [n, bands] over bands of rings, and their variances."""
    precision = precision.expand_as(values)
    total = torch.zeros(len(values), bands, dtype=values.dtype, device=values.device).index_add_(1, band, precision)
    sums = torch.zeros_like(total).index_add_(1, band, precision * values)
    return sums / total.clamp(min=1e-9), 1 / total.clamp(min=1e-9)


def between_variance(off: Tensor, variance: Tensor, share: Tensor, usual_sd: float) -> Tensor:
    """Variance from group to group of what is ``off`` by so much with an error's variance; a scalar.

    Groups known well count more, and those that are most of all particles less: all others are compared with them.
    """
    trust = (usual_sd**2 / (usual_sd**2 + variance)) ** 2 * (1 - share)
    clipped = (off**2).minimum(CLIPPED_SDS**2 * (variance + usual_sd**2))
    found = (PRIOR_GROUPS * usual_sd**2 + (trust * (clipped - variance)).sum()) / (PRIOR_GROUPS + trust.sum())
    return found.clamp(min=LEAST_SD**2)


def shrunk_scales(cross: Tensor, norm: Tensor, particles: Tensor, particle_sd: float) -> Tensor:
    """Amplitudes of the groups, 1 on average over the particles; [groups].

    Parameters
    ----------
    cross, norm
        Sums over a group's particles of ``<y, x> / N`` and ``<x, x> / N`` with x as a particle of amplitude 1 is drawn; [groups].
    particles
        Of each group; [groups].
    particle_sd
        Of the amplitude from particle to particle: so well a group's mean is known, divided by the root of its particles.
    """
    pooled = (cross.sum() / norm.sum().clamp(min=1e-9)).clamp(min=1e-3)
    off = torch.where(norm > 0, cross / norm.clamp(min=1e-9) / pooled - 1, torch.zeros_like(norm))
    variance = 1 / (norm * pooled**2).clamp(min=1e-9) + particle_sd**2 / particles.clamp(min=1e-6)
    between = between_variance(off, variance, particles / particles.sum().clamp(min=1), USUAL_SCALE_SD)
    scale = (1 + between / (between + variance) * off).clamp(0.2, 5.0)
    return scale * particles.sum().clamp(min=1) / (scale * particles).sum().clamp(min=1e-6)
