"""Classes by content: known groups are found, whoever is uncertain is said to be, numbers go by size."""

from dataclasses import replace

import numpy as np
import pytest

from emspatialvae.analysis.classes import clusters
from emspatialvae.analysis.classes.clusters import Mixture, classified
from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.results.latents import Latents

CENTRES = np.array([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
SIZES = (200, 600, 400)


def latents_at(z, z_sd=0.1, used=None):
    n = len(z)
    zero = np.zeros(n)
    return Latents(
        names=np.arange(n),
        used=np.ones(n, bool) if used is None else used,
        z=z,
        z_sd=np.full(z.shape, z_sd),
        pose=Pose2D.identity(n),
        theta_sd_rad=zero,
        shift_sd_px=np.zeros((n, 2)),
        log_likelihood=zero,
        pixel_size_A=1.0,
    )


def three_groups(sd=0.2, seed=0):
    """Contents around three centres, and which one each is of."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(3), SIZES))
    return CENTRES[group] + sd * rng.normal(size=(len(group), 2)), group


@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_known_groups_are_found_the_largest_first(method):
    z, group = three_groups()
    found = classified(latents_at(z), 3, method)
    assert np.bincount(found.class_number).tolist() == [0, 600, 400, 200]
    assert (found.class_number == np.array([3, 1, 2])[group]).mean() > 0.995
    assert found.class_posterior.min() > 0.4
    assert found.class_posterior.mean() > 0.99


@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_the_same_seed_gives_the_same_classes(method):
    z = np.random.default_rng(1).normal(size=(500, 3))
    one, same = (classified(latents_at(z), 7, method, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.class_number, same.class_number)
    np.testing.assert_array_equal(one.class_posterior, same.class_posterior)
    sizes = np.bincount(one.class_number)[1:]
    assert sizes.tolist() == sorted(sizes, reverse=True)


@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_who_lies_between_or_is_uncertain_is_said_to_be(method):
    z, _ = three_groups()
    z = np.concatenate([z, [[-1.0, 0.0], CENTRES[1]]])
    z_sd = np.full(z.shape, 0.05)
    between, at_centre = len(z) - 2, len(z) - 1
    sure = classified(replace(latents_at(z), z_sd=z_sd), 3, method)
    assert sure.class_posterior[between] < 0.9995 < sure.class_posterior[at_centre]
    z_sd[at_centre] = 5.0
    unsure = classified(replace(latents_at(z), z_sd=z_sd), 3, method)
    assert unsure.class_posterior[at_centre] < 0.7
    # It stays where it is: a class that everybody uncertain went to would be no class.
    np.testing.assert_array_equal(unsure.class_number, sure.class_number)


def test_stretched_groups_are_told_apart_by_a_mixture_only():
    rng = np.random.default_rng(2)
    group = np.repeat([0, 1], 500)
    z = rng.normal(size=(1000, 2)) * [1.0, 0.15] + np.where(group[:, None] == 0, [0, 0.5], [0, -0.5])
    right = {}
    for method in ("kmeans", "gmm"):
        number = classified(latents_at(z, 0.01), 2, method).class_number
        right[method] = max((number == 1 + group).mean(), (number == 2 - group).mean())
    assert right["gmm"] > 0.99
    assert right["kmeans"] < 0.8


@pytest.mark.parametrize("round_", [True, False])
def test_posterior_is_bayes_rule(round_):
    """Against the formula, worked out one particle and class at a time."""
    rng = np.random.default_rng(3)
    mean, share = rng.normal(size=(4, 3)), np.array([0.4, 0.3, 0.2, 0.1])
    root = rng.normal(size=(4, 3, 3))
    covariance = 0.3 * np.eye(3)[None] if round_ else root @ root.swapaxes(1, 2) + 0.1 * np.eye(3)
    z, z_sd = rng.normal(size=(5, 3)), rng.uniform(0.1, 1, (5, 3))
    found = Mixture(share, mean, covariance).posterior(z, z_sd)
    for n in range(5):
        density = []
        for c in range(4):
            total = covariance[0 if round_ else c] + np.diag(z_sd[n] ** 2)
            off = z[n] - mean[c]
            density.append(share[c] * np.exp(-off @ np.linalg.inv(total) @ off / 2) / np.sqrt(np.linalg.det(total)))
        np.testing.assert_allclose(found[n], np.array(density) / sum(density), rtol=1e-9)


def test_particles_that_were_not_used_belong_nowhere():
    z, _ = three_groups()
    used = np.arange(len(z)) % 7 != 0
    z[~used] = 0
    found = classified(latents_at(z, used=used), 3)
    assert not found.class_number[~used].any()
    assert not found.class_posterior[~used].any()
    assert (found.class_number[used] > 0).all()


@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_contents_that_are_all_the_same_make_one_class(method, recwarn):
    found = classified(latents_at(np.zeros((20, 2))), 4, method)
    assert set(found.class_number) == {1}
    assert not recwarn.list


def test_as_many_classes_as_particles_is_possible():
    found = classified(latents_at(np.random.default_rng(0).normal(size=(6, 2)), 0.001), 6)
    assert sorted(found.class_number) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("k", [0, -1, 6])
def test_a_number_of_classes_that_cannot_be_is_refused(k):
    used = np.array([True] * 5 + [False])
    with pytest.raises(EmsvaeError, match=f"--k {k}: expected .* from 1 to the 5 particles"):
        classified(latents_at(np.zeros((6, 2)), used=used), k)


def test_more_particles_than_are_fitted_and_than_fit_in_a_block(monkeypatch):
    z, group = three_groups()
    monkeypatch.setattr(clusters, "FITTED", 150)
    monkeypatch.setattr(clusters, "BLOCK", 100)
    found = classified(latents_at(z), 3)
    assert (found.class_number == np.array([3, 1, 2])[group]).mean() > 0.99
