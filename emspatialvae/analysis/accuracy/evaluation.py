"""What came of comparing estimates with a truth: numbers by name, and as a table for a person."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from emspatialvae.analysis.accuracy.calibration import PeakWeightBin


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
    z_pearson
        Per true coordinate: |correlation| with the coordinate of z that follows it best, nothing fitted.
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
    shift_pearson
        The same with the gauge left in, as reported. With ``z_pearson`` and ``theta_circular_r``, the spatial-VAE paper's measures.
    class_accuracy
        Share of the particles in the right class, classes matched with the true ones as well as can be; None without either.
    theta_gauge_drift_deg, shift_gauge_drift_px
        How much the gauge differs between latents, that is the turn and the shift that z still carries: rms over the
        particles of the fitted turn (per axis: offset) minus one for all. The fit's own noise is in it: some error /
        sqrt(particles per term).
    z_within_1sd
        Per true coordinate: share of the particles whose true z lies within one s.d. of its polynomial prediction; the
        s.d. is the reported one, carried through the polynomial's gradient. 0.683 if it is honest and errors are Gaussian.
        Like the next two among the particles in the right mode, because reported s.d. are those within a mode.
    right_mode
        Share of the particles whose angle is in the right mode: within 15 degrees, or 4 s.d. where that is more.
    theta_within_1sd, shift_within_1sd
        The same of theta and, both axes together, of the shift, gauge removed. None where no s.d. was reported.
    peak_weight_bins, peak_weight_error
        Reported probability that the pose lies in the right mode against the share of particles where it does
        (within 15 degrees or 4 s.d.); mean absolute difference of the two over the particles, None without weights.
    z_degree, gauge_degree
        Degrees of the polynomials used.
    symmetry
        n: angles are compared modulo 360 / n degrees.
    notes
        What had to be done differently, for a person to read.
    """

    n: int
    z_dim: int
    z_r_linear: tuple[float, ...]
    z_r_cubic: tuple[float, ...]
    z_pearson: tuple[float, ...]
    z_noise: tuple[float | None, ...]
    z_spearman: float | None
    theta_circular_r: float
    theta_rms_deg: float
    theta_gauge_rms_deg: float
    theta_gauge_median_deg: float
    shift_rms_px: float
    shift_gauge_rms_px: float
    shift_r: tuple[float | None, float | None]
    shift_pearson: tuple[float | None, float | None]
    theta_gauge_drift_deg: float
    shift_gauge_drift_px: float
    z_within_1sd: tuple[float | None, ...]
    theta_within_1sd: float | None
    shift_within_1sd: float | None
    right_mode: float
    peak_weight_bins: tuple[PeakWeightBin, ...]
    peak_weight_error: float | None
    z_degree: int
    gauge_degree: int
    class_accuracy: float | None = None
    symmetry: int = 1
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain values that JSON can hold."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def table(
        self,
        oracle: "Evaluation | None" = None,
        cramer_rao: Mapping[str, float] | None = None,
        same: "Evaluation | None" = None,
    ) -> str:
        """Aligned text, a row per quantity with unit and meaning; with columns for the oracle and the bound when given.

        ``cramer_rao`` is what simulation.json holds under that name: z_corr, z_noise, theta_deg, shift_px. ``same`` is this
        evaluation on the oracle's own particles, for the ratio [default: this one].
        """
        theirs = dict(oracle._rows()) if oracle else {}
        ours = dict((same or self)._rows())
        bound = {_BOUNDS[key]: value for key, value in (cramer_rao or {}).items() if key in _BOUNDS}
        head = ["", "found"] + ["oracle", "ratio"] * bool(oracle) + ["Cramer-Rao"] * bool(bound) + [""]
        lines = [head]
        for name, value in self._rows():
            row = [name, _number(value)]
            if oracle:
                row += [_number(theirs.get(name)), _ratio(name, ours.get(name), theirs.get(name))]
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
        count = f"{self.n} particles" + (f", oracle and ratio on {oracle.n} of them" if oracle else "")
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join(line.rstrip() for line in [count, *text, *self._weight_lines(), *notes])

    def _weight_lines(self) -> list[str]:
        return [
            f"peak weight {own.low:.2f} to {own.high:.2f}: {own.reported:.3f} reported, {own.found:.3f} found, {own.n} particles"
            for own in self.peak_weight_bins
        ]

    def _rows(self) -> list[tuple[str, float | None]]:
        many = len(self.z_r_cubic) > 1
        rows: list[tuple[str, float | None]] = []
        for k in range(len(self.z_r_cubic)):
            of = f" {k + 1}" if many else ""
            rows += [
                (f"z corr, linear{of}", self.z_r_linear[k]),
                (f"z corr{of}", self.z_r_cubic[k]),
                (f"z Pearson{of}", self.z_pearson[k]),
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
        rows += [
            (f"shift Pearson {axis}", r) for axis, r in zip("xy", self.shift_pearson, strict=True) if r is not None
        ]
        rows += [("class accuracy", self.class_accuracy)] if self.class_accuracy is not None else []
        rows += [("theta drift [deg]", self.theta_gauge_drift_deg), ("shift drift [px]", self.shift_gauge_drift_px)]
        return rows + [(name, value) for name, value in self._calibration() if value is not None]

    def _calibration(self) -> list[tuple[str, float | None]]:
        many = len(self.z_within_1sd) > 1
        return [
            ("right mode", self.right_mode),
            *((f"within 1 s.d., z{f' {k + 1}' * many}", share) for k, share in enumerate(self.z_within_1sd)),
            ("within 1 s.d., theta", self.theta_within_1sd),
            ("within 1 s.d., shift", self.shift_within_1sd),
            ("peak weight error", self.peak_weight_error),
        ]


_HONEST = "share of the errors within the reported s.d., where the mode is right (0.683 if that is honest)"
_MEANINGS = {
    "z corr, linear": "correlation of the true z with a linear function of the estimated z",
    "z corr": "the same with a cubic, scored on the half it was not fitted to",
    "z Pearson": "with the one coordinate of z that follows it best, sign ignored, nothing fitted (the paper's)",
    "z noise": "noise over signal in z: sqrt(1 / corr^2 - 1)",
    "z rank corr": "Spearman, sign ignored",
    "theta corr": "circular correlation with the true angle, gauge left in (the paper's; Jammalamadaka and SenGupta)",
    "theta, one turn [deg]": "rms after one turn of the frame for all particles",
    "theta [deg]": "rms after a turn that depends on the estimated z (gauge)",
    "theta, median [deg]": "median of the absolute error, gauge removed",
    "shift, one offset [px]": "rms per axis after one offset in the particle's frame",
    "shift [px]": "rms per axis after an offset that depends on the estimated z (gauge)",
    "shift corr x": "correlation with the true shift, gauge removed",
    "shift corr y": "correlation with the true shift, gauge removed",
    "shift Pearson x": "the same, gauge left in (the paper's)",
    "shift Pearson y": "the same, gauge left in (the paper's)",
    "class accuracy": "share in the right class, classes matched one to one (Hungarian method)",
    "theta drift [deg]": "rms over the latents of the turn that was removed: what z still carries of theta",
    "shift drift [px]": "rms per axis over the latents of the offset that was removed",
    "right mode": "share of the particles whose angle is no more than 15 degrees or 4 s.d. off",
    "within 1 s.d., z": _HONEST,
    "within 1 s.d., theta": _HONEST,
    "within 1 s.d., shift": _HONEST,
    "peak weight error": "reported probability of the right pose, mean distance from what was found",
}
NO_ERROR = ("corr", "Pearson", "within", "accuracy")
_BOUNDS = {"z_corr": "z corr", "z_noise": "z noise", "theta_deg": "theta [deg]", "shift_px": "shift [px]"}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _ratio(name: str, value: float | None, theirs: float | None) -> str:
    """Found over oracle, for errors (a correlation or a share has no ratio worth reading)."""
    return "" if any(word in name for word in NO_ERROR) or not value or not theirs else f"{value / theirs:.2f}"
