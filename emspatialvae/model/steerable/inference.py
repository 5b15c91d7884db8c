"""What one image says about z, theta and shift together, given a trained decoder and encoder.

From nothing: poses are searched everywhere, the best of them brought to precision, and about each the posterior

    p(z, theta, shift | y) ~ p(z) p(theta) p(shift) p(y | z, theta, shift)

is summed over latents, angles and shifts on grids. The encoder only says where the latents are worth looking at; what is
reported are posterior means, and they do not depend on its errors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emspatialvae.imaging import geometry
from emspatialvae.model.distributions import DiagonalGaussian, LatentAndPose
from emspatialvae.model.interface import Estimate
from emspatialvae.model.steerable.gauge import Gauge
from emspatialvae.model.steerable.global_search import ANGLES_EVERYWHERE, COARSE_STEP_PX
from emspatialvae.model.steerable.latent_nodes import DRAWS, close_latents, drawn_latents, first_latents, tempered
from emspatialvae.model.steerable.latent_posterior import LatentPosterior, latent_posterior, log_joint
from emspatialvae.model.steerable.modes import IMPOSSIBLE, best_of, mixture, without_doubles
from emspatialvae.model.steerable.networks import CanonicalDecoder
from emspatialvae.model.steerable.observation import Observation, half_norm
from emspatialvae.model.steerable.pose_search import ANGLES_NEARBY, PoseSearch
from emspatialvae.model.steerable.poses import LocalPosterior, Poses
from emspatialvae.model.steerable.ring_metric import RingForm

MODES, OTHER_TEMPLATES = 3, 5
"""Candidates of the global search: at angles apart from each other, and of other templates than theirs."""
UNLIKELY = 14.0
"""After a first refinement, candidates that much below the best (nats) are given up,"""
CLOSE = 8.0
"""and of those that remain, only the ones this close to the best are looked at closely."""
FIRST_ZOOM = 2.0
"""Steps of the grid of the first refinement, in s.d. of a typical pose."""
LATENT_STEPS, MOST_LATENT_STEPS = 2, 6
"""Of Gauss-Newton for z: after each refinement of the pose, and where nothing is known of z."""
WIDE_ZOOM, CLOSE_ZOOM = 3.0, 1.5
"""Steps of the grids of poses, in s.d. of a typical pose: at the first look, which is at few latents, and at the last."""
OWN_MODE_RAD = math.pi / 4
"""On the way to precision angles are looked at within so much of where the global search ended, if they are as well defined as that."""
COARSE_STEPS = 2
"""Of `Inference.zooms`, that bring a pose most of the way."""


@dataclass(frozen=True)
class Refined:
    """Poses and z of n particles that agree with each other.

    ``near`` holds the poses; ``z`` [n, z_dim]; ``log_evidence`` [n], of the pose and of the neighbourhood of z, by Laplace's method.
    """

    near: LocalPosterior
    z: Tensor
    log_evidence: Tensor

    def better_of(self, other: "Refined") -> "Refined":
        """For each particle the one with more evidence."""
        ours = self.log_evidence >= other.log_evidence
        return Refined(
            self.near.chosen(ours, other.near),
            torch.where(ours[:, None], self.z, other.z),
            torch.where(ours, self.log_evidence, other.log_evidence),
        )


@dataclass(frozen=True)
class Inference:
    """The parts of a model that inference needs, and the steps that it takes with them."""

    search: PoseSearch
    decoder: CanonicalDecoder
    encoder: Callable[[Tensor], DiagonalGaussian]
    gauge: Gauge
    z_dim: int

    def proposal(self, observation: Observation, poses: Poses) -> DiagonalGaussian:
        """``q(z | y)`` as the encoder guesses it, from images canonicalised with the given poses."""
        return self.encoder(self.search.upright(observation, poses))

    def q(
        self,
        observation: Observation,
        poses: Poses,
        start: Tensor | None = None,
        steps: int = MOST_LATENT_STEPS,
        templates: Tensor | None = None,
    ) -> LatentPosterior:
        """``q(z | y)`` at the given poses, from ``start`` [n, z_dim] or from where the encoder proposes; see `best_start` for ``templates``."""
        upright = self.search.canonical(observation.plane, poses)
        form = self.search.metric.form(observation.information)
        if start is None:
            start = self.proposal(observation, poses).mean
        elif templates is not None:
            proposed = self.proposal(observation, poses).mean
            start = self.best_start(upright, form, torch.stack([start, proposed], 1), templates)
        return latent_posterior(self.decoder, upright, form, start, steps)[0]

    @torch.no_grad()
    def best_start(self, upright: Tensor, form: RingForm, starts: Tensor, templates: Tensor) -> Tensor:
        """Where to look for z of images with their poses taken out: what explains each best of K ``starts`` [n, K, z_dim] and J ``templates`` [J, z_dim].

        Small steps from the last z alone would keep particles where they once were, on either side of a fold of the decoder that nothing
        then straightens. Which template is nearest is asked with the mean metric of the images, the rest with that of each.
        """
        drawn = self.decoder(templates)
        whole, strength = form.mean()
        half_squares = 0.5 * ((drawn @ whole) * drawn).sum(1)
        value = upright @ drawn.T - strength[:, None] * half_squares - 0.5 * (templates**2).sum(1)
        return self._likeliest(upright, form, torch.cat([starts, templates[value.argmax(1)][:, None]], 1))

    def _likeliest(self, upright: Tensor, form: RingForm, some: Tensor) -> Tensor:
        """Of K latents [n, K, z_dim] each the one that explains its image best; [n, z_dim]."""
        value = log_joint(upright[:, None], self.decoder(some), some, form)
        return some[torch.arange(len(some), device=some.device), value.argmax(1)]

    # ---------------------------------------------------------------------------------------------------- one pose

    @torch.no_grad()
    def refine(
        self,
        observation: Observation,
        poses: Poses,
        z: Tensor | None = None,
        *,
        freeze_z: bool = False,
        fine: bool = True,
    ) -> Refined:
        """Bring poses of the coarse search to the precision of the fine one, z [n, z_dim] following [default: the encoder's].

        Without ``fine`` only most of the way, for poses that will be refined anyway.
        """
        zooms = self.zooms() if fine else self.zooms()[:COARSE_STEPS]
        form = self.search.metric.form(observation.information)
        if freeze_z:
            z = torch.zeros(len(observation), self.z_dim, device=observation.plane.device)
        elif z is None:
            z = self.proposal(observation, poses).mean
        # No farther than its own mode: a mean over two modes is neither.
        reach_rad = max(OWN_MODE_RAD, ANGLES_NEARBY / 2 * float(self.search.theta_step_rad))
        near, volume = None, torch.zeros(len(observation), device=observation.plane.device)
        for zoom in zooms:
            near = self.search.local_search(observation, poses, self.decoder(z), zoom=zoom, reach_rad=reach_rad)
            poses = near.mean
            if not freeze_z:
                upright = self.search.canonical(observation.plane, poses)
                q, _ = latent_posterior(self.decoder, upright, form, z, LATENT_STEPS)
                volume = q.log_volume - 0.5 * (q.mean**2).sum(1)
                z = q.mean
        assert near is not None
        return Refined(near, z, near.log_evidence + volume)

    def with_encoder(self, observation: Observation, found: Refined) -> Refined:
        """For each particle z as found, or as the encoder proposes at that pose where that explains the image better."""
        form = self.search.metric.form(observation.information)
        upright = self.search.canonical(observation.plane, found.near.mean)
        proposed = self.proposal(observation, found.near.mean).mean
        z = self._likeliest(upright, form, torch.stack([found.z, proposed], 1))
        return Refined(found.near, z, found.log_evidence)

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
    def search_globally(
        self,
        observation: Observation,
        templates: Tensor,
        radius_px: float,
        *,
        modes: int = MODES,
        freeze_z: bool = False,
    ) -> tuple[Poses, Tensor, Tensor]:
        """Poses and z of images of which nothing is known, best first, after a first refinement of every candidate.

        Parameters
        ----------
        templates
            Latents [J, z_dim] to search with.

        Returns
        -------
        Poses [n, c] of c candidates, z [n, c, z_dim], and the log evidence [n, c].
        """
        others = min(OTHER_TEMPLATES, len(templates) - 1)
        found = self.search.global_search(observation, self.decoder(templates), radius_px, modes, others)
        likely = found.score > found.score[:, :1] - 3 * UNLIKELY  # the coarse score is off by some nats
        evidence = torch.full_like(found.score, IMPOSSIBLE)
        theta, shift, z = found.poses.theta_rad.clone(), found.poses.shift_px.clone(), templates[found.template]
        rows, candidates = torch.nonzero(likely, as_tuple=True)
        near = self.search.local_search(
            observation[rows], found.poses[rows, candidates], self.decoder(z[rows, candidates]), zoom=FIRST_ZOOM
        )
        settled = Refined(near, z[rows, candidates], near.log_evidence)
        if not freeze_z:
            some = observation[rows]
            settled = self.with_encoder(some, settled)
            upright = self.search.canonical(some.plane, near.mean)
            form = self.search.metric.form(some.information)
            q, value = latent_posterior(self.decoder, upright, form, settled.z, LATENT_STEPS)
            # What z gained since its template, at that pose.
            before = self._log_likelihood(upright, form, z[rows, candidates])
            after = value + q.log_volume
            settled = Refined(near, q.mean, near.log_evidence - before + after)
        theta[rows, candidates], shift[rows, candidates] = near.mean.theta_rad, near.mean.shift_px
        z[rows, candidates], evidence[rows, candidates] = settled.z, settled.log_evidence
        evidence, order = without_doubles(evidence, Poses(theta, shift)).sort(1, descending=True)
        return (
            Poses(theta.gather(1, order), shift.gather(1, order[..., None].expand_as(shift))),
            z.gather(1, order[..., None].expand_as(z)),
            evidence,
        )

    def _log_likelihood(self, upright: Tensor, form: RingForm, z: Tensor) -> Tensor:
        drawn = self.decoder(z)
        return (upright * drawn).sum(-1) - form.half_square(drawn)

    @torch.no_grad()
    def candidate_poses(
        self, observation: Observation, templates: Tensor, radius_px: float
    ) -> tuple[Poses, Tensor, Tensor]:
        """The most likely poses [n, k] of images, best first, with z [n, k, z_dim] and log evidence [n, k]; J ``templates`` are tried.

        A pose without a rival is brought most of the way only: `posterior` goes the rest.
        """
        poses, z, evidence = self.search_globally(observation, templates, radius_px)
        theta, shift = poses.theta_rad.clone(), poses.shift_px.clone()
        first = evidence[:, 0].clone()  # as little refined as those that it is compared with
        rivals = evidence[:, 1] > first - UNLIKELY
        for k in range(min(MODES, evidence.shape[1])):
            here = evidence[:, k] > first - UNLIKELY
            for rows, fine in ((here & rivals, True), (here & ~rivals, False)):
                if not rows.any():
                    continue
                index = torch.nonzero(rows)[:, 0]
                found = self.refine(observation[index], poses[index, k], z[index, k], fine=fine)
                theta[index, k], shift[index, k] = found.near.mean.theta_rad, found.near.mean.shift_px
                z[index, k], evidence[index, k] = found.z, found.log_evidence
        evidence = evidence[:, :MODES]
        evidence, order = without_doubles(evidence, Poses(theta[:, :MODES], shift[:, :MODES])).sort(1, descending=True)
        poses = Poses(theta.gather(1, order), shift.gather(1, order[..., None].expand(-1, -1, 2)))
        return poses, z.gather(1, order[..., None].expand(-1, -1, z.shape[2])), evidence

    @torch.no_grad()
    def known(
        self, observation: Observation, poses: Poses, templates: Tensor, z: Tensor | None = None
    ) -> tuple[Poses, Tensor, Tensor]:
        """As `candidate_poses`, of images whose poses [n] are known: one mode, with the z that explains the image best there.

        Gauss-Newton starts from where the encoder proposes, from the best of J ``templates`` [J, z_dim], and from ``z`` [n, z_dim] if given.
        """
        upright = self.search.canonical(observation.plane, poses)
        form = self.search.metric.form(observation.information)
        drawn = self.decoder(templates)
        value = upright @ drawn.T - half_norm(drawn.expand(len(upright), -1, -1), observation, self.search.metric)
        nearest = templates[(value - 0.5 * (templates**2).sum(1)).argmax(1)]
        proposed = self.proposal(observation, poses).mean
        found, evidence = [], []
        for start in (nearest, proposed) if z is None else (nearest, proposed, z):
            q, density = latent_posterior(self.decoder, upright, form, start, MOST_LATENT_STEPS)
            found.append(q.mean)
            evidence.append(density + q.log_volume)
        best = torch.stack(evidence, 1).max(1)
        chosen = torch.stack(found, 1)[torch.arange(len(upright), device=upright.device), best.indices]
        return poses[:, None], chosen[:, None], best.values[:, None]

    @torch.no_grad()
    def estimate(self, observation: Observation, poses: Poses, z: Tensor, evidence: Tensor) -> Estimate:
        """Posterior means about the best of the poses [n, k] that `candidate_poses` gave, and about the second where it is close."""
        best = self.posterior(observation, poses[:, 0], z[:, 0])
        close = torch.nonzero((evidence[:, 1:2] > evidence[:, :1] - CLOSE).any(1))[:, 0]
        second = self.posterior(observation[close], poses[close, 1], z[close, 1]) if len(close) else None
        return best_of(best, second, close, evidence)

    # ---------------------------------------------------------------------------------------------------- posterior

    @torch.no_grad()
    def posterior(self, observation: Observation, poses: Poses, start: Tensor) -> Estimate:
        """Posterior means about one pose and z each, [n] and ``start`` [n, z_dim], in the common frame."""
        q = self.q(observation, poses, start, LATENT_STEPS)
        z, log_prior = first_latents(q)
        found = self.search.joint_search(observation, poses, self.decoder(z), zoom=WIDE_ZOOM, reach=1)
        log_weight = log_prior + found.log_evidence
        poses = mixture(found.mean, torch.softmax(log_weight, 1))
        if self.z_dim == 1:
            z, log_prior = close_latents(z[..., 0], log_weight)
        else:
            z, log_prior = drawn_latents(self.q(observation, poses, q.mean, LATENT_STEPS), DRAWS)
        found = self.search.joint_search(observation, poses, self.decoder(z), zoom=CLOSE_ZOOM)
        log_weight = log_prior + found.log_evidence
        weight = torch.softmax(log_weight, 1) if self.z_dim == 1 else tempered(log_weight)
        theta, theta_sd, shift, shift_sd = self._common_moments(found.mean, found.theta_var, found.shift_var, z, weight)
        mean_z = (weight[..., None] * z).sum(1)
        var_z = (weight[..., None] * (z - mean_z[:, None]) ** 2).sum(1)
        return Estimate(
            LatentAndPose(mean_z, theta, shift),
            LatentAndPose(var_z.sqrt(), theta_sd, shift_sd),
            torch.logsumexp(log_weight, 1),
            misfit=self.misfit(observation, mixture(found.mean, weight), mean_z),
        )

    def _common_moments(
        self, mean: Poses, theta_var: Tensor, shift_var: Tensor, z: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean and s.d. of theta and shift in the common frame, of the mixture over latents."""
        if self.search.fixed:
            theta, shift = mean.theta_rad[:, 0], mean.shift_px[:, 0]
            return theta, torch.zeros_like(theta), shift, torch.zeros_like(shift)
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
