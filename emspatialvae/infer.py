"""From a trained model to what is known of each particle."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emspatialvae import compute, geometry
from emspatialvae.config import TrainConfig
from emspatialvae.geometry import Floats, Pose2D
from emspatialvae.model.spatial_vae import SpatialVAE
from emspatialvae.run import RunDir, load_state

Portion = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]
"""Some of a stack: rows [k], prepared images [k, box, box], usable [k]."""


@dataclass(frozen=True, eq=False)
class Latents:
    """z, theta and shift of n particles, in the order of their metadata file."""

    names: NDArray[Any]
    """[n]"""
    used: NDArray[np.bool_]
    """[n]; False for images that could not be used: their numbers are zero."""
    z: Floats
    """[n, z_dim]"""
    z_sd: Floats
    """[n, z_dim]"""
    pose: Pose2D
    """Shifts in prepared pixels."""
    theta_sd_rad: Floats
    """[n]"""
    shift_sd_px: Floats
    """[n, 2]"""
    log_likelihood: Floats
    """[n], nats"""
    pixel_size_A: float
    """Of the prepared images."""

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Any) -> "Latents":
        return Latents(**{key: value if key == "pixel_size_A" else value[rows] for key, value in vars(self).items()})


def load_model(run: RunDir) -> SpatialVAE:
    """The trained model of a run.

    Raises
    ------
    RunFolderError
        The checkpoint is missing, damaged, or of another model.
    """
    manifest = run.manifest
    model = SpatialVAE(manifest.config.model, manifest.images)
    load_state(model, run.load_checkpoint()["model"], run.path)
    return model.eval()


def infer(
    model: SpatialVAE,
    portions: Iterable[Portion],
    names: NDArray[Any],
    pixel_size_A: float,
    config: TrainConfig,
) -> Latents:
    """Infer z, theta and shift of every particle.

    Parameters
    ----------
    portions
        In any order, each row once: see `emspatialvae.prepare.prepare`.
    names
        Image names in particle order; shape [n].
    pixel_size_A
        Of the prepared images.
    """
    device = compute.pick_device(config.device)
    dtype = compute.pick_precision(config.precision, device)
    model = model.to(device).eval()
    part = compute.part_size(max(config.batch_size, 256), model.floats_per_particle, device, dtype)
    n = len(names)
    table = np.zeros((n, 2 * model.z_dim + 7))
    used = np.zeros(n, dtype=np.bool_)
    for rows, images, usable in portions:
        used[rows] = usable
        rows, images = rows[usable], images[usable]
        for start in range(0, len(rows), part):
            batch = torch.from_numpy(images[start : start + part])[:, None].to(device)
            with compute.matmul_precision(device, dtype):
                estimate = model.infer(batch, config.infer_turns)
            columns = [
                estimate.mean.z,
                estimate.sd.z,
                estimate.mean.theta_rad[:, None],
                estimate.sd.theta_rad[:, None],
                estimate.mean.shift_px,
                estimate.sd.shift_px,
                estimate.log_likelihood[:, None],
            ]
            table[rows[start : start + part]] = torch.cat([c.float() for c in columns], 1).cpu().numpy()
    z, z_sd, theta, theta_sd, shift, shift_sd, fit = np.split(
        table, np.cumsum([model.z_dim, model.z_dim, 1, 1, 2, 2]), axis=1
    )
    return Latents(
        names=names,
        used=used,
        z=z,
        z_sd=z_sd,
        pose=Pose2D(geometry.wrap_rad(theta[:, 0]), shift),
        theta_sd_rad=theta_sd[:, 0],
        shift_sd_px=shift_sd,
        log_likelihood=fit[:, 0],
        pixel_size_A=pixel_size_A,
    )
