"""Metrics against cases whose answer is known: exact recovery, known gauges, known noise, wrong signs, no relation."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from emspatialvae.analysis.accuracy.calibration import PeakWeightBin
from emspatialvae.analysis.accuracy.metrics import circular_correlation, evaluate_latents, pearson, spearman
from emspatialvae.analysis.accuracy.regression import CrossFit, Polynomial, halves
from emspatialvae.imaging.geometry import Pose2D, object_to_image_xy


def truth(n=2000, seed=0, k=1):
    rng = np.random.default_rng(seed)
    z = rng.uniform(-1, 1, (n, k))
    return z, Pose2D(rng.uniform(-np.pi, np.pi, n), 2 * rng.standard_normal((n, 2)))


def regauged(pose, turn_rad, offset_px):
    """The same images, described from a canonical frame that was turned and moved (by an amount per particle)."""
    theta = pose.theta_rad + turn_rad
    x, y = object_to_image_xy(offset_px[:, 0], offset_px[:, 1], np.cos(theta), np.sin(theta), *pose.shift_px.T)
    return Pose2D(theta, np.stack([x, y], -1))


def noisy(pose, theta_sd, shift_sd, seed=1):
    rng = np.random.default_rng(seed)
    n = len(pose)
    return Pose2D(
        pose.theta_rad + theta_sd * rng.standard_normal(n), pose.shift_px + shift_sd * rng.standard_normal((n, 2))
    )


def test_exact_recovery_has_no_error():
    z, pose = truth()
    result = evaluate_latents(z, pose, z, pose)
    assert result.z_r_linear[0] == pytest.approx(1)
    assert result.z_r_cubic[0] == pytest.approx(1)
    assert result.z_spearman == pytest.approx(1)
    assert result.z_noise[0] == pytest.approx(0, abs=1e-6)
    for error in (result.theta_rms_deg, result.theta_gauge_rms_deg, result.shift_rms_px, result.shift_gauge_rms_px):
        assert error == pytest.approx(0, abs=1e-9)
    assert result.theta_circular_r == pytest.approx(1)
    assert result.shift_r == pytest.approx((1, 1))
    assert result.notes == ()


def test_a_mirrored_and_stretched_z_is_as_good():
    z, pose = truth()
    result = evaluate_latents(-7 * z + 3, pose, z, pose)
    assert result.z_r_linear[0] == pytest.approx(1)
    assert result.z_spearman == pytest.approx(1)


def test_a_bent_z_is_straightened_by_the_cubic():
    z, pose = truth()
    result = evaluate_latents(np.cbrt(z) + 0.3 * z, pose, z, pose)
    assert result.z_r_linear[0] < 0.98
    assert result.z_r_cubic[0] > 0.998
    assert result.z_spearman == pytest.approx(1)


def test_one_turn_and_one_offset_for_all_cost_nothing():
    z, pose = truth()
    estimate = regauged(pose, np.full(len(pose), 2.5), np.tile([3.0, -1.0], (len(pose), 1)))
    result = evaluate_latents(z, estimate, z, pose)
    assert result.theta_rms_deg == pytest.approx(0, abs=1e-9)
    assert result.shift_rms_px == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("k", [1, 2])
def test_a_gauge_that_depends_on_z_is_removed_and_nothing_else(k):
    z, pose = truth(8000, k=k)
    u = z.sum(1) / k
    estimate = regauged(pose, 1.0 + 0.7 * u, np.stack([1 + 2 * u, 0.5 - u**2], -1))
    exact = evaluate_latents(z, estimate, z, pose)
    assert exact.theta_rms_deg > 10
    assert exact.shift_rms_px > 0.5
    assert exact.theta_gauge_rms_deg < 0.2
    assert exact.shift_gauge_rms_px < 0.01
    assert min(exact.shift_r) > 0.9999
    with_noise = evaluate_latents(z, noisy(estimate, np.radians(5), 0.4), z, pose)
    assert with_noise.theta_gauge_rms_deg == pytest.approx(5, rel=0.03)
    # the noise of theta swings the offset (about 1.4 px long) along: that is a real error of the pose
    assert 0.39 < with_noise.shift_gauge_rms_px < 0.45


def test_errors_are_judged_in_the_frame_of_the_truth():
    """A gauge over a noisy estimated z: what comes back is the error the estimate had in the truth's own frame."""
    z, pose = truth(8000)
    found_z = z[:, 0] + 0.1 * np.random.default_rng(3).standard_normal(len(z))
    plain = noisy(pose, np.radians(4), 0.3)
    estimate = regauged(plain, 0.8 * found_z, np.stack([found_z, -found_z], -1))
    result = evaluate_latents(found_z, estimate, z, pose)
    assert result.theta_gauge_rms_deg == pytest.approx(4, rel=0.03)
    assert result.shift_gauge_rms_px == pytest.approx(0.3, rel=0.03)
    assert result.z_noise[0] == pytest.approx(0.1 * math.sqrt(3), rel=0.05)


def test_wrong_signs_are_not_forgiven():
    z, pose = truth()
    mirrored = evaluate_latents(z, Pose2D(-pose.theta_rad, pose.shift_px), z, pose)
    assert mirrored.theta_gauge_rms_deg > 60
    assert mirrored.theta_circular_r == pytest.approx(-1)
    backwards = evaluate_latents(z, Pose2D(pose.theta_rad, -pose.shift_px), z, pose)
    assert backwards.shift_gauge_rms_px == pytest.approx(4, rel=0.05)
    assert max(backwards.shift_r) < -0.9
    swapped = evaluate_latents(z, Pose2D(pose.theta_rad, pose.shift_px[:, ::-1]), z, pose)
    assert swapped.shift_gauge_rms_px > 1.9


def test_nothing_leaks_from_the_fit_into_the_score():
    """Unrelated z in eight dimensions: fitting and scoring the same particles would show a correlation of 0.4."""
    rng = np.random.default_rng(5)
    _, pose = truth(1000)
    z, true_z = rng.standard_normal((1000, 8)), rng.uniform(-1, 1, (1000, 1))
    random_pose = Pose2D(rng.uniform(-np.pi, np.pi, 1000), pose.shift_px)
    result = evaluate_latents(z, random_pose, true_z, pose)
    assert abs(result.z_r_linear[0]) < 0.1
    assert abs(result.z_r_cubic[0]) < 0.1
    assert result.theta_gauge_rms_deg == pytest.approx(180 / math.sqrt(3), rel=0.06)
    assert abs(result.theta_circular_r) < 0.1
    assert result.z_spearman is None


def test_several_true_coordinates_are_found_in_a_mixed_z():
    z, pose = truth(2000, k=2)
    result = evaluate_latents(z @ np.array([[1.0, 2.0], [-3.0, 0.5]]), pose, z, pose)
    assert result.z_r_linear == pytest.approx((1, 1))
    assert "z noise 2" in result.table()


@pytest.mark.parametrize(("n", "degree"), [(1, 0), (2, 0), (10, 0), (50, 1), (90, 3), (130, 5)])
def test_few_particles_lower_the_degree_and_say_so(n, degree):
    z, pose = truth(n)
    result = evaluate_latents(z, pose, z, pose)
    assert result.gauge_degree == degree
    assert any("gauge" in note for note in result.notes) == (degree < 5)
    assert result.theta_gauge_rms_deg == pytest.approx(0, abs=1e-6)


def test_many_dimensions_stay_affordable():
    z, pose = truth(3000, k=32)
    result = evaluate_latents(z, pose, z[:, :1], pose)
    assert (result.z_degree, result.gauge_degree) == (1, 1)
    assert result.z_r_cubic[0] == pytest.approx(1)


def test_a_collapsed_z_and_a_stack_without_shifts():
    z, pose = truth()
    still = Pose2D(pose.theta_rad, np.zeros((len(pose), 2)))
    result = evaluate_latents(np.zeros((len(pose), 1)), still, z, still)
    assert result.z_r_cubic[0] == 0
    assert result.z_noise == (None,)
    assert result.shift_r == (None, None)
    assert result.shift_gauge_rms_px == 0
    assert json.loads(json.dumps(result.as_dict()))["z_noise"] == [None]
    no_content = evaluate_latents(np.zeros((len(pose), 0)), pose, z, pose)
    assert no_content.theta_rms_deg == pytest.approx(0, abs=1e-9)


def test_one_lost_particle_shows_in_the_rms_and_not_in_the_median():
    z, pose = truth(400)
    theta = noisy(pose, np.radians(3), 0).theta_rad
    theta[7] += np.pi
    result = evaluate_latents(z, Pose2D(theta, pose.shift_px), z, pose)
    assert result.theta_gauge_rms_deg > 8
    assert result.theta_gauge_median_deg == pytest.approx(3 * 0.6745, rel=0.15)


# ----------------------------------------------------------------------------------------------- honest uncertainties


def measured(n=8000, boast=1.0, seed=2):
    """Gaussian errors of a different, known s.d. per particle; reported ``boast`` times smaller.

    As with posterior means, the true z lies round the estimated one (and not the other way round).
    """
    rng = np.random.default_rng(seed)
    z, pose = truth(n, k=2)
    z_sd, theta_sd, shift_sd = rng.uniform(0.02, 0.1, (n, 2)), rng.uniform(0.02, 0.2, n), rng.uniform(0.2, 1, (n, 2))
    estimate = Pose2D(
        pose.theta_rad + theta_sd * rng.standard_normal(n), pose.shift_px + shift_sd * rng.standard_normal((n, 2))
    )
    reported = {"z_sd": z_sd / boast, "theta_sd_rad": theta_sd / boast, "shift_sd_px": shift_sd / boast}
    return (z, estimate, z + z_sd * rng.standard_normal((n, 2)), pose), reported


@pytest.mark.parametrize(("boast", "share"), [(1, 0.683), (2, 0.383), (0.5, 0.954)])
def test_calibration_of_known_errors(boast, share):
    truths, reported = measured(boast=boast)
    result = evaluate_latents(*truths, **reported)
    assert result.theta_within_1sd == pytest.approx(share, abs=0.02)
    assert result.shift_within_1sd == pytest.approx(share, abs=0.02)
    assert result.z_within_1sd == pytest.approx((share, share), abs=0.03)


def test_sd_of_z_goes_through_the_polynomial():
    """The truth is another, bent and mixed, function of the estimated coordinates: their s.d. are carried along."""
    (z, estimate, true_z, pose), reported = measured()
    bent = np.stack([100 * (true_z[:, 0] - 2 * true_z[:, 1]), (true_z[:, 0] + 2) ** 3], -1)
    result = evaluate_latents(z, estimate, bent, pose, **reported)
    assert result.z_within_1sd == pytest.approx((0.683, 0.683), abs=0.03)


def test_calibration_is_that_of_the_errors_in_the_estimates_own_frame():
    """Poses refer to a frame that turns with the true content, and are off by what is reported; that z is off costs nothing."""
    (z, estimate, true_z, pose), reported = measured()
    small = 0.2 * true_z[:, :1]  # a long offset would be swung along by the error of theta
    own = regauged(estimate, 1 + true_z[:, 0], np.hstack([small, -small]))
    result = evaluate_latents(z, own, true_z, pose, **reported)
    assert result.theta_rms_deg > 25
    assert result.theta_within_1sd == pytest.approx(0.683, abs=0.02)
    assert result.shift_within_1sd == pytest.approx(0.683, abs=0.02)
    # Blunter contents make the errors beyond the gauge of the estimated z larger, and leave the calibration alone.
    blunt = evaluate_latents(z + 0.3 * np.random.default_rng(9).standard_normal(z.shape), own, true_z, pose, **reported)
    assert blunt.theta_gauge_rms_deg > 1.5 * result.theta_gauge_rms_deg
    assert blunt.theta_within_1sd == result.theta_within_1sd
    assert blunt.shift_within_1sd == result.shift_within_1sd


def test_an_error_of_z_that_swings_the_angle_along_is_one_of_calibration():
    """A turn by the estimated z, which is off by 0.06: the angle is off by that, too, and its s.d. had better say so."""
    (z, estimate, true_z, pose), reported = measured()
    still = np.zeros((len(z), 2))
    result = evaluate_latents(z, regauged(estimate, 3 * z[:, 0], still), true_z, pose, **reported)
    assert result.theta_within_1sd < 0.6


def test_what_was_not_reported_is_not_judged():
    (z, estimate, true_z, pose), reported = measured(500)
    silent = evaluate_latents(z, estimate, true_z, pose)
    nothing = evaluate_latents(z, estimate, true_z, pose, **{key: 0 * value for key, value in reported.items()})
    for result in (silent, nothing):
        assert result.z_within_1sd == (None, None)
        assert result.theta_within_1sd is result.shift_within_1sd is result.peak_weight_error is None
        assert result.peak_weight_bins == ()
        assert "within" not in result.table() and "peak weight" not in result.table()
    text = evaluate_latents(z, estimate, true_z, pose, **reported).table(silent)
    theta = next(line for line in text.splitlines() if line.startswith("within 1 s.d., theta"))
    assert "0.683" in theta and theta.split()[5] == "-"
    assert "within 1 s.d., z 2" in text


def test_reported_numbers_of_the_wrong_shape_are_refused():
    z, pose = truth(10)
    for name, shape in (("z_sd", (10, 2)), ("theta_sd_rad", (9,)), ("shift_sd_px", (10,)), ("peak_weight", (10, 1))):
        with pytest.raises(ValueError, match=name):
            evaluate_latents(z, pose, z, pose, **{name: np.ones(shape)})
    with pytest.raises(ValueError, match="finite"):
        evaluate_latents(z, pose, z, pose, theta_sd_rad=np.full(10, np.nan))


def test_peak_weights_of_a_known_mixture():
    """Each particle is turned elsewhere with the probability that it reports; or with a quite different one."""
    rng = np.random.default_rng(4)
    z, pose = truth(20000)
    weight = rng.uniform(0, 1, len(pose))
    estimate = noisy(pose, np.radians(2), 0.1)
    lost = rng.uniform(size=len(pose)) > weight
    # Turned both ways, so that the gauge has nothing to learn from them.
    elsewhere = rng.uniform(np.radians(30), np.radians(150), len(pose)) * rng.choice([-1, 1], len(pose))
    estimate = Pose2D(estimate.theta_rad + np.where(lost, elsewhere, 0), estimate.shift_px)
    sd = np.full(len(pose), np.radians(2))
    result = evaluate_latents(z, estimate, z, pose, theta_sd_rad=sd, peak_weight=weight)
    assert [(own.low, own.high) for own in result.peak_weight_bins][::6] == [(0, 0.2), (0.95, 1)]
    assert sum(own.n for own in result.peak_weight_bins) == len(pose)
    for own in result.peak_weight_bins:
        assert own.low <= own.reported <= own.high
        assert own.found == pytest.approx(own.reported, abs=0.03)
    assert result.peak_weight_error < 0.015
    boasted = evaluate_latents(z, estimate, z, pose, peak_weight=np.ones(len(pose)))
    assert boasted.peak_weight_error == pytest.approx(0.5, abs=0.02)
    only = boasted.peak_weight_bins[0]
    assert boasted.peak_weight_bins == (PeakWeightBin(0.95, 1.0, len(pose), 1.0, only.found),)
    assert f"peak weight 0.95 to 1.00: 1.000 reported, {only.found:.3f} found, 20000 particles" in boasted.table()
    assert json.loads(json.dumps(boasted.as_dict()))["peak_weight_bins"][0]["n"] == 20000


def test_a_blunt_angle_is_in_the_right_mode_within_four_sd():
    z, pose = truth(1000)
    way = np.random.default_rng(8).choice([-1, 1], len(pose)) * np.radians(30)
    estimate = Pose2D(pose.theta_rad + way, pose.shift_px)
    for sd_deg, found in ((5, 0), (10, 1)):
        sd = np.full(len(pose), np.radians(sd_deg))
        (own,) = evaluate_latents(z, estimate, z, pose, theta_sd_rad=sd, peak_weight=0.5 * sd / sd).peak_weight_bins
        assert own.found == pytest.approx(found, abs=0.05)


# ----------------------------------------------------------------------------------------------------- symmetry, drift


@pytest.mark.parametrize("fold", [2, 3])
def test_turns_by_the_symmetry_cost_nothing(fold):
    z, pose = truth(8000)
    some = noisy(pose, np.radians(5), 0.3)
    sd = {"theta_sd_rad": np.full(len(pose), np.radians(5)), "shift_sd_px": np.full((len(pose), 2), 0.3)}
    turns = 2 * np.pi / fold * np.random.default_rng(6).integers(fold, size=len(pose))
    # A symmetric picture that stands off the centre: turned about its own axis, it is reported with another shift.
    gauge = 0.6 * z[:, 0], np.stack([0.2 + 0.1 * z[:, 0], -0.3 * z[:, 0]], -1)
    straight = evaluate_latents(z, regauged(some, *gauge), z, pose, symmetry=fold, **sd)
    turned = regauged(Pose2D(some.theta_rad + turns, some.shift_px), *gauge)
    found = evaluate_latents(z, turned, z, pose, symmetry=fold, **sd)
    for name in ("rms_deg", "gauge_rms_deg", "gauge_median_deg", "gauge_drift_deg", "circular_r", "within_1sd"):
        assert getattr(found, f"theta_{name}") == pytest.approx(getattr(straight, f"theta_{name}"))
    for name in ("rms_px", "gauge_rms_px", "gauge_drift_px", "within_1sd", "r"):
        assert getattr(found, f"shift_{name}") == pytest.approx(getattr(straight, f"shift_{name}"), abs=0.01)
    assert found.theta_gauge_rms_deg == pytest.approx(5, rel=0.03)
    assert found.shift_gauge_rms_px == pytest.approx(0.3, rel=0.05)
    assert found.theta_within_1sd == pytest.approx(0.683, abs=0.03)
    assert str(360 // fold) in found.notes[0]
    blind = evaluate_latents(z, turned, z, pose, **sd)
    assert blind.theta_gauge_rms_deg > 60


@pytest.mark.parametrize("symmetry", [1, 2])
def test_drift_of_a_known_gauge(symmetry):
    z, pose = truth(8000)
    offset = np.stack([1 + 0.5 * z[:, 0], 0 * z[:, 0]], -1)
    constant = regauged(noisy(pose, 0.05, 0), np.full(len(pose), 1.3), np.tile([0.5, -0.5], (len(pose), 1)))
    calm = evaluate_latents(z, constant, z, pose, symmetry=symmetry)
    assert calm.theta_gauge_drift_deg < 0.2
    assert calm.shift_gauge_drift_px < 0.02
    turning = regauged(noisy(pose, 0.05, 0), 1.3 + 0.4 * z[:, 0], 0 * offset)
    found = evaluate_latents(z, turning, z, pose, symmetry=symmetry)
    assert found.theta_gauge_drift_deg == pytest.approx(math.degrees(0.4) / math.sqrt(3), rel=0.02)
    assert found.shift_gauge_drift_px < 0.02
    moving = regauged(noisy(pose, 0.05, 0), np.full(len(pose), 1.3), offset)
    found = evaluate_latents(z, moving, z, pose, symmetry=symmetry)
    assert found.theta_gauge_drift_deg < 0.2
    assert found.shift_gauge_drift_px == pytest.approx(0.5 / math.sqrt(3) / math.sqrt(2), rel=0.02)
    assert "theta drift [deg]" in found.table()


def test_slopes_of_a_polynomial():
    z = np.random.default_rng(0).uniform(-1, 1, (400, 3))
    x, y, w = z.T
    target = 2 * x**3 - x * y * w + 0.5 * y**2 + w
    slopes = np.stack([6 * x**2 - y * w, -x * w + y, 1 - x * y], -1)
    np.testing.assert_allclose(Polynomial.fit(z, target, 3).slopes(z), slopes, atol=1e-9)
    fit = CrossFit.fit(z, target * (1 + 1j), 3, halves(len(z)))
    np.testing.assert_allclose(fit.values, target * (1 + 1j), atol=0.2)  # limited to the other half's range
    inside = np.abs(z).max(1) < 0.9
    np.testing.assert_allclose(fit.slopes[inside], slopes[inside] * (1 + 1j), atol=1e-9)


def test_circular_correlation_of_uniform_angles():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-np.pi, np.pi, (2, 5000))
    assert circular_correlation(a, a + 1.7) == pytest.approx(1)
    assert circular_correlation(a[:30], a[:30] - 2.9) == pytest.approx(1)
    assert circular_correlation(a, -a) == pytest.approx(-1)
    assert circular_correlation(a, b) == pytest.approx(0, abs=0.05)
    noise = 0.5 * rng.standard_normal(5000)
    assert circular_correlation(a, a + noise) == pytest.approx(math.exp(-(0.5**2) / 2), abs=0.03)


def test_correlations_agree_with_scipy():
    a, b = np.random.default_rng(1).standard_normal((2, 50)).round(1)
    assert pearson(a, b) == pytest.approx(stats.pearsonr(a, b)[0])
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0])
    assert pearson(a, np.ones(50)) == spearman(a, np.ones(50)) == 0


def test_what_cannot_be_compared_is_refused():
    z, pose = truth(10)
    with pytest.raises(ValueError, match="9"):
        evaluate_latents(z, pose, z[:9], pose[np.arange(9)])
    with pytest.raises(ValueError, match="20"):
        evaluate_latents(z, pose, np.concatenate([z, z]), pose)
    bad = z.copy()
    bad[3] = np.nan
    with pytest.raises(ValueError, match="z of 1"):
        evaluate_latents(bad, pose, z, pose)


def test_the_table_is_aligned_and_shows_the_yardsticks():
    z, pose = truth()
    ours = evaluate_latents(z, noisy(pose, np.radians(6), 0.5), z, pose)
    some = np.arange(500)
    oracle = evaluate_latents(z[:500], noisy(pose, np.radians(5), 0.4)[some], z[:500], pose[some])
    text = ours.table(oracle, {"z_corr": 0.95, "z_noise": 0.33, "theta_deg": 4.5, "shift_px": 0.4})
    theta = next(line for line in text.splitlines() if line.startswith("theta [deg]"))
    values = theta.split()
    assert float(values[2]) == pytest.approx(6, rel=0.05)
    assert float(values[3]) == pytest.approx(5, rel=0.1)
    assert float(values[4]) == pytest.approx(float(values[2]) / float(values[3]), abs=0.01)
    assert float(values[5]) == 4.5
    starts = {line.index("rms") for line in text.splitlines() if "rms" in line}
    assert len(starts) == 1
    assert "ratio on 500" in text
    assert "oracle" not in ours.table()
