"""What the explorer reads from a run and computes from it, without a window."""

import shutil

import numpy as np
import pytest

from emspatialvae.errors import EmsvaeError, RunFolderError
from emspatialvae.imaging import alignment, masks
from emspatialvae.imaging.contrast import contrast_limits
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.io.mrc import read_header
from napari_emsvae.explorer.pictures import particle_images
from napari_emsvae.explorer.pictures.film import SUFFIXES, along_line, film_along, rolling_averages, save_film
from napari_emsvae.explorer.pictures.model_images import draw, draw_map
from napari_emsvae.explorer.pictures.mosaic import LOOKS, Mosaic, montage, short_name, tile_names
from napari_emsvae.explorer.pictures.picture import low_passed
from napari_emsvae.explorer.pictures.selection_average import statistics
from napari_emsvae.explorer.prepared_images import PreparedOnDemand
from napari_emsvae.explorer.run_data import RunData

CONSTANT, PREPARED_BOX = 7, 24
"""See conftest.py: the particle that the run could not use, and the box that it was prepared in."""


@pytest.fixture(scope="module")
def data(trained_run):
    return RunData.open(trained_run)


# -------------------------------------------------------------------------------------------------------------- opening


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="not a run folder"):
        RunData.open(tmp_path)


def test_a_run_without_its_particles_still_has_results(trained_run, simulated, tmp_path):
    import json

    run = shutil.copytree(trained_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["config"]["input"]["particles"] = str(tmp_path / "gone.star")
    (run / "config.json").write_text(json.dumps(config))
    data = RunData.open(run)
    for _ in range(2):
        with pytest.raises(EmsvaeError, match=r"gone\.star"):
            _ = data.stack
    assert len(data.columns.read("emsvaeZ1")) == 60 and data.columns.where("emsvaeUsed == 1").sum() == 59


# -------------------------------------------------------------------------------------------------------------- columns


def test_columns_are_those_of_the_star_file(data):
    assert {"rlnImageName", "emsvaeZ1", "rlnAnglePsi"} <= set(data.columns.names)
    np.testing.assert_allclose(data.columns.read("emsvaeZ1"), data.latents.z[:, 0], atol=1e-6)
    assert data.columns.read("rlnImageName")[3] == data.latents.names[3]
    with pytest.raises(EmsvaeError, match="no column emsvaeNothing"):
        data.columns.read("emsvaeNothing")


def test_cells_of_unused_particles_are_those_of_the_file(data):
    # The results hold zero for them, the file what stood there before: here nothing, which is a zero as well.
    assert data.columns.read("rlnAnglePsi")[CONSTANT] == 0 and data.columns.read("emsvaeUsed")[CONSTANT] == 0


def test_conditions_are_those_of_emsvae_select(data):
    np.testing.assert_array_equal(
        data.columns.where("emsvaeZ1 > 0"), (data.columns.read("emsvaeZ1") > 0) & data.latents.used
    )
    with pytest.raises(EmsvaeError):
        data.columns.where("__import__('os')")


# --------------------------------------------------------------------------------------------------------------- planes


def test_unused_particles_have_no_place(data):
    for name in ("z1", "PC2", "rlnLogLikeliContribution", "emsvaeMisfit"):
        values = data.axes.coordinate(name)
        assert np.flatnonzero(np.isnan(values)).tolist() == [CONSTANT]
    with pytest.raises(EmsvaeError, match="holds texts"):
        data.axes.coordinate("rlnImageName")


def test_components_are_uncorrelated_and_ordered(data):
    first, second = data.axes.components.T
    assert first.var() >= second.var() and np.corrcoef(first, second)[0, 1] == pytest.approx(0, abs=1e-9)


def test_latents_go_to_the_plane_and_back(data):
    z = np.array([[0.3, -0.2], [1.0, 0.5]])
    np.testing.assert_allclose(data.axes.place(z, ("z2", "z1")), z[:, ::-1])
    np.testing.assert_allclose(data.axes.latents_at(z[:, ::-1], ("z2", "z1")), z)
    # Principal components of two coordinates are the same plane, turned.
    both = data.used[:5]
    placed = data.axes.place(data.latents.z[both], ("PC1", "PC2"))
    np.testing.assert_allclose(placed, data.axes.components[:5])
    near = data.axes.latents_at(data.axes.place(z, ("z1", "emsvaeMisfit")), ("z1", "emsvaeMisfit"))
    assert near.shape == (2, 2) and np.isfinite(near).all()


def test_the_nearest_in_z_come_first(data):
    row = int(data.used[10])
    found = data.neighbours.nearest(data.latents.z[row], 7)
    assert found[0] == row and len(set(found.tolist())) == 7 and CONSTANT not in found
    distance = np.linalg.norm((data.latents.z[found] - data.latents.z[row]) / data.neighbours.spread, axis=1)
    assert np.all(np.diff(distance) >= 0)
    assert len(data.neighbours.nearest(np.zeros(2), 1000)) == 59


# --------------------------------------------------------------------------------------------------------------- images


def test_without_the_cache_the_images_are_the_same(trained_run, data, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    shutil.rmtree(run / "cache")
    bare = RunData.open(run).images
    assert isinstance(bare, PreparedOnDemand) and not isinstance(data.images, PreparedOnDemand)
    rows = np.array([31, 2, CONSTANT, 30])
    there, here = bare.portion(rows), data.images.portion(rows)
    np.testing.assert_allclose(there.images, here.images, atol=2e-2)  # the cache holds float16
    np.testing.assert_array_equal(there.usable, here.usable)
    assert not (run / "cache").exists()


def test_pictures_of_a_particle(data):
    row = int(data.used[3])
    pictures = {picture.name: picture for picture in particle_images.pictures_of(data, row, 20.0)}
    assert list(pictures) == ["raw", "low-passed", "aligned", "reconstruction", "residual"]
    np.testing.assert_array_equal(pictures["raw"].image, data.stack.images([row])[0])
    assert pictures["low-passed"].image.std() < pictures["raw"].image.std()
    np.testing.assert_allclose(
        pictures["residual"].image, pictures["aligned"].image - pictures["reconstruction"].image, atol=1e-5
    )
    assert pictures["raw"].pixel_size_A * 32 == pytest.approx(pictures["aligned"].pixel_size_A * PREPARED_BOX)
    assert [picture.name for picture in particle_images.pictures_of(data, CONSTANT, 20.0)] == ["raw", "low-passed"]


def test_words_about_a_particle(data):
    row = int(data.used[3])
    said = dict(particle_images.described(data, row))
    assert said["name"] == data.latents.names[row] and said["particle"] == f"{row + 1} of 60"
    assert said["z1"].startswith(f"{data.latents.z[row, 0]:+.2f}") and "pose probability" in said
    assert "not used" in dict(particle_images.described(data, CONSTANT))


def test_the_low_pass_filter_halves_the_amplitude_at_its_resolution():
    x = np.arange(240)
    wave = np.tile(np.cos(2 * np.pi * x / 12), (240, 1)).astype(np.float32)
    assert low_passed(wave, 12)[120, 60:180].max() == pytest.approx(0.5, abs=0.01)
    assert contrast_limits(np.full((4, 4), 2.0)) == (2.0, 3.0)


def test_what_is_drawn_at_a_pose_is_what_is_drawn_without_one_after_alignment(data):
    z = data.latents.z[data.used[0]]
    pose = Pose2D(np.array([0.7]), np.array([[1.0, -2.0]]))
    still = draw(data.model, z, Pose2D.identity(1))
    moved = draw(data.model, z, pose)
    back = alignment.align(moved[None], pose)[0]
    inside = masks.circular_mask(PREPARED_BOX, PREPARED_BOX / 3)
    assert np.corrcoef(back[inside], still[inside])[0, 1] > 0.98
    assert np.corrcoef(moved[inside], still[inside])[0, 1] < 0.95


def test_the_map_is_the_grid_through_the_inverse_cdf(data):
    places, mosaic = draw_map(data, 5)
    assert places.shape == (5, 5) and mosaic.count == 25
    top, left = mosaic.corner(7)
    tile = mosaic.image[top : top + mosaic.box, left : left + mosaic.box]
    np.testing.assert_allclose(tile, draw(data.model, places.z[7], Pose2D.identity(1)), atol=1e-4)


# ------------------------------------------------------------------------------------------------------------- mosaics


def test_tiles_are_found_where_they_were_put():
    tiles = np.arange(7, dtype=np.float32)[:, None, None] * np.ones((7, 4, 4), dtype=np.float32)
    mosaic = Mosaic.of(tiles)
    assert (mosaic.rows, mosaic.columns) == (3, 3) and mosaic.image.shape == (14, 14)
    for k in range(7):
        row, column = mosaic.corner(k)
        assert mosaic.image[row + 2, column + 2] == k
        assert mosaic.at(row, column) == k and mosaic.at(row + 3.4, column + 3.4) == k
    assert mosaic.at(-1, 0) is None and mosaic.at(13, 13) is None and mosaic.at(0, 40) is None


@pytest.mark.parametrize("look", LOOKS)
def test_a_montage_shows_the_particles_asked_for(data, look):
    rows = data.used[[5, 1, 9]]
    mosaic, pixel_size_A = montage(data, rows, look, 15.0)
    assert mosaic.count == 3 and mosaic.box * pixel_size_A == pytest.approx(128)
    row, column = mosaic.corner(1)
    tile = mosaic.image[row : row + mosaic.box, column : column + mosaic.box]
    if look.startswith("aligned"):
        expected = alignment.align(data.images.portion(rows[1:2]).images, data.latents.pose[rows[1:2]])[0]
    else:
        expected = data.stack.images(rows[1:2])[0]
    if look.endswith("low-passed"):
        expected = low_passed(expected, 15.0 / pixel_size_A)
    assert np.corrcoef(tile.ravel(), expected.ravel())[0, 1] > 0.999


def test_names_on_tiles_are_short():
    assert short_name("000123@Extract/job007/stack.mrcs") == "123@stack"
    assert tile_names(["000012@a/s.mrcs", "000013@a/s.mrcs"]) == ["12", "13"]
    assert tile_names(["000012@a/s.mrcs", "000013@a/t.mrcs"]) == ["12@s", "13@t"]


# ----------------------------------------------------------------------------------------------- statistics and paths


def test_statistics_are_those_of_the_aligned_images(data):
    rows = data.used[::2]
    found = [part for part in statistics(data, rows) if part is not None]
    aligned = alignment.align(data.images.portion(rows).images, data.latents.pose[rows])
    assert len(found) == 1 and found[0].averaged == found[0].selected == len(rows)
    np.testing.assert_allclose(found[0].mean, aligned.mean(0), atol=1e-5)
    np.testing.assert_allclose(found[0].sd, aligned.std(0), atol=1e-4)
    assert found[0].described() == f"all {len(rows)} particles"


def test_statistics_get_better_bit_by_bit(data, monkeypatch):
    monkeypatch.setattr("napari_emsvae.explorer.pictures.selection_average.PORTIONS", (8, 20))
    monkeypatch.setattr("napari_emsvae.explorer.pictures.selection_average.STEP", 8)
    made = list(statistics(data, data.used))
    assert [part.averaged for part in made if part is not None] == [8, 20]
    assert made.count(None) == 3 and made[-1].described() == "20 of 59 particles"


def test_a_film_is_what_the_model_draws_beside_the_average_of_real_particles(data):
    points = np.linspace(data.latents.z[data.used[0]], data.latents.z[data.used[1]], 4)
    film = film_along(data, points, ("a", "b"))
    assert film.drawn.shape == film.averages.shape == (4, PREPARED_BOX, PREPARED_BOX)
    np.testing.assert_allclose(film.drawn[2], draw(data.model, points[2], Pose2D.identity(1)), atol=1e-4)
    # Of 59 particles the 100 nearest are all of them.
    aligned = alignment.align(data.images.portion(data.used).images, data.latents.pose[data.used])
    assert film.averaged == 59
    np.testing.assert_allclose(film.averages[0], aligned.mean(0), atol=1e-4)


def test_rolling_averages_are_of_the_members_of_each_step(data):
    members = np.array([[3, 4], [4, 12]])
    found = rolling_averages(data, members)
    for step, rows in enumerate(members):
        aligned = alignment.align(data.images.portion(rows).images, data.latents.pose[rows])
        np.testing.assert_allclose(found[step], aligned.mean(0), atol=1e-5)


def test_points_along_a_line_are_equally_far_apart():
    line = np.array([[0.0, 0], [3, 0], [3, 0], [3, 3]])
    points = along_line(line, 7)
    np.testing.assert_allclose(points[[0, 3, 6]], [[0, 0], [3, 0], [3, 3]])
    np.testing.assert_allclose(np.hypot(*np.diff(points, axis=0).T), 1)


@pytest.mark.parametrize("ending", SUFFIXES)
def test_a_film_is_saved(data, tmp_path, ending):
    film = film_along(data, data.latents.z[data.used[:3]], ("a", "b"))
    files = {tmp_path / f"film{ending}"} | ({tmp_path / "film_particles.mrcs"} if ending == ".mrcs" else set())
    save_film(film, tmp_path / f"film{ending}")
    assert set(tmp_path.iterdir()) == files
    if ending == ".mrcs":
        assert {read_header(file).n_images for file in files} == {3}
    with pytest.raises(EmsvaeError, match="exists"):
        save_film(film, tmp_path / f"film{ending}")
    save_film(film, tmp_path / f"film{ending}", force=True)


def test_a_film_of_another_kind_is_refused(data, tmp_path):
    film = film_along(data, data.latents.z[data.used[:2]], ("a", "b"))
    with pytest.raises(EmsvaeError, match="expected a name ending in"):
        save_film(film, tmp_path / "film.avi")
    assert not list(tmp_path.iterdir())


def test_a_run_with_a_limit_is_the_beginning_of_its_file(easy_stack, tmp_path):
    from emspatialvae.cli.main import main
    from emspatialvae.particles.table import open_table
    from emspatialvae.workflows.select import write_selection

    run = tmp_path / "run"
    train = ["train", easy_stack / "particles.star", "--out", run, "--limit", "30", "--epochs", "2", "--hidden", "16"]
    assert main([str(word) for word in train]) == 0
    data = RunData.open(run)
    assert len(data) == 30 and len(data.columns.read("rlnImageName")) == 30
    np.testing.assert_allclose(data.columns.read("emsvaeZ1"), data.latents.z[:, 0], atol=1e-6)
    keep = data.columns.where("emsvaeZ1 > 0")
    assert keep.shape == (30,) and keep.any()
    write_selection(data.run, keep, tmp_path / "kept.star", excluded=tmp_path / "rest.star")
    assert len(open_table(tmp_path / "kept.star")) == keep.sum()
    assert len(open_table(tmp_path / "rest.star")) == 48 - keep.sum()
