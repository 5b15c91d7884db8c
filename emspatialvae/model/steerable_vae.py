"""`SteerableVAE`: the spatial-VAE in a basis where rotation is a phase, with the posterior over poses summed out on grids.

    log p(y | z) = log sum_(theta, shift) p(theta) p(shift) exp(<y, R_theta T_shift b(z)> - |b(z)|^2 / 2)
    ELBO         = E_q(z | y) log p(y | z) - KL(q(z | y) || N(0, I))

With CTF and coloured noise the inner product and the norm are those of `emspatialvae.model.observation`.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from emspatialvae import geometry
from emspatialvae.config import ModelConfig
from emspatialvae.model.batch import Batch
from emspatialvae.model.canonical import CanonicalDecoder, CoefficientEncoder, canonical_decoder
from emspatialvae.model.gauge import Gauge, register
from emspatialvae.model.inference import Inference
from emspatialvae.model.interface import Elbo, Estimate, ImageSpec, ParticleVAE
from emspatialvae.model.observation import Observation, Spectra
from emspatialvae.model.pose_search import Nearby, Poses, PoseSearch
from emspatialvae.model.posterior import Content, log_normal, standard_normal
from emspatialvae.steerable import FourierPlane, SteerableBasis, effective_ring

EDGE = 0.9
"""From this share of the disk's radius on there is no particle."""
SCALE_SD = 0.3
"""Of the prior on a particle's amplitude."""


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
        self.decoder = canonical_decoder(config, basis)
        self.encoder = CoefficientEncoder(
            2 * basis.size, config.z_dim, hidden=config.encoder_hidden, layers=config.encoder_layers, **sizes
        )
        self.gauge = Gauge(config.z_dim, 2 * basis.size, rotate=config.rotate, translate=config.translate)
        # One group's amplitude is the decoder's.
        self.scale = "none" if groups == 1 and config.scale != "particle" else config.scale
        self.register_buffer("anchors", torch.zeros(1, config.z_dim))
        self.register_buffer("group_scale", torch.ones(groups))

    @classmethod
    def of_state(cls, config: ModelConfig, images: ImageSpec, state: dict[str, Tensor]) -> "SteerableVAE":
        """An untrained model of the sizes of a checkpoint, with the checkpoint's basis."""
        size, rings = state["basis.radial"].shape
        basis = SteerableBasis(images.box, disk_radius(images), size // 2, rings)
        basis.load_state_dict({key: state[f"basis.{key}"] for key in basis.state_dict()})
        model = cls(config, images, basis, len(state["spectra.noise"]))
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
            known = torch.cat([self.group_scale, self.group_scale.new_ones(1)])
            scale = known[batch.group.clamp(max=len(self.group_scale))]
        return observation.scaled(scale, self.spectra.whitened_signal)

    def elbo(
        self,
        observation: Observation,
        poses: Poses,
        generator: torch.Generator | None = None,
        *,
        freeze_z: bool = False,
        jitter: bool = True,
        zoom: float = 1.0,
        draws: int = 1,
    ) -> tuple[Elbo, Nearby]:
        """Estimate of the ELBO near the given poses, and the posterior over poses there.

        Parameters
        ----------
        freeze_z
            Hold z at zero and leave its KL out, so that the consensus is aligned first.
        draws
            Contents K drawn for each particle. With more than one the bound is ``log 1/K sum_k p(y, z_k) / q(z_k)`` (Burda et al.,
            arXiv 1509.00519): tighter, and not loose where the encoder knows little yet.
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
        if freeze_z:
            found = self.search.nearby(observation, poses, self.decoder(torch.zeros_like(q.mean)), zoom=zoom)
            zero = 0 * q.mean.sum(1)  # the encoder has its gradient, of zero
            return Elbo(found.log_evidence, zero, zero, zero), found
        unit = standard_normal((len(observation), draws, self.z_dim), generator, observation.plane)
        z = q.mean[:, None] + q.sd[:, None] * unit
        kl = q.kl_to_normal(1.0)
        zero = torch.zeros_like(kl)
        if draws == 1:
            found = self.search.nearby(observation, poses, self.decoder(z), zoom=zoom)
            return Elbo(found.log_evidence, kl, zero, zero), found
        log_q = log_normal(unit) - q.sd.log().sum(1)[:, None]
        log_weight = log_normal(z) - log_q - math.log(draws)
        found = self.search.nearby(observation, poses, self.decoder(z), log_weight, zoom=zoom)
        return Elbo(found.log_evidence + kl, kl, zero, zero), found

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
        """Posterior means, over contents, shifts and angles about the best of some poses found anywhere.

        ``turns`` means nothing here: all angles are searched.
        """
        observation, scale = self.observe(batch), None
        poses, evidence = self.inference.modes(observation, self.anchors, self.search_radius_px)
        if self.scale == "particle":
            settled = self.inference.settle(observation, poses[:, 0])
            scale = amplitude(settled.of_unit_amplitude(torch.ones_like(settled.cross)))
            observation = self.observe(batch, scale)
        return replace(self.inference.estimate(observation, poses, evidence), scale=scale)

    # ----------------------------------------------------------------------------------------------------- drawing

    @torch.no_grad()
    def render(self, content: Content, box: int | None = None) -> Tensor:
        """See `ParticleVAE.render`; poses are those of the common frame, as they are reported."""
        raw = self.gauge.out_of_common(Poses(content.theta_rad, content.shift_px), content.z)
        box = box or self.images.box
        turned = self.basis.rotate(self.decoder(content.z), raw.theta_rad)
        images = self.pictures(turned, box)
        plane = FourierPlane(box).to(images.device)
        moved = plane.move_back(plane.transform(images), -raw.shift_px * (box / self.images.box))
        return plane.images(moved)[:, None]

    def pictures(self, coefficients: Tensor, box: int | None = None) -> Tensor:
        """Images [..., box, box] of coefficients [..., 2 R] for the eye: without whitening, black at the edge of the disk.

        No background level is known; the one that an empty surrounding has is put in its place.
        """
        return self._levelled(self.spectra.unwhitened(self.basis.draw(coefficients, box or self.images.box)))

    def _levelled(self, images: Tensor) -> Tensor:
        """Images [..., box, box] with zero, on average, at the edge of the disk."""
        box = images.shape[-1]
        x, y = geometry.pixel_grid(box)
        radius = torch.from_numpy(np.hypot(x, y)).to(images.device) / (self.basis.radius_px * box / self.images.box)
        edge = (radius > EDGE) & (radius <= 1)
        return images - images[..., edge].mean(-1)[..., None, None] * (radius <= 1)

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
        return self.search.canonical(self.plane.transform(self.basis.images(contents)), poses)


def amplitude(match: Tensor) -> Tensor:
    """Most probable amplitudes [n] given `Nearby.of_unit_amplitude` [n, 2], or sums of it over alike particles; prior N(1, 0.3^2)."""
    prior = SCALE_SD**-2
    cross, norm = match.unbind(-1)
    return ((cross + prior) / (norm + prior)).clamp(0.2, 5.0)


def disk_radius(images: ImageSpec) -> float:
    """Radius of the disk that the basis lives on: the box's own, so that a shifted particle stays in it."""
    return images.box / 2 - 0.5
