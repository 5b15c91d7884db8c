"""Rotation and shift by shears: against formulas, against single pixels, and against the spline of `align`."""

import numpy as np
import pytest

from emspatialvae.imaging import alignment, geometry, masks
from emspatialvae.imaging.geometry import Pose2D


def poses(n, largest_px, seed=3):
    rng = np.random.default_rng(seed)
    return Pose2D(rng.uniform(-3 * np.pi, 3 * np.pi, n), rng.uniform(-largest_px, largest_px, (n, 2)))


def blobs(box, pose):
    """An object without symmetry, drawn at n poses by its formula; float32 [n, box, box]."""
    x, y = geometry.pixel_grid(box)
    out = np.zeros((len(pose), box, box))
    for at_x, at_y, sigma, height in ((6, 1, 2.0, 1.0), (-5, 4, 2.5, 0.7), (-2, -7, 1.5, 0.9), (0, 0, 4.0, 0.5)):
        cos_t, sin_t = np.cos(pose.theta_rad), np.sin(pose.theta_rad)
        c_x, c_y = geometry.object_to_image_xy(at_x, at_y, cos_t, sin_t, *pose.shift_px.T)
        out += height * np.exp(-((x - c_x[:, None, None]) ** 2 + (y - c_y[:, None, None]) ** 2) / (2 * sigma**2))
    return out.astype(np.float32)


def test_shears_and_quarter_turns_make_the_rotation():
    theta = np.linspace(-10, 10, 101)
    quarters, a, b = geometry.shears(theta)
    assert np.abs(a).max() < 0.42
    assert np.abs(b).max() < 0.71
    for t, q, along_x, along_y in zip(theta, quarters, a, b, strict=True):
        x_shear, y_shear = np.array([[1, along_x], [0, 1]]), np.array([[1, 0], [along_y, 1]])
        quarter = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), int(q) % 4)
        np.testing.assert_allclose(
            x_shear @ y_shear @ x_shear @ quarter, [[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]], atol=1e-12
        )


@pytest.mark.parametrize("box", [48, 49])
def test_a_phantom_comes_back(box):
    pose = poses(60, 4)
    object_ = blobs(box, Pose2D.identity(1))[0]
    images = blobs(box, pose)
    inside = masks.circular_mask(box, 17)
    aligned, by_spline = alignment.align_by_shears(images, pose), alignment.align(images, pose)
    assert aligned.dtype == np.float32
    for image in aligned:
        assert np.corrcoef(image[inside], object_[inside])[0, 1] > 0.9999
    error, spline_error = (np.abs(found - object_)[:, inside].max() for found in (aligned, by_spline))
    assert error < 2e-3 * object_.max()
    assert error < spline_error
    wrong = alignment.align_by_shears(images, Pose2D(pose.theta_rad, -pose.shift_px))
    assert np.abs(wrong - object_)[:, inside].max() > 0.3


@pytest.mark.parametrize("box", [20, 21])
@pytest.mark.parametrize("quarter", [-3, -2, -1, 0, 1, 2, 3, 4])
def test_one_bright_pixel_goes_where_the_pose_says(box, quarter):
    """No half pixel anywhere: quarter turns and whole pixels are exact, about index box // 2."""
    pose = Pose2D(np.array([quarter * np.pi / 2]), np.array([[2.0, -3.0]]))
    object_x, object_y = 4.0, 1.0
    at_x, at_y = geometry.object_to_image_xy(
        object_x, object_y, *(f(pose.theta_rad[0]) for f in (np.cos, np.sin)), 2, -3
    )
    image = np.zeros((1, box, box), np.float32)
    image[0, round(at_y) + box // 2, round(at_x) + box // 2] = 1
    expected = np.zeros((box, box))
    expected[1 + box // 2, 4 + box // 2] = 1
    np.testing.assert_allclose(alignment.align_by_shears(image, pose)[0], expected, atol=1e-5)


@pytest.mark.parametrize("box", [32, 33])
def test_fine_detail_is_not_damped(box):
    """A wave of 0.4 cycles per pixel keeps its height at any angle, where a cubic spline takes some of it."""
    x, _ = geometry.pixel_grid(box)
    window = masks.soft_mask(box, 6, 7)
    wave = (np.cos(2 * np.pi * 0.4 * x) * window)[None].astype(np.float32)
    pose = Pose2D(np.linspace(0, 2 * np.pi, 40), np.full((40, 2), 0.5))
    images = np.repeat(wave, 40, 0)
    kept = {
        name: np.std(align(images, pose), axis=(1, 2)) / wave.std()
        for name, align in (("shears", alignment.align_by_shears), ("spline", alignment.align))
    }
    assert 0.99 < kept["shears"].min() < kept["shears"].max() < 1.01
    assert kept["spline"].min() < 0.9


def test_noise_stays_as_strong_as_it_was():
    """Where no frequency lies at Nyquist itself, of which a real image keeps the cosine only."""
    noise = np.random.default_rng(0).normal(size=(50, 41, 41)).astype(np.float32)
    aligned = alignment.align_by_shears(noise, poses(50, 0.5))
    assert abs(aligned[:, masks.circular_mask(41, 15)].std() - 1) < 0.01


def test_what_the_image_does_not_hold_is_zero():
    images = np.ones((1, 20, 20), np.float32)
    moved = alignment.align_by_shears(images, Pose2D(np.zeros(1), np.array([[3.0, -2.0]])))[0]
    np.testing.assert_array_equal(moved[:2], 0)
    np.testing.assert_array_equal(moved[:, -3:], 0)
    np.testing.assert_allclose(moved[2:, :-3], 1, atol=1e-5)
    assert alignment.align_by_shears(np.zeros((0, 20, 20), np.float32), Pose2D.identity(0)).shape == (0, 20, 20)
