"""Decoders of the steerable engine: latent z to the coefficients of the canonical image."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from emspatialvae.config import ModelConfig
from emspatialvae.imaging import geometry, masks
from emspatialvae.model.coordinate.decoder import SpatialDecoder
from emspatialvae.model.distributions import DiagonalGaussian
from emspatialvae.model.layers import ACTIVATIONS, Activation, hidden_layers
from emspatialvae.model.steerable.basis import SteerableBasis

START_SPREAD = 0.01
"""Scale of what z changes before training."""
FIT_STEPS = 300


class CanonicalDecoder(nn.Module, ABC):
    """z [..., z_dim] to coefficients [..., 2 R] in a steerable basis: a spatial function that can be drawn at any pose."""

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """Decode."""

    def with_slopes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients [n, 2 R] of z [n, d] and their derivatives [n, d, 2 R] by each coordinate."""
        n, d = z.shape
        many = z[:, None].expand(n, d, d).contiguous()
        along = torch.eye(d, dtype=z.dtype, device=z.device).expand(n, d, d).contiguous()
        drawn, slopes = torch.func.jvp(self.forward, (many,), (along,))[:2]
        return drawn[:, 0], slopes

    @abstractmethod
    def start_from(self, coefficients: Tensor, generator: torch.Generator | None = None) -> None:
        """Make every z mean (nearly) the image of the given coefficients [2 R]: the consensus, before z is learned."""


class CoefficientDecoder(CanonicalDecoder):
    """An MLP whose outputs are the coefficients."""

    live: Tensor

    def __init__(
        self, basis: SteerableBasis, z_dim: int, *, hidden: int, layers: int, activation: Activation, residual: bool
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(z_dim, hidden),
            ACTIVATIONS[activation](),
            *hidden_layers(hidden, layers - 1, activation, residual),
        )
        self.output = nn.Linear(hidden, 2 * basis.size)
        # Order 0 has no imaginary part.
        self.register_buffer("live", basis.live, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """See `CanonicalDecoder`."""
        return self.output(self.layers(z)) * self.live

    def with_slopes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `CanonicalDecoder`: layer by layer, where these are plain ones."""
        h, slopes = z, torch.eye(z.shape[1], dtype=z.dtype, device=z.device).expand(len(z), -1, -1)
        for layer in [*self.layers, self.output]:
            if isinstance(layer, nn.Linear):
                h, slopes = layer(h), slopes @ layer.weight.T
            elif isinstance(layer, nn.Tanh):
                h = torch.tanh(h)
                slopes = slopes * (1 - h[:, None] ** 2)
            else:
                return super().with_slopes(z)
        return h * self.live, slopes * self.live

    def start_from(self, coefficients: Tensor, generator: torch.Generator | None = None) -> None:
        """See `CanonicalDecoder`."""
        with torch.no_grad():
            self.output.bias.copy_(coefficients)
            noise = torch.randn(self.output.weight.shape, generator=generator)
            self.output.weight.copy_(START_SPREAD * noise)


class ProjectedDecoder(CanonicalDecoder):
    """The coordinate decoder of the paper, drawn on the pixels of the disk and projected onto the basis."""

    points: Tensor
    analysis: Tensor

    def __init__(self, basis: SteerableBasis, decoder: SpatialDecoder, points: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("points", points[mask], persistent=False)
        self.register_buffer("analysis", basis.vectors[:, mask].T.contiguous(), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """See `CanonicalDecoder`."""
        flat = z.reshape(-1, z.shape[-1])
        drawn = self.decoder(self.points.expand(len(flat), -1, -1), flat)[..., 0]
        return (drawn.float() @ self.analysis).unflatten(0, z.shape[:-1])

    def start_from(self, coefficients: Tensor, generator: torch.Generator | None = None) -> None:
        """See `CanonicalDecoder`: by gradient descent, because no layer holds the image itself."""
        optimiser = torch.optim.Adam(self.parameters(), lr=3e-3)
        with torch.enable_grad():
            for _ in range(FIT_STEPS):
                z = torch.randn(4, self.decoder.from_z.in_features, generator=generator).to(coefficients)
                loss = ((self(z) - coefficients) ** 2).sum(1).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()


class CoefficientEncoder(nn.Module):
    """``q(z | y)`` from the standardised coefficients of the canonicalised image."""

    scale: Tensor

    def __init__(
        self, inputs: int, z_dim: int, *, hidden: int, layers: int, activation: Activation, residual: bool
    ) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(inputs))
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            ACTIVATIONS[activation](),
            *hidden_layers(hidden, layers - 1, activation, residual),
            nn.Linear(hidden, 2 * z_dim),
        )

    @torch.no_grad()
    def copy_shared(self, old: "CoefficientEncoder") -> None:
        """Take the weights of an encoder of more or fewer latents; of latents that it does not know this one says N(0, 1)."""
        self.scale.copy_(old.scale)
        for ours, theirs in zip(self.layers.parameters(), old.layers.parameters(), strict=True):
            if ours.shape == theirs.shape:
                ours.copy_(theirs)
                continue
            # The last layer: means, then logarithms of s.d.
            ours.zero_()
            mine, others = ours.unflatten(0, (2, -1)), theirs.unflatten(0, (2, -1))
            shared = min(mine.shape[1], others.shape[1])
            mine[:, :shared] = others[:, :shared]

    def forward(self, upright: Tensor) -> DiagonalGaussian:
        """Look at coefficients [n, 2 R]."""
        mean, log_sd = self.layers(upright * self.scale).chunk(2, -1)
        return DiagonalGaussian(mean, log_sd.clamp(math.log(1e-3), math.log(3.0)))


def canonical_decoder(config: ModelConfig, basis: SteerableBasis, z_dim: int) -> CanonicalDecoder:
    """The decoder that the settings ask for, of ``z_dim`` latent coordinates."""
    sizes = {
        "hidden": config.hidden,
        "layers": config.layers,
        "activation": config.activation,
        "residual": config.residual,
    }
    if config.decoder != "spatial":
        return CoefficientDecoder(basis, z_dim, **sizes)
    spatial = SpatialDecoder(
        z_dim,
        1,
        squared_coordinates=config.squared_coordinates,
        bilinear=config.bilinear,
        start_detail=config.start_detail,
        **sizes,
    )
    x, y = geometry.pixel_grid(basis.box)
    points = torch.from_numpy(geometry.in_half_boxes(x, y)).float()
    mask = torch.from_numpy(masks.circular_mask(basis.box, basis.radius_px)).flatten()
    return ProjectedDecoder(basis, spatial, points, mask)
