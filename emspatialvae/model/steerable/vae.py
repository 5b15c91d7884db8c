"""`SteerableVAE`: the spatial-VAE in a basis where rotation is a phase, with the posterior over poses summed out on grids.

    log p(y | z) = log sum_(theta, shift) p(theta) p(shift) exp(<y, R_theta T_shift b(z)> - |b(z)|^2 / 2)
    ELBO         = E_q(z | y) log p(y | z) - KL(q(z | y) || N(0, I))

With CTF and coloured noise the inner product and the norm are those of `emspatialvae.model.steerable.observation`.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from emspatialvae.config import ModelConfig
from emspatialvae.imaging import geometry
from emspatialvae.imaging.masks import circular_mask
from emspatialvae.model.batch import Batch
from emspatialvae.model.distributions import LatentAndPose, log_normal, standard_normal
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.model.interface import Elbo, Estimate, ParticleVAE
from emspatialvae.model.layers import copy_shared, resized_latents
from emspatialvae.model.steerable.basis import Disk, SteerableBasis
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.gauge import Gauge, register
from emspatialvae.model.steerable.inference import Inference, Refined
from emspatialvae.model.steerable.networks import CanonicalDecoder, CoefficientEncoder, canonical_decoder
from emspatialvae.model.steerable.noise import SURE_REACH, noise_within
from emspatialvae.model.steerable.observation import Observation, Spectra
from emspatialvae.model.steerable.pose_search import PoseSearch
from emspatialvae.model.steerable.poses import Poses
from emspatialvae.model.steerable.ring_metric import effective_ring

RIM = 0.9
"""From this share of the radius that is seen in full there is no particle, or hardly any."""
LEAST_EDGE_PX, EDGE_SHARE = 2.0, 0.1
"""Width of the soft edge of a canonical image, beyond the particle: in pixels at least, and as a share of its radius."""
NEIGHBOURS_BEYOND = 0.36
"""Particles with a larger radius, in boxes, leave no room for others beside them."""
MOST_LATENTS = 8
"""Latent coordinates where nobody says how many."""
STEPS_IN_TRAINING = 1
"""Of Gauss-Newton for z in a step of training: the last visit's z is known."""
Networks = tuple[CanonicalDecoder, CoefficientEncoder, Gauge, Tensor]
SCALE_SD = 0.3
"""Of the prior on a particle's amplitude."""


class SteerableVAE(ParticleVAE):
    """See the module. ``basis`` holds components learned from the particles (`emspatialvae.model.steerable.pca`)."""

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
    against_noise = True
    draws_disk_only = True

    def __init__(self, config: ModelConfig, images: ImageSpec, basis: SteerableBasis, groups: int) -> None:
        super().__init__()
        self.config = config
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
            fixed=config.poses_fixed,
        )
        self.set_z_dim(config.z_dim or MOST_LATENTS)
        # One group's amplitude is the decoder's.
        self.scale = "none" if groups == 1 and config.scale != "particle" else config.scale
        self.register_buffer("group_scale", torch.ones(groups))

    def set_z_dim(self, z_dim: int, seed: int | None = None) -> None:
        """Begin anew with so many latent coordinates: untrained networks, those of a ``seed`` if there is one."""
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self._new_networks(z_dim)

    def _new_networks(self, z_dim: int) -> None:
        config, size = self.config, 2 * self.basis.size
        device = self.plane.fx.device
        scale = self.encoder.scale if hasattr(self, "encoder") else None
        self.decoder = canonical_decoder(config, self.basis, z_dim).to(device)
        self.encoder = CoefficientEncoder(
            size,
            z_dim,
            hidden=config.encoder_hidden,
            layers=config.encoder_layers,
            activation=config.activation,
            residual=config.residual,
        ).to(device)
        if scale is not None:
            self.encoder.scale.copy_(scale)
        self.gauge = Gauge(z_dim, size, rotate=config.rotate, translate=config.translate).to(device)
        self.register_buffer("anchors", torch.zeros(1, z_dim, device=device))

    @property
    def networks(self) -> Networks:
        """All that depends on the number of latent coordinates."""
        return self.decoder, self.encoder, self.gauge, self.anchors

    @networks.setter
    def networks(self, networks: Networks) -> None:
        self.decoder, self.encoder, self.gauge, self.anchors = networks

    def resize_latents(self, z_dim: int, generator: torch.Generator | None = None) -> None:
        """Go on with another number of latent coordinates: surplus ones are as if they were 0, new ones change little at first."""
        decoder, encoder, _, anchors = self.networks
        self.set_z_dim(z_dim, seed=0)  # what is random in it is overwritten or, in the gauge, fitted from the beginning
        copy_shared(decoder, self.decoder, generator)
        self.encoder.copy_shared(encoder)
        self.anchors = resized_latents(anchors, z_dim)

    @classmethod
    def of_state(cls, config: ModelConfig, images: ImageSpec, state: dict[str, Tensor]) -> "SteerableVAE":
        """An untrained model of the sizes of a checkpoint, with the checkpoint's basis."""
        size, rings = state["basis.radial"].shape
        basis = SteerableBasis(particle_disk(images), size // 2, rings)
        basis.load_state_dict({key: state[f"basis.{key}"] for key in basis.state_dict()})
        model = cls(config, images, basis, len(state["spectra.noise"]))
        if model.z_dim != state["anchors"].shape[1]:
            model.set_z_dim(state["anchors"].shape[1])
        model.anchors = torch.zeros_like(state["anchors"])
        return model

    @property
    def z_dim(self) -> int:
        """Number of latent coordinates."""
        return self.anchors.shape[1]

    @property
    def floats_per_particle(self) -> int:
        """Of the posterior over latents, shifts and angles at inference."""
        return 20_000

    # --------------------------------------------------------------------------------------------------- training

    def observe(self, batch: Batch, scale: Tensor | None = None) -> Observation:
        """Filter images by CTF over noise; ``scale`` [n]: amplitudes of the particles [default: 1, or that of their group]."""
        observation = self.spectra.observe(batch, self.plane)
        if self.scale == "none":
            return observation
        if scale is None:
            known = torch.cat([self.group_scale, self.group_scale.new_ones(1)])
            scale = known[batch.group.clamp(max=len(self.group_scale))]
        return observation.scaled(scale, self.spectra.whitened_signal)

    def elbo(
        self,
        observation: Observation,
        poses: Poses,
        start: Tensor,
        generator: torch.Generator | None = None,
        *,
        freeze_z: bool = False,
        jitter: bool = True,
        zoom: float = 1.0,
        draws: int = 1,
        templates: Tensor | None = None,
    ) -> tuple[Elbo, Refined]:
        """Estimate of the ELBO near the given poses, and what is known of poses and z there.

        ``q(z | y)`` is the decoder's own posterior at those poses (`emspatialvae.model.steerable.latent_posterior`). The encoder learns to propose it:
        its log density at the samples is added with a value of zero and the gradient that it has.

        Parameters
        ----------
        start
            The z [n, z_dim] that is known so far.
        templates
            Other latents [J, z_dim] to look from, beside ``start`` and the encoder's proposal [default: ``start`` alone].
        freeze_z
            Hold z at zero and leave its KL out, so that the consensus is aligned first.
        draws
            Samples K of z for each particle. With more than one the bound is ``log 1/K sum_k p(y, z_k) / q(z_k)`` (Burda et al.,
            arXiv 1509.00519): tighter where the posterior is no Gaussian.
        jitter
            Show the encoder images canonicalised with poses that are off by as much as they are uncertain: it will have to propose z at
            poses that are not settled.
        """
        if freeze_z:
            z = torch.zeros_like(start)
            near = self.search.local_search(observation, poses, self.decoder(z), zoom=zoom)
            zero = torch.zeros_like(near.log_evidence)
            return Elbo(near.log_evidence, zero, zero, zero), Refined(near, z, near.log_evidence.detach())
        q = self.inference.q(observation, poses, start, STEPS_IN_TRAINING, templates)
        unit = standard_normal((len(observation), draws, self.z_dim), generator, observation.plane)
        z, log_weight = q.samples(unit)
        kl = q.kl_to_normal()
        near = self.search.local_search(
            observation, poses, self.decoder(z), log_weight if draws > 1 else None, zoom=zoom
        )
        bound = near.log_evidence if draws > 1 else near.log_evidence - kl
        learned = self._proposal_density(observation, poses, z, generator, jitter=jitter)
        zero = torch.zeros_like(kl)
        return Elbo(bound + learned - learned.detach(), kl, zero, zero), Refined(near, q.mean, bound.detach())

    def _proposal_density(
        self, observation: Observation, poses: Poses, z: Tensor, generator: torch.Generator | None, *, jitter: bool
    ) -> Tensor:
        """Mean log density that the encoder gives to samples z [n, K, z_dim]; [n]."""
        seen = self._jittered(poses, generator) if jitter else poses
        with torch.no_grad():
            upright = self.search.upright(observation, seen)
        proposed = self.encoder(upright)
        off = (z - proposed.mean[:, None]) / proposed.sd[:, None]
        return (log_normal(off) - proposed.log_sd.sum(1)[:, None]).mean(1)

    def mean_information(self, observation: Observation) -> Tensor | None:
        """Mean over the images of CTF^2 / noise per ring [rings]; None where it is 1."""
        return None if observation.information is None else observation.information.mean(0)

    def wiener_mean(self, observation: Observation, poses: Poses) -> Tensor:
        """The mean of the images with poses taken out, restored: ``sum CTF y / N over (sum CTF^2 / N + 1 / signal)``; [2 R]."""
        upright = self.search.canonical(observation.plane, poses)
        information = self.mean_information(observation)
        prior = 1 / (len(observation) * self.spectra.whitened_signal)
        if information is None:
            information = torch.ones_like(prior)
        total = self.plane.without_level(self.plane.transform(self.basis.images(upright.mean(0))))
        restored = self.plane.images(total * self.plane.by_ring(1 / (information + prior)))
        return self.basis.coefficients(self._levelled(restored)) * self.basis.live

    @property
    def search_radius_px(self) -> float:
        """How far out shifts are looked for: 3.2 s.d. of the prior, 0.6 % of the particles lie beyond."""
        return min(self.search.max_shift_px, 3.2 * float(self.search.shift_sd_px) + 0.5)

    # -------------------------------------------------------------------------------------------------- inference

    @property
    def inference(self) -> Inference:
        """The steps from an image to what it says."""
        return Inference(self.search, self.decoder, self.encoder, self.gauge, self.z_dim)

    @torch.no_grad()
    def infer(self, batch: Batch, turns: int = 1) -> Estimate:
        """Posterior means, over latents, shifts and angles about the best of some poses found anywhere.

        Where poses are fixed the batch must bring them. ``turns`` means nothing here: all angles are searched.
        """
        observation, scale = self.observe(batch), None
        if self.search.fixed:
            assert batch.theta_rad is not None
            assert batch.shift_px is not None
            given = Poses(batch.theta_rad, batch.shift_px)
            poses, z, evidence = self.inference.known(observation, given, self.anchors)
        else:
            poses, z, evidence = self.inference.candidate_poses(observation, self.anchors, self.search_radius_px)
        if self.scale == "particle":
            near = self.inference.refine(observation, poses[:, 0], z[:, 0]).near
            scale = amplitude(near.of_unit_amplitude(torch.ones_like(near.cross)))
            observation = self.observe(batch, scale)
        return replace(self.inference.estimate(observation, poses, z, evidence), scale=scale)

    # ----------------------------------------------------------------------------------------------------- drawing

    @torch.no_grad()
    def render(self, content: LatentAndPose, box: int | None = None) -> Tensor:
        """See `ParticleVAE.render`; poses are those of the common frame, as they are reported."""
        raw = self.gauge.out_of_common(Poses(content.theta_rad, content.shift_px), content.z)
        box = box or self.images.box
        turned = self.basis.rotate(self.decoder(content.z), raw.theta_rad)
        images = self.pictures(turned, box)
        plane = FourierPlane(box).to(images.device)
        moved = plane.move_back(plane.transform(images), -raw.shift_px * (box / self.images.box))
        return plane.images(moved)[:, None]

    def common_image(self) -> Tensor | None:
        """See `ParticleVAE`: what the gauge was fitted to."""
        return self.pictures(self.gauge.reference) if self.gauge.fitted else None

    def pictures(self, coefficients: Tensor, box: int | None = None) -> Tensor:
        """Images [..., box, box] of coefficients [..., 2 R] for the eye: without whitening, black at the edge of the disk.

        No background level is known; the one that an empty surrounding has is put in its place.
        """
        return self._levelled(self.spectra.unwhitened(self.basis.draw(coefficients, box or self.images.box)))

    def _levelled(self, images: Tensor) -> Tensor:
        """Images [..., box, box] with zero, on average, at the rim of the particle."""
        box, disk = images.shape[-1], self.basis.disk
        x, y = geometry.pixel_grid(box)
        r_px = np.hypot(x, y) * disk.box / box
        inner = disk.radius_px - disk.edge_px
        rim = torch.from_numpy((r_px > RIM * inner) & (r_px <= inner)).to(images.device)
        window = torch.from_numpy(disk.window(r_px)).to(images)
        return images - images[..., rim].mean(-1)[..., None, None] * window

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
    def sample_posterior(
        self, observation: Observation, poses: Poses, start: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Poses]:
        """One sample of z [n, z_dim] and pose [n] each from about their posterior, near what is known of them."""
        q = self.inference.q(observation, poses, start, STEPS_IN_TRAINING)
        z, _ = q.samples(standard_normal((len(start), 1, self.z_dim), generator, observation.plane))
        return z[:, 0], self._jittered(poses, generator)

    def _jittered(self, poses: Poses, generator: torch.Generator | None) -> Poses:
        """Poses that are off by as much as they are uncertain, typically."""
        if self.search.fixed:
            return poses
        noise = standard_normal((len(poses.theta_rad), 3), generator, poses.theta_rad)
        return Poses(
            poses.theta_rad + noise[:, 0] * self.search.theta_step_rad * self.search.rotate,
            poses.shift_px + noise[:, 1:] * self.search.shift_step_px * self.search.translate,
        )

    @torch.no_grad()
    def residual_noise(self, residuals: list[Batch]) -> Tensor:
        """Power of the noise per group and ring from images less what the model draws; [groups + 1, rings].

        Where there is room for neighbours only what lies within the particle's disk counts: there are none in it.
        """
        radius_px = self.images.particle_radius_px
        if radius_px is None or radius_px > NEIGHBOURS_BEYOND * self.images.box:
            return self.spectra.estimate_noise(residuals, self.whole_plane)
        window = torch.from_numpy(circular_mask(self.images.box, radius_px)).float()
        cpu = [batch.to("cpu") for batch in residuals]
        plane = FourierPlane(self.images.box)
        noise = noise_within(lambda: cpu, window, len(self.spectra.noise), plane, SURE_REACH * radius_px)
        return noise.to(self.spectra.noise)

    @torch.no_grad()
    def fix_gauge(self, z: Tensor, mask: Tensor | None = None, *, common: bool = True) -> None:
        """Refer all poses to one consensus, given latents [n, z_dim] as the particles have them.

        ``mask`` [box, box]: the part of the consensus that shall stand still [default: all of it]; the mask lies on the consensus
        that was fixed before, if there is one. Without ``common``, for views of a 3-D object, which have nothing in common that could be turned
        onto each other, similar particles keep the similar frames that the decoder has for them.
        """
        canonical = self.decoder(z)
        if mask is None or not self.gauge.fitted:
            reference = canonical.mean(0)
            for _ in range(3):  # the mean of registered images, not of images that turn against each other
                poses = register(self.search, canonical, reference)
                reference = self.upright(canonical, poses).mean(0)
            self.gauge.reference.copy_(reference)
        if common or mask is not None:
            self.gauge.fit(z, register(self.search, canonical, self.gauge.reference, mask))

    @torch.no_grad()
    def gauge_residual(self, z: Tensor, mask: Tensor | None = None) -> tuple[float, float] | None:
        """R.m.s. of the turn (degrees) and of the move (px per axis) that would still register what is drawn for latents [n, z_dim].

        None where they have no common frame.
        """
        if not self.gauge.fitted:
            return None
        needed, folded = register(self.search, self.decoder(z), self.gauge.reference, mask), self.gauge(z)
        turn = torch.rad2deg(geometry.wrapped(needed.theta_rad - folded.theta_rad))
        return float(turn.square().mean().sqrt()), float((needed.shift_px - folded.shift_px).square().mean().sqrt())

    def upright(self, canonical: Tensor, poses: Poses) -> Tensor:
        """Coefficients [n, 2 R] of canonical images with poses taken out."""
        return self.search.canonical(self.plane.transform(self.basis.images(canonical)), poses)


def amplitude(match: Tensor) -> Tensor:
    """Most probable amplitudes [n] given `LocalPosterior.of_unit_amplitude` [n, 2], or sums of it over alike particles; prior N(1, 0.3^2)."""
    prior = SCALE_SD**-2
    cross, norm = match.unbind(-1)
    return ((cross + prior) / (norm + prior)).clamp(0.2, 5.0)


def particle_disk(images: ImageSpec) -> Disk:
    """The disk that canonical images live on: as large as the particle, with a soft edge beyond, and at most the box's own.

    What lies outside, the neighbours of crowded particles, has no part in the likelihood. Shifts move the disk over the image.
    """
    whole = images.box / 2 - 0.5
    if images.particle_radius_px is None:
        return Disk(images.box, whole)
    edge = max(LEAST_EDGE_PX, EDGE_SHARE * images.particle_radius_px)
    return Disk(images.box, min(images.particle_radius_px + edge, whole), edge)
