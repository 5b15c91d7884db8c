"""Training of the coordinate engine."""

import math
from typing import Any

import torch

from emspatialvae.config import TrainConfig
from emspatialvae.model.coordinate.vae import SpatialVAE
from emspatialvae.model.device import matmul_precision, part_size
from emspatialvae.model.interface import Elbo
from emspatialvae.training.objective import Load, Objective, Rows


class AmortisedObjective(Objective):
    """The coordinate engine: a network guesses z and pose."""

    model: SpatialVAE

    def __init__(
        self, model: SpatialVAE, load: Load, config: TrainConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.model, self.load, self.config, self.device, self.dtype = model, load, config, device, dtype

    def elbo(
        self, rows: Rows, generator: torch.Generator, *, freeze_z: bool, training: bool, keep: bool = True
    ) -> Elbo:
        """See `Objective`; in training each image is turned by a random angle first."""
        turns = None
        if training and self.config.augment_rotation:
            turns = (2 * math.pi * torch.rand(len(rows), generator=generator)).to(self.device)
        with matmul_precision(self.device, self.dtype):
            return self.model.elbo(self.load(rows), generator, turn_rad=turns, freeze_z=freeze_z)

    def part(self, batch_size: int) -> int:
        """As many as keep a hidden layer in the cache; no more than a rank's share."""
        most = part_size(batch_size, self.model.floats_per_particle, self.device, self.dtype)
        return min(most, -(-batch_size // self.ranks.count))

    def begin_epoch(self, epoch: int) -> None:
        """Nothing to prepare."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing beside the model."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
