"""Coordinates laid out by how images are related."""

import warnings

import numpy as np
import pytest

from emspatialvae.training.unfold import unfolded


def images_of(places):
    """Images that depend on places [n, d] smoothly but not linearly; the same change of place changes them alike everywhere."""
    rng = np.random.default_rng(1)
    phase = places @ rng.normal(size=(places.shape[1], 60)) + rng.uniform(0, 2 * np.pi, 60)
    return np.concatenate([np.sin(phase), np.cos(phase)], 1)


def explained(truth, found):
    """Share of the variance of each true coordinate that a linear function of the found ones explains."""
    design = np.column_stack([found, np.ones(len(found))])
    left = truth - design @ np.linalg.lstsq(design, truth, rcond=None)[0]
    return 1 - left.var(0) / truth.var(0)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_places_on_a_curved_surface_are_found(d):
    truth = np.random.default_rng(0).uniform(-1.5, 1.5, (800, d))
    z = unfolded(images_of(truth), d)
    assert z.shape == (800, d)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-9)
    assert z[:, 0].std() == pytest.approx(1)
    assert (z.std(0) > 0.5).all()
    assert explained(truth, z).min() > 0.95


def test_the_longest_extent_comes_first_and_others_are_as_small_as_they_are():
    truth = np.random.default_rng(0).uniform(-1, 1, (600, 2)) * [0.5, 2.0]
    z = unfolded(images_of(truth), 2)
    assert abs(np.corrcoef(z[:, 0], truth[:, 1])[0, 1]) > 0.98
    assert z[:, 1].std() == pytest.approx(0.25, abs=0.1)


def test_groups_that_have_nothing_in_common_lie_apart_and_nothing_is_warned_of():
    truth = np.random.default_rng(0).uniform(-1, 1, (300, 1))
    images = images_of(truth)
    images[150:, 0] += 50
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z = unfolded(images, 1)[:, 0]
    first, second = sorted((z[:150], z[150:]), key=np.mean)
    assert first.max() < second.min()


def test_a_coordinate_that_images_do_not_have_is_hardly_there():
    line = np.linspace(-1, 1, 200)[:, None] * np.ones((1, 5))
    z = unfolded(line, 2)
    assert abs(np.corrcoef(z[:, 0], line[:, 0])[0, 1]) > 0.999
    assert np.abs(z[:, 1]).max() < 1e-3


@pytest.mark.parametrize(("n", "z_dim"), [(4, 2), (4, 8), (2, 2), (1, 3)])
def test_few_images(n, z_dim):
    z = unfolded(np.random.default_rng(0).normal(size=(n, 6)), z_dim)
    assert z.shape == (n, z_dim)
    assert np.isfinite(z).all()
    assert not z[:, n - 1 :].any()


@pytest.mark.parametrize("images", [np.ones((50, 6)), np.repeat(np.eye(6), 10, 0)], ids=["all", "six kinds"])
def test_images_that_are_the_same(images):
    """Particles that say nothing about z all have the same one."""
    z = unfolded(images, 2)
    assert np.isfinite(z).all()
    same = (images[:, None] == images).all(-1)
    apart = np.linalg.norm(z[:, None] - z, axis=-1)
    assert apart[same].max() < 1e-6
    assert not same.all() or not z.any()
