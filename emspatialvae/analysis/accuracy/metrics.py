"""How close estimated latents and poses come to a known truth. Pure functions of arrays.

The truth's canonical frame is one choice among many: an estimator may turn and move its canonical image by any amount
that depends smoothly on z without a change of the likelihood (the *gauge*). Errors are therefore given twice: after
one turn and one offset for all particles, and after the gauge, as a polynomial in the **estimated** z, was taken out.
Whatever is fitted is fitted on one half of the particles and scored on the other, and the other way round, so that
nothing is flattered by its own fit.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from emspatialvae.analysis.accuracy import calibration
from emspatialvae.analysis.accuracy.evaluation import Evaluation
from emspatialvae.analysis.accuracy.pose_errors import PoseErrors, pose_errors
from emspatialvae.analysis.accuracy.regression import CrossFit, Halves, affordable_degree, halves
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import Pose2D

Z_DEGREE = 3
GAUGE_DEGREE = {1: 5}  # by dimension of z; otherwise:
GAUGE_DEGREE_MANY = 3


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson correlation of two [n]; 0 where one of them is constant or n < 3 (nothing is explained)."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(a) < 3 or _is_constant(a) or _is_constant(b):
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation of two [n]; 0 where one of them is constant or n < 3."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(a) < 3 or _is_constant(a) or _is_constant(b):
        return 0.0
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])


def circular_correlation(a_rad: ArrayLike, b_rad: ArrayLike) -> float:
    """Circular correlation of two sets of angles [n] in radians: 1 equal up to a turn, -1 mirrored, 0 unrelated.

    ``sum sin(a - m) sin(b - l) / sqrt(sum sin^2(a - m) sum sin^2(b - l))``, Jammalamadaka and SenGupta, Topics in
    Circular Statistics (2001), section 8.2. Uniform angles have no mean directions m and l; as there, they are then
    chosen so that the numerator is ``n (R(a - b) - R(a + b)) / 2``, R the mean resultant length.
    """
    a, b = np.asarray(a_rad, dtype=np.float64), np.asarray(b_rad, dtype=np.float64)
    difference, total = np.angle(np.exp(1j * (a - b)).mean()), np.angle(np.exp(1j * (a + b)).mean())
    sin_a, sin_b = np.sin(a - (total + difference) / 2), np.sin(b - (total - difference) / 2)
    scale = np.sqrt(np.sum(sin_a**2) * np.sum(sin_b**2))
    return float(np.sum(sin_a * sin_b) / scale) if scale > 0 else 0.0


def best_pearson(z: ArrayLike, truth: ArrayLike) -> float:
    """|Pearson correlation| of a true coordinate [n] with the one coordinate of z [n, d] that follows it best; 0 for d = 0.

    The measure of the spatial-VAE paper for content, where nothing is fitted but the choice: a z that holds the truth in a
    mixture of its coordinates, or bent, scores lower here than in the regressions.
    """
    return max((abs(pearson(coordinate, truth)) for coordinate in _columns(z).T), default=0.0)


def matched_accuracy(labels: ArrayLike, truth: ArrayLike) -> float:
    """Share of n particles in the right class, when each class found stands for one true class, whatever its number.

    The matching that gives the largest share, by the Hungarian method (Kuhn, Naval Research Logistics Quarterly 1955). Where
    the numbers of classes differ, the particles of the classes left over count as wrong.
    """
    found, mine = np.unique(np.asarray(labels), return_inverse=True)
    known, theirs = np.unique(np.asarray(truth), return_inverse=True)
    shared = np.zeros((len(found), len(known)), dtype=np.int64)
    np.add.at(shared, (mine, theirs), 1)
    return float(shared[optimize.linear_sum_assignment(shared, maximize=True)].sum() / len(mine))


def evaluate_latents(
    z: ArrayLike,
    pose: Pose2D,
    true_z: ArrayLike,
    true_pose: Pose2D,
    *,
    symmetry: int = 1,
    z_sd: ArrayLike | None = None,
    theta_sd_rad: ArrayLike | None = None,
    shift_sd_px: ArrayLike | None = None,
    peak_weight: ArrayLike | None = None,
) -> Evaluation:
    """Compare estimates with the truth, row by row.

    Parameters
    ----------
    z, true_z
        Shapes [n, d] and [n, k] ([n] is read as one coordinate). d may be 0.
    pose, true_pose
        n poses each, in the same pixels.
    symmetry
        n-fold symmetry of the true object about its origin: theta is known modulo 2 pi / n.
    z_sd, theta_sd_rad, shift_sd_px
        Reported s.d., shapes [n, d], [n] and [n, 2], to be checked against the errors.
    peak_weight
        Reported probability that the pose lies in the right mode, shape [n].

    Raises
    ------
    ValueError
        Different numbers of particles, none at all, or values that are not finite.
    """
    z, true_z = _columns(z), _columns(true_z)
    _check_rows(z, pose, true_z, true_pose)
    reported = _Reported(
        None if z_sd is None else _checked("z_sd", _columns(z_sd), z.shape),
        _checked("theta_sd_rad", theta_sd_rad, (len(z),)),
        _checked("shift_sd_px", shift_sd_px, (len(z), 2)),
        _checked("peak_weight", peak_weight, (len(z),)),
    )
    return _evaluation(z, pose, true_z, true_pose, symmetry, reported)


@dataclass(frozen=True, eq=False)
class _Reported:
    """What an estimator says of its own errors; shapes as in `evaluate_latents`, None what it does not say."""

    z_sd: Floats | None
    theta_sd_rad: Floats | None
    shift_sd_px: Floats | None
    peak_weight: Floats | None


def _evaluation(
    z: Floats, pose: Pose2D, true_z: Floats, true_pose: Pose2D, symmetry: int, reported: _Reported
) -> Evaluation:
    n, d = z.shape
    z_degree = affordable_degree(Z_DEGREE, d, n)
    wanted = GAUGE_DEGREE.get(d, GAUGE_DEGREE_MANY)
    gauge_degree = affordable_degree(wanted, d, n)
    split = halves(n)
    lines, cubics = ([CrossFit.fit(z, t, q, split) for t in true_z.T] for q in (min(1, z_degree), z_degree))
    cubic_r = tuple(_predicted_r(fit, t, split) for fit, t in zip(cubics, true_z.T, strict=True))
    errors = pose_errors(z, pose, true_pose, gauge_degree, symmetry=symmetry)
    # Reported s.d. are those of the estimate's own frame: there an error of z is none of the angle. So for calibration the gauge
    # is a function of the true z, where that is known.
    content = true_z if true_z.shape[1] else z
    k = content.shape[1]
    own_degree = affordable_degree(GAUGE_DEGREE.get(k, GAUGE_DEGREE_MANY), k, n)
    own = pose_errors(content, pose, true_pose, own_degree, symmetry=symmetry)
    shift_xy, own_xy = (np.stack([e.shift_px.real, e.shift_px.imag], -1) for e in (errors, own))
    found, truth = true_pose.shift_px + shift_xy, true_pose.shift_px
    bins = _weight_bins(errors, reported)
    right = calibration.in_right_mode(own.theta_rad, reported.theta_sd_rad)
    return Evaluation(
        n=n,
        z_dim=d,
        z_r_linear=tuple(_predicted_r(fit, t, split) for fit, t in zip(lines, true_z.T, strict=True)),
        z_r_cubic=cubic_r,
        z_pearson=tuple(best_pearson(z, t) for t in true_z.T),
        z_noise=tuple(float(np.sqrt(max(1 / r**2 - 1, 0))) if r > 0 else None for r in cubic_r),
        z_spearman=abs(spearman(z[:, 0], true_z[:, 0])) if d == true_z.shape[1] == 1 else None,
        theta_circular_r=circular_correlation(symmetry * pose.theta_rad, symmetry * true_pose.theta_rad),
        theta_rms_deg=float(np.degrees(_rms(errors.one_turn_rad))),
        theta_gauge_rms_deg=float(np.degrees(_rms(errors.theta_rad))),
        theta_gauge_median_deg=float(np.degrees(np.median(np.abs(errors.theta_rad)))),
        shift_rms_px=_rms_per_axis(errors.one_offset_px),
        shift_gauge_rms_px=_rms_per_axis(errors.shift_px),
        shift_r=(_r_or_none(found[:, 0], truth[:, 0]), _r_or_none(found[:, 1], truth[:, 1])),
        shift_pearson=(_r_or_none(pose.shift_px[:, 0], truth[:, 0]), _r_or_none(pose.shift_px[:, 1], truth[:, 1])),
        theta_gauge_drift_deg=float(np.degrees(_rms(errors.drift_rad))),
        shift_gauge_drift_px=_rms_per_axis(errors.drift_px),
        z_within_1sd=tuple(_z_within(fit, t, reported.z_sd, right) for fit, t in zip(cubics, true_z.T, strict=True)),
        theta_within_1sd=calibration.share_within(own.theta_rad, reported.theta_sd_rad, right),
        shift_within_1sd=calibration.share_within(own_xy, reported.shift_sd_px, right),
        right_mode=float(right.mean()),
        peak_weight_bins=bins,
        peak_weight_error=calibration.peak_weight_error(bins) if bins else None,
        z_degree=z_degree,
        gauge_degree=gauge_degree,
        symmetry=symmetry,
        notes=_notes(n, d, z_degree, gauge_degree, wanted, symmetry),
    )


def _columns(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    return array[:, None] if array.ndim == 1 else array


def _check_rows(z: Floats, pose: Pose2D, true_z: Floats, true_pose: Pose2D) -> None:
    if not (len(z) == len(pose) == len(true_z) == len(true_pose)) or not len(z):
        raise ValueError(f"{len(z)} z, {len(pose)} poses, {len(true_z)} true z, {len(true_pose)} true poses")
    for name, values in (("z", z), ("theta", pose.theta_rad), ("shift", pose.shift_px)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} of {int((~np.isfinite(values)).sum())} entries is not finite")


def _checked(name: str, values: ArrayLike | None, shape: tuple[int, ...]) -> Floats | None:
    if values is None:
        return None
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"{name} of shape {array.shape}; expected finite values of shape {shape}")
    return array


def _weight_bins(errors: PoseErrors, reported: _Reported) -> tuple[calibration.PeakWeightBin, ...]:
    if reported.peak_weight is None:
        return ()
    right = calibration.in_right_mode(errors.theta_rad, reported.theta_sd_rad)
    return calibration.peak_weight_bins(reported.peak_weight, right)


def _z_within(fit: CrossFit, truth: Floats, z_sd: Floats | None, right: NDArray[np.bool_]) -> float | None:
    """Share of the particles whose true coordinate [n] lies within one s.d. of its prediction, to first order."""
    if z_sd is None:
        return None
    return calibration.share_within(truth - fit.values, np.sqrt(np.sum((fit.slopes * z_sd) ** 2, axis=1)), right)


def _notes(n: int, d: int, z_degree: int, gauge_degree: int, gauge_wanted: int, symmetry: int) -> tuple[str, ...]:
    notes = []
    if symmetry > 1:
        notes.append(f"theta is compared modulo {360 / symmetry:g} degrees ({symmetry}-fold symmetry)")
    if d and z_degree < Z_DEGREE:
        notes.append(f"z corr with degree {z_degree} instead of {Z_DEGREE}: {n} particles are few for {d} coordinates")
    if d and gauge_degree < gauge_wanted:
        notes.append(
            f"gauge with degree {gauge_degree} instead of {gauge_wanted}: {n} particles are few for {d} coordinates"
        )
    return tuple(notes)


def _is_constant(values: NDArray[np.floating]) -> bool:
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max(initial=1e-300))


def _rms(values: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.abs(values) ** 2)))


def _rms_per_axis(values: NDArray[np.complex128]) -> float:
    return float(_rms(values) / np.sqrt(2))


def _r_or_none(found: NDArray[np.floating], truth: NDArray[np.floating]) -> float | None:
    return None if _is_constant(truth) else pearson(found, truth)


def _predicted_r(fit: CrossFit, truth: Floats, split: Halves) -> float:
    """Correlation of truth and cross-fitted prediction: the mean over the halves, since each has its own fit."""
    predicted = fit.values
    return float(np.mean([pearson(predicted[half], truth[half]) for half in split]))
