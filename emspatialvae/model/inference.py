"""What one image says about z, theta and shift together, given a trained decoder and encoder.

From nothing: poses are searched everywhere, the best of them brought to precision, and about each the posterior

    p(z, theta, shift | y) ~ p(z) p(theta) p(shift) p(y | z, theta, shift)

is summed over contents, angles and shifts on grids. The encoder only says where the contents are worth looking at; what is
reported are posterior means, and they do not depend on its errors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emspatialvae import geometry
from emspatialvae.model.canonical import CanonicalDecoder
from emspatialvae.model.gauge import Gauge
from emspatialvae.model.interface import Estimate
from emspatialvae.model.modes import IMPOSSIBLE, best_of, mixture, without_doubles
from emspatialvae.model.observation import Observation
from emspatialvae.model.pose_search import ANGLES_EVERYWHERE, COARSE_STEP_PX, Nearby, Poses, PoseSearch
from emspatialvae.model.posterior import Content, DiagonalGaussian, log_normal

MODES = 3
"""Poses apart from each other that are looked at more closely."""
UNLIKELY = 14.0
"""Modes of the coarse search that much below the best (nats) are not looked at,"""
CLOSE = 8.0
"""and of those that were, only the ones this close to the best are looked at closely."""
WIDE_ZOOM, CLOSE_ZOOM = 3.0, 1.5
"""Steps of the grids of poses, in s.d. of a typical pose: at the first look, which is at few contents, and at the last."""
COARSE_STEPS = 2
"""Of `Inference.zooms`, that bring a pose most of the way."""

NEAR_NODES, NODE_REACH = 5, 3.5
"""Contents of the first look when z has one dimension: some within so many s.d. of q(z | y),"""
WIDE_NODES, WIDE_REACH = 4, 2.2
"""and some over the whole prior, for the encoder may have missed a second possibility."""
CLOSE_NODES = 14
"""Contents of the last look, set where the first one found something."""
CLOSE_POWER = 1 / 3
"""Of the posterior that their density follows: with it a sum over few nodes is off by least (Panter, Dite 1951), tails included."""
DRAWS = 30
"""Contents drawn from q(z | y) when z has more dimensions; a third of them at the first look."""
WIDER = 1.2
"""Than q(z | y) are contents drawn from, in more dimensions."""
LEAST_EFFECTIVE = 0.25
"""Of the draws: weights are flattened until that share counts."""


@dataclass(frozen=True)
class Inference:
    """The parts of a model that inference needs, and the steps that it takes with them."""

    search: PoseSearch
    decoder: CanonicalDecoder
    encoder: Callable[[Tensor], DiagonalGaussian]
    gauge: Gauge
    z_dim: int

    def q(self, observation: Observation, poses: Poses) -> DiagonalGaussian:
        """``q(z | y)`` from images canonicalised with the given poses."""
        return self.encoder(self.search.upright(observation, poses))

    # ---------------------------------------------------------------------------------------------------- one pose

    @torch.no_grad()
    def settle(self, observation: Observation, poses: Poses, *, freeze_z: bool = False, fine: bool = True) -> Nearby:
        """Bring poses of the coarse search to the precision of the fine one, z following.

        Without ``fine`` only most of the way, for poses that will be refined anyway.
        """
        zooms = self.zooms() if fine else self.zooms()[:COARSE_STEPS]
        for zoom in zooms[:-1]:
            poses = self._nearby(observation, poses, zoom, freeze_z=freeze_z).mean
        return self._nearby(observation, poses, zooms[-1], freeze_z=freeze_z)

    def _nearby(self, observation: Observation, poses: Poses, zoom: float, *, freeze_z: bool) -> Nearby:
        mean = self.q(observation, poses).mean
        return self.search.nearby(
            observation, poses, self.decoder(torch.zeros_like(mean) if freeze_z else mean), zoom=zoom
        )

    def zooms(self) -> list[float]:
        """From half a step of the coarse search downwards to 1, and 1 once more."""
        widest = 1.0
        if self.search.translate:
            widest = max(widest, 0.6 * COARSE_STEP_PX / float(self.search.shift_step_px))
        if self.search.rotate:
            half_a_step = math.pi / ANGLES_EVERYWHERE
            widest = max(widest, half_a_step / 4 / float(self.search.theta_step_rad))
        halvings = math.ceil(math.log2(widest)) if widest > 1 else 0
        return [2.0**k for k in range(halvings, -1, -1)] + [1.0]

    # -------------------------------------------------------------------------------------------------- from nothing

    @torch.no_grad()
    def modes(self, observation: Observation, anchors: Tensor, radius_px: float) -> tuple[Poses, Tensor]:
        """The most likely poses [n, k] of images, best first, and their log evidence [n, k]; ``anchors`` [J, z_dim] are tried.

        A pose without a rival is brought most of the way only: `posterior` goes the rest.
        """
        starts, score = self.search.everywhere(observation, self.decoder(anchors), radius_px, MODES)
        theta, shift = starts.theta_rad.clone(), starts.shift_px.clone()
        evidence = torch.full_like(score, IMPOSSIBLE)
        rivals = score[:, 1] > score[:, 0] - UNLIKELY
        for k in range(score.shape[1]):
            here = score[:, k] > score[:, 0] - UNLIKELY
            for rows, fine in ((here & rivals, True), (here & ~rivals, False)):
                if not rows.any():
                    continue
                index = torch.nonzero(rows)[:, 0]
                found = self.settle(observation[index], starts[index, k], fine=fine)
                theta[index, k], shift[index, k] = found.mean.theta_rad, found.mean.shift_px
                evidence[index, k] = found.log_evidence
        evidence, order = without_doubles(evidence, Poses(theta, shift)).sort(1, descending=True)
        return Poses(theta.gather(1, order), shift.gather(1, order[..., None].expand_as(shift))), evidence

    @torch.no_grad()
    def estimate(self, observation: Observation, poses: Poses, evidence: Tensor) -> Estimate:
        """Posterior means about the best of the poses [n, k] that `modes` gave, and about the second where it is close."""
        best = self.posterior(observation, poses[:, 0])
        close = torch.nonzero(evidence[:, 1] > evidence[:, 0] - CLOSE)[:, 0]
        second = self.posterior(observation[close], poses[close, 1]) if len(close) else None
        return best_of(best, second, close, evidence)

    # ---------------------------------------------------------------------------------------------------- posterior

    @torch.no_grad()
    def posterior(self, observation: Observation, poses: Poses) -> Estimate:
        """Posterior means about one pose each [n], in the common frame."""
        z, log_prior = self.first_contents(self.q(observation, poses))
        found = self.search.jointly(observation, poses, self.decoder(z), zoom=WIDE_ZOOM, reach=1)
        log_weight = log_prior + found.log_evidence
        poses = mixture(found.mean, torch.softmax(log_weight, 1))
        if self.z_dim == 1:
            z, log_prior = close_contents(z[..., 0], log_weight)
        else:
            z, log_prior = drawn_contents(self.q(observation, poses), DRAWS)
        found = self.search.jointly(observation, poses, self.decoder(z), zoom=CLOSE_ZOOM)
        log_weight = log_prior + found.log_evidence
        weight = torch.softmax(log_weight, 1) if self.z_dim == 1 else tempered(log_weight)
        theta, theta_sd, shift, shift_sd = self._common_moments(found.mean, found.theta_var, found.shift_var, z, weight)
        mean_z = (weight[..., None] * z).sum(1)
        var_z = (weight[..., None] * (z - mean_z[:, None]) ** 2).sum(1)
        return Estimate(
            Content(mean_z, theta, shift),
            Content(var_z.sqrt(), theta_sd, shift_sd),
            torch.logsumexp(log_weight, 1),
            misfit=self.misfit(observation, mixture(found.mean, weight), mean_z),
        )

    def first_contents(self, q: DiagonalGaussian) -> tuple[Tensor, Tensor]:
        """Few contents [n, K, z_dim] and log weights [n, K] such that ``sum exp(log weight) f(z)`` is the mean of f over the prior."""
        if self.z_dim > 1:
            return drawn_contents(q, DRAWS // 3)
        near = torch.linspace(-NODE_REACH, NODE_REACH, NEAR_NODES, device=q.mean.device)
        wide = torch.linspace(-WIDE_REACH, WIDE_REACH, WIDE_NODES, device=q.mean.device)
        return _as_integral(torch.cat([q.mean + q.sd * near, wide.expand(len(q.mean), -1)], 1).sort(1).values)

    def _common_moments(
        self, mean: Poses, theta_var: Tensor, shift_var: Tensor, z: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean and s.d. of theta and shift in the common frame, of the mixture over contents."""
        common = self.gauge.into_common(mean, z)
        centre = mixture(common, weight)
        off = geometry.wrapped(common.theta_rad - centre.theta_rad[:, None])
        theta_sd = (weight * (theta_var + off**2)).sum(1).sqrt()
        apart = common.shift_px - centre.shift_px[:, None]
        shift_sd = (weight[..., None] * (shift_var + apart**2)).sum(1).sqrt()
        return centre.theta_rad, theta_sd, centre.shift_px, shift_sd

    def misfit(self, observation: Observation, poses: Poses, z: Tensor) -> Tensor:
        """How much more an image leaves unexplained than noise would: chi-square of the residual, less its mean, over its s.d.; [n]."""
        upright = self.search.canonical(observation.plane, poses)
        expected = self.decoder(z)
        if observation.information is None:
            expected = self.search.metric.without_level(expected)
        else:
            expected = self.search.metric.applied(expected, observation.information)
        live = self.search.basis.live
        freedom = live.sum()
        return (((upright - expected) ** 2 * live).sum(1) - freedom) / torch.sqrt(2 * freedom)


def _edges(z: Tensor) -> Tensor:
    """Edges [n, K + 1] of the cells that sorted contents [n, K] stand for: half the way to the next, as much outwards at the ends."""
    first, last = 1.5 * z[:, :1] - 0.5 * z[:, 1:2], 1.5 * z[:, -1:] - 0.5 * z[:, -2:-1]
    return torch.cat([first, (z[:, 1:] + z[:, :-1]) / 2, last], 1)


def _log_width(z: Tensor) -> Tensor:
    return _edges(z).diff(dim=1).clamp(min=1e-9).log()


def _as_integral(z: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted contents [n, K] of one dimension as nodes of an integral over the prior, each with the width of its cell."""
    return z[..., None], log_normal(z[..., None]) + _log_width(z)


def close_contents(z: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes where a first look at sorted contents z [n, k] found the posterior ``log_weight`` [n, k], as `first_contents` gives them.

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


def drawn_contents(q: DiagonalGaussian, count: int) -> tuple[Tensor, Tensor]:
    """Contents [n, count, z_dim] spread like q(z | y), somewhat wider, with log weights as `Inference.first_contents` gives them."""
    d = q.mean.shape[1]
    sobol = torch.quasirandom.SobolEngine(d, scramble=True, seed=0).draw(count).clamp(1e-4, 1 - 1e-4)
    unit = torch.special.ndtri(sobol).to(q.mean)[None]
    z = q.mean[:, None] + WIDER * q.sd[:, None] * unit
    log_q = log_normal(unit) - (WIDER * q.sd).log().sum(1)[:, None]
    return z, log_normal(z) - log_q - math.log(count)


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
