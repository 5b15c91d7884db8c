"""The bound of particles whose pose, z and amplitude are kept in a table, which each visit renews."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emspatialvae.config import TrainConfig
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.model.interface import Elbo
from emspatialvae.model.steerable.groups import shrunk_scales
from emspatialvae.model.steerable.inference import Refined
from emspatialvae.model.steerable.observation import Observation
from emspatialvae.model.steerable.poses import Poses
from emspatialvae.model.steerable.vae import SCALE_SD, SteerableVAE, amplitude
from emspatialvae.training.objective import Load, Objective, Rows
from emspatialvae.training.particle_table import ParticleTable

SEARCH_BATCH, GPU_SEARCH_BATCH = 512, 8192
PARTS_OF_A_BATCH = 4
"""On a CPU. The number is fixed, so that results do not depend on the number of threads."""
DRAWS = 4


class TableObjective(Objective):
    """The steerable engine's bound of a step: around the pose and z that the table holds, which follow what is found.

    Parameters
    ----------
    load
        Gives the batch of some particles.
    n
        Number of all particles.
    start
        Poses to begin with, shifts in prepared pixels; NaN where a particle has none [default: none, everything is searched].
    learn_shift_prior
        Let the s.d. of the shift's prior follow the shifts that are found.
    groups
        Optics group of each particle; [n] [default: all in one].
    """

    def __init__(
        self,
        model: SteerableVAE,
        load: Load,
        n: int,
        config: TrainConfig,
        device: torch.device,
        start: Pose2D | None = None,
        learn_shift_prior: bool = True,
        groups: NDArray[np.int32] | None = None,
    ) -> None:
        self.model, self.load, self.config, self.device = model, load, config, device
        self.learn_shift_prior = learn_shift_prior
        self.z_delay = config.z_delay or 0
        self.table = ParticleTable.zeros(n, model.z_dim)
        self.typical = 1.0
        """Mean amplitude of the particles."""
        self.draws = config.draws or DRAWS
        self.templates = model.anchors.clone()
        """Latents that each step looks from; not the model's own search templates, which are others once a run has ended."""
        self.groups = torch.zeros(n, dtype=torch.long) if groups is None else torch.from_numpy(groups).long()
        self.from_templates = False
        self.given = start is not None
        assert self.given or not model.search.fixed
        self.unset = np.zeros(n, bool) if start is None else start.unset
        if start is not None:
            theta_rad, shift_px = np.array(start.theta_rad, np.float64), np.array(start.shift_px, np.float64)
            theta_rad[self.unset] = shift_px[self.unset] = 0
            self.table.theta_rad.copy_(model.search.rotate * torch.from_numpy(theta_rad).float())
            self.table.shift_px.copy_(model.search.translate * torch.from_numpy(shift_px).float())

    def poses(self, rows: Rows) -> Poses:
        """Of the table."""
        index = torch.from_numpy(rows)
        return Poses(self.table.theta_rad[index].to(self.device), self.table.shift_px[index].to(self.device))

    def z(self, rows: Rows) -> Tensor:
        """Of the table; [k, z_dim]."""
        return self.table.z[torch.from_numpy(rows)].to(self.device)

    def _scale(self, rows: Rows) -> Tensor | None:
        """The amplitudes that particles are looked at with; None where all are alike."""
        index = torch.from_numpy(rows)
        if self.model.scale == "none":
            return None
        if self.model.scale == "group":
            return self.model.group_scale[self.groups[index].to(self.device)]
        return amplitude(self.table.match[index]).to(self.device) / self.typical

    def _observe(self, rows: Rows) -> Observation:
        return self.model.observe(self.load(rows), self._scale(rows))

    def _parts(self, rows: Rows) -> Iterator[Rows]:
        size = SEARCH_BATCH if self.device.type == "cpu" else GPU_SEARCH_BATCH
        yield from np.split(rows, range(size, len(rows), size))

    def _keep(self, rows: Rows, found: Refined) -> None:
        index = torch.from_numpy(rows)
        self.table.theta_rad[index] = found.near.mean.theta_rad.cpu()
        self.table.shift_px[index] = found.near.mean.shift_px.cpu()
        self.table.z[index] = found.z.cpu()
        self.table.evidence[index] = found.log_evidence.cpu()
        scale = self._scale(rows)
        if scale is not None:
            self.table.match[index] = found.near.of_unit_amplitude(scale).cpu()

    def elbo(
        self, rows: Rows, generator: torch.Generator, *, freeze_z: bool, training: bool, keep: bool = True
    ) -> Elbo:
        """See `Objective`; the table follows the posterior."""
        with torch.no_grad():
            observation = self._observe(rows)
        zoom = 1.0
        if training:  # wider and narrower neighbourhoods in turn
            zoom = float(2.0 ** (torch.randint(0, 3, (1,), generator=generator) / 2))
        elbo, found = self.model.elbo(
            observation,
            self.poses(rows),
            self.z(rows),
            generator,
            freeze_z=freeze_z and not self.from_templates,
            jitter=training,
            zoom=zoom,
            draws=self.draws,
            templates=self.templates,
        )
        if keep:
            self._keep(rows, found)
        return elbo

    def part(self, batch_size: int) -> int:
        """A quarter on a CPU, where parts are worked on side by side, all at once elsewhere; no more than a rank's share."""
        parts = 1 if self.device.type != "cpu" else PARTS_OF_A_BATCH
        return -(-batch_size // max(parts, self.ranks.count))

    def remembered(self, rows: Rows) -> Tensor:
        """See `Objective`; rows of the table."""
        return self.table.rows(torch.from_numpy(rows))

    def learn(self, rows: Rows, memory: Tensor) -> None:
        """See `Objective`."""
        self.table.put(torch.from_numpy(rows), memory)

    def update_scales(self, rows: Rows) -> None:
        """Amplitudes average to 1, for the decoder has one of its own; a group's is the most likely one of all its particles."""
        index = torch.from_numpy(rows)
        if self.model.scale == "particle":
            self.typical = float(amplitude(self.table.match[index]).mean())
            return
        groups = len(self.model.group_scale)
        counts = torch.bincount(self.groups[index], minlength=groups)
        cross, norm = torch.zeros(groups, 2).index_add_(0, self.groups[index], self.table.match[index]).unbind(1)
        self.model.group_scale.copy_(shrunk_scales(cross, norm, counts.float(), SCALE_SD))
