"""A checkpoint to go on from with more particles than it was made with."""

from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from emspatialvae.training.particle_table import ParticleTable
from emspatialvae.training.stopping import Progress


def for_more_particles(state: dict[str, Any], z: Tensor) -> dict[str, Any]:
    """The state that a `Trainer` has saved, as the beginning of a training on n particles.

    Weights, optimiser and the number of epochs stay. Whether the ELBO has settled is found anew; the steerable engine searches poses everywhere in
    the first epoch.

    Parameters
    ----------
    state
        As `Trainer.save` writes it.
    z
        Latents where they are known, 0 elsewhere; [n, z_dim].
    """
    before = Progress.of(state["progress"])
    progress = Progress(epoch=before.epoch)
    objective = dict(state["objective"])
    if "particles" in objective:
        table = replace(ParticleTable.zeros(len(z), z.shape[1]), z=z.float())
        objective |= {"particles": table.state_dict(), "searches": sorted({*objective["searches"], before.epoch})}
    return {name: state[name] for name in ("model", "optimiser", "generator")} | {
        "objective": objective,
        "progress": asdict(progress),
    }
