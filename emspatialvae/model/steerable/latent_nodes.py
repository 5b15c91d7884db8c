"""At which latents a posterior is summed up, and what each of them counts.

A posterior mean over z is a sum over few latents: nodes of an integral where z has one dimension, draws from q(z | y) where it has more.
"""

import torch
from torch import Tensor

from emspatialvae.model.distributions import log_normal
from emspatialvae.model.steerable.latent_posterior import LatentPosterior

NEAR_NODES, NODE_REACH = 5, 3.5
"""Latents of the first look when z has one dimension: some within so many s.d. of q(z | y),"""
WIDE_NODES, WIDE_REACH = 4, 2.2
"""and some over the whole prior, for the encoder may have missed a second possibility."""
CLOSE_NODES = 14
"""Latents of the last look, set where the first one found something."""
CLOSE_POWER = 1 / 3
"""Of the posterior that their density follows: with it a sum over few nodes is off by least (Panter, Dite 1951), tails included."""
DRAWS = 30
"""Latents drawn from q(z | y) when z has more dimensions; a third of them at the first look."""
WIDER = 1.2
"""Than q(z | y) are latents drawn from, in more dimensions."""
LEAST_EFFECTIVE = 0.25
"""Of the draws: weights are flattened until that share counts."""


def first_latents(q: LatentPosterior) -> tuple[Tensor, Tensor]:
    """Few latents [n, K, z_dim] and log weights [n, K] such that ``sum exp(log weight) f(z)`` is the mean of f over the prior."""
    if q.mean.shape[1] > 1:
        return drawn_latents(q, DRAWS // 3)
    near = torch.linspace(-NODE_REACH, NODE_REACH, NEAR_NODES, device=q.mean.device)
    wide = torch.linspace(-WIDE_REACH, WIDE_REACH, WIDE_NODES, device=q.mean.device)
    return _as_integral(torch.cat([q.mean + q.sd * near, wide.expand(len(q.mean), -1)], 1).sort(1).values)


def _edges(z: Tensor) -> Tensor:
    """Edges [n, K + 1] of the cells that sorted latents [n, K] stand for: half the way to the next, as much outwards at the ends."""
    first, last = 1.5 * z[:, :1] - 0.5 * z[:, 1:2], 1.5 * z[:, -1:] - 0.5 * z[:, -2:-1]
    return torch.cat([first, (z[:, 1:] + z[:, :-1]) / 2, last], 1)


def _log_width(z: Tensor) -> Tensor:
    return _edges(z).diff(dim=1).clamp(min=1e-9).log()


def _as_integral(z: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted latents [n, K] of one dimension as nodes of an integral over the prior, each with the width of its cell."""
    return z[..., None], log_normal(z[..., None]) + _log_width(z)


def close_latents(z: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes where a first look at sorted latents z [n, k] found the posterior ``log_weight`` [n, k], as `first_latents` gives them.

    They follow the inverse of a distribution function: dense where there is much, in both places if there are two.
    """
    edges, log_width = _edges(z), _log_width(z)
    # A weight is a density times the width of its cell; only the density is raised to a power.
    mass = torch.softmax(CLOSE_POWER * (log_weight - log_width) + log_width, 1) + 1e-6
    total = torch.cat([torch.zeros_like(mass[:, :1]), (mass / mass.sum(1, keepdim=True)).cumsum(1)], 1)
    level = ((torch.arange(CLOSE_NODES, device=z.device) + 0.5) / CLOSE_NODES).expand(len(z), -1).contiguous()
    cell = (torch.searchsorted(total, level) - 1).clamp(0, z.shape[1] - 1)
    low, high = total.gather(1, cell), total.gather(1, cell + 1)
    left, right = edges.gather(1, cell), edges.gather(1, cell + 1)
    return _as_integral(left + (right - left) * (level - low) / (high - low))


def drawn_latents(q: LatentPosterior, count: int) -> tuple[Tensor, Tensor]:
    """Latents [n, count, z_dim] spread like q(z | y), somewhat wider, with log weights as `first_latents` gives them."""
    d = q.mean.shape[1]
    sobol = torch.quasirandom.SobolEngine(d, scramble=True, seed=0).draw(count).clamp(1e-4, 1 - 1e-4)
    unit = torch.special.ndtri(sobol).to(q.mean)[None]
    return q.samples(unit, WIDER)


def tempered(log_weight: Tensor) -> Tensor:
    """Importance weights of draws [n, K], raised to a power below 1 where fewer than a quarter of K would count.

    In many dimensions a few draws would otherwise take all the weight, and their mean be noise.
    """
    least = LEAST_EFFECTIVE * log_weight.shape[1]
    weight = torch.softmax(log_weight, 1)
    low, high = torch.zeros_like(weight[:, :1]), torch.ones_like(weight[:, :1])
    for _ in range(12):
        power = (low + high) / 2
        enough = 1 / (torch.softmax(power * log_weight, 1) ** 2).sum(1, keepdim=True) >= least
        low, high = torch.where(enough, power, low), torch.where(enough, high, power)
    whole = 1 / (weight**2).sum(1, keepdim=True) >= least
    return torch.where(whole, weight, torch.softmax(low * log_weight, 1))
