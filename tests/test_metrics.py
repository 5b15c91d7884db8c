"""Metrics against cases whose answer is known: exact recovery, known gauges, known noise, wrong signs, no relation."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from emspatialvae.analysis.metrics import circular_correlation, evaluate_latents, pearson, spearman
from emspatialvae.geometry import Pose2D, object_to_image_xy


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
    assert "oracle on 500" in text
    assert "oracle" not in ours.table()
