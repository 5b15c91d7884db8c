"""From a trained model to what is known of each particle."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emspatialvae.config import TrainConfig
from emspatialvae.errors import RunFolderError
from emspatialvae.imaging import geometry
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.inference.junk_score import junk_probability
from emspatialvae.jobs.ranks import ALONE, Ranks
from emspatialvae.model.batch import Batch
from emspatialvae.model.device import matmul_precision, part_size, pick_device, pick_precision, side_by_side
from emspatialvae.model.interface import Estimate, ParticleVAE
from emspatialvae.model.load import blank_model
from emspatialvae.preprocess.preparation import Portion, ahead
from emspatialvae.results.checkpoint import load_state
from emspatialvae.results.latents import Latents
from emspatialvae.results.run_folder import RunDir

GPU_PART = 4096
"""Particles that are looked at together on a GPU."""


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
    except (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError) as error:
        # Sizes from config.json that no model has, or that do not fit those of the checkpoint.
        found = " ".join(str(error).split())
        raise RunFolderError(
            f"{run.path / 'checkpoint.pt'} belongs to another model than config.json says ({found[:160]}); train again"
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
    ranks: Ranks = ALONE,
) -> Latents:
    """Infer z, theta and shift of every particle.

    Parameters
    ----------
    portions
        In any order, each row once: see `emspatialvae.preprocess.preparation.prepare`.
    names
        Image names in particle order; shape [n].
    pixel_size_A
        Of the prepared images.
    given
        Poses that are known for certain, for a model that was trained with such (``--poses-fixed``); n, in prepared pixels.
    ranks
        Processes that share the particles: each is given portions of its own, and all return the whole.
    """
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device) if model.half_precision else torch.float32
    model = model.to(device).eval()
    least = 256 if device.type == "cpu" else GPU_PART
    part = part_size(max(config.batch_size or 256, least), model.floats_per_particle, device, dtype)
    n = len(names)
    columns: dict[str, Any] = {name: np.zeros((n, *shape)) for name, shape in _column_shapes(model.z_dim).items()}
    used, seen = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)

    def parts() -> Iterator[Portion]:
        for portion in portions:
            used[portion.rows], seen[portion.rows] = portion.usable, True
            good = portion[portion.usable]
            yield from (good[start : start + part] for start in range(0, len(good), part))

    def look(some: Portion) -> tuple[NDArray[np.int64], dict[str, torch.Tensor]]:
        batch = Batch.of(some.images, some.group, some.ctf_power)
        batch = (batch if given is None else batch.at(given[some.rows])).to(device)
        with matmul_precision(device, dtype):
            return some.rows, _columns_of(model.infer(batch, config.infer_turns))

    with side_by_side(device) as workers:
        for rows, found in ahead(look, parts(), workers):
            for name, values in found.items():
                if name not in columns:
                    columns[name] = np.zeros((n, *values.shape[1:]))
                columns[name][rows] = values.float().cpu().numpy()
    if ranks.count > 1:
        own = np.flatnonzero(seen)
        for rows, usable, found in ranks.exchanged((own, used[own], {k: v[own] for k, v in columns.items()})):
            used[rows] = usable
            for name, values in found.items():
                columns.setdefault(name, np.zeros((n, *values.shape[1:])))[rows] = values
    lost = ~np.all([np.isfinite(values).reshape(n, -1).all(1) for values in columns.values()], axis=0)
    used &= ~lost
    for values in columns.values():
        values[lost] = 0
    pose = Pose2D(geometry.wrap_rad(columns.pop("theta_rad")), columns.pop("shift_px"))
    if given is not None:  # to the last digit; 0 for images that could not be used
        pose = Pose2D(geometry.wrap_rad(used * given.theta_rad), used[:, None] * given.shift_px)
    latents = Latents(names=names, used=used, pose=pose, pixel_size_A=pixel_size_A, **columns)
    return judged(latents)


def judged(latents: Latents) -> Latents:
    """With probabilities of junk, which depend on what the other particles are: to be found anew when some are added."""
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
