"""`emsvae manifold`: the grid and its principal components, who lives in which tile, the files, and bad input."""

import mrcfile
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from emspatialvae.analysis.figures import latent_map
from emspatialvae.analysis.latent_space.manifold import principal_axes, quantiles, zmap
from emspatialvae.model.render import canonical


def test_quantiles_are_equally_probable():
    q = quantiles(11)
    assert stats.norm.cdf(q) == pytest.approx((np.arange(11) + 0.5) / 11)


def test_one_coordinate_is_a_strip():
    z = np.random.default_rng(0).normal(size=(1000, 1))
    shown = zmap(z, 5)
    assert shown.shape == (1, 5)
    assert shown.axes == ("z1", "")
    assert shown.z[:, 0] == pytest.approx(quantiles(5))
    assert shown.count == pytest.approx(np.full(5, 200), abs=60)


def test_two_coordinates_run_right_and_up_and_each_tile_knows_its_particles():
    """Each particle lies in the tile whose z, among the tiles', is the nearest by rank: one per tile, by hand."""
    q = quantiles(3)
    z = np.array([[q[0], q[0]], [q[2], q[0]], [q[0], q[2]], [q[2] + 5, q[2] + 5], [q[2], q[2]]])
    shown = zmap(z, 3)
    assert shown.shape == (3, 3)
    assert shown.z[0] == pytest.approx([q[0], q[2]])  # upper left
    assert shown.z[2] == pytest.approx([q[2], q[2]])
    assert shown.count.reshape(3, 3).tolist() == [[1, 0, 2], [0, 0, 0], [1, 0, 1]]


def test_more_coordinates_follow_their_principal_components():
    rng = np.random.default_rng(1)
    sd = np.array([0.3, 2.0, 0.1, 1.0])
    z = rng.normal(size=(4000, 4)) * sd + [5, 6, 7, 8]
    mean, axes = principal_axes(z, (1, 2, 3, 4))
    assert mean == pytest.approx([5, 6, 7, 8], abs=0.1)
    assert axes == pytest.approx(np.diag(sd)[[1, 3, 0, 2]], abs=0.08)
    shown = zmap(z, 3)
    middle = shown.z.reshape(3, 3, 4)
    assert middle[1, 1] == pytest.approx(mean)
    assert (middle[1, 2] - middle[1, 1]) == pytest.approx(quantiles(3)[2] * axes[0])
    assert (middle[0, 1] - middle[1, 1]) == pytest.approx(quantiles(3)[2] * axes[1])
    assert shown.count == pytest.approx(np.full(9, 4000 / 9), rel=0.15)
    assert shown.count.sum() == 4000


def test_components_can_be_chosen():
    z = np.random.default_rng(1).normal(size=(500, 3)) * [3, 2, 1]
    shown = zmap(z, 3, (1, 3))
    assert shown.axes == ("principal component 1 of z", "principal component 3 of z")
    assert np.ptp(shown.z[:, 1]) < 0.3
    assert zmap(z, 4, (3,)).shape == (1, 4)


def test_a_component_that_does_not_vary():
    z = np.zeros((20, 3))
    assert zmap(z, 3).count.sum() == 20


def test_manifold_draws_what_the_model_draws(tiny_run, tmp_path, emsvae):
    from emspatialvae.inference.infer import load_model
    from emspatialvae.results.run_folder import RunDir

    said = emsvae.done("manifold", tiny_run, "--out", tmp_path / "m.mrcs", "--tiles", 3).out
    assert "3 x 3 tiles" in said
    z = pd.read_csv(tiny_run / "latents.csv")[["z1", "z2"]].to_numpy()
    with mrcfile.open(tmp_path / "m.mrcs") as stack:
        tiles = np.asarray(stack.data)
        assert tiles.shape == (9, 24, 24)
        assert tiles == pytest.approx(canonical(load_model(RunDir(tiny_run)), zmap(z, 3).z), abs=1e-5)
        assert float(stack.voxel_size.x) == pytest.approx(4)
    emsvae.done("manifold", tiny_run, "--out", tmp_path / "m.png", "--tiles", 3, "--components", 2, 1)
    assert (tmp_path / "m.png").stat().st_size > 1000


def test_tiles_without_particles_are_darkened_and_all_are_counted():
    z = np.array([[-2.0, -2.0]] * 7)
    shown = zmap(z, 3)
    figure = latent_map.draw(np.random.default_rng(0).normal(size=(9, 8, 8)), shown, 2.0)
    (axes,) = figure.axes
    assert len(axes.patches) == 8
    assert sorted(text.get_text() for text in axes.texts) == ["0"] * 8 + ["5 \N{ANGSTROM SIGN}", "7"]
    assert "none" in axes.get_title()
    assert axes.get_xlabel().startswith("z1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "m.pdf"), "ending in .png or .mrcs"),
        (("--out", "there.png"), "there.png exists already"),
        (("--out", "m.png", "--tiles", "1"), "--tiles is 1"),
        (("--out", "m.png", "--components", "1", "3"), "--components 1 3: z of this run has 2"),
        (("--out", "m.png", "--components", "0"), "choose from 1 to 2"),
        (("--out", "m.png", "--components", "1", "1"), "two different ones"),
        (("--out", "m.png", "--components", "1", "2", "1"), "two different ones"),
    ],
)
def test_bad_input(tiny_run, tmp_path, emsvae, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").write_text("somebody's")
    assert said in emsvae.refused("manifold", tiny_run, *words)


def test_force_replaces(tiny_run, tmp_path, emsvae):
    out = tmp_path / "m.mrcs"
    out.write_text("old")
    emsvae.done("manifold", tiny_run, "--out", out, "--tiles", 2, "--force")
    assert out.stat().st_size > 1024
