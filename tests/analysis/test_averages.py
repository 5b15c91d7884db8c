"""Averages of raw particles with true poses: against the object itself, with and without CTF, from every kind of stack."""

from dataclasses import replace

import numpy as np
import pytest

from emspatialvae.analysis.classes import averages
from emspatialvae.analysis.classes.averages import average, class_averages, full_size, split
from emspatialvae.analysis.classes.restore import Sums, restore
from emspatialvae.config import InputConfig, SimulateConfig
from emspatialvae.imaging import ctf, masks, normalisation
from emspatialvae.imaging.ctf import CtfParams
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.io.mrc import StackWriter, read_header, read_images
from emspatialvae.particles.load import load_particles
from emspatialvae.preprocess.preparation import Preparation
from emspatialvae.results.latents import Latents
from emspatialvae.simulation.phantom import clean_image
from emspatialvae.simulation.stack import simulate_stack
from emspatialvae.simulation.truth import load_simulation, read_truth

PIXEL_A = 4.0


def latents_of(truth, classes=1, pixel_size_A=PIXEL_A):
    """What a perfect run would have found; classes are equal parts of z."""
    n, z = len(truth), truth.z[:, :1]
    number = 1 + np.minimum(((z[:, 0] + 1) / 2 * classes).astype(int), classes - 1)
    zero = np.zeros(n)
    return Latents(
        names=np.arange(n),
        used=np.ones(n, bool),
        z=z,
        z_sd=0 * z,
        pose=truth.pose.scaled(PIXEL_A / pixel_size_A),
        theta_sd_rad=zero,
        shift_sd_px=np.zeros((n, 2)),
        log_likelihood=zero,
        pixel_size_A=pixel_size_A,
        class_number=number,
    )


def prepared_as(box, treatment="none", invert=False, factor=1.0):
    """How a run prepared the images that looked at them in pixels ``factor`` times as large."""
    small = round(box / factor)
    return Preparation(small, PIXEL_A * box / small, 0.45 * small, invert, treatment, 6.0, True)


@pytest.fixture
def simulated(tmp_path):
    """A stack of hinges, its truth, and the object at a given z."""

    def make(**settings):
        box = settings.setdefault("box", 32)
        settings = {"particles": 200, "snr": 1.0, "shift_px": 1.5} | settings
        out = simulate_stack(SimulateConfig("hinge", tmp_path / f"sim{len(list(tmp_path.iterdir()))}", **settings))
        simulation = load_simulation(out / "simulation.json")
        truth = read_truth(out / "truth.star", simulation)
        stack = load_particles(InputConfig(out / "particles.star"))

        def object_at(z):
            return clean_image(simulation.obj, np.array([[z]]), Pose2D.identity(1), box)[0]

        return stack, truth, object_at

    return make


def correlation(image, truth, radius=0.42):
    inside = masks.circular_mask(len(image), radius * len(image))
    return np.corrcoef(image[inside], truth[inside])[0, 1]


def mean_object(object_at, z):
    return np.mean([object_at(value) for value in z], 0)


@pytest.mark.parametrize("box", [32, 33])
def test_classes_look_like_the_object_at_their_contents(simulated, box):
    stack, truth, object_at = simulated(box=box)
    latents = latents_of(truth, classes=3)
    found = class_averages(stack, latents, prepared_as(box))
    assert found.images.shape == (3, box, box)
    assert found.pixel_size_A == PIXEL_A
    assert not found.ctf_corrected
    assert found.count.tolist() == np.bincount(latents.class_number)[1:].tolist()
    np.testing.assert_allclose(found.n_eff, found.count)
    expected = [mean_object(object_at, truth.z[latents.class_number == c, 0]) for c in (1, 2, 3)]
    match = np.array([[correlation(image, other) for other in expected] for image in found.images])
    assert np.diag(match).min() > 0.99
    assert match.argmax(1).tolist() == [0, 1, 2]
    # Brightness in units of the background's s.d., which is that of the noise of the simulation.
    inside = masks.circular_mask(box, 0.4 * box)
    slope = np.polyfit(expected[0][inside], found.images[0][inside], 1)[0]
    assert abs(slope - 1) < 0.1


def test_resolution_is_better_with_more_particles(simulated):
    stack, truth, _ = simulated(particles=400, snr=0.2)
    latents = latents_of(truth)
    few = replace(latents, class_number=(np.arange(400) < 30).astype(int))
    resolution_A = [class_averages(stack, some, prepared_as(32)).resolution_A(0.143)[0] for some in (latents, few)]
    assert 2 * PIXEL_A < resolution_A[0] < resolution_A[1]
    found = class_averages(stack, latents, prepared_as(32))
    assert found.resolution_A(0.143)[0] < found.resolution_A(0.5)[0]


def test_the_run_may_have_looked_at_smaller_images_and_dark_particles(simulated):
    stack, truth, object_at = simulated()
    dark = stack.source.with_name("dark.mrcs")
    with StackWriter(dark, len(stack), 32, PIXEL_A) as writer:
        writer.append(100 - 5 * stack.images(slice(None)))
    inverted = replace(stack, files=(read_header(dark),))
    plain = class_averages(stack, latents_of(truth), prepared_as(32))
    found = class_averages(
        inverted, latents_of(truth, pixel_size_A=2 * PIXEL_A), prepared_as(32, invert=True, factor=2)
    )
    assert found.images.shape[-1] == 32
    assert found.pixel_size_A == PIXEL_A
    np.testing.assert_allclose(found.images, plain.images, atol=1e-3)
    assert correlation(found.images[0], mean_object(object_at, truth.z[:, 0])) > 0.99


def test_half_sets_are_fixed_equal_and_by_chance(simulated):
    stack, truth, _ = simulated(particles=101)
    latents = latents_of(truth, classes=2)
    one, same, other = (class_averages(stack, latents, prepared_as(32), seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.halves, same.halves)
    np.testing.assert_array_equal(one.frc, same.frc)
    assert not np.array_equal(one.halves, other.halves)
    np.testing.assert_allclose(one.images, other.images, atol=1e-5)
    group = np.random.default_rng(0).integers(0, 5, 1000)
    half = split(group, 3)
    assert set(half) == {0, 1}
    for number in range(5):
        sizes = np.bincount(half[group == number])
        assert abs(sizes[0] - sizes[1]) <= 1
    assert abs(np.corrcoef(half, np.arange(1000) % 2)[0, 1]) < 0.2


# ------------------------------------------------------------------------------------------------------------------ CTF


@pytest.mark.parametrize("box", [48, 49])
def test_the_wiener_average_is_the_object_and_the_plain_one_is_not(simulated, box):
    stack, truth, object_at = simulated(box=box, ctf=True, snr=0.5, astigmatism_A=3000.0)
    latents, expected = latents_of(truth), mean_object(object_at, truth.z[:, 0])
    wiener = class_averages(stack, latents, prepared_as(box, "multiply"))
    plain = class_averages(stack, latents, prepared_as(box, "none"))
    assert (wiener.ctf_corrected, plain.ctf_corrected) == (True, False)
    assert correlation(wiener.images[0], expected) > 0.98
    assert correlation(wiener.images[0], expected) > correlation(plain.images[0], expected) + 0.05
    # Both halves tell the same, and it is not the filter that makes them agree.
    assert wiener.frc[0, 1:5].min() > 0.9
    assert abs(wiener.frc[0, box // 2 - 4 :].mean()) < 0.2
    outside = ~masks.circular_mask(box, 0.45 * box)
    assert abs(wiener.images[0][outside].mean()) < 1e-4


def test_astigmatism_turns_with_the_particle(simulated):
    """Only the CTF^2 of the object's own frame fits: turned the other way, the average is worse."""
    stack, truth, object_at = simulated(box=48, ctf=True, snr=2.0, astigmatism_A=15000.0, defocus_min_A=15000.0)
    latents, expected = latents_of(truth), mean_object(object_at, truth.z[:, 0])
    # All particles turned by the same angle: an astigmatism turned wrongly does not average out.
    some = np.abs(np.sin(truth.pose.theta_rad - 0.8)) < 0.3
    some &= np.abs(np.sin(truth.microscope.ctf.astigmatism_rad - 0.4)) < 0.3
    latents = replace(latents, used=some)
    assert some.sum() > 5
    right = class_averages(stack, latents, prepared_as(48, "multiply")).images[0]
    turned = CtfParams.turned
    try:
        CtfParams.turned = lambda self, angle_rad: turned(self, -angle_rad)
        wrong = class_averages(stack, latents, prepared_as(48, "multiply")).images[0]
    finally:
        CtfParams.turned = turned
    assert correlation(right, expected) > correlation(wrong, expected) + 0.005


def test_ctf_of_a_turned_image_is_the_turned_ctf():
    params = CtfParams(*(np.array([value]) for value in (30000.0, 20000.0, 0.3, 0.0, 300.0, 2.7, 0.1)))
    quarter = ctf.ctf_2d(params.turned(np.array([np.pi / 2])), 32, 2.0)[0]
    whole = np.fft.fftshift(np.fft.fft2(np.fft.irfft2(ctf.ctf_2d(params, 32, 2.0)[0], s=(32, 32)))).real
    expected = np.roll(np.rot90(whole, -1), 1, 1)  # rows run downwards: from +x towards +y, about index 16
    found = np.fft.fftshift(np.fft.fft2(np.fft.irfft2(quarter, s=(32, 32)))).real
    np.testing.assert_allclose(found[1:, 1:], expected[1:, 1:], atol=1e-4)
    assert np.abs(found - whole).max() > 0.5


def test_images_flipped_or_multiplied_before_give_the_same(simulated):
    stack, truth, _ = simulated(box=32, ctf=True, snr=2.0)
    raw = normalisation.normalise(stack.images(slice(None)), 0.45 * 32)
    versions = {
        "raw": (raw, {}),
        "flipped": (ctf.flip_phases(raw, stack.ctf, PIXEL_A), {"phase_flipped": True}),
        "multiplied": (ctf.multiply(raw, stack.ctf, PIXEL_A), {"ctf_premultiplied": True}),
    }
    found = {}
    for name, (images, flags) in versions.items():
        path = stack.source.with_name(f"{name}.mrcs")
        with StackWriter(path, len(stack), 32, PIXEL_A) as writer:
            writer.append(images)
        of_this = replace(stack, files=(read_header(path),), optics=(replace(stack.optics[0], **flags),))
        found[name] = class_averages(of_this, latents_of(truth), prepared_as(32, "multiply")).images[0]
    for name in ("flipped", "multiplied"):
        assert correlation(found[name], found["raw"]) > 0.99, name


def test_without_noise_nothing_is_divided_by_the_zeros_of_the_ctf(simulated):
    """Sums of one CTF with a zero, and rounding that both halves share."""
    object_ = simulated(particles=2)[2](0.3)
    power = np.where(ctf.rings(32)[0] == 6, 1e-12, 5.0).astype(np.float32)
    through = np.fft.irfft2(np.fft.rfft2(object_) * power, s=(32, 32))
    rounding = 1e-6 * np.random.default_rng(0).normal(size=(32, 32))
    halves = np.broadcast_to(through + rounding, (1, 2, 32, 32))
    ten = np.full((1, 2), 10)
    sums = Sums(halves.astype(np.float32), np.broadcast_to(power, (1, 2, *power.shape)), ten, ten, ten)
    found = restore(sums, PIXEL_A, 14).images[0]
    assert correlation(found, object_) > 0.95
    inside = masks.circular_mask(32, 14)
    assert np.ptp(found[inside]) < 1.5 * np.ptp(object_[inside])


def test_few_particles_give_a_smooth_average_not_a_noisy_one(simulated):
    stack, truth, object_at = simulated(particles=303, box=48, ctf=True, snr=0.3)
    latents = replace(latents_of(truth), class_number=np.where(np.arange(303) < 300, 1, 2))
    found = class_averages(stack, latents, prepared_as(48, "multiply"))
    power = np.abs(np.fft.rfft2(found.images)) ** 2
    ring = ctf.rings(48)[0]
    assert power[1, ring > 20].mean() < 0.1 * power[0, ring < 4].mean()
    assert correlation(found.images[1], mean_object(object_at, truth.z[300:, 0])) > 0.7


# ------------------------------------------------------------------------------------------------------- kinds of stacks


def test_two_optics_groups_with_their_own_ctf(simulated):
    stack, truth, object_at = simulated(box=48, ctf=True, optics_groups=2)
    found = class_averages(stack, latents_of(truth), prepared_as(48, "multiply"))
    assert found.count.tolist() == [200]
    assert correlation(found.images[0], mean_object(object_at, truth.z[:, 0])) > 0.98


def test_two_pixel_sizes_come_to_the_coarser(simulated, tmp_path):
    """Half of the particles in 64 px of 2 A, half in 32 px of 4 A: one object, one average."""
    coarse, truth, object_at = simulated(box=32)
    fine, fine_truth, _ = simulated(box=64, pixel_size_A=2.0)
    both = replace(
        coarse,
        names=np.concatenate([coarse.names, fine.names]),
        paths=coarse.paths + fine.paths,
        files=coarse.files + fine.files,
        file_of=np.concatenate([coarse.file_of, fine.file_of + 1]),
        index_of=np.concatenate([coarse.index_of, fine.index_of]),
        optics=coarse.optics + fine.optics,
        optics_of=np.concatenate([coarse.optics_of, fine.optics_of + 1]),
    )
    assert both.boxes == (32, 64)
    one, other = latents_of(truth), latents_of(fine_truth)
    pose = Pose2D(
        np.concatenate([one.pose.theta_rad, other.pose.theta_rad]),
        np.concatenate([one.pose.shift_px, other.pose.shift_px / 2]),  # in pixels of 4 A
    )
    n = len(both)
    latents = replace(one, names=both.names, used=np.ones(n, bool), z=np.zeros((n, 1)), pose=pose)
    latents = replace(latents, class_number=np.where(np.arange(n) < 200, 1, 2))
    found = class_averages(both, latents, prepared_as(32))
    assert found.images.shape[-1] == 32
    assert found.pixel_size_A == PIXEL_A
    expected = mean_object(object_at, truth.z[:, 0])
    assert correlation(found.images[0], expected) > 0.99
    assert correlation(found.images[1], expected) > 0.98
    assert full_size(both, prepared_as(32), np.arange(200, n)).box == 64  # the fine ones alone stay fine


def test_unused_and_unusable_particles_count_nothing(simulated):
    stack, truth, _ = simulated(particles=40)
    path = stack.source.with_name("bad.mrcs")
    images = stack.images(slice(None))
    images[7] = 3.0  # constant
    images[8] += 1e4 * np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    with StackWriter(path, 40, 32, PIXEL_A) as writer:
        writer.append(images)
    bad = replace(stack, files=(read_header(path),))
    used = np.ones(40, bool)
    used[8] = False
    found = class_averages(bad, replace(latents_of(truth), used=used), prepared_as(32))
    assert found.count.tolist() == [38]
    good = np.ones(40, bool)
    good[[7, 8]] = False
    without = class_averages(stack, replace(latents_of(truth), used=good), prepared_as(32))
    np.testing.assert_allclose(found.images, without.images, atol=1e-5)


def test_a_class_of_one_and_an_empty_one(simulated):
    stack, truth, _ = simulated(particles=20, ctf=True)
    number = np.ones(20, int)
    number[4] = 3
    for treatment in ("none", "multiply"):
        found = class_averages(stack, replace(latents_of(truth), class_number=number), prepared_as(32, treatment))
        assert found.count.tolist() == [19, 0, 1]
        assert np.isfinite(found.images).all()
        assert found.images[2].any()
        assert not found.images[1].any()
        assert np.isnan(found.frc[1:]).all()
        assert np.isnan(found.resolution_A(0.143)[1:]).all()


def test_without_two_particles_in_any_class_there_still_are_images(simulated):
    """Nothing then tells signal from noise; the phases are put right all the same."""
    stack, truth, object_at = simulated(particles=3, ctf=True, snr=20.0, box=48)
    found = class_averages(stack, replace(latents_of(truth), class_number=np.arange(3)), prepared_as(48, "multiply"))
    assert found.count.tolist() == [1, 1]
    assert min(correlation(image, object_at(z)) for image, z in zip(found.images, truth.z[1:, 0], strict=True)) > 0.3


# ----------------------------------------------------------------------------------------------------------------- paths


def kernel(truth, centres, width):
    """What each particle counts about points of z1; [n, k]."""
    return np.exp(-((truth.z[:, :1] - np.array(centres)) ** 2) / (2 * width**2))


def test_weighted_averages_follow_the_hinge(simulated):
    stack, truth, object_at = simulated(particles=400, snr=1.0)
    latents, centres = latents_of(truth), np.array([[-0.8], [0.0], [0.8]])
    weights = kernel(truth, centres[:, 0], 0.1)
    found = average(stack, latents, weights, prepared_as(32))
    expected = [object_at(z[0]) for z in centres]
    match = np.array([[correlation(image, other) for other in expected] for image in found.images])
    assert np.diag(match).min() > 0.95
    assert match.argmax(1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.n_eff, weights.sum(0) ** 2 / (weights**2).sum(0), rtol=1e-5)
    wide = average(stack, latents, kernel(truth, centres[:, 0], 100.0), prepared_as(32))
    np.testing.assert_allclose(wide.n_eff, 400, rtol=1e-3)
    everything = class_averages(stack, latents, prepared_as(32)).images[0]
    np.testing.assert_allclose(wide.images[1], everything, atol=1e-3)
    # Sharper where the kernel is narrower: the moving arm.
    assert match[2, 2] > correlation(wide.images[2], expected[2]) + 0.02


def test_an_average_of_nobody_is_empty(simulated):
    stack, truth, _ = simulated(particles=20)
    found = average(stack, latents_of(truth), np.zeros((20, 1)), prepared_as(32))
    assert found.n_eff.tolist() == [0]
    assert not found.images.any()


def test_only_particles_that_count_are_read(simulated, monkeypatch):
    stack, truth, _ = simulated(particles=60)
    read = []
    monkeypatch.setattr(
        "emspatialvae.io.mrc.read_images", lambda header, rows: read.extend(rows) or read_images(header, rows)
    )
    weights = np.where(truth.z[:, :1] > 0.5, 0.1, 0.0)
    average(stack, latents_of(truth), weights, prepared_as(32))
    assert sorted(read) == np.flatnonzero(weights[:, 0]).tolist()


def test_progress_counts_every_particle_once(simulated, monkeypatch):
    stack, truth, _ = simulated(particles=60)
    monkeypatch.setattr(averages, "CHUNK_BYTES", 4 * 32 * 32 * 7)
    seen = []
    small = class_averages(stack, latents_of(truth, classes=4), prepared_as(32), progress=seen.append)
    assert sum(seen) == 60
    assert max(seen) == 7
    monkeypatch.undo()
    whole = class_averages(stack, latents_of(truth, classes=4), prepared_as(32))
    np.testing.assert_allclose(small.images, whole.images, atol=1e-5)
