"""How close estimated contents and poses come to a known truth. Pure functions of arrays.

The truth's canonical frame is one choice among many: an estimator may turn and move its canonical image by any amount
that depends smoothly on z without a change of the likelihood (the *gauge*). Errors are therefore given twice: after
one turn and one offset for all particles, and after the gauge, as a polynomial in the **estimated** z, was taken out.
Whatever is fitted is fitted on one half of the particles and scored on the other, and the other way round, so that
nothing is flattered by its own fit.

Algebra of the gauge. Two poses draw the same image from canonical images that differ by a rigid motion exactly if
``theta' = theta + turn`` and ``shift' = shift + R(theta) offset``. In complex numbers (x + iy) both ``exp(i (theta' -
theta))`` and ``exp(-i theta) (shift' - shift)`` are functions of z alone, so each is one linear regression.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations_with_replacement
from math import comb
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from emspatialvae.geometry import Pose2D

Floats = NDArray[np.float64]
Halves = tuple[NDArray[np.int64], NDArray[np.int64]]

PARTICLES_PER_TERM = 10  # a polynomial is fitted only with that many particles for each of its terms
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


@dataclass(frozen=True)
class Evaluation:
    """Recovered z, theta and shift against the truth.

    Attributes
    ----------
    n, z_dim
        Particles, and coordinates of the estimated z.
    z_r_linear, z_r_cubic
        Per true coordinate: correlation with its best linear, and polynomial, prediction from the estimated z (its
        sign and scale do not matter). Mean of the two halves' scores; 0 to 1 but for chance.
    z_noise
        Per true coordinate: ``sqrt(1 / z_r_cubic^2 - 1)``, noise over signal in z; None where the correlation is not
        positive.
    z_spearman
        |rank correlation|, for one estimated and one true coordinate; None otherwise.
    theta_circular_r
        Circular correlation of estimated and true angle, the gauge left in.
    theta_rms_deg, theta_gauge_rms_deg
        Error of theta in degrees after one best turn for all particles; after the turn as a function of z.
    theta_gauge_median_deg
        Median of the latter's absolute value: far below the rms when few particles are lost (say, upside down).
    shift_rms_px, shift_gauge_rms_px
        Error of the shift per axis in pixels after one best offset in the canonical frame; after the offset as a
        function of z.
    shift_r
        Correlation of estimated and true shift along x and y, gauge removed; None where the true shift is constant.
    z_degree, gauge_degree
        Degrees of the polynomials used.
    notes
        What had to be done differently, for a person to read.
    """

    n: int
    z_dim: int
    z_r_linear: tuple[float, ...]
    z_r_cubic: tuple[float, ...]
    z_noise: tuple[float | None, ...]
    z_spearman: float | None
    theta_circular_r: float
    theta_rms_deg: float
    theta_gauge_rms_deg: float
    theta_gauge_median_deg: float
    shift_rms_px: float
    shift_gauge_rms_px: float
    shift_r: tuple[float | None, float | None]
    z_degree: int
    gauge_degree: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain values that JSON can hold."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def table(self, oracle: "Evaluation | None" = None, cramer_rao: Mapping[str, float] | None = None) -> str:
        """Aligned text, a row per quantity with unit and meaning; with columns for the oracle and the bound when given.

        ``cramer_rao`` is what simulation.json holds under that name: z_corr, z_noise, theta_deg, shift_px.
        """
        theirs = dict(oracle._rows()) if oracle else {}
        bound = {_BOUNDS[key]: value for key, value in (cramer_rao or {}).items() if key in _BOUNDS}
        head = ["", "found"] + ["oracle", "ratio"] * bool(oracle) + ["Cramer-Rao"] * bool(bound) + [""]
        lines = [head]
        for name, value in self._rows():
            row = [name, _number(value)]
            if oracle:
                row += [_number(theirs.get(name)), _ratio(name, value, theirs.get(name))]
            if bound:
                row.append(_number(bound.get(name)))
            lines.append([*row, _MEANINGS[name.rstrip("0123456789 ")]])
        widths = [max(len(row[i]) for row in lines) for i in range(len(head))]
        text = [
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:-1], widths[1:-1], strict=True)), row[-1]]
            )
            for row in lines
        ]
        count = f"{self.n} particles" + (f", oracle on {oracle.n} of them" if oracle else "")
        return "\n".join(line.rstrip() for line in [count, *text, *(f"note: {note}" for note in self.notes)])

    def _rows(self) -> list[tuple[str, float | None]]:
        many = len(self.z_r_cubic) > 1
        rows: list[tuple[str, float | None]] = []
        for k in range(len(self.z_r_cubic)):
            of = f" {k + 1}" if many else ""
            rows += [
                (f"z corr, linear{of}", self.z_r_linear[k]),
                (f"z corr{of}", self.z_r_cubic[k]),
                (f"z noise{of}", self.z_noise[k]),
            ]
        rows += [("z rank corr", self.z_spearman)] if self.z_spearman is not None else []
        rows += [
            ("theta corr", self.theta_circular_r),
            ("theta, one turn [deg]", self.theta_rms_deg),
            ("theta [deg]", self.theta_gauge_rms_deg),
            ("theta, median [deg]", self.theta_gauge_median_deg),
            ("shift, one offset [px]", self.shift_rms_px),
            ("shift [px]", self.shift_gauge_rms_px),
        ]
        rows += [(f"shift corr {axis}", r) for axis, r in zip("xy", self.shift_r, strict=True) if r is not None]
        return rows


_MEANINGS = {
    "z corr, linear": "correlation of the true z with a linear function of the estimated z",
    "z corr": "the same with a cubic, scored on the half it was not fitted to",
    "z noise": "noise over signal in z: sqrt(1 / corr^2 - 1)",
    "z rank corr": "Spearman, sign ignored",
    "theta corr": "circular correlation with the true angle, gauge left in",
    "theta, one turn [deg]": "rms after one turn of the frame for all particles",
    "theta [deg]": "rms after a turn that depends on the estimated z (gauge)",
    "theta, median [deg]": "median of the absolute error, gauge removed",
    "shift, one offset [px]": "rms per axis after one offset in the particle's frame",
    "shift [px]": "rms per axis after an offset that depends on the estimated z (gauge)",
    "shift corr x": "correlation with the true shift, gauge removed",
    "shift corr y": "correlation with the true shift, gauge removed",
}
_BOUNDS = {"z_corr": "z corr", "z_noise": "z noise", "theta_deg": "theta [deg]", "shift_px": "shift [px]"}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _ratio(name: str, value: float | None, theirs: float | None) -> str:
    """Found over oracle, for errors (a correlation has no ratio worth reading)."""
    return "" if "corr" in name or not value or not theirs else f"{value / theirs:.2f}"


def evaluate_latents(z: ArrayLike, pose: Pose2D, true_z: ArrayLike, true_pose: Pose2D) -> Evaluation:
    """Compare estimates with the truth, row by row.

    Parameters
    ----------
    z, true_z
        Shapes [n, d] and [n, k] ([n] is read as one coordinate). d may be 0.
    pose, true_pose
        n poses each, in the same pixels.

    Raises
    ------
    ValueError
        Different numbers of particles, none at all, or values that are not finite.
    """
    z, true_z = (v[:, None] if v.ndim == 1 else v for v in (np.asarray(v, dtype=np.float64) for v in (z, true_z)))
    _check_rows(z, pose, true_z, true_pose)
    n, d = z.shape
    halves = _halves(n)
    z_degree = _affordable_degree(Z_DEGREE, d, n)
    wanted = GAUGE_DEGREE.get(d, GAUGE_DEGREE_MANY)
    gauge_degree = _affordable_degree(wanted, d, n)
    linear = tuple(_predicted_r(z, t, min(1, z_degree), halves) for t in true_z.T)
    cubic = tuple(_predicted_r(z, t, z_degree, halves) for t in true_z.T)

    phasor = np.exp(1j * (pose.theta_rad - true_pose.theta_rad))
    one_turn = np.angle(phasor * np.conj(phasor.mean()))
    fitted = _cross_fitted(z, phasor, gauge_degree, halves)
    no_gauge = np.angle(phasor * np.conj(fitted))

    moved = (pose.shift_px - true_pose.shift_px) @ np.array([1, 1j])
    frame = np.exp(-1j * pose.theta_rad)
    one_offset = moved * frame - (moved * frame).mean()
    upright = frame * fitted / np.maximum(np.abs(fitted), 1e-12)  # the estimated angle seen in the truth's frame
    still = moved * upright - _cross_fitted(z, moved * upright, gauge_degree, halves)
    found = true_pose.shift_px @ np.array([1, 1j]) + still / upright
    return Evaluation(
        n=n,
        z_dim=d,
        z_r_linear=linear,
        z_r_cubic=cubic,
        z_noise=tuple(float(np.sqrt(max(1 / r**2 - 1, 0))) if r > 0 else None for r in cubic),
        z_spearman=abs(spearman(z[:, 0], true_z[:, 0])) if d == true_z.shape[1] == 1 else None,
        theta_circular_r=circular_correlation(pose.theta_rad, true_pose.theta_rad),
        theta_rms_deg=float(np.degrees(_rms(one_turn))),
        theta_gauge_rms_deg=float(np.degrees(_rms(no_gauge))),
        theta_gauge_median_deg=float(np.degrees(np.median(np.abs(no_gauge)))),
        shift_rms_px=float(_rms(one_offset) / np.sqrt(2)),
        shift_gauge_rms_px=float(_rms(still) / np.sqrt(2)),
        shift_r=(
            _r_or_none(found.real, true_pose.shift_px[:, 0]),
            _r_or_none(found.imag, true_pose.shift_px[:, 1]),
        ),
        z_degree=z_degree,
        gauge_degree=gauge_degree,
        notes=_notes(n, d, z_degree, gauge_degree, wanted),
    )


def _check_rows(z: Floats, pose: Pose2D, true_z: Floats, true_pose: Pose2D) -> None:
    if not (len(z) == len(pose) == len(true_z) == len(true_pose)) or not len(z):
        raise ValueError(f"{len(z)} z, {len(pose)} poses, {len(true_z)} true z, {len(true_pose)} true poses")
    for name, values in (("z", z), ("theta", pose.theta_rad), ("shift", pose.shift_px)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} of {int((~np.isfinite(values)).sum())} entries is not finite")


def _notes(n: int, d: int, z_degree: int, gauge_degree: int, gauge_wanted: int) -> tuple[str, ...]:
    notes = []
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


def _r_or_none(found: NDArray[np.floating], truth: NDArray[np.floating]) -> float | None:
    return None if _is_constant(truth) else pearson(found, truth)


def _halves(n: int) -> Halves:
    """Two halves at random, always the same: rows of a file may come in an order that means something."""
    rows = np.random.default_rng(0).permutation(n)
    return np.sort(rows[: n // 2]), np.sort(rows[n // 2 :])


def _affordable_degree(wanted: int, d: int, n: int) -> int:
    """The highest degree up to ``wanted`` whose terms have `PARTICLES_PER_TERM` particles each in half the data."""
    if d == 0:
        return 0
    return next((q for q in range(wanted, 0, -1) if comb(d + q, q) * PARTICLES_PER_TERM <= n // 2), 0)


def _features(z: Floats, degree: int, fit: NDArray[np.int64]) -> Floats:
    """All monomials of z up to a total degree, [n, terms]; z standardised, limited to the range of the fitted half."""
    if degree == 0:
        return np.ones((len(z), 1))
    low, high = z[fit].min(0), z[fit].max(0)
    margin = 0.05 * (high - low)  # a polynomial may be trusted that little beyond what it was fitted to
    spread = z[fit].std(0)
    u = (np.clip(z, low - margin, high + margin) - z[fit].mean(0)) / np.where(spread > 0, spread, 1.0)
    powers = (c for q in range(degree + 1) for c in combinations_with_replacement(range(z.shape[1]), q))
    return np.stack([np.prod(u[:, list(which)], axis=1) for which in powers], -1)


def _cross_fitted(z: Floats, target: NDArray[Any], degree: int, halves: Halves) -> NDArray[Any]:
    """Polynomial prediction [n] of ``target`` (real or complex) from z, each half by the fit to the other."""
    out = np.empty_like(target)
    for fit, score in (halves, halves[::-1]):
        if not len(fit):  # a single particle has no other half
            fit = score
        terms = _features(z, degree, fit)
        coefficients = np.linalg.lstsq(terms[fit], target[fit], rcond=None)[0]
        out[score] = terms[score] @ coefficients
    return out


def _predicted_r(z: Floats, truth: Floats, degree: int, halves: Halves) -> float:
    """Correlation of truth and cross-fitted prediction: the mean over the halves, since each has its own fit."""
    predicted = _cross_fitted(z, truth, degree, halves)
    return float(np.mean([pearson(predicted[half], truth[half]) for half in halves]))
