"""Contrast limits leave out what few pixels have, and are never equal."""

import numpy as np
import pytest

from emspatialvae.imaging.contrast import contrast_limits


def test_the_outermost_half_percent_is_cut_at_either_end():
    assert contrast_limits(np.arange(1001.0)) == pytest.approx((5, 995))


def test_a_hot_pixel_and_what_is_no_number_do_not_count():
    image = np.linspace(0, 1, 10_000).reshape(100, 100)
    image[0, 0], image[1, 1], image[2, 2] = np.nan, np.inf, 1e9
    low, high = contrast_limits(image)
    assert 0 <= low < 0.01 and 0.99 < high <= 1


@pytest.mark.parametrize(
    "image", [np.full((3, 3), 2.0), np.full(4, np.nan), np.zeros((0, 5))], ids=["flat", "nan", "empty"]
)
def test_limits_are_always_two(image):
    low, high = contrast_limits(image)
    assert high > low
