"""Views of a 3-D object told apart, by a run or by any program's STAR file, against the true Euler angles."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.analysis.accuracy.junk import JunkScore, auc_of_low
from emspatialvae.analysis.accuracy.views import ViewScores, rotations_left, view_scores
from emspatialvae.errors import ParticleFileError
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import from_relion
from emspatialvae.io.image_names import parse_image_name
from emspatialvae.io.star import StarBlock, StarFile
from emspatialvae.particles.columns import ANGLE, CLASS, SCORES, USED, kept_apart
from emspatialvae.particles.read_star import particle_block
from emspatialvae.results.read_run import latents_of
from emspatialvae.results.run_folder import RunDir
from emspatialvae.results.summary import ACTIVE_VARIANCE

VIEW_LABELS = ("rlnAngleRot", "rlnAngleTilt")
JUNK_LABEL = "emsvaeTrueJunk"


@dataclass(frozen=True, eq=False)
class ViewsEvaluation:
    """Views that were put together, and junk that was told apart.

    Attributes
    ----------
    views
        Of the particles that are no junk.
    junk_auc
        How well a high misfit tells junk from particles; None where there is no junk, or no misfit.
    junk
        How good the reported probability of being junk is; None where none is reported.
    notes
        What a reader should know.
    """

    views: ViewScores
    junk_auc: float | None = None
    junk: JunkScore | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values that JSON can hold."""
        junk = None if self.junk is None else asdict(self.junk)
        return {**self.views.as_dict(), "junk_auc": self.junk_auc, "junk": junk, "notes": list(self.notes)}

    def table(self) -> str:
        """The same for a person."""
        lines = [self.views.table()]
        if self.junk_auc is not None:
            lines.append(f"junk: area under the ROC curve of the misfit {self.junk_auc:.3f} (left out above)")
        lines += [] if self.junk is None else [self.junk.table()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True, eq=False)
class _Reported:
    """What a run or a STAR file says of n particles that were used."""

    names: list[str]
    theta_rad: Floats
    class_number: NDArray[Any] | None
    z: Floats
    """[n, d]; d = 0 where there is none."""
    peak_weight: Floats | None
    junk: Floats | None
    misfit: Floats | None = None
    on_class_rad: Floats | None = None
    """Angles that lay particles on the average of their class, where they differ from ``theta_rad``."""


def has_views(truth: Path) -> bool:
    """Whether a STAR file holds views of a 3-D object: Euler angles rot and tilt that are not all zero."""
    block = _truth_block(truth)
    if not set(VIEW_LABELS) <= set(block.labels):
        return False
    return any(np.any(column != 0) for column in block.read(numbers=VIEW_LABELS)[1].values())


def evaluate_views(path: Path, truth: Path) -> ViewsEvaluation:
    """Compare the classes, the in-plane angles and z of ``path`` with the true views, joined on the image names.

    Parameters
    ----------
    path
        A run folder, or a STAR file with rlnAnglePsi and, as a rule, rlnClassNumber. In one with neither classes nor z all particles
        are one class.
    truth
        STAR file with rlnAngleRot, rlnAngleTilt and rlnAnglePsi; particles with ``emsvaeTrueJunk`` are left out of the views.

    Raises
    ------
    ParticleFileError
        A column is missing, or particles cannot be joined.
    """
    block = _truth_block(truth)
    _need(block, *VIEW_LABELS, ANGLE)
    optional = [JUNK_LABEL] if JUNK_LABEL in block.labels else []
    texts, numbers = block.read(["rlnImageName"], [*VIEW_LABELS, ANGLE, *optional])
    found = _of_star(path) if path.suffix == ".star" else _of_run(path)
    rows = joined_rows(found.names, texts["rlnImageName"], path, truth)
    is_junk = numbers.get(JUNK_LABEL, np.zeros(block.n_rows))[rows] != 0
    real = np.flatnonzero(~is_junk)
    if len(real) < 2:
        raise ParticleFileError(f"{truth}: fewer than two particles of {path} are no junk; there is nothing to compare")
    rot_rad, tilt_rad = (np.radians(numbers[label][rows[real]]) for label in VIEW_LABELS)
    true_rad = from_relion(numbers[ANGLE][rows[real]], np.zeros((len(real), 2)), 1.0).theta_rad
    active = found.z[real].var(0) > ACTIVE_VARIANCE
    z = found.z[real][:, active] if active.any() else found.z[real]
    classes, notes = found.class_number, ()
    if classes is None and path.suffix != ".star":
        notes = ("the run has no classes; `emsvae classes` makes them",)
    elif classes is None and not z.shape[1]:
        classes, notes = np.ones(len(rows)), ("there are no classes; all particles count as one",)
    scores = view_scores(
        rotations_left(rot_rad, tilt_rad, true_rad, found.theta_rad[real]),
        None if classes is None else classes[real],
        z if z.shape[1] else None,
        None if found.peak_weight is None else found.peak_weight[real],
        on_classes=None
        if found.on_class_rad is None
        else rotations_left(rot_rad, tilt_rad, true_rad, found.on_class_rad[real]),
    )
    return ViewsEvaluation(
        scores,
        None if found.misfit is None else auc_of_low(-found.misfit, is_junk),
        None if found.junk is None else JunkScore.of(found.junk, is_junk),
        notes,
    )


def joined_rows(names: list[str], known: list[str], path: Path, truth: Path) -> NDArray[np.int64]:
    """Rows of the truth [n] for the image names of another file [n], by the whole name or, failing that, by N and the stack's own name.

    Raises
    ------
    ParticleFileError
        Some are not in the truth, or a name fits several rows.
    """
    fewest: list[str] = names
    for short in (False, True):
        keys, others = ([_key(name, short) for name in table] for table in (names, known))
        row_of = {key: row for row, key in enumerate(others)}
        missing = [name for name, key in zip(names, keys, strict=True) if key not in row_of]
        if missing:
            fewest = min(fewest, missing, key=len)
            continue
        for where, table, its_names in ((path, keys, names), (truth, others, known)):
            count = Counter(table)
            twice = next((row for row, key in enumerate(table) if count[key] > 1), None)
            if twice is not None:
                raise ParticleFileError(
                    f"{where}: several rows are image {its_names[twice]} (compared by number and {'stack name' if short else 'path'});"
                    " expected each once, because particles are joined on them"
                )
        return np.array([row_of[key] for key in keys], dtype=np.int64)
    raise ParticleFileError(
        f"{truth}: {len(fewest)} of {len(names)} particles of {path} are not in it, such as {fewest[0]}; give the truth of the"
        " same stack"
    )


def _key(name: str, short: bool) -> tuple[int, str]:
    """Number and path of ``N@path``, or its last part only; zeros before N do not matter."""
    number, path = parse_image_name(name)
    return number or 0, PurePosixPath(path).name if short else path


def _of_run(path: Path) -> _Reported:
    run = RunDir(path)
    latents = latents_of(run)
    latents = latents[latents.used]
    return _Reported(
        latents.names.tolist(),
        latents.pose.theta_rad,
        latents.class_number,
        latents.z,
        latents.peak_weight,
        latents.junk,
        latents.misfit,
        None if latents.class_pose is None else latents.class_pose.theta_rad,
    )


def _of_star(path: Path) -> _Reported:
    block = particle_block(StarFile.read(path))
    angle, classes, weight = (
        kept_apart(label) if kept_apart(label) in block.labels else label
        for label in (ANGLE, CLASS, SCORES["peak_weight"].star)
    )
    _need(block, angle)
    z_labels = [label for label in block.labels if label.startswith("emsvaeZ") and label[7:].isdecimal()]
    scores = [classes, weight, SCORES["junk"].star, SCORES["misfit"].star, USED[0]]
    wanted = [angle, *z_labels, *(label for label in scores if label in block.labels)]
    texts, numbers = block.read(["rlnImageName"], wanted)
    used = numbers.get(USED[0], np.ones(block.n_rows)) != 0
    columns = {label: column[used] for label, column in numbers.items()}
    return _Reported(
        [name for name, kept in zip(texts["rlnImageName"], used, strict=True) if kept],
        from_relion(columns[angle], np.zeros((int(used.sum()), 2)), 1.0).theta_rad,
        columns.get(classes),
        np.array([columns[label] for label in z_labels]).reshape(len(z_labels), int(used.sum())).T,
        *(columns.get(label) for label in scores[1:4]),
    )


def _truth_block(truth: Path) -> StarBlock:
    if truth.suffix != ".star" or not truth.is_file():
        raise ParticleFileError(f"--truth {truth}: no such STAR file; `emsvae simulate` writes truth.star")
    return particle_block(StarFile.read(truth))


def _need(block: StarBlock, *wanted: str) -> None:
    missing = [label for label in wanted if label not in block.labels]
    if missing:
        raise ParticleFileError(
            f"{block.path}: no column {missing[0]}; expected {', '.join(wanted)}, so give a file that has been aligned"
        )
