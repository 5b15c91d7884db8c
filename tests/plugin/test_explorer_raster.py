"""The scatter as arithmetic: counting, colouring, finding."""

import numpy as np
import pytest

from napari_emsvae.explorer.scatter.colouring import Colouring, column_colouring, paint, places_of_names
from napari_emsvae.explorer.scatter.raster import Window, density, inside_box, inside_polygon, opacity, rasterise

UNIT = Window(0, 1, 0, 1)


def many(n=300_000):
    """So many that each is one pixel."""
    return np.random.default_rng(0).uniform(size=(n, 2))


def test_every_point_in_view_is_counted_once_where_there_are_many():
    points = many()
    raster = rasterise(points, UNIT, (10, 20))
    expected, *_ = np.histogram2d(points[:, 1], points[:, 0], bins=(10, 20), range=((0, 1), (0, 1)))
    np.testing.assert_array_equal(raster.counts, expected)
    assert rasterise(points, Window(0, 0.8, 0, 1), (10, 10)).counts.sum() == (points[:, 0] < 0.8).sum()


def test_few_points_are_discs_and_none_wraps_round_the_edge():
    raster = rasterise(np.array([[0.5, 0.5], [0.0, 0.25]]), UNIT, (41, 41))
    rows, columns = np.nonzero(raster.counts)
    assert raster.counts.sum() > 40
    assert np.all((np.hypot(rows - 20, columns - 20) <= 4.5) | (columns <= 4))
    assert raster.counts[20, 20] == 1 and raster.counts[:, -5:].sum() == 0


def test_a_pixel_has_the_mean_of_its_numbers_and_the_commonest_of_its_codes():
    points = np.concatenate([np.full((150_000, 2), 0.25), np.full((100_000, 2), 0.75)])
    values = np.concatenate([np.arange(150_000) % 3, np.full(100_000, 7.0)])
    mean = rasterise(points, UNIT, (2, 2), values).level
    assert mean[0, 0] == pytest.approx(1) and mean[1, 1] == 7 and np.isnan(mean[0, 1])
    codes = np.concatenate([np.where(np.arange(150_000) % 3 == 1, 1.0, 4.0), np.full(100_000, 2.0)])
    commonest = rasterise(points, UNIT, (2, 2), codes, codes=True).level
    assert commonest[0, 0] == 4 and commonest[1, 1] == 2


def test_values_that_are_not_known_do_not_count():
    raster = rasterise(many(), UNIT, (4, 4), np.full(300_000, np.nan))
    assert raster.counts.sum() == 0 and np.isnan(raster.level).all()
    assert rasterise(np.array([[np.nan, 0.5]]), UNIT, (4, 4)).counts.sum() == 0


def test_the_window_zooms_about_the_cursor_and_moves():
    window = Window(-2, 2, -1, 3)
    closer = window.zoomed((1, 1), 0.5)
    assert closer == Window(-0.5, 1.5, 0, 2)
    assert closer.zoomed((1, 1), 2) == window
    assert window.moved(1, -1) == Window(-1, 3, -2, 2)


def test_the_first_window_holds_the_points_but_not_one_that_strayed():
    points = np.random.default_rng(1).normal(size=(10_000, 2))
    points[3] = 1e6
    window = Window.around(points)
    assert 3 < window.right < 5 and -5 < window.bottom < -3
    assert Window.around(np.zeros((5, 2))).size[0] > 0
    assert Window.around(np.full((2, 2), np.nan)) == Window(-1, 1, -1, 1)


def test_a_lasso_holds_what_lies_inside():
    points = many(20_000)
    angle = np.linspace(0, 2 * np.pi, 400)
    circle = 0.5 + 0.3 * np.stack([np.cos(angle), np.sin(angle)], 1)
    inside = inside_polygon(points, circle)
    radius = np.hypot(*(points - 0.5).T)
    assert inside[radius < 0.299].all() and not inside[radius > 0.3001].any()
    assert not inside_polygon(points, circle[:2]).any()
    assert not inside_polygon(np.full((3, 2), np.nan), circle).any()


def test_a_box_holds_what_lies_between_its_corners_whichever_came_first():
    points = many(1000)
    expected = (points[:, 0] >= 0.2) & (points[:, 0] <= 0.4) & (points[:, 1] >= 0.1) & (points[:, 1] <= 0.9)
    np.testing.assert_array_equal(inside_box(points, np.array([0.4, 0.1]), np.array([0.2, 0.9])), expected)


def test_density_is_higher_where_it_is_crowded():
    rng = np.random.default_rng(2)
    points = np.concatenate([rng.normal(0, 0.1, (5000, 2)), rng.uniform(-3, 3, (500, 2)), [[np.nan, 0]]])
    found = density(points)
    assert np.median(found[:5000]) > np.median(found[5000:5500]) + 1 and np.isnan(found[-1])


def test_opacity_grows_with_the_count_and_never_hides_a_point():
    shade = opacity(np.array([[0, 1, 10, 1000]]))[0]
    assert shade[0] == 0 and shade[1] > 0.4 and shade[1] < shade[2] < shade[3] == 1


def test_what_is_selected_is_bright_and_the_rest_dim():
    points = np.array([[0.25, 0.5], [0.75, 0.5]])
    colouring = Colouring("x", np.array([0.0, 1.0]))
    picture = paint(points, UNIT, (40, 80), colouring, np.array([True, False]))
    assert picture[20, 20, 3] == 1 and 0 < picture[20, 60, 3] < 0.5
    nothing = paint(points, UNIT, (40, 80), colouring, np.array([False, False]))
    assert nothing[20, 20, 3] == nothing[20, 60, 3] == 1


def test_groups_stand_with_their_names_at_their_middle():
    colouring = column_colouring("rlnClassNumber", np.array([1, 2, 2, 1]))
    assert colouring.is_groups and colouring.names == ("1", "2")
    points = np.array([[0.0, 0], [1, 1], [1, 3], [0, 2]])
    assert places_of_names(points, colouring) == [("1", 0, 1), ("2", 1, 2)]
    measured = column_colouring("emsvaeMisfit", np.linspace(0, 1, 100))
    assert not measured.is_groups and measured.limits == pytest.approx((0.01, 0.99))
