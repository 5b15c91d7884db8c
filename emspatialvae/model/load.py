"""The two models that compose the modules of this package, by the name that the configuration gives them."""

from torch import Tensor

from emspatialvae.config import ModelConfig
from emspatialvae.model.coordinate.vae import SpatialVAE
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.model.interface import ParticleVAE
from emspatialvae.model.steerable.vae import SteerableVAE


def blank_model(config: ModelConfig, images: ImageSpec, state: dict[str, Tensor]) -> ParticleVAE:
    """A model into which the state dict of a checkpoint fits.

    Raises
    ------
    KeyError
        The checkpoint is one of the other engine.
    """
    if config.engine == "coordinate":
        return SpatialVAE(config, images)
    return SteerableVAE.of_state(config, images, state)
