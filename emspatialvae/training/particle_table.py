"""What training remembers of each particle between its visits."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from emspatialvae.model.layers import resized_latents


@dataclass(frozen=True)
class ParticleTable:
    """What training knows of each of n particles.

    Attributes
    ----------
    theta_rad, shift_px, z
        Pose and latent; [n], [n, 2] and [n, z_dim].
    match
        How they match what the decoder draws for them (`LocalPosterior.of_unit_amplitude`); [n, 2].
    evidence
        Log evidence at the last visit, in nats; [n].
    """

    theta_rad: Tensor
    shift_px: Tensor
    z: Tensor
    match: Tensor
    evidence: Tensor

    @classmethod
    def zeros(cls, n: int, z_dim: int) -> "ParticleTable":
        """Nothing is known."""
        return cls(torch.zeros(n), torch.zeros(n, 2), torch.zeros(n, z_dim), torch.zeros(n, 2), torch.zeros(n))

    def with_latents(self, z_dim: int) -> "ParticleTable":
        """The same with so many latent coordinates; new ones are 0."""
        return replace(self, z=resized_latents(self.z, z_dim))

    def rows(self, index: Tensor) -> Tensor:
        """All that is known of some particles, as numbers; [k, 6 + z_dim]."""
        columns = [getattr(self, field.name)[index] for field in fields(self)]
        return torch.cat([column if column.dim() == 2 else column[:, None] for column in columns], 1)

    def put(self, index: Tensor, known: Tensor) -> None:
        """Take over what `rows` has given, of the same particles."""
        at = 0
        for field in fields(self):
            column = getattr(self, field.name)
            width = column.shape[1] if column.dim() == 2 else 1
            column[index] = known[:, at : at + width].view_as(column[index])
            at += width

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
