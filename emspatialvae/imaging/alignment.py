"""Rotation and shift taken out of images."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, ndimage

from emspatialvae.imaging import geometry
from emspatialvae.imaging.arrays import Images
from emspatialvae.imaging.geometry import Pose2D


def align(images: ArrayLike, pose: Pose2D, fill: float = 0.0, order: Literal[0, 1, 2, 3, 4, 5] = 3) -> Images:
    """Take rotation and shift out: the image as the object's own frame sees it.

    Parameters
    ----------
    images
        Shape [n, box, box].
    pose
        n poses, shifts in pixels of these images.
    fill
        Value for what lies outside the image.
    order
        Degree of the interpolating spline.
    """
    stack = np.asarray(images, dtype=np.float32)
    x, y = geometry.pixel_grid(stack.shape[-1])
    centre = stack.shape[-1] // 2
    out = np.empty_like(stack)
    for n, image in enumerate(stack):
        theta, (shift_x, shift_y) = pose.theta_rad[n], pose.shift_px[n]
        at_x, at_y = geometry.object_to_image_xy(x, y, np.cos(theta), np.sin(theta), shift_x, shift_y)
        ndimage.map_coordinates(image, [at_y + centre, at_x + centre], out[n], order=order, mode="constant", cval=fill)
    return out


def align_by_shears(images: Images, pose: Pose2D) -> Images:
    """What `align` makes of images [n, box, box] at n poses (shifts in their pixels), within the inscribed circle.

    Zero is what lies outside the image, or whose way through the shears leaves the box: that happens in the corners.
    """
    box = images.shape[-1]
    quarters, *factors = geometry.shears(pose.theta_rad)
    a, b, shift_x, shift_y = (values.astype(np.float32)[:, None] for values in (*factors, *pose.shift_px.T))
    axis = np.asarray(geometry.pixel_axis(box), dtype=np.float32)
    # q is seen at p = X(a) Y(b) X(a) q + shift: p's own shear comes first, and the shift goes along with the first two.
    out = _moved(images, a * (axis - shift_y) + shift_x, 2)
    out = _moved(out, b * axis + shift_y, 1)
    out = _moved(out, a * axis, 2)
    out *= _stays_inside(axis, *(values[..., None] for values in (a, b, shift_x, shift_y)))
    return _turned(out, quarters)


def _moved(images: Images, move: NDArray[np.floating], along: int) -> Images:
    """Rows (``along`` 2) or columns (1) of images [n, b, b] by their own moves [n, b]: pixel i then shows what was at i + move."""
    lines = images if along == 2 else images.swapaxes(1, 2)
    spectrum = np.asarray(fft.rfft(lines, axis=2))  # in float32, twice as fast as numpy's
    phase = move[..., None] * (2 * np.pi * np.fft.rfftfreq(lines.shape[2])).astype(np.float32)
    turn = np.empty(spectrum.shape, dtype=np.complex64)
    np.cos(phase, out=turn.real)
    np.sin(phase, out=turn.imag)
    spectrum *= turn
    lines = np.asarray(fft.irfft(spectrum, lines.shape[2], axis=2), dtype=np.float32)
    return lines if along == 2 else lines.swapaxes(1, 2)


def _stays_inside(axis: Images, a: Images, b: Images, shift_x: Images, shift_y: Images) -> NDArray[np.bool_]:
    """Where each of the shears (factors and shifts [n, 1, 1]) looks within the box; shape [n, box, box]."""
    middle, reach = (axis[0] + axis[-1]) / 2, (axis[-1] - axis[0]) / 2 + np.float32(1e-3)
    x = axis + a * axis[:, None]
    y = axis[:, None] + b * x + shift_y
    inside = np.abs(x - middle) <= reach
    inside &= np.abs(y - middle) <= reach
    x += a * (y - shift_y) + shift_x
    return np.logical_and(inside, np.abs(x - middle) <= reach, out=inside)


def _turned(images: Images, quarters: NDArray[np.integer]) -> Images:
    """Images [n, b, b] turned back by quarter turns [n] about the pixel ``b // 2``: pixels only change places."""
    out = np.empty(images.shape, dtype=np.float32)
    # On even boxes -b/2 would become +b/2, which the box does not hold: it wraps round to -b/2.
    box = int(images.shape[-1])
    mirrored = np.remainder(2 * (box // 2) - np.arange(box), box)
    turns: tuple[Callable[[Images], Images], ...] = (
        lambda some: some,
        lambda some: some.swapaxes(1, 2)[:, mirrored],
        lambda some: some[:, mirrored][:, :, mirrored],
        lambda some: some.swapaxes(1, 2)[:, :, mirrored],
    )
    for count, turn in enumerate(turns):
        rows = quarters % 4 == count
        out[rows] = turn(images[rows])
    return out
