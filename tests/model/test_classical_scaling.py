"""Places of points of which only the distances are known."""

import numpy as np
import pytest

from emspatialvae.model.classical_scaling import classical_scaling

POINTS = np.random.default_rng(0).normal(size=(30, 3)) * [1.0, 3.0, 2.0]
APART = np.linalg.norm(POINTS[:, None] - POINTS, axis=2)


def test_places_keep_distances():
    places, strength = classical_scaling(APART, 3)
    np.testing.assert_allclose(np.linalg.norm(places[:, None] - places, axis=2), APART, atol=1e-9)
    np.testing.assert_allclose(places.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(strength[:3], (places**2).sum(0))
    assert (np.diff(strength) <= 1e-9).all()
    np.testing.assert_allclose(strength[3:], 0, atol=1e-6)


def test_the_heavy_ones_are_the_origin():
    weight = np.ones(30)
    weight[4] = 1e6
    places, _ = classical_scaling(APART, 3, weight)
    np.testing.assert_allclose(places[4], 0, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(places[:, None] - places, axis=2), APART, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_axes_that_there_is_nothing_for_are_zero(n):
    places, strength = classical_scaling(APART[:n, :n], 8)
    assert places.shape == (n, 8)
    assert strength.shape == (n,)
    assert not places[:, n:].any()
    assert np.abs(places[:, n - 1 :]).max(initial=0) < 1e-6


def test_distances_that_no_places_have():
    """Along the surface of a ball: the axes that would be imaginary are left out."""
    directions = POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True)
    along = np.arccos((directions @ directions.T).clip(-1, 1))
    places, strength = classical_scaling(along, 30)
    assert strength[-1] < -0.1
    assert np.isfinite(places).all()
    assert not places[:, -1].any()
