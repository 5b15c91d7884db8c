"""``q(z | y)`` of a particle whose pose is known, read off the decoder itself instead of guessed by a network.

At a fixed pose the log posterior of z is ``<a, b(z)> - 1/2 <b(z), b(z)>_f - 1/2 |z|^2``, with a the coefficients of the image with its
pose taken out, b the decoder and ``< , >_f`` the metric of the image's information. Gauss-Newton steps climb to its mode; the
Hessian there, ``J^T f J + I`` with J the derivative of b, is the precision of the Gaussian that stands for the posterior (Laplace). It is
as wide as the image's information says, whatever the image, and a coordinate that the decoder does not listen to gets its prior
back. The encoder proposes where to start; an encoder that has learned too little, or too much by heart, costs steps, not accuracy.
(Kim, Wiseman, Miller, Sontag and Rush, "Semi-amortized variational autoencoders", ICML 2018, for the idea.)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from emspatialvae.model.distributions import log_normal
from emspatialvae.model.steerable.networks import CanonicalDecoder
from emspatialvae.model.steerable.ring_metric import RingForm

LONGEST_STEP = 1.5
"""A step changes z by at most this much: the decoder bends."""
SHORTER = (1.0, 0.25)
"""Shares of a step that are tried; the best one is taken, or none."""


@dataclass(frozen=True)
class LatentPosterior:
    """``N(mean, (L L^T)^-1)``: ``mean`` [n, d], ``root`` [n, d, d] the lower Cholesky factor L of the precision."""

    mean: Tensor
    root: Tensor

    @property
    def covariance(self) -> Tensor:
        """Shape [n, d, d]."""
        return torch.cholesky_inverse(self.root)

    @property
    def sd(self) -> Tensor:
        """Of each coordinate by itself; [n, d]."""
        return self.covariance.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()

    def kl_to_normal(self) -> Tensor:
        """``KL(q || N(0, I))`` in nats; [n]."""
        log_det = 2 * self.root.diagonal(dim1=1, dim2=2).log().sum(1)
        trace = self.covariance.diagonal(dim1=1, dim2=2).sum(1)
        return 0.5 * (trace + (self.mean**2).sum(1) - self.mean.shape[1] + log_det)

    @property
    def log_volume(self) -> Tensor:
        """``log |covariance| / 2``: what Laplace's method adds to the log joint density at the mode, N(0, I) taken without its constant; [n]."""
        return -self.root.diagonal(dim1=1, dim2=2).log().sum(1)

    def samples(self, unit: Tensor, wider: float = 1.0) -> tuple[Tensor, Tensor]:
        """Samples from standard normal ones ``unit`` [n or 1, K, d], and log p(z) - log q(z) - log K of each.

        Returns
        -------
        z [n, K, d], and log weights [n, K] such that ``sum exp(log weight) f(z)`` estimates the mean of f over the prior. ``wider``
        than q they may be.
        """
        unit = unit.expand(len(self.mean), -1, -1)
        # L^T x = unit has covariance (L L^T)^-1
        off = torch.linalg.solve_triangular(self.root.transpose(1, 2), unit.transpose(1, 2), upper=True).transpose(1, 2)
        z = self.mean[:, None] + wider * off
        log_det = self.root.diagonal(dim1=1, dim2=2).log().sum(1) - self.mean.shape[1] * math.log(wider)
        log_q = log_normal(unit) + log_det[:, None]
        return z, log_normal(z) - log_q - math.log(unit.shape[1])

    def __getitem__(self, rows: Tensor) -> "LatentPosterior":
        return LatentPosterior(self.mean[rows], self.root[rows])


@torch.no_grad()
def latent_posterior(
    decoder: CanonicalDecoder, upright: Tensor, form: RingForm, start: Tensor, steps: int
) -> tuple[LatentPosterior, Tensor]:
    """The posterior of z [n, d] of images whose poses are taken out.

    Parameters
    ----------
    upright, form
        Coefficients [n, 2 R] of the filtered images with their poses taken out, and the metric of each.
    start
        Where to begin; [n, d].
    steps
        Of Gauss-Newton, 0 or more.

    Returns
    -------
    The posterior, and the log density at its mode: log p(y | z) + log p(z), against noise alone, in nats; [n].
    """
    z = start
    drawn, slopes = decoder.with_slopes(z)
    value = log_joint(upright, drawn, z, form)
    for _ in range(steps):
        gradient = _apply(slopes, upright - form.applied(drawn)) - z
        root = _precision_root(slopes, form)
        step = torch.cholesky_solve(gradient[..., None], root)[..., 0]
        step = step * (LONGEST_STEP / step.norm(dim=1, keepdim=True).clamp(min=LONGEST_STEP))
        tried = z[:, None] + torch.tensor(SHORTER, device=z.device)[:, None] * step[:, None]
        values = log_joint(upright[:, None], decoder(tried), tried, form)
        best_value, best = values.max(1)
        better = best_value > value
        z = torch.where(better[:, None], tried[torch.arange(len(z), device=z.device), best], z)
        value = torch.where(better, best_value, value)
        drawn, slopes = decoder.with_slopes(z)
    return LatentPosterior(z, _precision_root(slopes, form)), value


def _apply(slopes: Tensor, b: Tensor) -> Tensor:
    return (slopes @ b[..., None])[..., 0]


def _precision_root(slopes: Tensor, form: RingForm) -> Tensor:
    """Cholesky factor [n, d, d] of ``J^T f J + I``, with the mean metric of all images times the strength of each."""
    whole, strength = form.mean()
    weighted = slopes @ whole
    precision = weighted @ slopes.transpose(1, 2) * strength[:, None, None]
    precision = (precision + precision.transpose(1, 2)) / 2 + torch.eye(slopes.shape[1], device=slopes.device)
    return torch.linalg.cholesky(precision)


def log_joint(upright: Tensor, drawn: Tensor, z: Tensor, form: RingForm) -> Tensor:
    """Log p(y | z) + log p(z), against noise alone and but for a constant, in nats; [n, ...].

    ``upright`` [n, ..., 2 R] are images with their poses taken out, ``drawn`` [n, ..., 2 R] what the decoder draws for z [n, ..., z_dim].
    """
    return (upright * drawn).sum(-1) - form.half_square(drawn) - 0.5 * (z**2).sum(-1)
