"""Resampling, normalising, mending and aligning images: each against something worked out another way."""

import numpy as np
import pytest

from emspatialvae.imaging import alignment, geometry, masks, normalisation, resampling, resolution
from emspatialvae.imaging.geometry import Pose2D

SIZES = [(40, 20), (40, 21), (41, 20), (41, 21), (40, 40), (41, 41), (40, 39), (41, 40)]


def noise(n, box, seed=0):
    return np.random.default_rng(seed).normal(size=(n, box, box)).astype(np.float32)


def blobs(box, pose, scale=1.0):
    """An object without symmetry, drawn at n poses by its formula; ``scale`` stretches it. Shape [n, box, box], float64."""
    x, y = geometry.pixel_grid(box)
    out = np.zeros((len(pose), box, box))
    for theta, shift, image in zip(pose.theta_rad, pose.shift_px, out, strict=True):
        for at_x, at_y, sigma, height in ((6, 1, 2.5, 1.0), (-5, 4, 3.0, 0.7), (-2, -7, 2.5, 0.9), (0, 0, 4.0, 0.5)):
            c_x = np.cos(theta) * at_x * scale - np.sin(theta) * at_y * scale + shift[0]
            c_y = np.sin(theta) * at_x * scale + np.cos(theta) * at_y * scale + shift[1]
            image += height * np.exp(-((x - c_x) ** 2 + (y - c_y) ** 2) / (2 * (scale * sigma) ** 2))
    return out


# ----------------------------------------------------------------------------------------------------------- resampling


def fft_crop(image, box_out):
    """Fourier crop with numpy's FFT, in float64; the Nyquist of an even result takes half of either side."""
    box_in = len(image)
    spectrum = np.fft.fftshift(np.fft.fft2(np.roll(image.astype(float), (-(box_in // 2),) * 2, (0, 1))))
    start = box_in // 2 - box_out // 2
    kept = np.zeros((box_out, box_out), complex)
    # One row and column more than wanted on even boxes: +Nyquist beside -Nyquist, where the input has both.
    stop = min(box_in, start + box_out + (box_out % 2 == 0))
    wide = spectrum[start:stop, start:stop]
    if len(wide) > box_out:
        wide[0] = (wide[0] + wide[-1]) / 2
        wide = wide[:-1]
        wide[:, 0] = (wide[:, 0] + wide[:, -1]) / 2
        wide = wide[:, :-1]
    kept[:] = wide
    cropped = np.fft.ifft2(np.fft.ifftshift(kept)).real * (box_out / box_in) ** 2
    return np.roll(cropped, (box_out // 2,) * 2, (0, 1))


@pytest.mark.parametrize("box", [16, 17])
def test_resampling_to_the_same_box_changes_nothing(box):
    np.testing.assert_allclose(resampling.fourier_resampling(box, box), np.eye(box), atol=1e-6)
    images = noise(2, box)
    np.testing.assert_allclose(resampling.fourier_crop(images, box), images, atol=1e-5)


@pytest.mark.parametrize(("box_in", "box_out"), SIZES)
def test_cropping_agrees_with_an_fft(box_in, box_out):
    images = noise(3, box_in)
    cropped = resampling.fourier_crop(images, box_out)
    assert cropped.shape == (3, box_out, box_out)
    assert cropped.dtype == np.float32
    np.testing.assert_allclose(cropped, [fft_crop(image, box_out) for image in images], atol=1e-5)


@pytest.mark.parametrize(("box_in", "box_out"), SIZES)
def test_cropping_keeps_the_centre_and_the_mean(box_in, box_out):
    point = np.zeros((1, box_in, box_in), np.float32)
    point[0, box_in // 2, box_in // 2] = 1
    cropped = resampling.fourier_crop(point, box_out)[0]
    centre = box_out // 2
    assert np.unravel_index(cropped.argmax(), cropped.shape) == (centre, centre)
    around = cropped[centre - 3 : centre + 4, centre - 3 : centre + 4]
    np.testing.assert_allclose(around, around[::-1, ::-1], atol=1e-6)  # no half pixel anywhere
    np.testing.assert_allclose(around, around.T, atol=1e-6)
    images = noise(2, box_in) + 5
    np.testing.assert_allclose(resampling.fourier_crop(images, box_out).mean((1, 2)), images.mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize(("box_in", "box_out", "step"), [(40, 25, 1.37), (41, 20, 1.9), (50, 16, 2.71), (33, 33, 1.0)])
def test_any_step_agrees_with_a_band_limited_function(box_in, box_out, step):
    """Sums of waves that fit the box, known between the pixels too; those above the new Nyquist must vanish."""
    rng = np.random.default_rng(1)
    k = np.arange(-(box_in // 2) + 1, (box_in + 1) // 2)
    amplitude = rng.normal(size=(len(k), len(k))) + 1j * rng.normal(size=(len(k), len(k)))
    kept = np.abs(k) < box_in / (2 * step)

    def waves(positions, which):
        basis = np.exp(2j * np.pi / box_in * np.outer(positions, k[which]))
        return (basis @ amplitude[np.ix_(which, which)] @ basis.T).real / len(k)

    image = waves(np.arange(box_in) - box_in // 2, np.ones(len(k), bool))
    expected = waves((np.arange(box_out) - box_out // 2) * step, kept)
    found = resampling.resample(image[None].astype(np.float32), resampling.fourier_resampling(box_in, box_out, step))[0]
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_cropping_does_not_move_an_object():
    small, large = blobs(30, Pose2D.identity(1)), blobs(61, Pose2D.identity(1), scale=61 / 30)
    np.testing.assert_allclose(resampling.fourier_crop(large.astype(np.float32), 30), small, atol=2e-3)


@pytest.mark.parametrize(("box_in", "box_out", "step"), [(20, 30, None), (20, 10, 0.5), (20, 15, 1.6)])
def test_what_does_not_lie_within_the_box_is_refused(box_in, box_out, step):
    with pytest.raises(ValueError, match="do not lie within a box of 20"):
        resampling.fourier_resampling(box_in, box_out, step)


# ---------------------------------------------------------------------------------------------------------- normalising


def test_the_mask_is_centred():
    for box in (20, 21):
        mask = masks.circular_mask(box, 4)
        rows, columns = np.nonzero(mask)
        assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == (box // 2 - 4, box // 2 + 4)
        assert abs(mask.sum() - np.pi * 16) < 3


def test_normalised_images_have_a_background_of_mean_0_and_sd_1():
    images = noise(3, 40)
    images[:, 15:25, 15:25] += 5
    images = images * np.array([1, 50, 0.01], np.float32)[:, None, None] + np.array([0, 100, -3])[:, None, None]
    normal = normalisation.normalise(images.astype(np.float32), 15)
    outside = ~masks.circular_mask(40, 15)
    np.testing.assert_allclose(normal[:, outside].mean(1), 0, atol=0.05)
    np.testing.assert_allclose(normal[:, outside].std(1), 1, rtol=0.02)
    assert normal.dtype == np.float32
    # Level, slope and scale only: but for a plane, the image stays what it was.
    x, y = geometry.pixel_grid(40)
    planes = np.stack([np.ones_like(x), x, y, images[1]]).reshape(4, -1).T
    left = normal[1].ravel() - planes @ np.linalg.lstsq(planes, normal[1].ravel(), rcond=None)[0]
    np.testing.assert_allclose(left, 0, atol=1e-4)


def test_an_image_without_noise_is_not_blown_up():
    clean = blobs(40, Pose2D.identity(1)).astype(np.float32)
    clean[clean < 0.05] = 0
    normal = normalisation.normalise(clean, 19)
    assert np.isfinite(normal).all()
    np.testing.assert_allclose(normal.std(), 1, rtol=1e-4)
    assert not normalisation.normalise(np.zeros((1, 20, 20), np.float32), 8).any()


@pytest.mark.parametrize("box", [64, 65])
def test_a_highpass_leaves_half_of_the_amplitude_at_its_period(box):
    """Waves of the mirrored box are passed on with a known factor, whatever their direction; so are others but for the edges."""
    column = np.arange(box)
    for count, period in ((4, 2 * box / 4), (8, 20.0), (1, 20.0)):
        wave = np.cos(np.pi * (column + 0.5) * count / box)
        images = np.stack([np.tile(wave, (box, 1)), np.tile(wave, (box, 1)).T, np.outer(wave, wave)]).astype(np.float32)
        filtered = normalisation.highpass(images, period)
        assert filtered.dtype == np.float32
        for image, found, k in zip(images, filtered, (1, 1, np.sqrt(2)), strict=True):
            factor = 1 - 2.0 ** -((period * k * count / (2 * box)) ** 2)
            np.testing.assert_allclose(found, factor * image, atol=1e-5)
        if count == 4:
            np.testing.assert_allclose(filtered[0], images[0] / 2, atol=1e-5)
    x, _ = geometry.pixel_grid(box)
    wave = np.tile(np.cos(2 * np.pi * x[0] / 16), (box, 1)).astype(np.float32)
    middle = np.s_[box // 2 - 8 : box // 2 + 8]
    np.testing.assert_allclose(
        normalisation.highpass(wave[None], 16.0)[0, middle, middle], wave[middle, middle] / 2, atol=0.02
    )


def test_a_highpass_takes_slopes_away_and_leaves_detail():
    x, _ = geometry.pixel_grid(80)
    detail = noise(1, 80)
    filtered = normalisation.highpass(detail + (x / 4).astype(np.float32) + 20, 20.0)
    assert np.abs(filtered.mean()) < 1e-4
    plain = normalisation.highpass(detail, 20.0)
    # A mirrored slope has a kink at the edge, where a little of it stays.
    assert np.abs(filtered - plain)[:, :, 20:60].max() < 0.02
    assert np.corrcoef(plain.ravel(), detail.ravel())[0, 1] > 0.98


def test_unusable_images_are_found():
    images = noise(6, 12)
    images[1] = 3.0
    images[2, 4, 4] = np.nan
    images[3, 0, 0] = np.inf
    images[4, :] = -np.inf
    assert normalisation.unusable(images).tolist() == [False, True, True, True, True, False]


# ----------------------------------------------------------------------------------------------------------- hot pixels


@pytest.mark.parametrize("value", [200.0, -200.0])
@pytest.mark.parametrize("place", [(20, 20), (0, 7), (39, 13), (8, 0), (5, 39), (0, 0), (39, 39), (0, 39)])
def test_a_lone_pixel_is_replaced_by_its_neighbours(place, value):
    images = noise(3, 40)
    images[(1, *place)] = value
    before = images.copy()
    mended, replaced = normalisation.replace_hot_pixels(images, 6)
    assert replaced.tolist() == [0, 1, 0]
    assert abs(mended[(1, *place)]) < 3
    np.testing.assert_array_equal(images, before)  # what was given stays as it was
    before[(1, *place)] = mended[(1, *place)]
    np.testing.assert_array_equal(mended, before)  # and nothing else is touched


def test_several_hot_pixels_are_counted_by_image():
    images = noise(2, 40)
    for place in ((3, 3), (10, 30), (39, 0)):
        images[(1, *place)] = 150
    mended, replaced = normalisation.replace_hot_pixels(images, 6)
    assert replaced.tolist() == [0, 3]
    assert np.abs(mended[1]).max() < 6


def test_a_bright_particle_is_left_alone():
    images = noise(1, 80)
    x, y = geometry.pixel_grid(80)
    images += 60 * np.exp(-(x**2 + y**2) / (2 * 3**2)).astype(np.float32)
    assert (images.max() - images.mean()) / images.std() > 6
    mended, replaced = normalisation.replace_hot_pixels(images, 6)
    assert replaced.tolist() == [0]
    assert mended is images


# ------------------------------------------------------------------------------------------------- contrast, alignment


@pytest.mark.parametrize("sign", [1, -1])
def test_brightness_of_the_centre(sign):
    images = noise(200, 40) + sign * np.float32(0.5) * masks.circular_mask(40, 15)
    brighter, error = normalisation.brightness_of_centre(images + 7, 15)
    assert abs(brighter - sign * 0.5) < 5 * error
    expected_error = np.sqrt(1 / (np.pi * 7.5**2) + 1 / (1600 - np.pi * 15**2)) / np.sqrt(200)
    assert 0.7 < error / expected_error < 1.4


def test_one_image_tells_nothing_about_its_scatter():
    assert np.isinf(normalisation.brightness_of_centre(noise(1, 30), 12)[1])
    flat = normalisation.brightness_of_centre(np.zeros((2, 30, 30), np.float32), 12)
    assert flat == (0, 0)


@pytest.mark.parametrize("box", [40, 41])
def test_alignment_takes_rotation_and_shift_out(box):
    rng = np.random.default_rng(3)
    pose = Pose2D(rng.uniform(-np.pi, np.pi, 10), rng.uniform(-4, 4, (10, 2)))
    object_ = blobs(box, Pose2D.identity(1))[0]
    aligned = alignment.align(blobs(box, pose), pose)
    inside = masks.circular_mask(box, 14)
    assert aligned.dtype == np.float32
    assert np.abs(aligned - object_)[:, inside].max() < 0.01 * object_.max()
    wrong = alignment.align(blobs(box, pose), Pose2D(-pose.theta_rad, pose.shift_px))
    assert np.abs(wrong - object_)[:, inside].max() > 0.3


def test_alignment_by_nothing_and_by_whole_pixels_is_exact():
    images = noise(2, 21)
    np.testing.assert_allclose(alignment.align(images, Pose2D.identity(2)), images, atol=1e-5)
    moved = alignment.align(images, Pose2D(np.zeros(2), np.array([[3.0, -2.0], [0.0, 0.0]])), fill=9)
    np.testing.assert_allclose(moved[0, 2:, :-3], images[0, :-2, 3:], atol=1e-5)
    np.testing.assert_array_equal(moved[0, :2], 9)  # what the image does not hold
    np.testing.assert_array_equal(moved[0, :, -3:], 9)


@pytest.mark.parametrize("box", [20, 21])
def test_radial_averages(box):
    x, y = geometry.pixel_grid(box)
    ring = np.rint(np.hypot(x, y))
    images = np.stack([ring, 0 * ring + 4]).astype(np.float32)
    averages = resolution.radial_average(images)
    assert averages.shape == (2, box // 2 + 1)
    np.testing.assert_allclose(averages[0], np.arange(box // 2 + 1), atol=1e-6)
    np.testing.assert_allclose(averages[1], 4)


# ------------------------------------------------------------------------------------------------ soft mask, resolution


@pytest.mark.parametrize("box", [30, 31])
def test_a_soft_mask_falls_off_between_its_radii(box):
    mask = masks.soft_mask(box, 6, 4)
    distance = np.hypot(*geometry.pixel_grid(box))
    np.testing.assert_array_equal(mask[distance <= 6], 1)
    np.testing.assert_array_equal(mask[distance >= 10], 0)
    np.testing.assert_allclose(mask[box // 2, box // 2 + 8], 0.5, atol=1e-6)


@pytest.mark.parametrize("box", [40, 41])
@pytest.mark.parametrize("snr", [0.2, 1.0, 5.0])
def test_frc_of_two_noisy_copies_is_what_theory_says(box, snr):
    """SNR / (SNR + 1) at every ring, for signal and noise that are both white."""
    signal, *noises = (noise(300, box, seed) for seed in (0, 1, 2))
    one, other = (np.sqrt(snr).astype(np.float32) * signal + n for n in noises)
    curve = resolution.fourier_ring_correlation(one, other)
    assert curve.shape == (300, box // 2 + 1)
    np.testing.assert_allclose(curve[:, 3:].mean(0), snr / (snr + 1), atol=0.03)


def test_frc_of_a_copy_is_1_whatever_its_scale_and_of_strangers_about_0():
    images, others = noise(200, 30), noise(200, 30, 1)
    np.testing.assert_allclose(resolution.fourier_ring_correlation(images, 3 * images), 1, atol=1e-6)
    np.testing.assert_allclose(resolution.fourier_ring_correlation(images, -images), -1, atol=1e-6)
    assert np.abs(resolution.fourier_ring_correlation(images, others)[:, 2:].mean(0)).max() < 0.06
    assert np.isnan(resolution.fourier_ring_correlation(images[:1], 0 * images[:1])).all()


def test_rings_tell_frequencies_apart():
    """Two images that share one wave only: their correlation is 1 in that wave's ring."""
    x, y = geometry.pixel_grid(40)
    wave = np.cos(2 * np.pi * (3 * x + 4 * y) / 40).astype(np.float32)
    first, second = (100 * wave + n for n in (noise(1, 40), noise(1, 40, 1)))
    curve = resolution.fourier_ring_correlation(first, second)[0]
    assert curve[5] > 0.95
    assert np.abs(np.delete(curve, [0, 1, 5])).max() < 0.7


def test_resolution_lies_where_the_curve_crosses():
    curves = np.array(
        [
            [1.0, 0.9, 0.6, 0.4, 0.1, 0.0],
            [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],  # never falls: twice the pixel
            [1.0, 0.1, 0.0, 0.0, 0.0, 0.0],  # never rises
            [1.0, 0.9, 0.4, 0.9, 0.9, 0.9],  # the first crossing counts
            [np.nan] * 6,
        ]
    )
    found = resolution.resolution_A(curves, 0.5, field_A=30.0)
    np.testing.assert_allclose(found, [30 / 2.5, 30 / 5, np.nan, 30 / 1.8, np.nan])
