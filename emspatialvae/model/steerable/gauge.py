"""One frame for whatever the decoder draws.

A turn or move of the canonical frame that depends on z leaves the likelihood as it is, so raw poses drift with z. Reported
poses refer to one reference instead: what the decoder draws for each z is registered on the consensus, as a whole or
within a mask, and that small pose, a smooth function of z, is folded into the particle's.
"""

import math

import torch
from torch import Tensor, nn

from emspatialvae.imaging import geometry
from emspatialvae.model.steerable.pose_search import ANGLES_REGISTERED, PoseSearch
from emspatialvae.model.steerable.poses import Poses

NEWTON_STEPS = 12
FIT_STEPS, REMEMBERED_STEPS = 200, 20
"""Of L-BFGS, and how many of them its picture of the curvature is made of: as good as 1,500 steps of Adam, in a third of the time for 4,000
latents and a sixth for few."""


@torch.no_grad()
def register(search: PoseSearch, canonical: Tensor, reference: Tensor, mask: Tensor | None = None) -> Poses:
    """The pose of each image on a reference, by least squares.

    Parameters
    ----------
    canonical, reference
        Coefficients [n, 2 R] and [2 R].
    mask
        Weights [box, box] of pixels in the reference's frame [default: all alike].

    Returns
    -------
    Poses such that ``image(q) ~ reference(R(-theta) (q - shift))``.
    """
    basis, plane = search.basis, search.plane
    device = reference.device
    theta = torch.zeros(len(canonical), device=device)
    if search.rotate:
        angles = 2 * math.pi * torch.arange(ANGLES_REGISTERED, device=device) / ANGLES_REGISTERED
        start = reference if mask is None else basis.coefficients(basis.images(reference) * mask)
        theta = geometry.wrapped(angles[basis.correlate(canonical, start, angles).argmax(1)])
    shift = torch.zeros(len(canonical), 2, device=device)
    slopes = torch.stack([basis.turning(reference), *(g[0] for g in search.gradients(reference[None]))])
    slopes = slopes[[*([0] if search.rotate else []), *([1, 2] if search.translate else [])]]
    if not len(slopes):
        return Poses(theta, shift)
    weighted = slopes if mask is None else basis.coefficients(basis.images(slopes) * mask)
    solve = torch.linalg.inv(slopes @ weighted.T) @ weighted
    transform = plane.transform(basis.images(canonical))
    for _ in range(NEWTON_STEPS):
        upright = search.canonical(transform, Poses(theta, shift))
        step = (upright - reference) @ solve.T
        turn = step[:, 0].clamp(-0.3, 0.3) if search.rotate else torch.zeros_like(theta)
        move = step[:, -2:].clamp(-1, 1) if search.translate else torch.zeros_like(shift)
        cos, sin = torch.cos(theta), torch.sin(theta)
        theta, x, y = geometry.composed_xy(theta, shift[:, 0], shift[:, 1], turn, move[:, 0], move[:, 1], cos, sin)
        shift = torch.stack([x, y], 1)
    return Poses(geometry.wrapped(theta), shift)


class Gauge(nn.Module):
    """(turn, move) of the canonical frame as a smooth function of z, fitted to registrations; zero before.

    ``rotate``, ``translate``: which of the two there is.

    Buffers: ``reference`` [2 R], the consensus that reported poses refer to.
    """

    reference: Tensor
    fitted: Tensor

    def __init__(
        self, z_dim: int, coefficients: int, *, rotate: bool = True, translate: bool = True, hidden: int = 64
    ) -> None:
        super().__init__()
        self.rotate, self.translate = rotate, translate
        self.layers = nn.Sequential(
            nn.Linear(z_dim, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 4)
        )
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.register_buffer("reference", torch.zeros(coefficients))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def forward(self, z: Tensor) -> Poses:
        """The pose of the canonical image of z [..., z_dim] in the common frame."""
        if not self.fitted:
            return Poses(z.new_zeros(z.shape[:-1]), z.new_zeros(*z.shape[:-1], 2))
        cos, sin, x, y = self.layers(z).unbind(-1)
        # What is not inferred is exactly zero, whatever the fit left.
        return Poses(self.rotate * torch.atan2(sin, cos), self.translate * torch.stack([x, y], -1))

    def fit(self, z: Tensor, poses: Poses, seed: int = 0) -> None:
        """Fit the function to registrations ``poses`` of latents z [n, z_dim]."""
        target = torch.cat(
            [torch.cos(poses.theta_rad)[:, None], torch.sin(poses.theta_rad)[:, None], poses.shift_px], 1
        )
        generator = torch.Generator().manual_seed(seed)
        # From the beginning each time: the same latents give the same function, whatever was fitted before.
        for parameter in self.layers.parameters():
            bound = parameter.shape[-1] ** -0.5
            parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
        optimiser = torch.optim.LBFGS(
            self.layers.parameters(),
            max_iter=FIT_STEPS,
            history_size=REMEMBERED_STEPS,
            tolerance_grad=1e-6,
            tolerance_change=1e-8,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimiser.zero_grad()
            # A robust one: images that look alike at two angles may be registered at the wrong one.
            value = nn.functional.smooth_l1_loss(self.layers(z), target, beta=0.2)
            value.backward()
            return value

        with torch.enable_grad():
            for parameter in self.layers.parameters():
                parameter.requires_grad_(True)
            optimiser.step(loss)
        for parameter in self.layers.parameters():
            parameter.requires_grad_(False)
        # Where all registrations agree there is nothing to fit: a model that infers no angle (no shift) gets none of ours either.
        last, same = self.layers[-1], (target == target[0]).all(0)
        assert isinstance(last, nn.Linear)
        last.weight[same], last.bias[same] = 0.0, target[0, same]
        self.fitted.fill_(True)

    def into_common(self, raw: Poses, z: Tensor) -> Poses:
        """Poses of the decoder's own frame for z as poses in the common frame."""
        inner = self(z)
        cos, sin = torch.cos(raw.theta_rad), torch.sin(raw.theta_rad)
        (x, y), (inner_x, inner_y) = raw.shift_px.unbind(-1), inner.shift_px.unbind(-1)
        theta, x, y = geometry.composed_xy(raw.theta_rad, x, y, inner.theta_rad, inner_x, inner_y, cos, sin)
        return Poses(geometry.wrapped(theta), torch.stack([x, y], -1))

    def out_of_common(self, common: Poses, z: Tensor) -> Poses:
        """The inverse of `into_common`."""
        inner = self(z)
        theta = common.theta_rad - inner.theta_rad
        inner_x, inner_y = inner.shift_px.unbind(-1)
        x, y = geometry.rotate_xy(inner_x, inner_y, torch.cos(theta), torch.sin(theta))
        return Poses(geometry.wrapped(theta), common.shift_px - torch.stack([x, y], -1))
