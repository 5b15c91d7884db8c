"""A run against a known truth, with the Cramer-Rao bound and the oracle beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emspatialvae import export
from emspatialvae.analysis.metrics import Evaluation, evaluate_latents
from emspatialvae.config import InputConfig
from emspatialvae.errors import ParticleFileError
from emspatialvae.geometry import Floats, Pose2D
from emspatialvae.io.star import StarFile
from emspatialvae.loading import load_particles
from emspatialvae.oracle import oracle_of_stack
from emspatialvae.run import RunDir
from emspatialvae.simulate import load_simulation
from emspatialvae.sources import particle_block


@dataclass(frozen=True, eq=False)
class Judged:
    """An evaluation and the yardsticks that were at hand."""

    evaluation: Evaluation
    oracle: Evaluation | None
    cramer_rao: dict[str, float] | None


def evaluate_run(path: Path, truth: Path, oracle_particles: int, say: Callable[[str], None] = lambda _: None) -> Judged:
    """Compare a run's results with the truth, joined on the image names.

    Parameters
    ----------
    truth
        STAR file with ``emsvaeTrueZ1..`` and RELION's pose labels, as `emspatialvae.simulate` writes it.
    oracle_particles
        Also run the Bayes oracle on this many particles when ``simulation.json`` lies beside the truth; 0 = do not.
    """
    run = RunDir(path)
    preparation = run.manifest.preparation
    latents = export.read_csv(run.latents, run.manifest.config.model.z_dim, preparation.pixel_size_A)
    true_z, true_pose, names, pixel_size_A = _read_truth(truth)
    row_of = {name: row for row, name in enumerate(names)}
    for table, where in ((names, truth), (latents.names, run.latents)):
        if len(set(table)) != len(table):
            raise ParticleFileError(
                f"{where}: image names repeat; expected each once, because particles are joined on them"
            )
    missing = [name for name in latents.names if name not in row_of]
    if missing:
        raise ParticleFileError(
            f"{truth}: {len(missing)} of {len(latents)} particles of {path} are not in it, the first is {missing[0]}"
        )
    latents = latents[latents.used]
    rows = np.array([row_of[name] for name in latents.names])
    # Errors of shifts are given in pixels of the original images, whatever the box that the model saw.
    pose = latents.pose.scaled(preparation.pixel_size_A / pixel_size_A[rows])
    evaluation = evaluate_latents(latents.z, pose, true_z[rows], true_pose[rows])
    beside = truth.parent / "simulation.json"
    if not beside.is_file():
        return Judged(evaluation, None, None)
    oracle = None
    if oracle_particles > 0:
        say(f"running the oracle on {oracle_particles} particles, some seconds (--oracle-particles 0 leaves it out)")
        some, z, oracle_pose = oracle_of_stack(truth.parent, oracle_particles)
        oracle = evaluate_latents(z, oracle_pose, true_z[some], true_pose[some])
    return Judged(evaluation, oracle, load_simulation(beside).cramer_rao)


def _read_truth(truth: Path) -> tuple[Floats, Pose2D, list[str], Floats]:
    if truth.suffix != ".star" or not truth.is_file():
        raise ParticleFileError(f"--truth {truth}: no such STAR file; `emsvae simulate` writes truth.star")
    stack = load_particles(InputConfig(truth), open_stacks=False)
    assert isinstance(stack.metadata, StarFile)
    block = particle_block(stack.metadata)
    labels = [label for label in block.labels if label.startswith("emsvaeTrueZ")]
    if not labels or stack.pose is None:
        raise ParticleFileError(
            f"{truth}: no emsvaeTrueZ1 or no rlnAnglePsi; expected the truth.star of `emsvae simulate`"
        )
    columns = block.columns(*labels)
    true_z = np.stack([np.array(columns[label], dtype=np.float64) for label in labels], 1)
    return true_z, stack.pose, stack.names.tolist(), stack.pixel_size_A
