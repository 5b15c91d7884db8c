"""The simulated stack is what it says: signs, signal-to-noise ratio, derivatives, bounds, bytes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from emspatialvae.errors import EmsvaeError, OutputExistsError
from emspatialvae.imaging.ctf import CtfParams, ctf_2d
from emspatialvae.imaging.geometry import Pose2D, from_relion, image_to_object_xy, object_to_image_xy, pixel_grid
from emspatialvae.io import mrc
from emspatialvae.io.star import StarFile
from emspatialvae.simulation import oracle
from emspatialvae.simulation.bounds import cramer_rao
from emspatialvae.simulation.kinds import Kind, hinge_object, phantom
from emspatialvae.simulation.microscope import COLOURED, Microscope, NoiseSpectrum
from emspatialvae.simulation.phantom import JointedPhantom, Part, TiltedPhantom, clean_image, derivatives
from emspatialvae.simulation.stack import draw_truth, simulate_stack
from emspatialvae.simulation.truth import load_simulation, read_truth
from tests.tools.simulations import simulation_of

KINDS: list[Kind] = ["hinge", "hinge-b", "two-hinges", "views", "symmetric", "pseudo-symmetric"]
OBJ = hinge_object()


def some_truth(n, shift_px=2.0, seed=0, z_dim=1):
    return draw_truth(n, shift_px, np.random.default_rng(seed), z_dim)


def hinge(body, arm, blob_sigma, span_rad):
    parts = (Part(np.array(body).reshape(-1, 2), (0.0,)), Part(np.array(arm).reshape(-1, 2), (span_rad,)))
    return JointedPhantom(blob_sigma, parts=parts)


def undone(image, pose, row):
    """The image with its pose taken out, by an interpolation that shares nothing with the drawing."""
    box = len(image)
    x, y = pixel_grid(box)
    theta = pose.theta_rad[row]
    seen_x, seen_y = object_to_image_xy(x, y, np.cos(theta), np.sin(theta), *pose.shift_px[row])
    return ndimage.map_coordinates(image, [seen_y + box // 2, seen_x + box // 2], order=3)


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def star_truth(folder):
    table = StarFile.read(folder / "truth.star").block("particles")
    labels = ["rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "emsvaeTrueZ1"]
    columns = [np.array(table.columns(label)[label], dtype=float) for label in labels]
    return columns[3], from_relion(columns[0], np.stack(columns[1:3], -1), 4.0)


@pytest.mark.parametrize("box", [40, 41])
def test_one_blob_lands_where_its_pose_says(box):
    blob = hinge([10.0 / box, 0.0], [], 1.2 / box, np.pi / 2)
    # a quarter turn takes +x to +y (one row down is +1), then the shift moves right by 3 and up by 2
    image = clean_image(blob, [0.0], Pose2D(np.array([np.pi / 2]), np.array([[3.0, -2.0]])), box)[0]
    row, column = np.unravel_index(image.argmax(), image.shape)
    assert (column - box // 2, row - box // 2) == (3, 8)
    assert image.max() == pytest.approx(1.0)


def test_positive_z_turns_only_the_arm_and_from_x_towards_y():
    image = clean_image(hinge([-0.25, 0.0], [0.25, 0.0], 1 / 40, np.pi), [1.0], Pose2D.identity(1), 40)[0]
    assert image[20, 10] == pytest.approx(1.0)
    assert image[30, 20] == pytest.approx(1.0)


def test_the_object_fits_scales_and_has_no_accidental_symmetry():
    radius = np.hypot(*np.concatenate([part.atoms_xy for part in OBJ.parts]).T)
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


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_agree_with_finite_differences(kind):
    obj = phantom(kind)
    d = obj.z_dim
    z, pose = some_truth(5, z_dim=d)
    exact = derivatives(obj, z, pose, 40)
    assert exact.shape == (5, d + 3, 40, 40)
    step = 1e-5
    for which in range(d + 3):
        nudge = step * np.eye(d + 3)[which]

        def moved(sign, nudge=nudge):
            theta, shift = pose.theta_rad + sign * nudge[d], pose.shift_px + sign * nudge[d + 1 :]
            return clean_image(obj, z + sign * nudge[:d], Pose2D(theta, shift), 40)

        numeric = (moved(1) - moved(-1)) / (2 * step)
        assert np.abs(exact[:, which] - numeric).max() < 1e-7 * np.abs(numeric).max()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_within_its_box_and_shows_what_z_does(kind):
    obj = phantom(kind)
    z, _ = some_truth(50, z_dim=obj.z_dim)
    x, y = obj.atoms(z)
    assert np.hypot(x, y).max() < 0.36
    still = Pose2D.identity(3)
    for k in range(obj.z_dim):
        ends = np.zeros((3, obj.z_dim))
        ends[:, k] = [-1, 0, 1]
        low, middle, high = clean_image(obj, ends, still, 40)
        assert correlation(low, high) < 0.85
        assert correlation(low, middle) > correlation(low, high)


def test_symmetric_is_and_pseudo_symmetric_nearly():
    half_turn = Pose2D(np.array([0.4, 0.4 + np.pi]), np.full((2, 2), 1.5))
    for z in (-0.9, 0.0, 0.7):
        images = clean_image(phantom("symmetric"), [z, z], half_turn, 40)
        np.testing.assert_allclose(images[0], images[1], atol=1e-9)
        alike = correlation(*clean_image(phantom("pseudo-symmetric"), [z, z], half_turn, 40))
        assert 0.9 < alike < 0.99
    assert [phantom(kind).symmetry for kind in KINDS] == [1, 1, 1, 1, 2, 1]


def test_views_are_projections_of_one_solid():
    obj = phantom("views", 60.0)
    assert isinstance(obj, TiltedPhantom)
    x, y, depth = obj.atoms_xyz.T
    for z, tilt in ((-1.0, np.radians(-30)), (0.5, np.radians(15))):
        seen_x, seen_y = obj.atoms([z])
        np.testing.assert_allclose(seen_x[0], np.cos(tilt) * x + np.sin(tilt) * depth, atol=1e-12)
        np.testing.assert_array_equal(seen_y[0], y)


def test_the_two_hinges_turn_independently():
    obj = phantom("two-hinges")
    assert isinstance(obj, JointedPhantom)
    atoms = np.stack(obj.atoms([[0, 0], [1, 0], [0, 1]]), -1)
    first, second = (np.abs(atoms[k] - atoms[0]).max(-1) > 1e-9 for k in (1, 2))
    assert first.sum() == len(obj.parts[1].atoms_xy)
    assert second.sum() == len(obj.parts[2].atoms_xy)
    assert not (first & second).any()


def test_the_image_with_a_ctf_is_the_sum_of_its_waves():
    z, pose = some_truth(3)
    params = CtfParams(
        defocus_u_A=np.array([1e4, 2e4, 3e4]),
        defocus_v_A=np.array([9e3, 2e4, 2.95e4]),
        astigmatism_rad=np.array([0.3, 1.0, 2.0]),
        phase_shift_rad=np.zeros(3),
        voltage_kV=np.full(3, 300.0),
        cs_mm=np.full(3, 2.7),
        amplitude_contrast=np.full(3, 0.1),
    )
    microscope = Microscope(17, 4.0, np.zeros(3, dtype=np.int64), ctf=params)
    clean = clean_image(OBJ, z, pose, 17)
    x, y = pixel_grid(17)
    frequency = np.fft.fftfreq(17)
    ctf = ctf_2d(params, 17, 4.0)
    direct = np.zeros_like(clean)
    for i, fy in enumerate(frequency):
        for j, fx in enumerate(frequency):
            wave = np.exp(2j * np.pi * (fx * x + fy * y))
            value = (clean * wave.conj()).sum((1, 2)) / 17**2
            along = ctf[:, i, j] if fx >= 0 else ctf[:, -i % 17, -j % 17]  # CTF(-k) = CTF(k)
            direct += ((along * value)[:, None, None] * wave).real
    np.testing.assert_allclose(microscope.image(clean), direct, atol=1e-5 * np.abs(direct).max())


@pytest.mark.parametrize("box", [32, 33])
def test_the_noise_has_the_spectrum_that_it_says(box):
    louder = NoiseSpectrum(1.4, 5.0, 0.13, 2.0)
    group = np.arange(3000) % 2
    noise = Microscope(box, 4.0, group, (COLOURED, louder)).draw_noise(np.random.default_rng(0))
    power = np.abs(np.fft.fft2(noise)) ** 2 / box**2
    k = np.hypot(np.fft.fftfreq(box), np.fft.fftfreq(box)[:, None])
    for number, spectrum in enumerate((COLOURED, louder)):
        assert noise[group == number].std() == pytest.approx(spectrum.sd, rel=0.01)
        wanted = (1 + spectrum.low_height * np.exp(-((k / spectrum.low_width) ** 2))) / (1 + spectrum.fall * 4 * k**2)
        wanted *= spectrum.sd**2 / wanted.mean()
        np.testing.assert_allclose(spectrum.power(box), wanted[:, : box // 2 + 1])
        found = power[group == number].mean(0)
        for low in np.arange(0, 0.5, 0.1):
            ring = (k >= low) & (k < low + 0.1)
            assert found[ring].sum() == pytest.approx(wanted[ring].sum(), rel=0.03)


def test_the_bound_knows_its_prior():
    z, pose = some_truth(20)
    known, tight, loose = (
        cramer_rao(OBJ, z, pose, Microscope.plain(20, 40, 5.0), shift_px) for shift_px in (0.0, 0.01, 1e6)
    )
    np.testing.assert_allclose(tight.z_sd, known.z_sd, rtol=1e-2)
    np.testing.assert_allclose(tight.shift_sd_px, 0.01, rtol=1e-2)
    assert not known.shift_sd_px.any()
    assert (loose.z_sd > known.z_sd).all()
    summary = known.summary()
    assert summary["z_noise"] == pytest.approx(np.sqrt(1 / summary["z_corr"] ** 2 - 1))


def test_the_stack_has_the_snr_asked_for_and_truth_star_aligns_it(tmp_path):
    folder = simulate_stack(simulation_of(tmp_path / "sim", particles=700, snr=0.25))
    assert sorted(path.name for path in folder.iterdir()) == [
        "particles.mrcs",
        "particles.star",
        "simulation.json",
        "truth.star",
    ]
    header = mrc.read_header(folder / "particles.mrcs")
    assert (header.n_images, header.height, header.pixel_size_A) == (700, 40, pytest.approx(4.0))
    images = mrc.read_images(header, np.arange(700)).astype(float)
    z, pose = star_truth(folder)
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
    shift_x, shift_y = pose.shift_px.T
    x, y = image_to_object_xy(shift_x, shift_y, 1.0, 0.0, 0.0, 0.0)
    assert np.std(x) == pytest.approx(2.0, rel=0.1)
    assert np.std(y) == pytest.approx(2.0, rel=0.1)
    rows, found_z, found = oracle.oracle_of_stack(folder, 5)
    assert rows.tolist() == [0, 175, 350, 524, 699]
    assert np.abs(found_z[:, 0] - z[rows]).max() < 0.8
    assert np.abs(found.shift_px - pose.shift_px[rows]).max() < 2


def test_particles_star_says_nothing_of_the_truth(tmp_path):
    folder = simulate_stack(simulation_of(tmp_path / "sim"))
    text = (folder / "particles.star").read_text()
    assert "Psi" not in text
    assert "Origin" not in text
    assert "True" not in text
    particles, truth = (StarFile.read(folder / name).block("particles") for name in ("particles.star", "truth.star"))
    for label in ("rlnImageName", "rlnMicrographName", "rlnOpticsGroup"):
        assert particles.columns(label) == truth.columns(label)
    assert particles.columns("rlnImageName")["rlnImageName"][:2] == ["000001@particles.mrcs", "000002@particles.mrcs"]


def test_same_seed_same_bytes_wherever_it_is_written(tmp_path):
    first, again = (simulate_stack(simulation_of(tmp_path / name)) for name in ("a", "b"))
    other = simulate_stack(simulation_of(tmp_path / "c", seed=4))
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    assert (first / "particles.mrcs").read_bytes() != (other / "particles.mrcs").read_bytes()
    facts = json.loads((first / "simulation.json").read_text())
    assert facts["snr"] == 0.1
    assert set(facts["cramer_rao"]) == {"z_corr", "z_noise", "theta_deg", "shift_px"}


@pytest.mark.parametrize("kind", [*KINDS, "noise"])
def test_what_is_read_back_is_what_was_drawn(tmp_path, kind):
    options = {"ctf": True, "noise_colour": "coloured", "optics_groups": 2, "junk": 0.3, "box": 32, "snr": 20.0}
    folder = simulate_stack(simulation_of(tmp_path / "sim", kind, particles=120, **options))
    again = simulate_stack(simulation_of(tmp_path / "again", kind, particles=120, **options))
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    simulation = load_simulation(folder / "simulation.json")
    truth = read_truth(folder / "truth.star", simulation)
    assert simulation.has_signal == (kind != "noise")
    assert (simulation.cramer_rao is None) == (kind == "noise")
    assert set(truth.microscope.group) == {0, 1}
    assert 0.1 < truth.is_junk.mean() < 0.5
    images = mrc.read_images(mrc.read_header(folder / "particles.mrcs"), np.arange(120)).astype(float)
    some = truth[~truth.is_junk]
    clean = clean_image(simulation.obj, some.z, some.pose, 32)
    noise = images[~truth.is_junk] - some.microscope.image(clean)
    whitened = np.fft.fft2(noise) / 32
    whitened = np.abs(whitened[..., :17]) ** 2 / some.microscope.noise_power()
    np.testing.assert_allclose(whitened.mean((1, 2)), 1.0, atol=0.25)
    assert whitened.mean() == pytest.approx(1.0, abs=0.02)
    if kind != "noise":
        assert clean.var() == pytest.approx(20.0)
        assert some.microscope.image(clean).var() < 18


def test_relion_is_told_of_ctf_and_optics_groups(tmp_path):
    folder = simulate_stack(
        simulation_of(tmp_path / "sim", ctf=True, optics_groups=2, defocus_min_A=12e3, defocus_max_A=13e3)
    )
    file = StarFile.read(folder / "particles.star")
    optics = file.block("optics").columns("rlnVoltage", "rlnSphericalAberration", "rlnOpticsGroup")
    assert [float(v) for v in optics["rlnVoltage"]] == [300.0, 200.0]
    labels = ["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnOpticsGroup"]
    u_A, v_A, angle_deg, shift, group = (
        np.array(values, dtype=float) for values in file.block("particles").columns(*labels).values()
    )
    np.testing.assert_allclose(u_A - v_A, 500.0)
    assert ((u_A + v_A) / 2 >= 12e3).all() and ((u_A + v_A) / 2 <= 13e3).all()
    assert angle_deg.min() >= 0 and 90 < angle_deg.max() <= 180
    assert not shift.any() and set(group) == {1, 2}


def test_junk_is_in_the_truth_only_and_looks_unlike_particles(tmp_path):
    folder = simulate_stack(simulation_of(tmp_path / "sim", junk=0.5, snr=50.0, particles=200))
    assert "Junk" not in (folder / "particles.star").read_text()
    simulation = load_simulation(folder / "simulation.json")
    truth = read_truth(folder / "truth.star", simulation)
    images = mrc.read_images(mrc.read_header(folder / "particles.mrcs"), np.arange(200)).astype(float)
    drawn = clean_image(simulation.obj, truth.z, truth.pose, 40)
    alike = np.array([correlation(*pair) for pair in zip(images, drawn, strict=True)])
    assert alike[~truth.is_junk].min() > 0.9
    assert alike[truth.is_junk].max() < 0.8
    assert 0.2 < (images[truth.is_junk].std((1, 2)) < 1.1).mean() < 0.5  # a third is nothing but noise
    rows, _, _ = oracle.oracle_of_stack(folder, 4)
    assert not truth.is_junk[rows].any()


def test_a_stack_of_the_first_version_is_still_read(tmp_path):
    folder = simulate_stack(simulation_of(tmp_path / "sim"))
    facts = json.loads((folder / "simulation.json").read_text())
    old = ("kind", "particles", "box", "snr", "shift_px", "span_deg", "pixel_size_A", "seed")
    kept = {name: facts[name] for name in (*old, "noise_sd", "signal_scale", "cramer_rao")}
    (folder / "simulation.json").write_text(json.dumps(kept))
    simulation = load_simulation(folder / "simulation.json")
    assert (simulation.noise, simulation.symmetry) == ((NoiseSpectrum(),), 1)
    assert not read_truth(folder / "truth.star", simulation).is_junk.any()


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
        {"junk": 1.0},
        {"junk": -0.1},
        {"junk": 0.99, "particles": 1},
        {"optics_groups": 3},
        {"optics_groups": 0},
        {"noise_colour": "pink"},
        {"defocus_min_A": -1.0},
        {"defocus_min_A": 2e4, "defocus_max_A": 1e4},
        {"astigmatism_A": float("nan")},
        {"kind": "blob"},
    ],
)
def test_nonsense_is_refused_in_one_line(tmp_path, options):
    with pytest.raises(EmsvaeError, match=r"^[^\n]+$"):
        simulate_stack(simulation_of(tmp_path / "sim", **options))
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_kept_unless_forced_and_a_stranger_always(tmp_path):
    folder = simulate_stack(simulation_of(tmp_path / "sim"))
    before = (folder / "particles.mrcs").read_bytes()
    with pytest.raises(OutputExistsError):
        simulate_stack(simulation_of(folder, seed=9))
    assert (folder / "particles.mrcs").read_bytes() == before
    simulate_stack(simulation_of(folder, seed=9, force=True))
    assert (folder / "particles.mrcs").read_bytes() != before
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years")
    with pytest.raises(EmsvaeError, match="not replaced"):
        simulate_stack(simulation_of(home, force=True))
    assert (home / "thesis.txt").read_text() == "years"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "sim"]


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args):
        raise EmsvaeError("the disk is full")

    monkeypatch.setattr("emspatialvae.simulation.stack.write_stars", full)
    with pytest.raises(EmsvaeError, match="full"):
        simulate_stack(simulation_of(tmp_path / "sim"))
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
