"""What the model draws: one latent at a pose, and a map of all of them."""

from typing import TYPE_CHECKING

import numpy as np

from emspatialvae.imaging.arrays import Floats
from napari_emsvae.explorer.pictures.mosaic import Mosaic
from napari_emsvae.explorer.pictures.picture import Image
from napari_emsvae.explorer.run_data import RunData

if TYPE_CHECKING:
    from emspatialvae.analysis.latent_space.manifold import ZMap
    from emspatialvae.imaging.geometry import Pose2D
    from emspatialvae.model.interface import ParticleVAE


def draw(model: "ParticleVAE", z: Floats, pose: "Pose2D") -> Image:
    """What the model draws for one latent z [d] at one pose of the common frame, in prepared pixels, without CTF, of colour the mean; [box, box]."""
    import torch

    from emspatialvae.model.distributions import LatentAndPose
    from emspatialvae.model.render import seen

    latent = LatentAndPose(
        *(torch.from_numpy(np.array(part)).float() for part in (z[None], pose.theta_rad, pose.shift_px))
    )
    with torch.no_grad():
        return seen(model, model.render(latent).mean(1).numpy())[0]


def draw_map(data: RunData, tiles: int) -> "tuple[ZMap, Mosaic]":
    """The map of latent space, ``tiles`` along an axis, and what the model draws there."""
    from emspatialvae.analysis.latent_space import manifold
    from emspatialvae.model.render import canonical

    places = manifold.zmap(data.latents.z[data.used], tiles)
    return places, Mosaic.of(canonical(data.model, places.z), columns=places.shape[1])
