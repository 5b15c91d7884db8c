"""The inference network: from an image to the posterior over z, theta and shift."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emspatialvae.imaging import geometry
from emspatialvae.model.distributions import AmortisedPosterior, DiagonalGaussian
from emspatialvae.model.layers import ACTIVATIONS, Activation, hidden_layers

LOG_SD_RANGE = (math.log(1e-3), math.log(10.0))
"""Of what the network says, in units of radians or of the prior: an odd image must not make the bound infinite."""


def align_images(images: Tensor, theta_rad: Tensor, shift_px: Tensor) -> Tensor:
    """Take poses (theta [n], shift [n, 2] in pixels) out of images [n, c, box, box]; bicubic, zero from outside.

    The differentiable, batched sibling of `emspatialvae.imaging.alignment.align`.
    """
    box = images.shape[-1]
    axis = torch.arange(box, dtype=images.dtype, device=images.device) - box // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    cos, sin, shift_x, shift_y = (
        values[:, None, None] for values in (torch.cos(theta_rad), torch.sin(theta_rad), shift_px[:, 0], shift_px[:, 1])
    )
    at_x, at_y = geometry.object_to_image_xy(x, y, cos, sin, shift_x, shift_y)
    # grid_sample without aligned corners: pixel i sits at (2 i + 1) / box - 1.
    grid = (2 * (torch.stack([at_x, at_y], -1) + box // 2) + 1) / box - 1
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="zeros", align_corners=False)


def turn_images(images: Tensor, turn_rad: Tensor) -> Tensor:
    """Turn the content of images [n, c, box, box] by angles [n] about the pixel ``box // 2``, from +x towards +y."""
    return align_images(images, -turn_rad, images.new_zeros(len(images), 2))


class MlpEncoder(nn.Module):
    """MLPs on the flattened pixels within the mask: amortised inference (section 3.2 of the paper).

    In the paper one network guesses pose and z from the image as it lies. Here z may have a network of its own, which looks at
    the image after the guessed pose was taken out (``canonical_z``): it need not learn what every content looks like at every
    angle, and z cannot hold pose.

    Parameters
    ----------
    mask
        Which pixels it sees; shape [box, box].
    max_shift_px
        The mean of the shift stays within this radius along each axis (infinity: no limit).
    shift_scale_px
        Unit of the shift's outputs; the prior's s.d. is the natural one.
    pose_start_sd
        S.d. of theta (rad) and of the shift (in ``shift_scale_px``) before training [default: about 1, as random weights
        have it].
    """

    mask: Tensor

    def __init__(
        self,
        mask: Tensor,
        channels: int,
        z_dim: int,
        *,
        rotate: bool,
        translate: bool,
        hidden: int,
        layers: int,
        shift_scale_px: float,
        max_shift_px: float = math.inf,
        pose_start_sd: float | None = None,
        canonical_z: bool = False,
        activation: Activation = "tanh",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("mask", mask.flatten(), persistent=False)
        self.z_dim, self.shift_scale_px, self.max_shift_px = z_dim, shift_scale_px, max_shift_px
        pose_parts = [int(rotate), 2 * int(translate)]
        alone = canonical_z and sum(pose_parts) > 0
        self.parts = [0 if alone else z_dim, *pose_parts]

        def mlp(outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(int(mask.sum()) * channels, hidden),
                ACTIVATIONS[activation](),
                *hidden_layers(hidden, layers - 1, activation, residual),
                nn.Linear(hidden, 2 * outputs),
            )

        self.layers = mlp(sum(self.parts))
        self.z_layers = mlp(z_dim) if alone else None
        if pose_start_sd is not None:
            output = self.layers[-1]
            assert isinstance(output, nn.Linear)
            with torch.no_grad():
                output.bias[sum(self.parts) + self.parts[0] :] = math.log(pose_start_sd)

    def forward(self, images: Tensor, turn_rad: Tensor | None = None) -> AmortisedPosterior:
        """Look at images [n, c, box, box], each turned by an angle [n] first; the posterior is that of the image as given."""
        view = images if turn_rad is None else turn_images(images, turn_rad)
        turn_rad = images.new_zeros(len(images)) if turn_rad is None else turn_rad
        mean, log_sd = self._look(self.layers, view)
        (z, theta, shift), (z_log_sd, theta_log_sd, shift_log_sd) = (
            mean.split(self.parts, 1),
            log_sd.split(self.parts, 1),
        )
        posterior = AmortisedPosterior(
            z=DiagonalGaussian(z, z_log_sd),
            theta=DiagonalGaussian(theta, theta_log_sd) if self.parts[1] else None,
            shift=self._shift(shift, shift_log_sd) if self.parts[2] else None,
            turn_rad=turn_rad,
        )
        if self.z_layers is None:
            return posterior
        # No gradient: z may not pull on the pose to see what it likes.
        with torch.no_grad():
            pose = posterior.mean
            upright = align_images(images, pose.theta_rad, pose.shift_px)
        return replace(posterior, z=DiagonalGaussian(*self._look(self.z_layers, upright)))

    def _look(self, network: nn.Module, view: Tensor) -> tuple[Tensor, Tensor]:
        # One row per image costs nothing beside the decoder's row per pixel, and bfloat16 would round an angle to a degree.
        with torch.autocast(view.device.type, enabled=False):
            mean, log_sd = network(view.flatten(2)[:, :, self.mask].flatten(1)).chunk(2, 1)
        return mean, log_sd.clamp(*LOG_SD_RANGE)

    def _shift(self, mean: Tensor, log_sd: Tensor) -> DiagonalGaussian:
        mean = self.shift_scale_px * mean
        if math.isfinite(self.max_shift_px):
            mean = self.max_shift_px * torch.tanh(mean / self.max_shift_px)
        return DiagonalGaussian(mean, log_sd + math.log(self.shift_scale_px))
