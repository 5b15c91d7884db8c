"""Contents brought to a plane, and the maps that are drawn of it."""

import importlib.util

import numpy as np
import pytest

from emspatialvae.analysis.figures import scatter
from emspatialvae.analysis.figures.scatter import GROUPS, Groups, Measure, Plane, colouring
from emspatialvae.analysis.latent_space import embedding
from emspatialvae.analysis.latent_space.embedding import principal_components, some_rows
from emspatialvae.errors import EmsvaeError


def test_principal_components_are_those_that_were_put_in():
    rng = np.random.default_rng(1)
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    sd = np.array([3.0, 2.0, 1.0, 0.0])
    z = rng.normal(size=(20_000, 4)) * sd @ turn + [1, 2, 3, 4]
    parts = principal_components(z)
    np.testing.assert_allclose(parts.share, sd**2 / (sd**2).sum(), atol=0.01)
    np.testing.assert_allclose(np.abs(parts.axes[:3] @ turn[:3].T), np.eye(3), atol=0.05)
    np.testing.assert_allclose(parts.scores.std(0), sd, rtol=0.03, atol=1e-6)
    np.testing.assert_allclose(parts.mean + parts.scores @ parts.axes, z, atol=1e-5)
    assert abs(np.corrcoef(parts.scores[:, :3].T) - np.eye(3)).max() < 1e-6


def test_contents_that_do_not_vary_have_no_components():
    parts = principal_components(np.ones((7, 3)))
    assert (parts.share == 0).all()
    assert (parts.scores == 0).all()


def test_some_rows_are_all_or_a_sample_without_repeats():
    np.testing.assert_array_equal(some_rows(5, 10), np.arange(5))
    rows = some_rows(1000, 100)
    assert len(np.unique(rows)) == 100
    assert (np.diff(rows) > 0).all()
    assert rows.max() > 900  # from everywhere, not the first ones
    np.testing.assert_array_equal(rows, some_rows(1000, 100))


def test_umap_that_is_not_installed_is_asked_for(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmsvaeError, match=r'pip install "emspatialvae\[umap\]"'):
        embedding.check_umap(1000)


def test_umap_needs_neighbours():
    with pytest.raises(EmsvaeError, match="too few neighbours"):
        embedding.umap_plane(np.zeros((5, 2)))


@pytest.mark.slow  # numba compiles for a minute
def test_umap_keeps_clouds_apart():
    pytest.importorskip("umap")
    rng = np.random.default_rng(0)
    z = rng.normal(size=(120, 3)) + np.repeat([[0, 0, 0], [9, 9, 9]], 60, 0)
    flat = embedding.umap_plane(z)
    assert flat.shape == (120, 2)
    first, second = flat[:60], flat[60:]
    between = np.linalg.norm(first.mean(0) - second.mean(0))
    assert between > 2 * max(first.std(), second.std())
    np.testing.assert_array_equal(flat, embedding.umap_plane(z))


# -------------------------------------------------------------------------------------------------------- colourings


def test_numbers_are_measured_and_texts_are_groups():
    measure = colouring("rlnDefocusU", np.linspace(1e4, 2e4, 30), "A")
    assert isinstance(measure, Measure)
    assert measure.label == "rlnDefocusU (A)"
    groups = colouring("rlnMicrographName", ["b", "a", "b", "c"])
    assert isinstance(groups, Groups)
    assert [groups.names[k] for k in groups.of] == ["b", "a", "b", "c"]
    assert groups.names[0] == "b"  # the largest first
    np.testing.assert_array_equal(groups.counts(), [2, 1, 1])


def test_few_whole_numbers_and_class_numbers_are_groups_in_their_order():
    groups = colouring("rlnOpticsGroup", np.array([2.0, 10.0, 2.0, 1.0]))
    assert isinstance(groups, Groups)
    assert groups.names == ("1", "2", "10")
    np.testing.assert_array_equal(groups.of, [1, 2, 1, 0])
    many = np.arange(50.0)
    assert isinstance(colouring("rlnClassNumber", many), Groups)
    assert isinstance(colouring("rlnCoordinateX", many), Measure)


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 300, scatter.MARKED + 1])
def test_every_number_of_particles_can_be_drawn(dimensions, n, tmp_path):
    from emspatialvae.analysis.figures import run as figures

    rng = np.random.default_rng(0)
    plane = Plane(rng.normal(size=(n, dimensions)), ("z1", "z2")[:dimensions])
    values = rng.normal(size=n)
    values[n // 2 :: 7] = np.nan
    drawn = [
        scatter.density(plane),
        scatter.coloured(plane, Measure("x", values)),
        scatter.coloured(plane, colouring("name", rng.integers(0, 30, n).astype(str).astype(object))),
    ]
    for number, figure in enumerate(drawn):
        figures.save(figure, tmp_path / f"{number}.png", dpi=50)
        assert (tmp_path / f"{number}.png").stat().st_size > 1000


def test_a_map_counts_every_particle():
    points = np.random.default_rng(0).normal(size=(5000, 2))
    (mesh,) = scatter.density(Plane(points, ("z1", "z2"))).axes[0].collections
    assert np.nansum(np.ma.filled(mesh.get_array().astype(float), np.nan)) == 5000


def test_a_map_of_many_shows_the_mean_of_each_cell():
    points = np.random.default_rng(0).uniform(size=(scatter.MARKED + 100, 2))
    (mesh,) = scatter.coloured(Plane(points, ("z1", "z2")), Measure("z1", 5 * points[:, 0])).axes[0].collections
    cells = np.ma.filled(mesh.get_array().astype(float), np.nan).reshape(mesh.get_coordinates().shape[0] - 1, -1)
    middles = mesh.get_coordinates()[0, :, 0]
    middles = 5 * (middles[1:] + middles[:-1]) / 2
    known = np.isfinite(cells)
    assert np.abs(cells - middles)[known].max() < 5 / len(middles)


def test_the_legend_holds_the_largest_groups_and_counts_the_rest():
    of = np.repeat(np.arange(GROUPS + 3), np.arange(GROUPS + 3) + 1)
    plane = Plane(np.random.default_rng(0).normal(size=(len(of), 2)), ("z1", "z2"))
    figure = scatter.coloured(plane, Groups("g", of, tuple(f"name {k}" for k in range(GROUPS + 3))))
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(said) == GROUPS + 1
    assert said[0] == "3 others (6)"
    assert "name 14 (15)" in said
