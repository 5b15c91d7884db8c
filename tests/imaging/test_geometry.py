"""Signs, centres and wraps: one bright pixel moved by a pose is looked for where the formula says."""

import math

import numpy as np
import pytest

from emspatialvae.imaging import geometry
from emspatialvae.imaging.geometry import Pose2D

BOXES = [15, 16]  # odd and even: the centre is box // 2 in both


def random_poses(seed, n=50, reach_px=9.0):
    rng = np.random.default_rng(seed)
    return Pose2D(rng.uniform(-math.pi, math.pi, n), rng.uniform(-reach_px, reach_px, (n, 2)))


def moved(image, pose):
    """``image(p) = object(R(-theta) (p - shift))`` by nearest pixel: exact for quarter turns and whole shifts."""
    box = image.shape[-1]
    x, y = geometry.pixel_grid(box)
    theta, (shift_x, shift_y) = pose.theta_rad[0], pose.shift_px[0]
    at = geometry.image_to_object_xy(x, y, math.cos(theta), math.sin(theta), shift_x, shift_y)
    column, row = (np.rint(axis).astype(int) + box // 2 for axis in at)
    inside = (column >= 0) & (column < box) & (row >= 0) & (row < box)
    return np.where(inside, image[row.clip(0, box - 1), column.clip(0, box - 1)], 0)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(
    ("theta_deg", "shift", "expected"),
    [
        (0, (0, 0), (4, 1)),
        (0, (2, -3), (6, -2)),
        (90, (0, 0), (-1, 4)),  # from +x towards +y, which points down the stored rows
        (180, (0, 0), (-4, -1)),
        (-90, (0, 0), (1, -4)),
        (90, (2, -3), (1, 1)),  # turned first, then shifted along the axes of the image
        (-90, (-2, 1), (-1, -3)),
    ],
)
def test_a_bright_pixel_lands_where_the_formula_says(box, theta_deg, shift, expected):
    centre = box // 2
    image = np.zeros((box, box))
    image[centre + 1, centre + 4] = 1  # at (x, y) = (4, 1)
    pose = Pose2D(np.radians([theta_deg]), np.array([shift], float))
    found = np.argwhere(moved(image, pose))
    assert found.tolist() == [[centre + expected[1], centre + expected[0]]]


@pytest.mark.parametrize("seed", range(3))
def test_the_two_ways_of_moving_points_undo_each_other(seed):
    rng = np.random.default_rng(seed)
    x, y, shift_x, shift_y = rng.normal(size=(4, 20))
    theta = rng.uniform(-4, 4, 20)
    cos_t, sin_t = np.cos(theta), np.sin(theta)
    there = geometry.object_to_image_xy(x, y, cos_t, sin_t, shift_x, shift_y)
    np.testing.assert_allclose(geometry.image_to_object_xy(*there, cos_t, sin_t, shift_x, shift_y), (x, y), atol=1e-12)
    for i in range(20):  # and the first is R(theta) q + shift, written out
        turn = np.array([[math.cos(theta[i]), -math.sin(theta[i])], [math.sin(theta[i]), math.cos(theta[i])]])
        expected = turn @ (x[i], y[i]) + (shift_x[i], shift_y[i])
        np.testing.assert_allclose((there[0][i], there[1][i]), expected, atol=1e-12)


def test_points_may_be_numbers_or_tensors():
    torch = pytest.importorskip("torch")
    assert geometry.rotate_xy(1.0, 0.0, 0.0, 1.0) == (0.0, 1.0)
    x, y = geometry.rotate_xy(torch.ones(2, 1), torch.zeros(2, 1), torch.zeros(3), torch.ones(3))
    assert x.shape == y.shape == (2, 3)
    assert bool((y == 1).all())


@pytest.mark.parametrize("box", BOXES)
def test_the_grid_has_its_zero_at_box_half(box):
    x, y = geometry.pixel_grid(box)
    assert (x[box // 2, box // 2], y[box // 2, box // 2]) == (0, 0)
    assert (x[0, 3] - x[0, 2], y[3, 0] - y[2, 0], x[1, 0] - x[0, 0]) == (1, 1, 0)
    np.testing.assert_array_equal(x[0], geometry.pixel_axis(box))


@pytest.mark.parametrize("seed", range(3))
def test_the_inverse_takes_a_pose_back(seed):
    pose, rng = random_poses(seed), np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 50))
    there = x, y
    for p in (pose, pose.inverse()):
        there = geometry.object_to_image_xy(*there, np.cos(p.theta_rad), np.sin(p.theta_rad), *p.shift_px.T)
    np.testing.assert_allclose(there, (x, y), atol=1e-12)
    twice = pose.inverse().inverse()
    np.testing.assert_allclose(twice.theta_rad, pose.theta_rad)
    np.testing.assert_allclose(twice.shift_px, pose.shift_px, atol=1e-12)


def test_poses_scale_index_and_stand_still():
    pose = random_poses(0, n=4)
    np.testing.assert_allclose(pose.scaled(2).shift_px, 2 * pose.shift_px)
    each = pose.scaled([1, 2, 3, 4])
    np.testing.assert_allclose(each.shift_px[2], 3 * pose.shift_px[2])
    np.testing.assert_array_equal(each.theta_rad, pose.theta_rad)
    assert len(pose[1:3]) == 2
    np.testing.assert_array_equal(pose[[3, 0]].shift_px, pose.shift_px[[3, 0]])
    still = Pose2D.identity(3)
    assert len(still) == 3
    assert not still.theta_rad.any()
    assert not still.shift_px.any()


# ------------------------------------------------------------------------------------------------------------- wrapping


@pytest.mark.parametrize(
    ("angle_deg", "wrapped_deg"),
    [
        (0, 0),
        (180, 180),
        (-180, 180),
        (181, -179),
        (-181, 179),
        (540, 180),
        (-540, 180),
        (360, 0),
        (725, 5),
        (-90, -90),
    ],
)
def test_angles_wrap_into_the_half_open_circle(angle_deg, wrapped_deg):
    np.testing.assert_allclose(np.degrees(geometry.wrap_rad(np.radians(angle_deg))), wrapped_deg, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_wrapping_keeps_the_direction_and_never_gives_minus_180(seed):
    rng = np.random.default_rng(seed)
    angles = rng.uniform(-50, 50, 1000)
    wrapped = geometry.wrap_rad(angles)
    np.testing.assert_allclose(np.exp(1j * wrapped), np.exp(1j * angles), atol=1e-12)
    turns = math.pi * rng.integers(-9, 10, 200)
    close = np.concatenate([turns, np.nextafter(turns, 99), np.nextafter(turns, -99)])
    for found in (wrapped, geometry.wrap_rad(close)):
        assert (found > -math.pi).all()
        assert (found <= math.pi).all()


# ---------------------------------------------------------------------------------------------------- RELION, cryoSPARC


def test_relion_numbers():
    pose = Pose2D(np.radians([30.0, -90.0, 180.0, -180.0]), np.array([[3, -4], [0.5, 0], [0, 0], [1, 1]], float))
    psi_deg, origin_A = geometry.to_relion(pose, 2.0)
    np.testing.assert_allclose(psi_deg, [-30, 90, 180, 180])
    np.testing.assert_allclose(origin_A, [[-6, 8], [-1, 0], [0, 0], [-2, -2]])
    back = geometry.from_relion([-30], [[-6, 8]], 2.0)
    np.testing.assert_allclose(back.theta_rad, math.pi / 6)
    np.testing.assert_allclose(back.shift_px, [[3, -4]])


@pytest.mark.parametrize("seed", range(3))
def test_relions_own_rule_brings_points_home(seed):
    """``p_aligned = R(+psi) (p + origin)``: what RELION does with the numbers that we write."""
    pose, rng = random_poses(seed), np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 50))
    seen_x, seen_y = geometry.object_to_image_xy(x, y, np.cos(pose.theta_rad), np.sin(pose.theta_rad), *pose.shift_px.T)
    psi_deg, origin_A = geometry.to_relion(pose, 1.7)
    psi, (t_x, t_y) = np.radians(psi_deg), origin_A.T / 1.7
    np.testing.assert_allclose(np.cos(psi) * (seen_x + t_x) - np.sin(psi) * (seen_y + t_y), x, atol=1e-12)
    np.testing.assert_allclose(np.sin(psi) * (seen_x + t_x) + np.cos(psi) * (seen_y + t_y), y, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pixel_size_A", [1.35, np.linspace(0.8, 4.0, 50)], ids=["one", "each"])
def test_relion_round_trip(seed, pixel_size_A):
    pose = random_poses(seed)
    back = geometry.from_relion(*geometry.to_relion(pose, pixel_size_A), pixel_size_A)
    np.testing.assert_allclose(back.theta_rad, pose.theta_rad, atol=1e-12)
    np.testing.assert_allclose(back.shift_px, pose.shift_px, atol=1e-12)


def test_cryosparc_numbers_and_round_trip():
    pose_rad, shift_px = geometry.to_cryosparc(Pose2D(np.array([0.5, -math.pi]), np.array([[3, -4], [0, 1]], float)))
    np.testing.assert_allclose(pose_rad, [-0.5, math.pi])
    np.testing.assert_allclose(shift_px, [[-3, 4], [0, -1]])
    pose = random_poses(4)
    back = geometry.from_cryosparc(*geometry.to_cryosparc(pose))
    np.testing.assert_allclose(back.theta_rad, pose.theta_rad, atol=1e-12)
    np.testing.assert_allclose(back.shift_px, pose.shift_px)


# ------------------------------------------------------------------------------------------------------------ the paper


def function_of_the_paper(u_x, u_y):
    """Some smooth function on the paper's plane, y upwards, without any symmetry."""
    return np.exp(-8 * (u_x - 0.3) ** 2 - 5 * (u_y - 0.1) ** 2) - 0.7 * np.exp(
        -9 * (u_x + 0.2) ** 2 - 7 * (u_y + 0.4) ** 2
    )


def image_of_the_paper(theta, dx, box):
    """As the authors' code draws it: ``x @ R + dx`` on a grid from -1 to 1, first row on top."""
    grid = np.linspace(-1, 1, box)
    x = np.stack([np.tile(grid, box), np.repeat(grid[::-1], box)], -1)
    turn = np.array([[math.cos(theta), math.sin(theta)], [-math.sin(theta), math.cos(theta)]])
    x = x @ turn + dx
    return function_of_the_paper(*x.T).reshape(box, box)


def image_of_ours(pose, box):
    """The same object by our rule: at the pose of nothing done it is what the paper's grid shows."""
    x, y = geometry.pixel_grid(box)
    at_x, at_y = geometry.image_to_object_xy(
        x, y, math.cos(pose.theta_rad[0]), math.sin(pose.theta_rad[0]), *pose.shift_px[0]
    )
    half = (box - 1) / 2
    return function_of_the_paper((at_x + box // 2 - half) / half, -(at_y + box // 2 - half) / half)


@pytest.mark.parametrize("box", [20, 21])
@pytest.mark.parametrize("seed", range(4))
def test_the_paper_draws_the_same_image_as_we_do(box, seed):
    rng = np.random.default_rng(seed)
    theta, dx = rng.uniform(-math.pi, math.pi), rng.uniform(-0.3, 0.3, 2)
    theirs = image_of_the_paper(theta, dx, box)
    pose = geometry.from_paper(np.array([theta]), dx[None], box)
    np.testing.assert_allclose(image_of_ours(pose, box), theirs, atol=1e-12)
    assert np.abs(image_of_ours(Pose2D(-pose.theta_rad, pose.shift_px), box) - theirs).max() > 0.05


@pytest.mark.parametrize("box", [20, 21])
@pytest.mark.parametrize("seed", range(2))
def test_paper_round_trip(box, seed):
    pose = random_poses(seed, reach_px=4)
    theta, dx = geometry.to_paper(pose, box)
    back = geometry.from_paper(theta, dx, box)
    np.testing.assert_allclose(back.theta_rad, pose.theta_rad)
    np.testing.assert_allclose(back.shift_px, pose.shift_px, atol=1e-12)


def test_paper_numbers():
    """A shift right and down, without rotation: the paper's dx looks the other way, in units of half the grid."""
    theta, dx = geometry.to_paper(Pose2D(np.zeros(1), np.array([[2.0, 1.0]])), 21)
    np.testing.assert_allclose(theta, 0)
    np.testing.assert_allclose(dx, [[-0.2, 0.1]])
    # On an even box the paper turns about a point half a pixel up and left of ours, so a bare turn moves our centre.
    pose = geometry.from_paper(np.array([math.pi]), np.zeros((1, 2)), 20)
    np.testing.assert_allclose(pose.shift_px, [[-1, -1]], atol=1e-12)
