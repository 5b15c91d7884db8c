"""`SteerableVAE`: the spatial-VAE in a basis where rotation is a phase, with the posterior over poses summed out on grids.

    log p(y | z) = log sum_(theta, shift) p(theta) p(shift) exp(<y, R_theta T_shift b(z)> - |b(z)|^2 / 2)
    ELBO         = E_q(z | y) log p(y | z) - KL(q(z | y) || N(0, I))

With CTF and coloured noise the inner product and the norm are those of `emspatialvae.model.observation`.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emspatialvae import geometry, imaging
from emspatialvae.config import ModelConfig
from emspatialvae.geometry import pixel_grid
from emspatialvae.model.batch import Batch
from emspatialvae.model.canonical import CanonicalDecoder, CoefficientDecoder, CoefficientEncoder, ProjectedDecoder
from emspatialvae.model.decoder import SpatialDecoder
from emspatialvae.model.gauge import Gauge, register
from emspatialvae.model.interface import Elbo, Estimate, ImageSpec, ParticleVAE
from emspatialvae.model.observation import Observation, Spectra
from emspatialvae.model.pose_search import COARSE_STEP_PX, Nearby, Poses, PoseSearch
from emspatialvae.model.posterior import Content, DiagonalGaussian, standard_normal
from emspatialvae.steerable import FourierPlane, SteerableBasis, effective_ring

MODES = 3
"""Poses apart from each other that inference looks at more closely."""
UNLIKELY = 14.0
"""Modes of the coarse search that much below the best (nats) are not looked at,"""
CLOSE = 8.0
"""and of those that were, only the ones this close to the best are looked at closely."""
HOPELESS = -1e6
ZOOMS = (3.0, 1.5)
AGREED = 0.25
"""Length of the mean of modes as directions, 0 to 1, above which their mean angle means something."""
SCALE_SD = 0.3
"""Of the prior on a particle's amplitude."""
SAME_MODE_RAD, SAME_MODE_PX = 0.35, 2.0
"""Poses closer than that belong to one mode."""
NEAR_NODES, NODE_REACH = 13, 3.5
"""Contents per particle over which the posterior is summed when z has one dimension: some within so many s.d. of q(z | y),"""
WIDE_NODES, WIDE_REACH = 11, 2.4
"""and some over the whole prior, for the encoder may have missed a second possibility."""
DRAWS = 30
"""Contents drawn from q(z | y) when z has more dimensions."""
WIDER = 1.2
"""Than q(z | y) are contents drawn from, in more dimensions, so that no tail is missed."""


@dataclass(frozen=True)
class SteerableSpec:
    """Sizes that were learned from the particles and that a checkpoint's tensors have."""

    components: int
    rings: int
    groups: int

    @classmethod
    def of_state(cls, state: dict[str, Tensor]) -> "SteerableSpec":
        """As a checkpoint has them."""
        size, rings = state["basis.radial"].shape
        return cls(size // 2, rings, len(state["spectra.noise"]))


class SteerableVAE(ParticleVAE):
    """See the module. ``basis`` holds components learned from the particles (`emspatialvae.steerable_pca`)."""

    basis: SteerableBasis
    plane: FourierPlane
    spectra: Spectra
    search: PoseSearch
    decoder: CanonicalDecoder
    encoder: CoefficientEncoder
    gauge: Gauge
    anchors: Tensor
    group_scale: Tensor
    half_precision = False  # differences of log-likelihoods of a hundred nats decide

    def __init__(self, config: ModelConfig, images: ImageSpec, basis: SteerableBasis, groups: int) -> None:
        super().__init__()
        self.images = images
        self.basis = basis
        self.plane = FourierPlane(images.box, effective_ring(basis))
        self.spectra = Spectra(groups, self.plane.rings)
        self.search = PoseSearch(
            basis,
            self.plane,
            rotate=config.rotate,
            translate=config.translate,
            shift_sd_px=images.shift_prior_px,
            max_shift_px=min(images.max_shift_px, images.box / 2),
        )
        sizes = {"activation": config.activation, "residual": config.residual}
        self.decoder = _decoder(config, images, basis)
        self.encoder = CoefficientEncoder(
            2 * basis.size, config.z_dim, hidden=config.encoder_hidden, layers=config.encoder_layers, **sizes
        )
        self.gauge = Gauge(config.z_dim, 2 * basis.size)
        self.scale = config.scale
        self.register_buffer("anchors", torch.zeros(1, config.z_dim))
        self.register_buffer("group_scale", torch.ones(groups))

    @classmethod
    def of_state(cls, config: ModelConfig, images: ImageSpec, state: dict[str, Tensor]) -> "SteerableVAE":
        """An untrained model of the sizes of a checkpoint, with the checkpoint's basis."""
        spec = SteerableSpec.of_state(state)
        basis = SteerableBasis(images.box, disk_radius(images), spec.components, spec.rings)
        basis.load_state_dict({key: state[f"basis.{key}"] for key in basis.state_dict()})
        model = cls(config, images, basis, spec.groups)
        model.anchors = torch.zeros_like(state["anchors"])
        return model

    @property
    def z_dim(self) -> int:
        """Number of content coordinates."""
        return self.anchors.shape[1]

    @property
    def floats_per_particle(self) -> int:
        """Of the posterior over contents, shifts and angles at inference."""
        return 20_000

    # --------------------------------------------------------------------------------------------------- training

    def observe(self, batch: Batch, scale: Tensor | None = None) -> Observation:
        """Filter images by CTF over noise; ``scale`` [n]: amplitudes of the particles [default: 1, or that of their group]."""
        observation = self.spectra.observe(batch, self.plane)
        if self.scale == "none":
            return observation
        if scale is None:
            known = int(batch.group.max()) < len(self.group_scale)
            scale = self.group_scale[batch.group] if known else torch.ones_like(batch.group, dtype=torch.float32)
        return observation.scaled(scale, self.spectra.whitened_signal)

    def q(self, observation: Observation, poses: Poses) -> DiagonalGaussian:
        """``q(z | y)`` from images canonicalised with the given poses."""
        return self.encoder(self.search.upright(observation, poses))

    def elbo(
        self,
        observation: Observation,
        poses: Poses,
        generator: torch.Generator | None = None,
        *,
        freeze_z: bool = False,
        jitter: bool = True,
        zoom: float = 1.0,
    ) -> tuple[Elbo, Nearby]:
        """One-sample estimate of the ELBO near the given poses, and the posterior over poses there.

        Parameters
        ----------
        freeze_z
            Hold z at zero and leave its KL out, so that the consensus is aligned first.
        jitter
            Show the encoder images canonicalised with poses that are off by as much as they are uncertain. It must not rely on
            the pose's last degree, which was found with the z that it said before: the two would confirm each other's errors.
        """
        seen = poses
        if jitter:
            steps = (self.search.theta_step_rad, self.search.shift_step_px)
            noise = standard_normal((len(observation), 3), generator, observation.plane)
            seen = Poses(
                poses.theta_rad + noise[:, 0] * steps[0] * self.search.rotate,
                poses.shift_px + noise[:, 1:] * steps[1] * self.search.translate,
            )
        with torch.no_grad():
            upright = self.search.upright(observation, seen)
        q = self.encoder(upright)
        z = torch.zeros_like(q.mean) if freeze_z else q.rsample(generator)
        found = self.search.nearby(observation, poses, self.decoder(z), zoom=zoom)
        kl = q.kl_to_normal(1.0)
        zero = torch.zeros_like(kl)
        return Elbo(found.log_evidence, zero * kl if freeze_z else kl, zero, zero), found

    @torch.no_grad()
    def settle(self, observation: Observation, poses: Poses, *, freeze_z: bool = False, fine: bool = True) -> Nearby:
        """Bring poses of the coarse search to the precision of the fine one, z following.

        Without ``fine`` only most of the way, for poses that training will go on to refine.
        """
        found = None
        for zoom in self._zooms() if fine else self._zooms()[:2]:
            mean = self.q(observation, poses).mean
            z = torch.zeros_like(mean) if freeze_z else mean
            found = self.search.nearby(observation, poses, self.decoder(z), zoom=zoom)
            poses = found.mean
        assert found is not None
        return found

    def _zooms(self) -> list[float]:
        """From half a step of the coarse search downwards to 1, and 1 once more."""
        widest = 1.0
        if self.search.translate:
            widest = max(widest, 0.6 * COARSE_STEP_PX / float(self.search.shift_step_px))
        if self.search.rotate:
            widest = max(widest, math.pi / 64 / float(self.search.theta_step_rad) / 4)
        halvings = math.ceil(math.log2(widest)) if widest > 1 else 0
        return [2.0**k for k in range(halvings, -1, -1)] + [1.0]

    @property
    def decoder_live(self) -> Tensor:
        """One for coefficients that mean something, zero for the imaginary parts of order 0; [2 R]."""
        order = self.basis.order
        return torch.cat([torch.ones_like(order), (order > 0).to(order)])

    def mean_information(self, observation: Observation) -> Tensor | None:
        """Mean over the images of CTF^2 / noise per ring [rings]; None where it is 1."""
        return None if observation.information is None else observation.information.mean(0)

    def wiener_mean(self, observation: Observation, poses: Poses) -> Tensor:
        """The mean of the images with poses taken out, restored: ``sum CTF y / N over (sum CTF^2 / N + 1 / signal)``; [2 R]."""
        plane = self.plane.move_back(observation.plane, poses.shift_px) if self.search.translate else observation.plane
        upright = self.basis.rotate(self.search.coefficients(plane)[0][:, 0], -poses.theta_rad)
        information = self.mean_information(observation)
        prior = 1 / (len(observation) * self.spectra.whitened_signal)
        if information is None:
            information = torch.ones_like(prior)
        total = self.plane.transform(self.basis.images(upright.mean(0)))
        restored = total * self.plane.by_ring(1 / (information + prior))
        return self.search.coefficients(restored[None])[0][0, 0] * self.decoder_live

    @property
    def search_radius_px(self) -> float:
        """How far out shifts are looked for: 3.2 s.d. of the prior, 0.6 % of the particles lie beyond."""
        return min(self.search.max_shift_px, 3.2 * float(self.search.shift_sd_px) + 0.5)

    # -------------------------------------------------------------------------------------------------- inference

    @torch.no_grad()
    def infer(self, batch: Batch, turns: int = 1) -> Estimate:
        """Posterior means, over contents, shifts and angles about the best of some poses found anywhere.

        ``turns`` means nothing here: all angles are searched.
        """
        observation = self.observe(batch)
        starts, score = self.search.everywhere(observation, self.decoder(self.anchors), self.search_radius_px, MODES)
        poses = Poses(starts.theta_rad.clone(), starts.shift_px.clone())
        rough = torch.full_like(score, HOPELESS)
        for k in range(score.shape[1]):
            rows = torch.nonzero(score[:, k] > score[:, 0] - UNLIKELY)[:, 0]
            if not len(rows):
                continue
            settled = self.settle(observation[rows], starts[rows, k])
            poses.theta_rad[rows, k], poses.shift_px[rows, k] = settled.mean.theta_rad, settled.mean.shift_px
            rough[rows, k] = settled.log_evidence
        rough = without_doubles(rough, poses)
        rough, order = rough.sort(1, descending=True)
        row = torch.arange(len(order), device=order.device)
        scale = None
        if self.scale == "particle":
            settled = self.settle(observation, poses[row, order[:, 0]])
            scale = amplitude(settled, torch.ones_like(settled.cross))
            observation = self.observe(batch, scale)
        best = self._posterior(observation, poses[row, order[:, 0]])
        close = torch.nonzero(rough[:, 1] > rough[:, 0] - CLOSE)[:, 0] if rough.shape[1] > 1 else row[:0]
        second = self._posterior(observation[close], poses[close, order[close, 1]]) if len(close) else None
        return replace(_best(best, second, close, rough), scale=scale)

    def _posterior(self, observation: Observation, poses: Poses) -> Estimate:
        """Posterior means round one pose, in the common frame."""
        for zoom in ZOOMS[:-1]:  # a wide look first, at some of the contents: where they differ, so do their poses
            z, log_weight = (nodes[:, ::3] for nodes in self._nodes(self.q(observation, poses)))
            found = self.search.jointly(observation, poses, self.decoder(z), zoom=zoom, reach=1)
            poses = _mixture(found.mean, torch.softmax(log_weight + found.log_evidence, 1))
        z, log_weight = self._nodes(self.q(observation, poses))
        found = self.search.jointly(observation, poses, self.decoder(z), zoom=ZOOMS[-1])
        log_weight = log_weight + found.log_evidence
        weight = tempered(log_weight)
        theta, theta_sd, shift, shift_sd = self._common_moments(found.mean, found.theta_var, found.shift_var, z, weight)
        mean_z = (weight[..., None] * z).sum(1)
        var_z = (weight[..., None] * (z - mean_z[:, None]) ** 2).sum(1)
        evidence = torch.logsumexp(log_weight, 1)
        misfit = self._misfit(observation, _mixture(found.mean, weight), mean_z)
        return Estimate(
            Content(mean_z, theta, shift), Content(var_z.sqrt(), theta_sd, shift_sd), evidence, misfit=misfit
        )

    def _misfit(self, observation: Observation, poses: Poses, z: Tensor) -> Tensor:
        """How much more an image leaves unexplained than noise would: chi-square of the residual, less its mean, over its s.d.; [n]."""
        plane = self.plane.move_back(observation.plane, poses.shift_px) if self.search.translate else observation.plane
        upright = self.basis.rotate(self.search.coefficients(plane)[0][:, 0], -poses.theta_rad)
        expected = self.decoder(z)
        if observation.information is not None:
            expected = self.search.metric.applied(expected, observation.information)
        live = self.decoder_live
        freedom = live.sum()
        return (((upright - expected) ** 2 * live).sum(1) - freedom) / torch.sqrt(2 * freedom)

    def _common_moments(
        self, mean: Poses, theta_var: Tensor, shift_var: Tensor, z: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean and s.d. of theta and shift in the common frame, of the mixture over contents."""
        common = self.gauge.into_common(mean, z)
        centre = _mixture(common, weight)
        off = geometry.wrapped(common.theta_rad - centre.theta_rad[:, None])
        theta_sd = (weight * (theta_var + off**2)).sum(1).sqrt()
        apart = common.shift_px - centre.shift_px[:, None]
        shift_sd = (weight[..., None] * (shift_var + apart**2)).sum(1).sqrt()
        return centre.theta_rad, theta_sd, centre.shift_px, shift_sd

    def _nodes(self, q: DiagonalGaussian) -> tuple[Tensor, Tensor]:
        """Contents [n, K, z_dim] and log weights [n, K] such that ``sum exp(log weight) f(z)`` is the mean of f over the prior."""
        d = self.z_dim
        if d == 1:
            near = torch.linspace(-NODE_REACH, NODE_REACH, NEAR_NODES, device=q.mean.device)
            wide = torch.linspace(-WIDE_REACH, WIDE_REACH, WIDE_NODES, device=q.mean.device)
            z = torch.cat([q.mean + q.sd * near, wide.expand(len(q.mean), -1)], 1).sort(1).values
            # Trapezoids: each node stands for half the way to its neighbours.
            ends = torch.cat([z[:, :1], z, z[:, -1:]], 1)
            share = ((ends[:, 2:] - ends[:, :-2]) / 2).clamp(min=1e-9)
            return z[..., None], _log_normal(z[..., None]) + share.log()
        sobol = torch.quasirandom.SobolEngine(d, scramble=True, seed=0).draw(DRAWS).clamp(1e-4, 1 - 1e-4)
        unit = torch.special.ndtri(sobol).to(q.mean)[None]
        z = q.mean[:, None] + WIDER * q.sd[:, None] * unit
        log_q = _log_normal(unit) - (WIDER * q.sd).log().sum(1)[:, None]
        return z, _log_normal(z) - log_q - math.log(DRAWS)

    # ----------------------------------------------------------------------------------------------------- drawing

    @torch.no_grad()
    def render(self, content: Content, box: int | None = None) -> Tensor:
        """See `ParticleVAE.render`; poses are those of the common frame, as they are reported."""
        raw = self.gauge.out_of_common(Poses(content.theta_rad, content.shift_px), content.z)
        box = box or self.images.box
        turned = self.basis.rotate(self.decoder(content.z), raw.theta_rad)
        images = self.spectra.unwhitened(self.basis.draw(turned, box))
        plane = FourierPlane(box).to(images.device)
        moved = plane.move_back(plane.transform(images), -raw.shift_px * (box / self.images.box))
        return plane.images(moved)[:, None]

    @property
    def whole_plane(self) -> FourierPlane:
        """All frequencies, for images instead of coefficients."""
        return FourierPlane(self.images.box).to(self.anchors.device)

    @torch.no_grad()
    def drawn(self, z: Tensor, poses: Poses, batch: Batch) -> Tensor:
        """What the model expects the images of a batch to be, with poses in the decoder's own frame; [n, box, box]."""
        plane = self.whole_plane
        images = self.basis.images(self.basis.rotate(self.decoder(z), poses.theta_rad))
        moved = plane.move_back(plane.transform(images), -poses.shift_px)
        power = torch.ones_like(self.spectra.gain) if batch.ctf_power is None else batch.ctf_power
        moved = moved * plane.by_ring(power / self.spectra.gain)
        return plane.images(moved)

    @torch.no_grad()
    def fix_gauge(self, z: Tensor, mask: Tensor | None = None) -> None:
        """Refer all poses to one consensus, given contents [n, z_dim] as the particles have them.

        ``mask`` [box, box]: the part of the consensus that shall stand still [default: all of it]; the mask lies on the consensus
        that was fixed before, if there is one.
        """
        contents = self.decoder(z)
        if mask is None or not self.gauge.fitted:
            reference = contents.mean(0)
            for _ in range(3):  # the mean of registered contents, not of contents that turn against each other
                poses = register(self.search, contents, reference)
                reference = self.upright_contents(contents, poses).mean(0)
            self.gauge.reference.copy_(reference)
        self.gauge.fit(z, register(self.search, contents, self.gauge.reference, mask))

    @torch.no_grad()
    def gauge_residual(self, z: Tensor, mask: Tensor | None = None) -> tuple[float, float]:
        """R.m.s. of the turn (degrees) and of the move (px per axis) that would still register contents [n, z_dim]."""
        needed, folded = register(self.search, self.decoder(z), self.gauge.reference, mask), self.gauge(z)
        turn = torch.rad2deg(geometry.wrapped(needed.theta_rad - folded.theta_rad))
        return float(turn.square().mean().sqrt()), float((needed.shift_px - folded.shift_px).square().mean().sqrt())

    def upright_contents(self, contents: Tensor, poses: Poses) -> Tensor:
        """Coefficients [n, 2 R] of canonical images with poses taken out."""
        plane = self.plane.move_back(self.plane.transform(self.basis.images(contents)), poses.shift_px)
        return self.basis.rotate(self.search.coefficients(plane)[0][:, 0], -poses.theta_rad)


def amplitude(found: Nearby, scale: Tensor) -> Tensor:
    """Most probable amplitudes [n] of particles, given what was found with the present ones, for a prior N(1, 0.3^2)."""
    prior = SCALE_SD**-2
    best = (found.cross / scale + prior) / (found.norm / scale**2 + prior)
    return best.clamp(0.2, 5.0)


def without_doubles(evidence: Tensor, poses: Poses) -> Tensor:
    """Log evidence [n, k] of modes, none for those that ended where a better one lies."""
    theta, shift = poses.theta_rad, poses.shift_px
    near = geometry.wrapped(theta[:, :, None] - theta[:, None]).abs() < SAME_MODE_RAD
    near &= (shift[:, :, None] - shift[:, None]).norm(dim=-1) < SAME_MODE_PX
    index = torch.arange(evidence.shape[1], device=evidence.device)
    mine, other = evidence[:, :, None], evidence[:, None]
    better = (other > mine) | ((other == mine) & (index < index[:, None]))
    return evidence.masked_fill((near & better).any(2), HOPELESS)


def disk_radius(images: ImageSpec) -> float:
    """Radius of the disk that the basis lives on: the box's own, so that a shifted particle stays in it."""
    return images.box / 2 - 0.5


def tempered(log_weight: Tensor, least: float = 0.25) -> Tensor:
    """Importance weights [n, K], flattened (raised to a power below 1) where fewer than a quarter of K would count.

    In many dimensions a few draws would otherwise take all the weight, and their mean be noise.
    """
    weight = torch.softmax(log_weight, 1)
    count = log_weight.shape[1]
    if count != DRAWS:
        return weight  # a grid, not draws
    low, high = torch.zeros_like(weight[:, :1]), torch.ones_like(weight[:, :1])
    for _ in range(12):
        power = (low + high) / 2
        effective = 1 / (torch.softmax(power * log_weight, 1) ** 2).sum(1, keepdim=True)
        enough = effective >= least * count
        low, high = torch.where(enough, power, low), torch.where(enough, high, power)
    whole = 1 / (weight**2).sum(1, keepdim=True) >= least * count
    return torch.where(whole, weight, torch.softmax(low * log_weight, 1))


def _mixture(poses: Poses, weight: Tensor) -> Poses:
    """Mean of poses [n, K] with weights [n, K]; theta on the circle."""
    sin, cos = ((weight * f(poses.theta_rad)).sum(1) for f in (torch.sin, torch.cos))
    return Poses(torch.atan2(sin, cos), (weight[..., None] * poses.shift_px).sum(1))


def _best(first: Estimate, second: Estimate | None, close: Tensor, rough: Tensor) -> Estimate:
    """Posterior means over the modes; the best one's share of the evidence of all is the peak weight.

    The s.d. of theta and shift are those within the best mode: the peak weight tells of the others. Where two modes are about as
    likely and far apart in angle, a mean would be a pose that the particle certainly does not have; the best mode's is kept.

    Parameters
    ----------
    first, second
        Modes looked at closely: of all n particles, and of those with a rival (rows ``close``).
    rough
        Log evidence of all modes at the z that the encoder said, best first; [n, modes].
    """
    # A rival by its rough evidence counts for as much more as the best gained from the closer look.
    evidence = rough + (first.log_likelihood - rough[:, 0])[:, None]
    chosen = first
    if second is not None:
        evidence[close, 1] = second.log_likelihood
        weight = torch.softmax(evidence[close, :2], 1)
        mean, sd = _mean_of_two(first.mean[close], first.sd[close], second.mean, second.sd, weight)
        chosen = Estimate(first.mean.put(close, mean), first.sd.put(close, sd), first.log_likelihood)
    share = torch.softmax(evidence, 1).max(1).values
    return Estimate(chosen.mean, chosen.sd, torch.logsumexp(evidence, 1), share, misfit=first.misfit)


def _mean_of_two(a: Content, a_sd: Content, b: Content, b_sd: Content, weight: Tensor) -> tuple[Content, Content]:
    """Mean and s.d. of two modes with weights [n, 2]; see `_best`."""
    wa, wb = weight[:, :1], weight[:, 1:]
    z = wa * a.z + wb * b.z
    z_var = wa * (a_sd.z**2 + (a.z - z) ** 2) + wb * (b_sd.z**2 + (b.z - z) ** 2)
    ahead = weight[:, 0] >= weight[:, 1]
    theta, shift, theta_sd, shift_sd = (
        torch.where(ahead if x.dim() == 1 else ahead[:, None], x, y)
        for x, y in (
            (a.theta_rad, b.theta_rad),
            (a.shift_px, b.shift_px),
            (a_sd.theta_rad, b_sd.theta_rad),
            (a_sd.shift_px, b_sd.shift_px),
        )
    )
    sin, cos = (wa[:, 0] * f(a.theta_rad) + wb[:, 0] * f(b.theta_rad) for f in (torch.sin, torch.cos))
    agreed = torch.hypot(sin, cos) > AGREED
    theta = torch.where(agreed, torch.atan2(sin, cos), theta)
    shift = torch.where(agreed[:, None], wa * a.shift_px + wb * b.shift_px, shift)
    return Content(z, theta, shift), Content(z_var.sqrt(), theta_sd, shift_sd)


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * (z**2).sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


def _decoder(config: ModelConfig, images: ImageSpec, basis: SteerableBasis) -> CanonicalDecoder:
    if config.decoder == "spatial":
        spatial = SpatialDecoder(
            config.z_dim,
            1,
            hidden=config.hidden,
            layers=config.layers,
            activation=config.activation,
            residual=config.residual,
            squared_coordinates=config.squared_coordinates,
            bilinear=config.bilinear,
        )
        x, y = pixel_grid(images.box)
        points = torch.from_numpy(geometry.in_half_boxes(x, y)).float()
        mask = torch.from_numpy(imaging.circular_mask(images.box, basis.radius_px)).flatten()
        return ProjectedDecoder(basis, spatial, points, mask)
    return CoefficientDecoder(
        basis,
        config.z_dim,
        hidden=config.hidden,
        layers=config.layers,
        activation=config.activation,
        residual=config.residual,
    )
