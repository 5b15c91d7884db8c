"""A run against a known truth, with the Cramer-Rao bound and the oracle beside it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.analysis.accuracy.junk import JunkScore, auc_of_low
from emspatialvae.analysis.accuracy.metrics import Evaluation, evaluate_latents, matched_accuracy
from emspatialvae.config import InputConfig
from emspatialvae.errors import ParticleFileError
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.io.star import StarFile
from emspatialvae.particles.load import load_particles
from emspatialvae.particles.read_star import particle_block
from emspatialvae.results.latents import Latents
from emspatialvae.results.read_run import latents_of
from emspatialvae.results.run_folder import RunDir
from emspatialvae.simulation.oracle import oracle_of_stack
from emspatialvae.simulation.truth import load_simulation

__all__ = ["JunkScore", "RunEvaluation", "auc_of_low", "evaluate_run"]


CLASS_LABELS = ("emsvaeTrueClass", "rlnClassNumber")
"""Where a truth keeps its classes, the first of them that it has."""


@dataclass(frozen=True, eq=False)
class RunEvaluation:
    """An evaluation and the yardsticks that were at hand.

    Attributes
    ----------
    evaluation, oracle
        Of the particles that are no junk; None where there is no oracle.
    on_the_same
        The run's own on those particles that the oracle looked at: ratios are of these two, or a sample of some hundred would
        decide them.
    cramer_rao
        What simulation.json says.
    junk_auc
        How well a high misfit (of an engine without one: a low log-likelihood) tells junk from particles: the chance that a
        piece of junk has the higher one (0.5: not at all). None where there is no junk in the truth.
    junk
        How good the reported probability of being junk is; None of an engine that reports none.
    """

    evaluation: Evaluation
    oracle: Evaluation | None
    cramer_rao: dict[str, float] | None
    junk_auc: float | None = None
    on_the_same: Evaluation | None = None
    junk: JunkScore | None = None

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values that JSON can hold."""
        oracle, same = (None if e is None else e.as_dict() for e in (self.oracle, self.on_the_same))
        beside = {"oracle": oracle, "on_the_same": same, "cramer_rao": self.cramer_rao, "junk_auc": self.junk_auc}
        return {**self.evaluation.as_dict(), **beside, "junk": None if self.junk is None else asdict(self.junk)}

    def table(self) -> str:
        """The same for a person."""
        text = self.evaluation.table(oracle=self.oracle, cramer_rao=self.cramer_rao, same=self.on_the_same)
        if self.junk_auc is not None:
            text += f"\njunk: area under the ROC curve of the misfit {self.junk_auc:.3f} (left out above)"
        return text if self.junk is None else f"{text}\n{self.junk.table()}"


def evaluate_run(
    path: Path, truth: Path, oracle_particles: int, say: Callable[[str], None] = lambda _: None
) -> RunEvaluation:
    """Compare a run's results with the truth, joined on the image names.

    Parameters
    ----------
    truth
        STAR file with ``emsvaeTrueZ1..``, or classes (`CLASS_LABELS`), and RELION's pose labels, as `emspatialvae.simulation.stack` writes it. Particles with
        ``emsvaeTrueJunk`` are left out of the comparison.
    oracle_particles
        Also run the Bayes oracle on this many particles when ``simulation.json`` lies beside the truth; 0 = do not.
    """
    run = RunDir(path)
    latents = latents_of(run)
    known = _read_truth(truth)
    row_of = {name: row for row, name in enumerate(known.names)}
    for table, where in ((known.names, truth), (latents.names, run.latents)):
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
    junk = known.is_junk[rows]
    if junk.all():
        raise ParticleFileError(f"{truth}: all particles of {path} are junk; there is nothing to compare")
    beside = truth.parent / "simulation.json"
    simulation = load_simulation(beside) if beside.is_file() else None
    symmetry = 1 if simulation is None else simulation.symmetry
    evaluation = _evaluation(latents[~junk], known, rows[~junk], symmetry)
    reported = None if latents.junk is None else JunkScore.of(latents.junk, junk)
    score = latents.log_likelihood if latents.misfit is None else -latents.misfit
    junk_auc = auc_of_low(score, junk)
    if simulation is None:
        return RunEvaluation(evaluation, None, None, junk_auc, junk=reported)
    oracle = same = None
    if oracle_particles > 0 and simulation.has_oracle:
        say(f"running the oracle on {oracle_particles} particles, some seconds (--oracle-particles 0 leaves it out)")
        some, z, oracle_pose = oracle_of_stack(truth.parent, oracle_particles)
        oracle = evaluate_latents(z, oracle_pose, known.z[some], known.pose[some], symmetry=symmetry)
        shared = np.isin(rows, some) & ~junk
        same = _evaluation(latents[shared], known, rows[shared], symmetry) if shared.sum() > 1 else None
    return RunEvaluation(evaluation, oracle, simulation.cramer_rao, junk_auc, same, reported)


@dataclass(frozen=True, eq=False)
class _Known:
    """Columns of truth.star."""

    z: Floats
    pose: Pose2D
    names: list[str]
    pixel_size_A: Floats
    is_junk: NDArray[np.bool_]
    class_name: NDArray[Any] | None
    """[n]; the classes as they are written, None where the truth has none."""


def _evaluation(latents: Latents, known: _Known, rows: NDArray[np.int64], symmetry: int) -> Evaluation:
    # Errors of shifts are given in pixels of the original images, whatever the box that the model saw.
    factor = latents.pixel_size_A / known.pixel_size_A[rows]
    found = evaluate_latents(
        latents.z,
        latents.pose.scaled(factor),
        known.z[rows],
        known.pose[rows],
        symmetry=symmetry,
        z_sd=latents.z_sd,
        theta_sd_rad=latents.theta_sd_rad,
        shift_sd_px=latents.shift_sd_px * factor[:, None],
        peak_weight=latents.peak_weight,
    )
    if latents.class_number is None or known.class_name is None:
        return found
    return replace(found, class_accuracy=matched_accuracy(latents.class_number, known.class_name[rows]))


def _read_truth(truth: Path) -> _Known:
    if truth.suffix != ".star" or not truth.is_file():
        raise ParticleFileError(f"--truth {truth}: no such STAR file; `emsvae simulate` writes truth.star")
    stack = load_particles(InputConfig(truth), open_stacks=False)
    assert isinstance(stack.metadata, StarFile)
    block = particle_block(stack.metadata)
    labels = [label for label in block.labels if label.startswith("emsvaeTrueZ")]
    class_label = next((label for label in CLASS_LABELS if label in block.labels), None)
    if not (labels or class_label) or stack.pose is None:
        raise ParticleFileError(
            f"{truth}: no emsvaeTrueZ1 (nor classes), or no rlnAnglePsi; expected the truth.star of `emsvae simulate`"
        )
    junk_label = "emsvaeTrueJunk"
    others = [label for label in (junk_label, class_label) if label in block.labels]
    columns = block.columns(*labels, *others)
    n = block.n_rows
    true_z = np.array([columns[label] for label in labels], dtype=np.float64).reshape(len(labels), n).T
    is_junk = np.array(columns.get(junk_label, np.zeros(n)), dtype=np.float64) != 0
    classes = None if class_label is None else np.array(columns[class_label])
    return _Known(true_z, stack.pose, stack.names.tolist(), stack.pixel_size_A, is_junk, classes)
