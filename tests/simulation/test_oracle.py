"""The oracle is the posterior mean: against brute force, against the bound, and its two ways against each other."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.simulation import oracle
from emspatialvae.simulation.bounds import cramer_rao
from emspatialvae.simulation.kinds import phantom
from emspatialvae.simulation.microscope import Microscope, draw_ctf, spectra_of
from emspatialvae.simulation.phantom import clean_image
from emspatialvae.simulation.stack import draw_truth, scale_to_snr, simulate_stack
from emspatialvae.simulation.truth import load_simulation, read_truth
from emspatialvae.workflows.evaluate import auc_of_low
from tests.tools.simulations import simulation_of


def microscope_of(n, box, *, ctf=False, colour="white", groups=1):
    rng = np.random.default_rng(20)
    group = rng.integers(groups, size=n)
    params = draw_ctf(group, (1e4, 3e4), 500.0, rng) if ctf else None
    return Microscope(box, 4.0, group, spectra_of(colour, groups), params)


def stack(kind, snr, shift_px, microscope, seed=9):
    """A scaled object, its truth and the images of a microscope."""
    obj = phantom(kind)
    n, box = len(microscope), microscope.box
    z, pose = draw_truth(n, shift_px, np.random.default_rng(seed), obj.z_dim)
    obj = scale_to_snr(obj, z, pose, box, snr)
    noise = microscope.draw_noise(np.random.default_rng(seed + 1))
    return obj, z, pose, microscope.image(clean_image(obj, z, pose, box)) + noise


def turn(a, b, symmetry=1):
    return np.angle(np.exp(1j * symmetry * (a - b))) / symmetry


def brute_force(obj, images, microscope, shift_px):
    """Posterior means [n, d + 3] by drawing every image of a fine grid and comparing it, Fourier pixel by pixel."""
    box, d, n = microscope.box, obj.z_dim, len(images)
    nodes = 36 if d == 1 else 18
    z = (np.arange(nodes) + 0.5) * 2 / nodes - 1
    theta = np.arange(0, 2 * np.pi / obj.symmetry, 2 * np.pi / (48 if shift_px else 72))
    shifts = np.arange(-3.5, 3.51, 0.7) * shift_px if shift_px else np.zeros(1)
    points = np.array(list(product(*[z] * d, theta)))
    weight = np.full((box, box // 2 + 1), 2.0)
    weight[:, [0] if box % 2 else [0, -1]] = 1
    weight = weight / microscope.noise_power() / box**2
    contrast, seen = microscope.contrast(), np.fft.rfft2(images)
    log_p, parameters = [], []
    for shift in product(shifts, shifts):
        drawn = clean_image(obj, points[:, :d], Pose2D(points[:, d], np.tile(shift, (len(points), 1))), box)
        drawn = np.fft.rfft2(drawn)
        prior = np.sum(np.square(shift)) / (2 * shift_px**2) if shift_px else 0.0
        distance = [
            np.einsum("nij,ij->n", np.abs(seen[i] - drawn * contrast[i % len(contrast)]) ** 2, weight[i])
            for i in range(n)
        ]
        log_p.append(-0.5 * np.array(distance) - prior)
        parameters.append(np.column_stack([points, np.tile(shift, (len(points), 1))]))
    p = np.concatenate(log_p, 1)
    p = np.exp(p - p.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    parameters = np.concatenate(parameters)
    means = p @ parameters
    means[:, d] = np.angle(p @ np.exp(1j * obj.symmetry * parameters[:, d])) / obj.symmetry
    return means


@pytest.mark.parametrize(
    ("kind", "snr", "shift_px", "box", "imaging"),
    [
        ("hinge", 0.3, 0.0, 24, {"ctf": True, "colour": "coloured", "groups": 2}),
        pytest.param("hinge", 0.25, 0.4, 24, {"ctf": True, "colour": "coloured", "groups": 2}, marks=pytest.mark.slow),
        pytest.param("two-hinges", 0.2, 0.0, 20, {"ctf": True, "colour": "coloured"}, marks=pytest.mark.slow),
        ("views", 0.1, 0.0, 25, {"colour": "coloured", "groups": 2}),
        ("symmetric", 0.4, 0.0, 24, {"ctf": True}),
        ("pseudo-symmetric", 0.4, 0.0, 24, {}),
    ],
)
def test_the_oracle_is_the_posterior_mean(kind, snr, shift_px, box, imaging):
    n = 4 if shift_px else 8
    microscope = microscope_of(n, box, **imaging)
    obj, z, pose, images = stack(kind, snr, shift_px, microscope)
    found_z, found = oracle.oracle_estimates(obj, images, microscope, shift_px)
    bound = cramer_rao(obj, z, pose, microscope, shift_px)
    d = obj.z_dim
    exact = brute_force(obj, images, microscope, shift_px)
    assert (np.abs(found_z - exact[:, :d]) < 0.15 * np.minimum(bound.z_sd, 0.6)).all()
    # The mean direction of a posterior with several modes is sensitive to all of them.
    assert (np.abs(turn(found.theta_rad, exact[:, d], obj.symmetry)) < 0.2 * bound.theta_sd_rad).all()
    assert (np.abs(found.shift_px - exact[:, d + 1 :]) <= 0.15 * bound.shift_sd_px).all()


@pytest.mark.parametrize(("snr", "shift_px", "n"), [(0.1, 0.0, 400), (0.1, 2.0, 60), (3.0, 2.0, 40)])
def test_the_oracle_comes_near_the_bound(snr, shift_px, n):
    microscope = Microscope.plain(n, 40)
    obj, z, pose, images = stack("hinge", snr, shift_px, microscope)
    found_z, found = oracle.oracle_estimates(obj, images, microscope, shift_px)
    bound = cramer_rao(obj, z, pose, microscope, shift_px)
    low, high = (0.9, 1.3) if n > 100 else (0.75, 1.4)
    assert low < np.sqrt(np.mean((found_z - z) ** 2) / np.mean(bound.z_sd**2)) < high
    assert low < np.sqrt(np.mean(turn(found.theta_rad, pose.theta_rad) ** 2) / np.mean(bound.theta_sd_rad**2)) < high
    if shift_px:
        off = found.shift_px - pose.shift_px
        assert low < np.sqrt(np.mean(off**2) / np.mean(bound.shift_sd_px**2)) < high
    else:
        assert not found.shift_px.any()


@pytest.mark.parametrize(
    ("kind", "snr", "imaging"),
    [
        ("hinge", 0.5, {}),
        ("views", 1.0, {"colour": "coloured", "groups": 2}),
        pytest.param("two-hinges", 2.0, {"ctf": True}, marks=pytest.mark.slow),
        ("symmetric", 0.5, {}),
    ],
)
def test_the_two_ways_of_the_oracle_agree(monkeypatch, kind, snr, imaging):
    microscope = microscope_of(12, 40, **imaging)
    obj, z, pose, images = stack(kind, snr, 0.7, microscope, seed=11)
    cells = 10_000_000 if kind != "two-hinges" else 60_000_000
    monkeypatch.setattr(oracle, "MAX_CELLS", cells)
    summed_z, summed = oracle.oracle_estimates(obj, images, microscope, 0.7)
    monkeypatch.setattr(oracle, "MAX_CELLS", 30_000 if kind != "two-hinges" else 1_000_000)
    sampled_z, sampled = oracle.oracle_estimates(obj, images, microscope, 0.7)
    bound = cramer_rao(obj, z, pose, microscope, 0.7)
    assert not np.array_equal(summed_z, sampled_z)
    assert (np.abs(summed_z - sampled_z) < 0.3 * bound.z_sd).all()
    assert (np.abs(turn(summed.theta_rad, sampled.theta_rad, obj.symmetry)) < 0.3 * bound.theta_sd_rad).all()
    assert (np.abs(summed.shift_px - sampled.shift_px) < 0.3 * bound.shift_sd_px).all()


@pytest.mark.parametrize(
    ("kind", "imaging"), [("hinge", {}), ("two-hinges", {"ctf": True, "colour": "coloured", "groups": 2})]
)
def test_the_bound_is_met_by_gauss_newton_where_the_noise_is_low(kind, imaging):
    microscope = microscope_of(400, 40, **imaging)
    obj, z, pose, images = stack(kind, 400.0, 2.0, microscope)
    inside = (np.abs(z) < 0.95).all(1)  # at the rim the estimate is clipped
    bound = cramer_rao(obj, z, pose, microscope, shift_px=2.0)
    problem = oracle._Problem.build(obj, images, microscope, 2.0)
    truth = np.column_stack([z, pose.theta_rad, pose.shift_px]).astype(np.float64)
    found, covariance = problem.gauss_newton(truth + 0.02)
    limit = np.column_stack([bound.z_sd, bound.theta_sd_rad, bound.shift_sd_px])
    pulls = np.sqrt(np.mean(((found - truth) / limit)[inside] ** 2, axis=0))
    np.testing.assert_allclose(pulls, 1.0, atol=0.12)  # 400 particles: s.d. of the r.m.s. is 0.035
    own = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    np.testing.assert_allclose(own[inside], limit[inside], rtol=0.1)


def test_white_noise_of_any_strength_is_the_same_problem():
    obj, _, _, images = stack("hinge", 0.2, 1.0, Microscope.plain(10, 32))
    z, pose = oracle.oracle_estimates(obj, images, Microscope.plain(10, 32), 1.0)
    louder = replace(obj, height=3 * obj.height)
    again_z, again = oracle.oracle_estimates(louder, 3 * images, Microscope.plain(10, 32, 3.0), 1.0)
    np.testing.assert_allclose(again_z, z, atol=1e-3)
    np.testing.assert_allclose(again.theta_rad, pose.theta_rad, atol=1e-3)


def test_pure_noise_has_no_oracle(tmp_path):
    folder = simulate_stack(simulation_of(tmp_path / "sim", "noise"))
    with pytest.raises(EmsvaeError, match="nothing but noise"):
        oracle.oracle_of_stack(folder)


def test_a_stack_with_everything_in_it_has_an_oracle(tmp_path):
    everything = {"ctf": True, "noise_colour": "coloured", "optics_groups": 2, "junk": 0.2, "snr": 3.0}
    folder = simulate_stack(simulation_of(tmp_path / "sim", "symmetric", particles=80, **everything))
    truth = read_truth(folder / "truth.star", load_simulation(folder / "simulation.json"))
    rows, z, pose = oracle.oracle_of_stack(folder, 30)
    assert len(rows) == 30 and not truth.is_junk[rows].any()
    assert np.sqrt(np.mean((z - truth.z[rows]) ** 2)) < 0.3
    off = turn(pose.theta_rad, truth.pose.theta_rad[rows], 2)
    assert np.degrees(np.median(np.abs(off))) < 4


def test_the_area_under_the_curve():
    junk = np.array([True, True, False, False, False])
    assert auc_of_low(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), junk) == 1.0
    assert auc_of_low(np.array([5.0, 4.0, 3.0, 2.0, 1.0]), junk) == 0.0
    assert auc_of_low(np.array([1.0, 3.0, 3.0, 4.0, 0.0]), junk) == pytest.approx((1 + 1 + 0 + 0.5 + 1 + 0) / 6)
    assert auc_of_low(np.ones(5), np.zeros(5, dtype=bool)) is None
