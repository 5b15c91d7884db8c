"""The simulated stack is what it says: signs, signal-to-noise ratio, derivatives, bounds, bytes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from emspatialvae import oracle
from emspatialvae.config import SimulateConfig
from emspatialvae.errors import EmsvaeError, OutputExistsError
from emspatialvae.geometry import Pose2D, from_relion, image_to_object_xy, object_to_image_xy, pixel_grid
from emspatialvae.io import mrc
from emspatialvae.io.star import StarFile
from emspatialvae.simulate import (
    HingeObject,
    clean_image,
    cramer_rao,
    derivatives,
    draw_truth,
    hinge_object,
    load_simulation,
    scale_to_snr,
    simulate_stack,
)

OBJ = hinge_object()


def config(folder: Path, **options) -> SimulateConfig:
    return SimulateConfig("hinge", folder, **{"particles": 60, "seed": 3, **options})


def some_truth(n, shift_px=2.0, seed=0):
    return draw_truth(n, shift_px, np.random.default_rng(seed))


def undone(image, pose, row):
    """The image with its pose taken out, by an interpolation that shares nothing with the drawing."""
    box = len(image)
    x, y = pixel_grid(box)
    theta = pose.theta_rad[row]
    seen_x, seen_y = object_to_image_xy(x, y, np.cos(theta), np.sin(theta), *pose.shift_px[row])
    return ndimage.map_coordinates(image, [seen_y + box // 2, seen_x + box // 2], order=3)


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def read_truth(folder):
    table = StarFile.read(folder / "truth.star").block("particles")
    labels = ["rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "emsvaeTrueZ1"]
    columns = [np.array(table.columns(label)[label], dtype=float) for label in labels]
    return columns[3], from_relion(columns[0], np.stack(columns[1:3], -1), 4.0)


@pytest.mark.parametrize("box", [40, 41])
def test_one_blob_lands_where_its_pose_says(box):
    blob = HingeObject(np.array([[10.0, 0.0]]) / box, np.zeros((0, 2)), 1.2 / box, np.pi / 2)
    # a quarter turn takes +x to +y (one row down is +1), then the shift moves right by 3 and up by 2
    image = clean_image(blob, [0.0], Pose2D(np.array([np.pi / 2]), np.array([[3.0, -2.0]])), box)[0]
    row, column = np.unravel_index(image.argmax(), image.shape)
    assert (column - box // 2, row - box // 2) == (3, 8)
    assert image.max() == pytest.approx(1.0)


def test_positive_z_turns_only_the_arm_and_from_x_towards_y():
    hinge = HingeObject(np.array([[-10.0, 0.0]]) / 40, np.array([[10.0, 0.0]]) / 40, 1 / 40, np.pi)
    image = clean_image(hinge, [1.0], Pose2D.identity(1), 40)[0]
    assert image[20, 10] == pytest.approx(1.0)
    assert image[30, 20] == pytest.approx(1.0)


def test_the_object_fits_scales_and_has_no_accidental_symmetry():
    radius = np.hypot(*np.concatenate([OBJ.body_xy, OBJ.arm_xy]).T)
    assert radius.max() < 0.35
    z = np.repeat([-1.0, 0.0, 1.0], 60)
    theta = np.tile(np.radians(np.arange(0, 360, 6)), 3)
    images = clean_image(OBJ, z, Pose2D(theta, np.zeros((180, 2))), 40)
    spectra = np.fft.rfft2(images / np.linalg.norm(images, axis=(1, 2), keepdims=True))
    other = (theta > np.radians(60)) & (theta < np.radians(300))
    for k in (0, 60, 120):
        at_best_shift = np.fft.irfft2(spectra * spectra[k].conj(), s=(40, 40)).max((1, 2))
        assert at_best_shift[other].max() < 0.82
    small, large = (clean_image(OBJ, [0.3], Pose2D.identity(1), box)[0] for box in (40, 80))
    assert correlation(small, large[::2, ::2]) > 0.9999


@pytest.mark.parametrize("box", [40, 33])
def test_undoing_the_pose_by_interpolation_gives_the_unposed_image(box):
    z, pose = some_truth(12)
    posed = clean_image(OBJ, z, pose, box)
    unposed = clean_image(OBJ, z, Pose2D.identity(12), box)
    for row in range(12):
        assert correlation(undone(posed[row], pose, row), unposed[row]) > 0.99
    wrong = Pose2D(-pose.theta_rad, pose.shift_px)
    assert np.mean([correlation(undone(posed[row], wrong, row), unposed[row]) for row in range(12)]) < 0.7


def test_derivatives_agree_with_finite_differences():
    z, pose = some_truth(5)
    exact = derivatives(OBJ, z, pose, 40)
    step = 1e-5
    for which in range(4):
        nudge = step * np.eye(4)[which]

        def moved(sign, nudge=nudge):
            theta, shift = pose.theta_rad + sign * nudge[1], pose.shift_px + sign * nudge[2:]
            return clean_image(OBJ, z + sign * nudge[0], Pose2D(theta, shift), 40)

        numeric = (moved(1) - moved(-1)) / (2 * step)
        assert np.abs(exact[:, which] - numeric).max() < 1e-7 * np.abs(numeric).max()


def test_the_bound_is_met_by_gauss_newton_where_the_noise_is_low():
    z, pose = some_truth(400, 2.0, seed=5)
    z *= 0.9
    noise_sd = 0.05
    bound = cramer_rao(OBJ, z, pose, 40, noise_sd, shift_px=2.0)
    images = clean_image(OBJ, z, pose, 40)
    images += noise_sd * np.random.default_rng(6).standard_normal(images.shape)
    truth = np.column_stack([z, pose.theta_rad, pose.shift_px])
    found, _ = oracle._gauss_newton(OBJ, images, truth + 0.02, noise_sd, 2.0)
    limit = np.column_stack([bound.z_sd, bound.theta_sd_rad, bound.shift_sd_px])
    pulls = np.sqrt(np.mean(((found - truth) / limit) ** 2, axis=0))
    np.testing.assert_allclose(pulls, 1.0, atol=0.12)  # 400 particles: s.d. of the r.m.s. is 0.035


def test_the_bound_knows_its_prior():
    z, pose = some_truth(20)
    known, tight, loose = (cramer_rao(OBJ, z, pose, 40, 5.0, shift_px) for shift_px in (0.0, 0.01, 1e6))
    np.testing.assert_allclose(tight.z_sd, known.z_sd, rtol=1e-2)
    np.testing.assert_allclose(tight.shift_sd_px, 0.01, rtol=1e-2)
    assert not known.shift_sd_px.any()
    assert (loose.z_sd > known.z_sd).all()
    summary = known.summary()
    assert summary["z_noise"] == pytest.approx(np.sqrt(1 / summary["z_corr"] ** 2 - 1))


@pytest.mark.parametrize(("snr", "shift_px", "n"), [(0.1, 0.0, 400), (0.1, 2.0, 60), (3.0, 2.0, 40)])
def test_the_oracle_comes_near_the_bound(snr, shift_px, n):
    z, pose = some_truth(n, shift_px, seed=9)
    obj = scale_to_snr(OBJ, z, pose, 40, snr)
    images = clean_image(obj, z, pose, 40) + np.random.default_rng(10).standard_normal((n, 40, 40))
    found_z, found = oracle.oracle_estimates(obj, images, 1.0, shift_px)
    bound = cramer_rao(obj, z, pose, 40, 1.0, shift_px)
    turn = np.angle(np.exp(1j * (found.theta_rad - pose.theta_rad)))
    low, high = (0.9, 1.3) if n > 100 else (0.75, 1.4)
    assert low < np.sqrt(np.mean((found_z - z) ** 2) / np.mean(bound.z_sd**2)) < high
    assert low < np.sqrt(np.mean(turn**2) / np.mean(bound.theta_sd_rad**2)) < high
    if shift_px:
        off = found.shift_px - pose.shift_px
        assert low < np.sqrt(np.mean(off**2) / np.mean(bound.shift_sd_px**2)) < high
    else:
        assert not found.shift_px.any()


def test_the_two_ways_of_the_oracle_agree(monkeypatch):
    z, pose = some_truth(12, 1.0, seed=11)
    obj = scale_to_snr(OBJ, z, pose, 40, 0.5)
    images = clean_image(obj, z, pose, 40) + np.random.default_rng(12).standard_normal((12, 40, 40))
    summed_z, summed = oracle.oracle_estimates(obj, images, 1.0, 1.0)
    monkeypatch.setattr(oracle, "MAX_CELLS", 200_000)
    sampled_z, sampled = oracle.oracle_estimates(obj, images, 1.0, 1.0)
    bound = cramer_rao(obj, z, pose, 40, 1.0, 1.0)
    assert (np.abs(summed_z - sampled_z) < 0.3 * bound.z_sd).all()
    assert (np.abs(summed.theta_rad - sampled.theta_rad) < 0.3 * bound.theta_sd_rad).all()
    assert (np.abs(summed.shift_px - sampled.shift_px) < 0.3 * bound.shift_sd_px).all()


def test_the_stack_has_the_snr_asked_for_and_truth_star_aligns_it(tmp_path):
    folder = simulate_stack(config(tmp_path / "sim", particles=700, snr=0.25))
    assert sorted(path.name for path in folder.iterdir()) == [
        "particles.mrcs",
        "particles.star",
        "simulation.json",
        "truth.star",
    ]
    header = mrc.read_header(folder / "particles.mrcs")
    assert (header.n_images, header.height, header.pixel_size_A) == (700, 40, pytest.approx(4.0))
    images = mrc.read_images(header, np.arange(700)).astype(float)
    z, pose = read_truth(folder)
    assert np.abs(z).max() <= 1
    simulation = load_simulation(folder / "simulation.json")
    clean = clean_image(simulation.obj, z, pose, 40)
    noise = images - clean
    assert noise.std() == pytest.approx(1.0, abs=0.005)
    assert clean.var() / noise.var() == pytest.approx(0.25, rel=0.01)
    assert abs(correlation(noise, clean)) < 0.005
    neighbours = correlation(noise[:, :, 1:], noise[:, :, :-1])
    assert abs(neighbours) < 0.005  # white
    aligned = np.mean([undone(images[row], pose, row) for row in range(700)], axis=0)
    average = clean_image(simulation.obj, z, Pose2D.identity(700), 40).mean(0)
    assert correlation(aligned, average) > 0.99
    x, y = image_to_object_xy(*pose.shift_px.T, 1.0, 0.0, 0.0, 0.0)
    assert np.std(x) == pytest.approx(2.0, rel=0.1)
    assert np.std(y) == pytest.approx(2.0, rel=0.1)
    rows, found_z, found = oracle.oracle_of_stack(folder, 5)
    assert rows.tolist() == [0, 175, 350, 524, 699]
    assert np.abs(found_z - z[rows]).max() < 0.8
    assert np.abs(found.shift_px - pose.shift_px[rows]).max() < 2


def test_particles_star_says_nothing_of_the_truth(tmp_path):
    folder = simulate_stack(config(tmp_path / "sim"))
    text = (folder / "particles.star").read_text()
    assert "Psi" not in text
    assert "Origin" not in text
    assert "True" not in text
    particles, truth = (StarFile.read(folder / name).block("particles") for name in ("particles.star", "truth.star"))
    for label in ("rlnImageName", "rlnMicrographName", "rlnOpticsGroup"):
        assert particles.columns(label) == truth.columns(label)
    assert particles.columns("rlnImageName")["rlnImageName"][:2] == ["000001@particles.mrcs", "000002@particles.mrcs"]


def test_same_seed_same_bytes_wherever_it_is_written(tmp_path):
    first, again = (simulate_stack(config(tmp_path / name)) for name in ("a", "b"))
    other = simulate_stack(config(tmp_path / "c", seed=4))
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    assert (first / "particles.mrcs").read_bytes() != (other / "particles.mrcs").read_bytes()
    facts = json.loads((first / "simulation.json").read_text())
    assert facts["snr"] == 0.1
    assert set(facts["cramer_rao"]) == {"z_corr", "z_noise", "theta_deg", "shift_px"}


@pytest.mark.parametrize(
    "options",
    [
        {"particles": 0},
        {"box": 15},
        {"snr": 0.0},
        {"snr": float("nan")},
        {"shift_px": -1.0},
        {"shift_px": 30.0},
        {"pixel_size_A": 0.0},
        {"span_deg": 0.0},
        {"seed": -1},
    ],
)
def test_nonsense_is_refused_in_one_line(tmp_path, options):
    with pytest.raises(EmsvaeError, match=r"^[^\n]+$"):
        simulate_stack(config(tmp_path / "sim", **options))
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_kept_unless_forced_and_a_stranger_always(tmp_path):
    folder = simulate_stack(config(tmp_path / "sim"))
    before = (folder / "particles.mrcs").read_bytes()
    with pytest.raises(OutputExistsError):
        simulate_stack(config(folder, seed=9))
    assert (folder / "particles.mrcs").read_bytes() == before
    simulate_stack(config(folder, seed=9, force=True))
    assert (folder / "particles.mrcs").read_bytes() != before
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years")
    with pytest.raises(EmsvaeError, match="not replaced"):
        simulate_stack(config(home, force=True))
    assert (home / "thesis.txt").read_text() == "years"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "sim"]


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args):
        raise EmsvaeError("the disk is full")

    monkeypatch.setattr("emspatialvae.simulate._write_stars", full)
    with pytest.raises(EmsvaeError, match="full"):
        simulate_stack(config(tmp_path / "sim"))
    assert not list(tmp_path.iterdir())


def test_a_foreign_simulation_json_is_an_error(tmp_path):
    path = tmp_path / "simulation.json"
    path.write_text('{"box": 40}')
    with pytest.raises(EmsvaeError, match=r"simulation\.json"):
        load_simulation(path)


def test_height_scales_the_image():
    z, pose = some_truth(2)
    np.testing.assert_allclose(
        clean_image(replace(OBJ, height=3.0), z, pose, 40), 3 * clean_image(OBJ, z, pose, 40), rtol=1e-12
    )
