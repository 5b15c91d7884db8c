"""`SpatialVAE`: encoder, spatial decoder and likelihood put together, with its evidence lower bound."""

import math

import torch
from torch import Tensor

from emspatialvae.config import ModelConfig
from emspatialvae.imaging import geometry, masks
from emspatialvae.model.batch import Batch
from emspatialvae.model.coordinate.decoder import Decoder, SpatialDecoder, VanillaDecoder
from emspatialvae.model.coordinate.encoder import MlpEncoder
from emspatialvae.model.coordinate.likelihood import build_likelihood
from emspatialvae.model.distributions import AmortisedPosterior, LatentAndPose, Prior
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.model.interface import Elbo, Estimate, ParticleVAE


class SpatialVAE(ParticleVAE):
    """``y(p) = f(R(-theta) (p - shift), z) + noise`` with an amortised posterior over z, theta and shift.

    Bepler, Zhong, Kelley, Brignole, Berger, NeurIPS 2019, arXiv 1909.11663; eq. 4 is `elbo`.
    """

    points: Tensor
    mask: Tensor
    decoder: Decoder

    def __init__(self, config: ModelConfig, images: ImageSpec) -> None:
        super().__init__()
        self.images = images
        self.prior = Prior(config.theta_prior_rad, images.shift_prior_px, config.theta_kl)
        x, y = geometry.pixel_grid(images.box)
        mask = torch.from_numpy(masks.circular_mask(images.box, images.mask_radius_px))
        self.register_buffer("points", torch.from_numpy(geometry.in_half_boxes(x, y)).float(), persistent=False)
        self.register_buffer("mask", mask.flatten(), persistent=False)
        self.likelihood = build_likelihood(config.noise, images.channels, config.non_negative)
        assert config.z_dim is not None  # `config.resolved` says how many
        self.decoder = _build_decoder(config, config.z_dim, self.likelihood.outputs, int(mask.sum()))
        posed = config.decoder != "vanilla"
        self.encoder = MlpEncoder(
            mask,
            images.channels,
            config.z_dim,
            rotate=config.rotate and posed,
            translate=config.translate and posed,
            hidden=config.encoder_hidden,
            layers=config.encoder_layers,
            shift_scale_px=images.shift_prior_px,
            max_shift_px=images.max_shift_px,
            pose_start_sd=config.pose_start_sd,
            canonical_z=config.z_view == "canonical",
            activation=config.activation,
            residual=config.residual,
        )

    @property
    def z_dim(self) -> int:
        """Number of latent coordinates."""
        return self.encoder.z_dim

    @property
    def floats_per_particle(self) -> int:
        """Size of the widest hidden layer for one particle."""
        decoder = self.decoder
        pixels = int(self.mask.sum())
        return pixels * (decoder.from_points.out_features if isinstance(decoder, SpatialDecoder) else 1)

    def decode(self, content: LatentAndPose) -> Tensor:
        """Likelihood parameters at the pixels within the mask; shape [n, p, outputs]."""
        return self.decoder(self._object_points(self.points[self.mask], content), content.z)

    def elbo(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,
        *,
        turn_rad: Tensor | None = None,
        freeze_z: bool = False,
    ) -> Elbo:
        """One-sample estimate of eq. 4; shapes [n].

        Parameters
        ----------
        generator
            Source of the noise, on the CPU.
        turn_rad
            Rotation augmentation: how far each image is turned before the encoder looks; shape [n].
        freeze_z
            Hold z at zero and leave its KL out, so that the consensus is aligned first.
        """
        images = batch.images
        posterior: AmortisedPosterior = self.encoder(images, turn_rad)
        content, kl = posterior.rsample(generator), posterior.kl(self.prior)
        if freeze_z:
            content = LatentAndPose(torch.zeros_like(content.z), content.theta_rad, content.shift_px)
        log_likelihood = self.likelihood.log_prob(self.decode(content), self._pixels(images))
        kl_z = torch.zeros_like(kl.z) if freeze_z else kl.z
        return Elbo(log_likelihood - kl_z - kl.theta - kl.shift, kl_z, kl.theta, kl.shift)

    @torch.no_grad()
    def infer(self, batch: Batch, turns: int = 1) -> Estimate:
        """Posterior means of n particles.

        The amortised pose jumps somewhere on the circle, because no continuous function of the image can be an angle; there it is
        wrong. So the encoder looks at each image turned by ``turns`` angles and, per particle, the answer with the highest
        ``log p(y | mean) - KL`` is kept.
        """
        images = batch.images
        best: tuple[Tensor, ...] | None = None
        for k in range(turns):
            turn_rad = images.new_full((len(images),), 2 * math.pi * k / turns)
            posterior: AmortisedPosterior = self.encoder(images, turn_rad if k else None)
            mean, sd, kl = posterior.mean, posterior.sd, posterior.kl(self.prior)
            fit = self.likelihood.log_prob(self.decode(mean), self._pixels(images))
            answer = (fit - kl.z - kl.theta - kl.shift, fit, *vars(mean).values(), *vars(sd).values())
            if best is None:
                best = answer
            else:
                better = answer[0] > best[0]
                best = tuple(_choose(better, new, old) for new, old in zip(answer, best, strict=True))
        assert best is not None
        return Estimate(mean=LatentAndPose(*best[2:5]), sd=LatentAndPose(*best[5:8]), log_likelihood=best[1])

    @torch.no_grad()
    def render(self, content: LatentAndPose, box: int | None = None) -> Tensor:
        """Draw particles at any pose and sampling; shape [n, channels, box, box].

        ``box`` pixels cover the field of view of the training images [default: their own box].
        """
        box = box or self.images.box
        if isinstance(self.decoder, VanillaDecoder):
            return self._render_masked(content)
        x, y = geometry.pixel_grid(box)
        points = torch.from_numpy(geometry.in_half_boxes(x, y)).to(self.points)
        output = self.decoder(self._object_points(points, content), content.z)
        return self.likelihood.mean(output.float()).transpose(1, 2).unflatten(2, (box, box))

    def _render_masked(self, content: LatentAndPose) -> Tensor:
        mean = self.likelihood.mean(self.decode(content).float()).transpose(1, 2)
        canvas = mean.new_zeros(*mean.shape[:2], self.mask.numel())
        canvas[:, :, self.mask] = mean
        return canvas.unflatten(2, (self.images.box, self.images.box))

    def _pixels(self, images: Tensor) -> Tensor:
        """The pixels within the mask; shape [n, p, channels]."""
        return images.flatten(2)[:, :, self.mask].transpose(1, 2)

    def _object_points(self, points: Tensor, content: LatentAndPose) -> Tensor:
        """Where image points [p, 2] look in the object, for each particle; shape [n, p, 2], in half boxes."""
        if isinstance(self.decoder, VanillaDecoder):
            return points.expand(len(content.z), -1, -1)
        cos, sin = torch.cos(content.theta_rad)[:, None], torch.sin(content.theta_rad)[:, None]
        shift = content.shift_px * (2 / self.images.box)
        return torch.stack(
            geometry.image_to_object_xy(points[:, 0], points[:, 1], cos, sin, shift[:, :1], shift[:, 1:]), -1
        )


def _choose(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(better.view(-1, *[1] * (new.dim() - 1)), new, old)


def _build_decoder(config: ModelConfig, z_dim: int, outputs: int, pixels: int) -> Decoder:
    if config.decoder == "vanilla":
        return VanillaDecoder(
            z_dim,
            outputs,
            pixels=pixels,
            hidden=config.hidden,
            layers=config.layers,
            activation=config.activation,
            residual=config.residual,
        )
    return SpatialDecoder(
        z_dim,
        outputs,
        hidden=config.hidden,
        layers=config.layers,
        activation=config.activation,
        residual=config.residual,
        squared_coordinates=config.squared_coordinates,
        bilinear=config.bilinear,
        start_detail=config.start_detail,
    )
