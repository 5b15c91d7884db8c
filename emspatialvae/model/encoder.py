"""The inference network: from an image to the posterior over z, theta and shift."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emspatialvae import geometry
from emspatialvae.model.networks import ACTIVATIONS, Activation, hidden_layers
from emspatialvae.model.posterior import AmortisedPosterior, DiagonalGaussian


def turn_images(images: Tensor, turn_rad: Tensor) -> Tensor:
    """Turn the content of images [n, c, box, box] by angles [n], about the pixel ``box // 2``; bicubic.

    What lay at p lies at ``R(turn) p`` afterwards; what comes in from outside is zero.
    """
    box = images.shape[-1]
    axis = torch.arange(box, dtype=images.dtype, device=images.device) - box // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    cos, sin = torch.cos(turn_rad)[:, None, None], torch.sin(turn_rad)[:, None, None]
    at_x, at_y = geometry.rotate_xy(x, y, cos, -sin)
    # grid_sample without aligned corners: pixel i sits at (2 i + 1) / box - 1.
    grid = (2 * (torch.stack([at_x, at_y], -1) + box // 2) + 1) / box - 1
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="zeros", align_corners=False)


class MlpEncoder(nn.Module):
    """An MLP on the flattened pixels within the mask: the paper's amortised inference (section 3.2).

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
        activation: Activation = "tanh",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("mask", mask.flatten(), persistent=False)
        self.parts = [z_dim, int(rotate), 2 * int(translate)]
        self.shift_scale_px, self.max_shift_px = shift_scale_px, max_shift_px
        output = nn.Linear(hidden, 2 * sum(self.parts))
        if pose_start_sd is not None:
            with torch.no_grad():
                output.bias[sum(self.parts) + z_dim :] = math.log(pose_start_sd)
        self.layers = nn.Sequential(
            nn.Linear(int(mask.sum()) * channels, hidden),
            ACTIVATIONS[activation](),
            *hidden_layers(hidden, layers - 1, activation, residual),
            output,
        )

    def forward(self, images: Tensor, turn_rad: Tensor | None = None) -> AmortisedPosterior:
        """Look at images [n, c, box, box], each turned by an angle [n] first; the posterior is that of the image as given."""
        view = images if turn_rad is None else turn_images(images, turn_rad)
        turn_rad = images.new_zeros(len(images)) if turn_rad is None else turn_rad
        # One row per image costs nothing beside the decoder's row per pixel, and bfloat16 would round an angle to a degree.
        with torch.autocast(images.device.type, enabled=False):
            mean, log_sd = self.layers(view.flatten(2)[:, :, self.mask].flatten(1)).chunk(2, 1)
        (z, theta, shift), (z_log_sd, theta_log_sd, shift_log_sd) = (
            mean.split(self.parts, 1),
            log_sd.split(self.parts, 1),
        )
        return AmortisedPosterior(
            z=DiagonalGaussian(z, z_log_sd),
            theta=DiagonalGaussian(theta, theta_log_sd) if self.parts[1] else None,
            shift=self._shift(shift, shift_log_sd) if self.parts[2] else None,
            turn_rad=turn_rad,
        )

    def _shift(self, mean: Tensor, log_sd: Tensor) -> DiagonalGaussian:
        mean = self.shift_scale_px * mean
        if math.isfinite(self.max_shift_px):
            mean = self.max_shift_px * torch.tanh(mean / self.max_shift_px)
        return DiagonalGaussian(mean, log_sd + math.log(self.shift_scale_px))
