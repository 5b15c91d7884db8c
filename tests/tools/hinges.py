"""Small steerable models, and noisy images of a hinge for them."""

import numpy as np
import torch

from emspatialvae.config import ModelConfig
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.simulation.stack import clean_image, hinge_object

BOX = 24
SPEC = ImageSpec(BOX, 10.8, shift_prior_px=1.5, max_shift_px=5.0)
SMALL = {"hidden": 24, "encoder_hidden": 24}
TWO = {"z_dim": 2, **SMALL}
CONFIGS = {
    "coefficients": ModelConfig(**TWO),
    "spatial": ModelConfig(decoder="spatial", **TWO),
    "spatial, squared, bilinear": ModelConfig(decoder="spatial", squared_coordinates=True, bilinear=True, **TWO),
    "z1": ModelConfig(z_dim=1, **SMALL),
    "z5, residual, silu": ModelConfig(z_dim=5, residual=True, activation="silu", layers=3, encoder_layers=3, **SMALL),
    "no rotation": ModelConfig(rotate=False, **TWO),
    "no shift": ModelConfig(translate=False, **TWO),
    "fixed pose": ModelConfig(rotate=False, translate=False, **TWO),
}


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy_hinges(n: int = 300, seed: int = 0, box: int = BOX) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pose = Pose2D(rng.uniform(-np.pi, np.pi, n), rng.normal(size=(n, 2)))
    images = clean_image(hinge_object(), rng.uniform(-1, 1, n), pose, box)
    return (images / images.std() + rng.normal(size=images.shape)).astype(np.float32)
