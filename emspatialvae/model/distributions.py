"""Distributions over what a particle is (z) and how it lies (theta, shift)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from emspatialvae.imaging import geometry

ThetaKl = Literal["no-mean", "full"]


def standard_normal(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Normal noise from a generator on the CPU, so that every device sees the same numbers."""
    return torch.randn(shape, generator=generator).to(like)


@dataclass(frozen=True)
class DiagonalGaussian:
    """``N(mean, diag(exp(2 log_sd)))`` over the last axis; both of shape [n, d]."""

    mean: Tensor
    log_sd: Tensor

    @property
    def sd(self) -> Tensor:
        """Standard deviations; shape [n, d]."""
        return self.log_sd.exp()

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """A sample that gradients flow through; shape [n, d]."""
        return self.mean + self.sd * standard_normal(tuple(self.mean.shape), generator, self.mean)

    def kl_to_normal(self, prior_sd: float) -> Tensor:
        """``KL(q || N(0, prior_sd^2 I))`` in nats; shape [n]."""
        return self.kl_without_mean(prior_sd) + (self.mean**2).sum(1) / (2 * prior_sd**2)

    def kl_without_mean(self, prior_sd: float) -> Tensor:
        """The same without a penalty on the mean (eq. 3 of Bepler et al. 2019): any angle is as good as any other."""
        return (math.log(prior_sd) - self.log_sd + self.sd**2 / (2 * prior_sd**2) - 0.5).sum(1)


@dataclass(frozen=True)
class Prior:
    """What is known before a particle is seen: ``z ~ N(0, I)``, ``theta ~ N(0, s^2)``, ``shift ~ N(0, s^2 I)``."""

    theta_sd_rad: float
    shift_sd_px: float
    theta_kl: ThetaKl = "no-mean"


@dataclass(frozen=True)
class LatentAndPose:
    """z and pose of n particles, whether sampled, estimated or chosen by hand."""

    z: Tensor
    """[n, z_dim]"""
    theta_rad: Tensor
    """[n]"""
    shift_px: Tensor
    """[n, 2], (x, y) in prepared pixels"""

    def __getitem__(self, rows: Tensor | slice) -> "LatentAndPose":
        return LatentAndPose(self.z[rows], self.theta_rad[rows], self.shift_px[rows])

    def put(self, rows: Tensor, other: "LatentAndPose") -> "LatentAndPose":
        """A copy with some rows replaced."""
        parts = []
        for mine, new in zip(vars(self).values(), vars(other).values(), strict=True):
            copy = mine.clone()
            copy[rows] = new
            parts.append(copy)
        return LatentAndPose(*parts)


@dataclass(frozen=True)
class Kl:
    """The three parts of ``KL(q(z, theta, shift | y) || p)`` in nats; each of shape [n]."""

    z: Tensor
    theta: Tensor
    shift: Tensor


@dataclass(frozen=True)
class AmortisedPosterior:
    """``q(z, theta, shift | y) = N(z) N(theta) N(shift)``, guessed by a network from the image.

    ``turn_rad`` [n] is how far the network's view of the image was turned before it looked. ``theta`` and ``shift`` are what it
    said of the turned view; ``theta - turn`` and ``R(-turn) shift`` are then the pose of the image itself. A part that is not
    inferred is None and stays at zero.
    """

    z: DiagonalGaussian
    theta: DiagonalGaussian | None
    shift: DiagonalGaussian | None
    turn_rad: Tensor

    def rsample(self, generator: torch.Generator | None = None) -> LatentAndPose:
        """One sample per particle, differentiable, in the frame of the image."""
        return self._in_image_frame(
            self.z.rsample(generator),
            None if self.theta is None else self.theta.rsample(generator),
            None if self.shift is None else self.shift.rsample(generator),
        )

    @property
    def mean(self) -> LatentAndPose:
        """Posterior means in the frame of the image."""
        return self._in_image_frame(
            self.z.mean,
            None if self.theta is None else self.theta.mean,
            None if self.shift is None else self.shift.mean,
        )

    @property
    def sd(self) -> LatentAndPose:
        """Standard deviations; the shift's along x and y of the image (its covariance is turned with it)."""
        zero = torch.zeros_like(self.turn_rad)
        theta_sd = zero if self.theta is None else self.theta.sd[:, 0]
        if self.shift is None:
            return LatentAndPose(self.z.sd, theta_sd, torch.stack([zero, zero], 1))
        c2, s2 = torch.cos(self.turn_rad) ** 2, torch.sin(self.turn_rad) ** 2
        x, y = (self.shift.sd**2).unbind(1)
        return LatentAndPose(self.z.sd, theta_sd, torch.stack([c2 * x + s2 * y, s2 * x + c2 * y], 1).sqrt())

    def kl(self, prior: Prior) -> Kl:
        """Divergence from the prior; parts that are not inferred cost nothing (eq. 5)."""
        zero = torch.zeros_like(self.turn_rad)
        kl_theta = zero
        if self.theta is not None:
            full = prior.theta_kl == "full"
            kl_theta = (self.theta.kl_to_normal if full else self.theta.kl_without_mean)(prior.theta_sd_rad)
        # The prior on the shift is round, so it is the same in the turned view and in the image.
        kl_shift = zero if self.shift is None else self.shift.kl_to_normal(prior.shift_sd_px)
        return Kl(self.z.kl_to_normal(1.0), kl_theta, kl_shift)

    def _in_image_frame(self, z: Tensor, theta: Tensor | None, shift: Tensor | None) -> LatentAndPose:
        zero = torch.zeros_like(self.turn_rad)
        theta_rad = zero if theta is None else theta[:, 0] - self.turn_rad
        if shift is None:
            return LatentAndPose(z, theta_rad, torch.stack([zero, zero], 1))
        x, y = geometry.rotate_xy(shift[:, 0], shift[:, 1], torch.cos(self.turn_rad), -torch.sin(self.turn_rad))
        return LatentAndPose(z, theta_rad, torch.stack([x, y], 1))


def log_normal(z: Tensor) -> Tensor:
    """Log density of the standard normal at z [..., d]; [...]."""
    return -0.5 * (z**2).sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)
