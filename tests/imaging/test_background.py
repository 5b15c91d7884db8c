"""Level, slope and noise of the background of single images, with neighbours in it and without."""

import numpy as np
import pytest

from emspatialvae.imaging import geometry, masks, normalisation
from emspatialvae.imaging.background import fit_background
from emspatialvae.simulation.microscope import COLOURED


def noise(n, box, seed=0):
    return np.random.default_rng(seed).normal(size=(n, box, box)).astype(np.float32)


def slope(box, over_box, angle=0.6):
    """A plane that rises by so much over the box."""
    x, y = geometry.pixel_grid(box)
    return (over_box * (np.cos(angle) * x + np.sin(angle) * y) / box).astype(np.float32)


def outside_of(box, radius):
    return ~masks.circular_mask(box, radius)


def discs(n, box, radius, share=0.3, size=0.2, seed=0):
    """Neighbours: discs of ``size`` boxes in radius round the circle, until they cover a share of what lies outside; [n, box, box]."""
    rng, (x, y), outside = np.random.default_rng(seed), geometry.pixel_grid(box), outside_of(box, radius)
    out = np.zeros((n, box, box), bool)
    for image in out:
        for _ in range(60):
            phi, far = rng.uniform(0, 2 * np.pi), radius + (0.1 + rng.uniform(-0.5, 1) * size) * box
            more = image | (np.hypot(x - far * np.cos(phi), y - far * np.sin(phi)) < size * box)
            if more[outside].mean() < share + 0.03:
                image[:] = more
            if image[outside].mean() > share - 0.02:
                break
    assert abs(out[:, outside].mean() - share) < 0.02
    return out.astype(np.float32)


@pytest.mark.parametrize("box", [33, 40, 64])
def test_a_plane_is_taken_out_exactly(box):
    """Whatever stands in the circle; with noise, the fit to noise and plane is that to the noise, plus the plane."""
    radius = 0.4 * box
    particle = 50 * masks.circular_mask(box, 0.3 * box).astype(np.float32)
    planes, sd = fit_background((slope(box, 30) + 7 + particle)[None], radius)
    np.testing.assert_allclose(planes[0], slope(box, 30) + 7, atol=2e-4)
    assert sd[0] < 1e-3
    images = noise(50, box)
    of_noise, sd = fit_background(images, radius)
    with_plane, same_sd = fit_background(images + slope(box, 5) - 3, radius)
    difference = with_plane - of_noise - slope(box, 5) + 3
    assert np.sqrt((difference**2).mean()) < 0.01
    np.testing.assert_allclose(same_sd, sd, rtol=0.01)


@pytest.mark.parametrize(("box", "share"), [(40, 0.9), (64, 0.9), (64, 0.6), (128, 0.9)])
def test_on_noise_the_result_is_the_plain_one_within_its_sampling_error(box, share):
    radius, n = share * box / 2, 2_000_000 // box**2
    images, outside = noise(n, box), outside_of(box, share * box / 2)
    planes, sd = fit_background(images, radius)
    plain = images[:, outside].std(1)
    expected_error = 1 / np.sqrt(2 * outside.sum())
    assert abs((sd / plain).mean() - 1) < 0.003
    assert (sd - plain).std() < 0.5 * expected_error
    assert sd.var() < plain.var() / 0.9  # more than 90 % efficient
    # Three numbers are fitted to so many pixels; they cost no more than a fifth beyond least squares.
    x, y = geometry.pixel_grid(box)
    basis = np.stack([np.ones_like(x), x, y])
    of_fit = np.linalg.inv(basis[:, outside] @ basis[:, outside].T)
    least_squares = np.einsum("kij,kl,lij->ij", basis, of_fit, basis)
    assert (planes**2).mean() < 1.35 * least_squares.mean()


def test_noise_of_any_colour_has_its_own_sd():
    box, radius = 64, 0.9 * 32
    colour = np.sqrt(COLOURED.power(box))
    images = np.fft.irfft2(np.fft.rfft2(noise(300, box)) * colour, s=(box, box)).astype(np.float32)
    planes, sd = fit_background(images, radius)
    flat = (images - planes)[:, outside_of(box, radius)]
    assert abs((sd / flat.std(1)).mean() - 1) < 0.01


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("box", "share"), [(64, 0.9), (64, 0.6), (128, 0.6)])
@pytest.mark.parametrize("height", [3.0, 10.0])
def test_neighbours_over_a_third_of_the_surroundings_change_little(box, share, height, sign):
    """Bright ones, or dark ones before the contrast is inverted; beside a slope, too."""
    radius, n = share * box / 2, 150
    images, outside = noise(n, box), outside_of(box, radius)
    neighbours = sign * height * discs(n, box, radius)
    alone, sd_alone = fit_background(images, radius)
    for gradient in (0.0, 1.0):
        planes, sd = fit_background(images + neighbours + slope(box, gradient), radius)
        assert abs((sd / sd_alone).mean() - 1) < 0.1
        error = planes - alone - slope(box, gradient)
        assert np.median(np.abs(error).max((1, 2))) < 0.25
        assert abs(error.mean()) < 0.06
    crowded = (images + neighbours)[:, outside]
    assert (crowded.std(1) / sd_alone).mean() > 1.6  # what the plain way gives
    assert abs(crowded.mean()) > 0.8


def test_neighbours_that_one_pixel_does_not_show():
    """Half a noise s.d. high: the level is wrong by less than what covers a third of the surroundings adds to the mean."""
    box, radius = 128, 0.6 * 64
    images, neighbours = noise(60, box), discs(60, box, radius)
    alone, _ = fit_background(images, radius)
    planes, _ = fit_background(images + neighbours, radius)
    assert (planes - alone).mean() < 0.4 * neighbours[:, outside_of(box, radius)].mean()


def test_too_few_pixels_outside_are_refused_and_normalised_the_plain_way():
    images = noise(4, 12) * 3 + 5
    with pytest.raises(ValueError, match="pixels lie outside the circle"):
        fit_background(images, 6.5)
    normal = normalisation.normalise(images, 6.5)
    outside = outside_of(12, 6.5)
    assert 0 < outside.sum() < 50
    np.testing.assert_allclose(normal[:, outside].mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(normal[:, outside].std(1), 1, rtol=1e-5)


def test_images_without_any_noise():
    """Nothing but a plane, and a particle on a plane: no rounding error is blown up."""
    box = 40
    flat = normalisation.normalise((slope(box, 20) + 100)[None], 16)
    assert np.abs(flat).max() < 30
    assert not np.isnan(flat).any()
    particle = masks.circular_mask(box, 8).astype(np.float32)
    normal = normalisation.normalise((particle + slope(box, 2))[None], 16)
    np.testing.assert_allclose(normal.std(), 1, rtol=1e-3)
    np.testing.assert_allclose(normal[0][outside_of(box, 16)], 0, atol=1e-4)
