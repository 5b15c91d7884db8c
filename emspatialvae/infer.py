"""From a trained model to what is known of each particle."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emspatialvae import compute, geometry
from emspatialvae.analysis.junk import junk_probability
from emspatialvae.config import TrainConfig
from emspatialvae.errors import RunFolderError
from emspatialvae.geometry import Floats, Pose2D
from emspatialvae.model.batch import Batch
from emspatialvae.model.engines import blank_model
from emspatialvae.model.interface import Estimate, ParticleVAE
from emspatialvae.prepare import Portion, ahead
from emspatialvae.run import RunDir, load_state


@dataclass(frozen=True, eq=False)
class Latents:
    """z, theta and shift of n particles, in the order of their metadata file."""

    names: NDArray[Any]
    """[n]"""
    used: NDArray[np.bool_]
    """[n]; False for images that could not be used, or of which the model says what is no number: theirs are zero."""
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
    peak_weight: Floats | None = None
    """[n]; probability that the pose lies in the right mode, 0 to 1. None where the model knows one mode only."""

    misfit: Floats | None = None
    """[n]; what the image leaves unexplained beyond noise, in s.d. of the latter: about 0 for a particle, high for junk."""
    junk: Floats | None = None
    """[n]; probability of being junk, 0 to 1, judged against the other particles (`emspatialvae.analysis.junk`)."""
    scale: Floats | None = None
    """[n]; amplitude of each particle (``--scale particle``)."""
    class_number: NDArray[np.int64] | None = None
    """[n]; from 1, 0 for images that could not be used. None until `emsvae classes` has made classes."""
    class_posterior: Floats | None = None
    """[n]; probability of that class, given z and its uncertainty."""
    class_pose: Pose2D | None = None
    """n poses that align each particle on the average of its class, where the run has no common frame; shifts in prepared pixels."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def reported_pose(self) -> Pose2D:
        """What is written to STAR and .cs files: poses on the class averages where there are such, else `pose`."""
        return self.pose if self.class_pose is None else self.class_pose

    def __getitem__(self, rows: Any) -> "Latents":
        whole = {"pixel_size_A", *(key for key, value in vars(self).items() if value is None)}
        return Latents(**{key: value if key in whole else value[rows] for key, value in vars(self).items()})


def load_model(run: RunDir) -> ParticleVAE:
    """The trained model of a run.

    Raises
    ------
    RunFolderError
        The checkpoint is missing, damaged, or of another model.
    """
    manifest = run.manifest
    state = run.load_checkpoint()["model"]
    try:
        model = blank_model(manifest.config.model, manifest.images, state)
    except KeyError as error:
        raise RunFolderError(
            f"{run.path / 'checkpoint.pt'} belongs to another engine (it has no {error}); train again"
        ) from None
    load_state(model, state, run.path)
    return model.eval()


def infer(
    model: ParticleVAE,
    portions: Iterable[Portion],
    names: NDArray[Any],
    pixel_size_A: float,
    config: TrainConfig,
    given: Pose2D | None = None,
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
    given
        Poses that are known for certain, for a model that was trained with such (``--poses-fixed``); n, in prepared pixels.
    """
    device = compute.pick_device(config.device)
    dtype = compute.pick_precision(config.precision, device) if model.half_precision else torch.float32
    model = model.to(device).eval()
    part = compute.part_size(max(config.batch_size or 256, 256), model.floats_per_particle, device, dtype)
    n = len(names)
    columns: dict[str, Any] = {name: np.zeros((n, *shape)) for name, shape in _column_shapes(model.z_dim).items()}
    used = np.zeros(n, dtype=np.bool_)

    def parts() -> Iterator[Portion]:
        for portion in portions:
            used[portion.rows] = portion.usable
            good = portion[portion.usable]
            yield from (good[start : start + part] for start in range(0, len(good), part))

    def look(some: Portion) -> tuple[NDArray[np.int64], dict[str, torch.Tensor]]:
        batch = Batch.of(some.images, some.group, some.ctf_power)
        batch = (batch if given is None else batch.at(given[some.rows])).to(device)
        with compute.matmul_precision(device, dtype):
            return some.rows, _columns_of(model.infer(batch, config.infer_turns))

    with compute.side_by_side(device) as workers:
        for rows, found in ahead(look, parts(), workers):
            for name, values in found.items():
                if name not in columns:
                    columns[name] = np.zeros((n, *values.shape[1:]))
                columns[name][rows] = values.float().cpu().numpy()
    lost = ~np.all([np.isfinite(values).reshape(n, -1).all(1) for values in columns.values()], axis=0)
    used &= ~lost
    for values in columns.values():
        values[lost] = 0
    pose = Pose2D(geometry.wrap_rad(columns.pop("theta_rad")), columns.pop("shift_px"))
    if given is not None:  # to the last digit; 0 for images that could not be used
        pose = Pose2D(geometry.wrap_rad(used * given.theta_rad), used[:, None] * given.shift_px)
    latents = Latents(names=names, used=used, pose=pose, pixel_size_A=pixel_size_A, **columns)
    return replace(latents, junk=_junk(latents))


def _junk(latents: Latents) -> Floats | None:
    """Probabilities of junk [n]; None of an engine that does not say how much of an image its model leaves unexplained."""
    if latents.misfit is None or latents.peak_weight is None:
        return None
    some, out = latents[latents.used], np.zeros(len(latents))
    if not len(some):
        return out
    assert some.misfit is not None
    assert some.peak_weight is not None
    out[latents.used] = junk_probability(some.misfit, some.log_likelihood, some.z, some.theta_sd_rad, some.peak_weight)
    return out


def _columns_of(estimate: Estimate) -> dict[str, torch.Tensor]:
    """What an estimate holds, under the names of `Latents` and of its `Pose2D`; what it does not know is left out."""
    columns = {
        "z": estimate.mean.z,
        "z_sd": estimate.sd.z,
        "theta_rad": estimate.mean.theta_rad,
        "theta_sd_rad": estimate.sd.theta_rad,
        "shift_px": estimate.mean.shift_px,
        "shift_sd_px": estimate.sd.shift_px,
        "log_likelihood": estimate.log_likelihood,
        "peak_weight": estimate.peak_weight,
        "misfit": estimate.misfit,
        "scale": estimate.scale,
    }
    return {name: values for name, values in columns.items() if values is not None}


def _column_shapes(z_dim: int) -> dict[str, tuple[int, ...]]:
    """The columns that are always there, even if no image could be used: shape of one particle's entry."""
    z = dict.fromkeys(("z", "z_sd"), (z_dim,))
    shift = dict.fromkeys(("shift_px", "shift_sd_px"), (2,))
    return {**z, **shift, **dict.fromkeys(("theta_rad", "theta_sd_rad", "log_likelihood"), ())}
